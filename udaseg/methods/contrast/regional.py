"""RCCR: regional contrastive consistency between student and teacher views of one location."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import all_reduce_sum, mean_divisor, slice_for_rank, to_device, world_size
from udaseg.errors import UdasegError
from udaseg.methods.contrast.memory_bank import EMPTY, MemoryBank
from udaseg.methods.contrast.regional_loss import regional_sum
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.views import CellView, View, Views
from udaseg.models.projector import to_unit_length

_NO_LABEL = -2


class RegionalContrast(Regularizer):
    """RCCR's loss: inside the pasted square, contrast student cells with teacher cells.

    Anchors are the student's cells of the CutMix view inside the square. The positive of an anchor
    is the teacher's cell at the same location of the plain target image. Negatives are bank rows of
    other pseudo-classes. Two sampling rules apply: rows of the anchor's class are not negatives,
    and anchors without a confident pseudo-label do not count.

    Args:
        channels: Dimension of the embeddings.
        weight: Weight of the loss at the last step.
        ramp: The weight rises as exp(-5 (1 - sqrt(progress))).
        start: First step with contrast.
        temperature: Temperature of the softmax.
        min_confidence: Anchors need a teacher confidence above this.
        bank_steps: Number of steps in the bank, including the current one.
        cells_per_view: Random cells of each view added to the bank per step, over all ranks.
        region_size: Side of a region in cells.
        square_per: One square per `batch` or per `image`.
        keep_ignored: Add cells without a class to the bank, as negatives of every anchor.
        negative_sampling: If false, rows of the anchor's class stay negatives.
        positive_filtering: If false, every anchor counts.
        momentum_head: If false, the keys come from the student's head.
        ignore: Label of cells without a class.

    Reference:
        Zhou et al., RCCR (2022).
    """

    needs: frozenset[View] = frozenset({"cutmix", "target"})
    needs_embeddings: bool = True

    def __init__(
        self,
        *,
        channels: int,
        weight: float,
        ramp: bool,
        start: int,
        temperature: float,
        min_confidence: float,
        bank_steps: int,
        cells_per_view: int,
        region_size: int,
        square_per: Literal["image", "batch"],
        keep_ignored: bool,
        negative_sampling: bool = True,
        positive_filtering: bool = True,
        momentum_head: bool = True,
        ignore: int = 255,
    ) -> None:
        super().__init__()
        self.weight, self.ramp, self.start = weight, ramp, start
        self.temperature, self.min_confidence = temperature, min_confidence
        self.cells_per_view, self.region_size = cells_per_view, region_size
        self.square_per, self.keep_ignored = square_per, keep_ignored
        self.negative_sampling = negative_sampling
        self.positive_filtering = positive_filtering
        self.keys_by_student_head = not momentum_head
        self.ignore = ignore
        self.bank = MemoryBank(bank_steps, 2 * cells_per_view, channels)

    def weight_at(self, step: int, progress: float) -> float:
        """Return the weight of the loss at a step; 0 before the start."""
        if step < self.start:
            return 0.0
        return self.weight * (math.exp(-5 * (1 - math.sqrt(progress))) if self.ramp else 1.0)

    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss; change no state."""
        weight = self.weight_at(views.step, views.progress)
        queries, keys, labels, keep = self._pairs(views)
        if weight == 0:
            # keep the head in the graph, so that every step trains the same parameters
            return 0.0 * queries.sum()
        if not self.negative_sampling:
            labels = torch.full_like(labels, _NO_LABEL)
        bank, bank_labels = self.bank.rows_after_push(*self._new_rows(views))
        total, count = regional_sum(
            queries, keys, labels, bank, bank_labels, self.temperature, keep
        )
        return weight * total / mean_divisor(count)

    @torch.no_grad()
    def update(self, views: Views) -> None:
        """Store random cells of this step in the bank and drop the oldest step."""
        self.bank.push(*self._new_rows(views))

    def _pairs(self, views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries and keys (R, D), labels (R,), and a mask (R,) of those that count."""
        cutmix, target = _required_views(views)
        assert cutmix.embeddings is not None and views.square is not None
        keys = target.embeddings if not self.keys_by_student_head else views.target_by_student_head
        assert keys is not None
        queries, square = cutmix.embeddings, views.square
        labels, confidence = target.predictions, target.confidence
        if self.region_size > 1:
            queries, keys = (_pool_embeddings(part, self.region_size) for part in (queries, keys))
            square = F.max_pool2d(-square.float(), self.region_size) < 0
            labels, confidence = _region_labels(labels, confidence, self.region_size)
        inside = square.flatten()
        keep = inside
        if self.positive_filtering:
            keep = keep & (confidence.flatten() > self.min_confidence)
        return _flatten(queries), _flatten(keys), labels.flatten(), keep

    def _new_rows(self, views: Views) -> tuple[Tensor, Tensor]:
        """Return random cells of both views and their labels.

        Cells are drawn from those of all ranks. All ranks, and all calls in a step, return the same
        cells.
        """
        cutmix, target = _required_views(views)
        generator = torch.Generator().manual_seed(views.seed)
        rows, labels = [], []
        target_embeddings = (
            views.target_by_student_head if self.keys_by_student_head else target.embeddings
        )
        for view, embeddings in ((cutmix, cutmix.embeddings), (target, target_embeddings)):
            assert embeddings is not None
            cells, rank_slice = slice_for_rank(view.labels.numel())
            chosen = torch.randperm(cells, generator=generator)[: self.cells_per_view]
            chosen = to_device(chosen, view.labels.device)
            rows.append(_gather_rows(_flatten(embeddings.detach()), chosen, rank_slice))
            labels.append(_gather_rows(view.labels.flatten(), chosen, rank_slice))
        row_labels = torch.cat(labels)
        if not self.keep_ignored:
            row_labels = row_labels.masked_fill(row_labels == self.ignore, EMPTY)
        return torch.cat(rows), row_labels


def _required_views(views: Views) -> tuple[CellView, CellView]:
    if views.cutmix is None or views.target is None:
        raise UdasegError("regional contrast needs the CutMix view and the teacher's target view")
    return views.cutmix, views.target


def _gather_rows(rows: Tensor, chosen: Tensor, rank_slice: slice) -> Tensor:
    """Return the rows `chosen` among those of all ranks; this rank holds `rank_slice` of them."""
    if world_size() == 1:
        return rows[chosen]
    is_local = (chosen >= rank_slice.start) & (chosen < rank_slice.stop)
    local_rows = rows[(chosen - rank_slice.start).clamp(0, len(rows) - 1)]
    # each row is nonzero on one rank only, so the sum copies it to all
    return all_reduce_sum(
        torch.where(is_local[:, None] if local_rows.dim() > 1 else is_local, local_rows, 0)
    )


def _flatten(maps: Tensor) -> Tensor:
    """Return (B, D, h, w) as (B h w, D)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _pool_embeddings(embeddings: Tensor, size: int) -> Tensor:
    return to_unit_length(F.avg_pool2d(embeddings, size))


def _region_labels(labels: Tensor, confidence: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the label of the most confident cell of each region and its mean confidence."""
    height, width = (side // size * size for side in labels.shape[-2:])
    _, index = F.max_pool2d(confidence[:, None, :height, :width], size, return_indices=True)
    cropped = labels[:, :height, :width].flatten(1)
    chosen = cropped.gather(1, index.flatten(1)).view_as(index)[:, 0]
    return chosen, F.avg_pool2d(confidence[:, None], size)[:, 0]
