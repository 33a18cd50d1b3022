"""Mean, variance and newest batch means of the source embeddings of each class."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from udaseg.distributed import all_reduce_sum, rank, world_size
from udaseg.methods.fused import float32_products, rows_at_once
from udaseg.models.projector import to_unit_length

Moments = tuple[Tensor, Tensor, Tensor]
"""Counts (K,), means (K, D) and variances (K, D) of the unit vectors of each class, float32.

Variances are population variances, divided by the count. A class that does not occur has zeros.
"""


@torch.no_grad()
def class_moments(embeddings: Tensor, labels: Tensor, num_classes: int) -> Moments:
    """Return the moments of each class.

    Embeddings (N, D) are normalised to unit length here; label 255 is ignored.
    """
    if labels.shape != embeddings.shape[:1]:
        shapes = tuple(embeddings.shape), tuple(labels.shape)
        raise ValueError(f"embeddings (N, D) and labels (N,) do not match: {shapes}")
    classes = torch.arange(num_classes, device=embeddings.device)
    step = rows_at_once(embeddings.shape[1], embeddings.device)
    with float32_products(embeddings.device):
        moments = _moments_of_chunk(embeddings[:step], labels[:step], classes)
        for start in range(step, len(embeddings), step):
            part = slice(start, start + step)
            new = _moments_of_chunk(embeddings[part], labels[part], classes)
            counts = moments[0] + new[0]
            share_K1 = (new[0] / counts.clamp_min(1))[:, None]
            moments = counts, *_merge_moments(*moments[1:], *new[1:], share_K1)
    return moments


def _moments_of_chunk(embeddings: Tensor, labels: Tensor, classes: Tensor) -> Moments:
    # compared, not one_hot: one_hot reads the largest label and waits for the device
    member_nK = (labels[:, None] == classes).float()
    query_nD = to_unit_length(embeddings)
    counts = member_nK.sum(0)
    divisor_K1 = counts.clamp_min(1)[:, None]
    means = (member_nK.T @ query_nD).div_(divisor_K1)
    # centred before squaring: E[x^2] - E[x]^2 would lose the digits of a small variance
    spread_nD = torch.addmm(query_nD, member_nK, means, alpha=-1).square_()
    return counts, means, (member_nK.T @ spread_nD).div_(divisor_K1)


def _merge_moments(
    means: Tensor, variances: Tensor, new_means: Tensor, new_variances: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of two merged samples; `share` (K, 1) is the new sample's share."""
    distance = (new_means - means).square_()
    variances = variances.lerp(new_variances, share).addcmul_(share * (1 - share), distance)
    return means.lerp(new_means, share), variances


def _moments_of_all_ranks(counts: Tensor, means: Tensor, variances: Tensor) -> Moments:
    """Return the exact moments of the samples of all ranks, with one collective operation."""
    if world_size() == 1:
        return counts, means, variances
    own = torch.cat([counts[:, None], means, variances], 1)
    each = own.new_zeros(world_size(), *own.shape)
    each[rank()] = own
    # each rank writes its own block, so the sum copies all blocks to all ranks
    sizes = [1, means.shape[1], means.shape[1]]
    count_RK1, mean_RKD, variance_RKD = torch.split(all_reduce_sum(each), sizes, 2)
    total_K1 = count_RK1.sum(0)
    share_RK1 = count_RK1 / total_K1.clamp_min(1)
    mean_KD = (share_RK1 * mean_RKD).sum(0)
    spread_RKD = variance_RKD + (mean_RKD - mean_KD).square()
    return total_K1[:, 0], mean_KD, (share_RK1 * spread_RKD).sum(0)


class ClassStatistics(nn.Module):
    """Mean and diagonal variance of each class, and the means of its newest batches.

    Batches are merged exactly: with a momentum of 1 the statistics are those of all vectors so far,
    however they were split into batches. With a momentum below 1, each batch that contains a class
    multiplies the weight of its old vectors by the momentum, so embeddings of the untrained network
    are forgotten. With equal counts this is a moving mean without the bias at the start. The
    statistics of absent classes do not change.

    Args:
        num_classes: K.
        channels: D.
        momentum: Factor on the old weight at an update, in [0, 1].
        bank_rows: L, batch means to keep for each class; 0 keeps none.
        zero_row: The bank of each class starts with one row of zeros, which its first L batches
            fill up and then replace, as in SePiCo's release; otherwise it starts empty.

    Attributes:
        means: (K, D) float32, not scaled to unit length.
        variances: (K, D) float32.
        counts: (K,) float64 weights; in float32 they would stop growing at 2^24 vectors.
        seen: (K,) bool, whether the class ever occurred.
        rows: (K, L, D) float32, a ring buffer for each class; the first `filled` rows are in use.
        cursor: (K,) int64, the next row to write.
        filled: (K,) int64, rows in use.

    Raises:
        ValueError: The momentum is outside [0, 1], or a size is too small.

    Reference:
        Xie et al., SePiCo (2023): cumulative, momentum 1; a bank of 200 batch means a class.
        Differs: the momentum is an addition.
    """

    means: Tensor
    variances: Tensor
    counts: Tensor
    seen: Tensor
    rows: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        momentum: float,
        bank_rows: int = 0,
        zero_row: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        if min(num_classes, channels) < 1 or bank_rows < 0:
            sizes = num_classes, channels, bank_rows
            raise ValueError(f"classes and channels must be >= 1, bank_rows >= 0, got {sizes}")
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(num_classes, channels))
        self.register_buffer("variances", torch.zeros(num_classes, channels))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("rows", torch.zeros(num_classes, bank_rows, channels))
        filled = torch.full((num_classes,), int(zero_row and bank_rows > 0))
        self.register_buffer("cursor", filled % max(1, bank_rows))
        self.register_buffer("filled", filled)

    @torch.no_grad()
    def preview_update(self, embeddings: Tensor, labels: Tensor) -> Self:
        """Return a copy as it would be after `update`; change nothing."""
        counts, batch, spread = _moments_of_all_ranks(
            *class_moments(embeddings, labels, len(self.means))
        )
        present = counts > 0
        old = torch.where(present, self.momentum * self.counts, self.counts)
        total = old + counts
        share_K1 = (counts / total.clamp_min(1)).float()[:, None]
        means, variances = _merge_moments(self.means, self.variances, batch, spread, share_K1)
        after = copy.copy(self)
        after._buffers = {
            **self._buffers,
            # selected, not only merged with a share of 0: absent classes stay bit-identical
            "means": torch.where(present[:, None], means, self.means),
            "variances": torch.where(present[:, None], variances, self.variances),
            "counts": total,
            "seen": self.seen | present,
        }
        if (length := self.rows.shape[1]) > 0:
            slot = torch.arange(length, device=self.rows.device)
            replaced_KL = (slot == self.cursor[:, None]) & present[:, None]
            after.rows = torch.where(replaced_KL[..., None], batch[:, None], self.rows)
            after.cursor = (self.cursor + present) % length
            after.filled = (self.filled + present).clamp_max(length)
        return after

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Update the statistics from a batch; all ranks store the same.

        Args:
            embeddings: (N, D), normalised to unit length here.
            labels: (N,) integer; 255 is ignored.
        """
        self.become(self.preview_update(embeddings, labels))

    @torch.no_grad()
    def become(self, after: Self) -> None:
        """Take the values of a copy that `preview_update` returned."""
        for own, new in zip(self.buffers(), after.buffers(), strict=True):
            if new is not own:
                own.copy_(new)
