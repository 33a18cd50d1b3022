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
    limit = Limit(ITEMS_AHEAD + batch_size)
    for network in networks:

        def passes() -> Iterator[Tensor]:
            done = 0
            with closing(read_ahead(lambda each: target.read(each)[0], samples, limit)) as images:
                for batch in batches_of_one_size(images, np.shape, Limit(batch_size)):
                    yield image_batch(batch, device)
                    done += len(batch)
                    on_progress(done, len(samples))

        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.track_running_stats = True  # off in a teacher with batch statistics
        # whole images, in training mode: compiled code serves the step alone
        with torch.compiler.set_stance("force_eager"):
            update_bn(passes(), network)
