"""A class that loader processes can import; they do not run the main script again."""

import torch

from udaseg.data.loading.batches import Batch, TrainingBatches

CROP = (512, 512)


class ReadyBatches(TrainingBatches):
    """Ready-made batches in our form."""

    def __getitem__(self, step: int) -> Batch:
        images = torch.zeros((2, 3, *CROP), dtype=torch.uint8)
        labels = torch.zeros((2, *CROP), dtype=torch.uint8)
        return Batch(step, 0.0, 0, images, labels, None)
