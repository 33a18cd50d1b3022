"""Mean, variance and newest batch means of each class's source embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udaseg.contrast.vectors import unit
from udaseg.distributed import sum_over_ranks

_CHUNK = 4096


def class_moments(
    embeddings: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return counts (K,), means (K, D) and variances (K, D) of the unit vectors of each class.

    Variances are those of the whole population, sum of squares over the count. A class that does
    not occur has zeros.

    Args:
        embeddings: (N, D), scaled to unit length here; no gradient flows.
        labels: (N,) integer; 255 is left out.
        num_classes: K.

    Raises:
        ValueError: Labels that do not fit the embeddings.
    """
    if labels.shape != embeddings.shape[:1]:
        shapes = tuple(embeddings.shape), tuple(labels.shape)
        raise ValueError(f"embeddings (N, D) and labels (N,) do not fit: {shapes}")
    counts = torch.zeros(num_classes, device=embeddings.device)
    means = torch.zeros(num_classes, embeddings.shape[1], device=embeddings.device)
    variances = torch.zeros_like(means)
    classes = torch.arange(num_classes, device=embeddings.device)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            # compared, not one_hot: that looks at the largest label and waits for the device
            member_nK = (labels[part, None] == classes).float()
            query_nD = unit(embeddings[part])
            new_counts = member_nK.sum(0)
            divisor_K1 = new_counts.clamp_min(1)[:, None]
            new_means = (member_nK.T @ query_nD) / divisor_K1
            # centred before squaring: a tight class would lose its digits in E[x^2] - E[x]^2
            spread_nD = torch.addmm(query_nD, member_nK, new_means, alpha=-1).square_()
            new_variances = (member_nK.T @ spread_nD) / divisor_K1
            share_K1 = (new_counts / (counts + new_counts).clamp_min(1))[:, None]
            means, variances = _merged(means, variances, new_means, new_variances, share_K1)
            counts = counts + new_counts
    return counts, means, variances


def _merged(
    means: Tensor, variances: Tensor, new_means: Tensor, new_variances: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of two samples as one; `share` (K, 1) of it is the new one."""
    step = new_means - means
    spread = (1 - share) * variances + share * new_variances
    return means + share * step, spread + share * (1 - share) * step.square()


def _over_ranks(counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the moments of what all ranks hold together, exactly, by sums alone."""
    total = sum_over_ranks(counts)
    divisor_K1 = total.clamp_min(1)[:, None]
    mean = sum_over_ranks(counts[:, None] * means) / divisor_K1
    spread = counts[:, None] * (variances + (means - mean).square())
    return total, mean, sum_over_ranks(spread) / divisor_K1


@dataclass(frozen=True)
class StatisticsState:
    """What `ClassStatistics` holds at one moment; its attributes are described there."""

    means: Tensor
    variances: Tensor
    counts: Tensor
    seen: Tensor
    rows: Tensor
    cursor: Tensor
    filled: Tensor


class ClassStatistics(nn.Module):
    """Mean and diagonal variance of each class, and the means of its newest batches.

    A batch is merged exactly: with a momentum of 1 the statistics are those of all vectors so far,
    however they were split into batches. Below 1 the old vectors of a class count for less by that
    factor at each batch that holds the class, so that what an untrained network showed is
    forgotten; at equal counts this is the moving mean, without its bias at the start. Nothing of a
    class that is absent changes.

    Args:
        num_classes: K.
        channels: D.
        momentum: Share of the old weight that stays at an update, in [0, 1].
        bank_rows: L, batch means to keep of each class; 0 keeps none.

    Attributes:
        means: (K, D) float32, not scaled to unit length.
        variances: (K, D) float32.
        counts: (K,) float64 weights; in float32 they would stop to grow at 2^24 vectors.
        seen: (K,) bool, whether the class ever occurred.
        rows: (K, L, D) float32, in each class a ring of which the first `filled` hold something.
        cursor: (K,) int64, the row that comes next.
        filled: (K,) int64.

    Raises:
        ValueError: A momentum outside [0, 1], or a size that is too small.

    Reference:
        Xie et al., SePiCo (2023): cumulative, momentum 1; a bank of 200 batch means a class.
        Differs: the momentum is ours; the bank starts empty, not with a zero row in each class.
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
    def after(self, embeddings: Tensor, labels: Tensor) -> StatisticsState:
        """Return what `update` will store, changing nothing; the same on every rank.

        Args:
            embeddings: (N, D), scaled to unit length here.
            labels: (N,) integer; 255 is left out.
        """
        counts, batch, spread = _over_ranks(*class_moments(embeddings, labels, len(self.means)))
        present = counts > 0
        old = torch.where(present, self.momentum * self.counts, self.counts)
        total = old + counts
        share_K1 = (counts / total.clamp_min(1)).float()[:, None]
        means, variances = _merged(self.means, self.variances, batch, spread, share_K1)
        rows, cursor, filled = self._pushed(batch, present)
        return StatisticsState(
            # chosen, not only merged with a share of 0: what is absent stays bit for bit
            means=torch.where(present[:, None], means, self.means),
            variances=torch.where(present[:, None], variances, self.variances),
            counts=total,
            seen=self.seen | present,
            rows=rows,
            cursor=cursor,
            filled=filled,
        )

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Learn from a batch; every rank stores the same. See `after`."""
        state = self.after(embeddings, labels)
        for name, buffer in self.named_buffers():
            buffer.copy_(getattr(state, name))

    def _pushed(self, batch: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, cursor and filled with the batch means (K, D) of the present classes."""
        length = self.rows.shape[1]
        if length == 0:
            return self.rows, self.cursor, self.filled
        slot = torch.arange(length, device=self.rows.device)
        here_KL = (slot == self.cursor[:, None]) & present[:, None]
        rows = torch.where(here_KL[..., None], batch[:, None], self.rows)
        cursor = (self.cursor + present) % length
        return rows, cursor, (self.filled + present).clamp_max(length)
