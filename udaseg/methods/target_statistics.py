"""Replace the batch-norm statistics of a trained network with those of the target."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from udaseg.data.datasets.index import Sample
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.threads import ITEMS_AHEAD, Limit, batches_of_one_size, read_ahead
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
        norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            norm.track_running_stats = True  # off in a teacher with batch statistics
        # whole images, in training mode: compiled code serves the step alone
        with torch.compiler.set_stance("force_eager"):
            update_bn(_batches(norms, target, samples, batch_size, device, on_progress), network)


def _batches(
    norms: Sequence[nn.BatchNorm2d],
    target: CropSource,
    samples: Sequence[Sample],
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> Iterator[Tensor]:
    """Yield batches of images of one size, in order, with a momentum for which the norms average.

    Without a momentum, as `update_bn` leaves them, they average too, but read their counters and
    wait for the device.
    """
    limit, done = Limit(ITEMS_AHEAD + batch_size), 0
    with closing(read_ahead(lambda sample: target.read(sample)[0], samples, limit)) as images:
        batches = batches_of_one_size(images, np.shape, Limit(batch_size))
        for number, batch in enumerate(batches, 1):
            for norm in norms:
                norm.momentum = 1 / number
            yield image_batch(batch, device)
            done += len(batch)
            on_progress(done, len(samples))
