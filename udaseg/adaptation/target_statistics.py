"""Batch-norm statistics of the target for a network that was trained with others."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from udaseg.adaptation.objective import unit_range
from udaseg.data import Crops, Sample
from udaseg.models import Segmenter


def adapt_statistics(
    networks: Sequence[Segmenter],
    target: Crops,
    samples: Sequence[Sample],
    *,
    batch: int,
    device: torch.device,
    seen: Callable[[int, int], None],
) -> None:
    """Put the target's statistics into the batch norms of `networks`; no weight changes.

    The running mean and variance become the averages over batches of whole, unlabelled images.
    Images of one size go through together, `batch` at a time.

    Args:
        networks: On `device`, no batch norm frozen. Set their mode anew afterwards.
        target: How images are read; crops and mirroring are left out, no label is read.
        samples: Which of its images.
        batch: Images at a time.
        device: Where the networks are.
        seen: Told after each batch of the images done and all of them, for each network anew.

    Reference:
        Li et al., AdaBN (2016). Differs: statistics are averaged over batches that are normalised
        by themselves, instead of layer by layer over all images.
    """
    for network in networks:

        def passes() -> Iterator[Tensor]:
            done = 0
            for images in _batches(target, samples, batch):
                yield unit_range(images.to(device))
                done += len(images)
                seen(done, len(samples))

        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.track_running_stats = True  # a teacher that uses the batch's has it off
        update_bn(passes(), network)


def _batches(target: Crops, samples: Sequence[Sample], batch: int) -> Iterator[Tensor]:
    """Yield (B, 3, H, W) uint8 images in order; a change of size begins a new batch."""
    held: list[Tensor] = []
    for sample in samples:
        image = torch.from_numpy(target.read(sample)[0]).permute(2, 0, 1)
        if held and (len(held) == batch or held[0].shape != image.shape):
            yield torch.stack(held)
            held = []
        held.append(image)
    if held:
        yield torch.stack(held)
