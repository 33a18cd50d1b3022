"""SePiCo's term on the mean embedding of a view."""

import math

import torch
from torch import Tensor

from udaseg.distributed import all_reduce_mean


def mean_embedding(embeddings: Tensor, counted: Tensor, divisor: Tensor) -> Tensor:
    """Return the mean (D,) over all ranks of the embeddings (N, D) that are `counted` (N,).

    Args:
        embeddings: Unit vectors of this rank.
        counted: bool.
        divisor: `mean_divisor` of the number of counted embeddings.

    Returns:
        Zero if none is counted. Averaged over ranks, its gradient is that of the mean over all.
    """
    own = (embeddings.float() * counted[:, None]).sum(0) / divisor
    return own + (all_reduce_mean(own.detach()) - own.detach())


def mean_embedding_loss(
    mean: Tensor, prototypes: Tensor, seen: Tensor, temperature: float
) -> Tensor:
    """Return the sum over classes of ln softmax(mean . prototype / temperature), over K ln K.

    It is -1, its highest value, where the mean embedding is as similar to each class as to any
    other, so minimising it pulls the mean embedding away from some classes. A mean of 0, that of no
    vector, has the value 0.

    Args:
        mean: (D,), the only input with a gradient.
        prototypes: (K, D), used without normalisation.
        seen: (K,) bool; the other classes are in no sum.
        temperature: Above 0.

    Reference:
        Xie et al., SePiCo (2023), the regulariser of the release.
    """
    classes = len(prototypes)
    # float64: at a high temperature the softmax is even but for rounding. No matrix product, which
    # autocast would round.
    similarity = (prototypes.detach().double() * mean).sum(1) / temperature
    scores = similarity.masked_fill(~seen, -torch.inf).log_softmax(0)
    total = scores.masked_fill(~seen, 0.0).sum() / (classes * math.log(classes))
    return torch.where(mean.any(), total.float(), 0.0)
