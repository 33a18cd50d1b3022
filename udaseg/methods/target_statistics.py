"""Replace the batch-norm statistics of a trained network with those of the target."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from udaseg.data.datasets.index import Sample
from udaseg.data.loading.crops import CropSource
from udaseg.models.pixels import image_batch
from udaseg.models.segmenter import Segmenter


def adapt_batch_norms(
    networks: Sequence[Segmenter],
    target: CropSource,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> None:
    """Set the batch norms of `networks` to the statistics of the target; change no weight.

    The running mean and variance become the averages over batches of up to `batch_size` whole,
    unlabelled images of one size; crops and mirroring of `target` are not applied. The networks
    must have no frozen batch norms; set their mode again afterwards, with `train()`. `on_progress`
    starts again for each network.

    Reference:
        Li et al., AdaBN (2016). Differs: statistics are averaged over batches, each normalised by
        its own statistics, instead of layer by layer over all images.
    """
    for network in networks:

        def passes() -> Iterator[Tensor]:
            done = 0
            for images in _batches(target, samples, batch_size):
                yield image_batch(images, device)
                done += len(images)
                on_progress(done, len(samples))

        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.track_running_stats = True  # off in a teacher with batch statistics
        update_bn(passes(), network)


def _batches(
    target: CropSource, samples: Sequence[Sample], batch_size: int
) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield batches of images in order; a change of image size starts a new batch."""
    pending: list[NDArray[np.uint8]] = []
    for sample in samples:
        image = target.read(sample)[0]
        if pending and (len(pending) == batch_size or pending[0].shape != image.shape):
            yield pending
            pending = []
        pending.append(image)
    if pending:
        yield pending
