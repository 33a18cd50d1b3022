"""Mean, variance and newest batch means of the source embeddings of each class."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from udaseg.distributed import all_reduce_sum
from udaseg.models.projector import to_unit_length

_CHUNK = 4096


def class_moments(
    embeddings: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return counts (K,), means (K, D) and variances (K, D) of the unit vectors of each class.

    Embeddings (N, D) are normalised to unit length here; label 255 is ignored. Variances are
    population variances, divided by the count. A class that does not occur has zeros.
    """
    if labels.shape != embeddings.shape[:1]:
        shapes = tuple(embeddings.shape), tuple(labels.shape)
        raise ValueError(f"embeddings (N, D) and labels (N,) do not match: {shapes}")
    counts = torch.zeros(num_classes, device=embeddings.device)
    means = torch.zeros(num_classes, embeddings.shape[1], device=embeddings.device)
    variances = torch.zeros_like(means)
    classes = torch.arange(num_classes, device=embeddings.device)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            # compared, not one_hot: one_hot reads the largest label and waits for the device
            member_nK = (labels[part, None] == classes).float()
            query_nD = to_unit_length(embeddings[part])
            new_counts = member_nK.sum(0)
            divisor_K1 = new_counts.clamp_min(1)[:, None]
            new_means = (member_nK.T @ query_nD) / divisor_K1
            # centred before squaring: E[x^2] - E[x]^2 would lose the digits of a small variance
            spread_nD = torch.addmm(query_nD, member_nK, new_means, alpha=-1).square_()
            new_variances = (member_nK.T @ spread_nD) / divisor_K1
            share_K1 = (new_counts / (counts + new_counts).clamp_min(1))[:, None]
            means, variances = _merge_moments(means, variances, new_means, new_variances, share_K1)
            counts = counts + new_counts
    return counts, means, variances


def _merge_moments(
    means: Tensor, variances: Tensor, new_means: Tensor, new_variances: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of two merged samples; `share` (K, 1) is the new sample's share."""
    step = new_means - means
    spread = (1 - share) * variances + share * new_variances
    return means + share * step, spread + share * (1 - share) * step.square()


def _all_reduce_moments(
    counts: Tensor, means: Tensor, variances: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the exact moments of the samples of all ranks, using only sums over ranks."""
    total = all_reduce_sum(counts)
    divisor_K1 = total.clamp_min(1)[:, None]
    mean = all_reduce_sum(counts[:, None] * means) / divisor_K1
    spread = counts[:, None] * (variances + (means - mean).square())
    return total, mean, all_reduce_sum(spread) / divisor_K1


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
        Differs: the momentum is an addition; the bank starts empty, not with a zero row per class.
    """

    means: Tensor
    variances: Tensor
    counts: Tensor
    seen: Tensor
    rows: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(
        self, num_classes: int, channels: int, *, momentum: float, bank_rows: int = 0
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
        self.register_buffer("cursor", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def preview_update(self, embeddings: Tensor, labels: Tensor) -> Self:
        """Return a copy as it would be after `update`; change nothing."""
        after = copy.copy(self)
        # not deepcopy: it reads the storage of tensors, which the memory estimate has none of
        after._buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        after.update(embeddings, labels)
        return after

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Update the statistics from a batch; all ranks store the same.

        Args:
            embeddings: (N, D), normalised to unit length here.
            labels: (N,) integer; 255 is ignored.
        """
        moments = class_moments(embeddings, labels, len(self.means))
        counts, batch, spread = _all_reduce_moments(*moments)
        present = counts > 0
        old = torch.where(present, self.momentum * self.counts, self.counts)
        total = old + counts
        share_K1 = (counts / total.clamp_min(1)).float()[:, None]
        means, variances = _merge_moments(self.means, self.variances, batch, spread, share_K1)
        # selected, not only merged with a share of 0: absent classes stay bit-identical
        self.means.copy_(torch.where(present[:, None], means, self.means))
        self.variances.copy_(torch.where(present[:, None], variances, self.variances))
        self.counts.copy_(total)
        self.seen |= present
        if (length := self.rows.shape[1]) > 0:
            slot = torch.arange(length, device=self.rows.device)
            replaced_KL = (slot == self.cursor[:, None]) & present[:, None]
            self.rows.copy_(torch.where(replaced_KL[..., None], batch[:, None], self.rows))
            self.cursor.copy_((self.cursor + present) % length)
            self.filled.copy_((self.filled + present).clamp_max(length))
