"""RCCR: regional contrastive consistency between student and teacher views of one location."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import all_reduce_sum, slice_for_rank, to_device, world_size
from udaseg.methods.contrast.memory_bank import EMPTY, MemoryBank
from udaseg.methods.contrast.regional_loss import regional_sum
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.contrast.value_of_step import ValueOfStep
from udaseg.methods.views import (
    AUGMENTED,
    CUTMIX,
    MIXED,
    TARGET,
    TARGET_BY_STUDENT_HEAD,
    CellLabels,
    CellView,
    Need,
    View,
    Views,
    flatten_cells,
)
from udaseg.models.projector import to_unit_length
from udaseg.recipe.contrast import Regional

_NO_LABEL = -2
_VIEW_OF_IMAGE: dict[str, View] = {"cutmix": CUTMIX, "classmix": MIXED, "target": AUGMENTED}


class RegionalContrast(Regularizer):
    """RCCR's loss: where the student sees the target, contrast its regions with the teacher's.

    A region is a cell, or a mean of `region_size` x `region_size` cells. Anchors are the student's
    regions of the augmented image that show the target: inside the square of the CutMix view, or as
    `spec.image` says. The positive of an anchor is the teacher's region at the same location of the
    plain target image. Negatives are bank rows, which are regions of both images, of other
    pseudo-classes. Two sampling rules apply: rows of the anchor's class are not negatives, and
    anchors without a confident pseudo-label do not count.

    Args:
        spec: Settings of the loss. `spec.projector` describes the network and is not read here.
        channels: Dimension of the embeddings.

    Reference:
        Zhou et al., RCCR (2022).
    """

    def __init__(self, spec: Regional, *, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.key_view = TARGET if spec.momentum_head else TARGET_BY_STUDENT_HEAD
        self.image_view = _VIEW_OF_IMAGE[spec.image]
        self.needs = (
            Need(self.image_view, embed=True, options=_view_options(spec)),
            # the student's head computes its own embeddings
            Need(self.key_view, embed=spec.momentum_head),
        )
        self.bank = MemoryBank(spec.bank_steps, 2 * spec.cells_per_view, channels)
        self._rows_of_step: ValueOfStep[tuple[Tensor, Tensor]] = ValueOfStep()

    def weight_at(self, step: int, progress: float) -> float:
        """Return the weight of the loss at a step; 0 before the start."""
        spec = self.spec
        if step < spec.start:
            return 0.0
        return spec.weight * (math.exp(-5 * (1 - math.sqrt(progress))) if spec.ramp else 1.0)

    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss; change no state."""
        weight = self.weight_at(views.step, views.progress)
        if weight == 0:
            # keep the head in the graph, so that every step trains the same parameters
            return 0.0 * _embeddings(views[self.image_view]).sum()
        queries, keys, labels, keep = self._pairs(views)
        if not self.spec.negative_sampling:
            labels = torch.full_like(labels, _NO_LABEL)
        new_rows = self._rows_of_step.get(views, self._new_rows)
        bank, bank_labels = self.bank.rows_after_push(*new_rows)
        total, count = regional_sum(
            queries,
            keys,
            labels,
            bank,
            bank_labels,
            self.spec.temperature,
            keep,
            self.spec.epsilon,
        )
        return weight * total / self.divisor(views, count)

    def local_counts(self, views: Views) -> Tensor:
        """Return the number of anchors, which the teacher and the pasted pixels decide."""
        return self._anchors(views[self.key_view], views.labels[self.image_view])[2].sum()

    @torch.no_grad()
    def update(self, views: Views) -> None:
        """Store random regions of this step in the bank and drop the oldest step."""
        self.bank.push(*self._rows_of_step.take(views, self._new_rows))

    def _pairs(self, views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries and keys (R, D), labels (R,), and a mask (R,) of those that count."""
        image, target = views[self.image_view], views[self.key_view]
        inside, labels, keep = self._anchors(target, image)
        queries, keys = (
            _selected(flatten_cells(self._region_embeddings(view)), inside)
            for view in (image, target)
        )
        return queries, keys, labels, keep

    def _anchors(
        self, target: CellView, image: CellView | CellLabels
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return index, label and whether it counts, (R,), of the regions that may be anchors.

        The square was drawn on the host: to find its cells there needs no wait for a GPU. Without a
        square the index is None, for all regions.
        """
        labels, confidence = target.predictions, target.confidence
        square, visible = image.square, image.from_target
        if (size := self.spec.region_size) > 1:
            labels, confidence = _region_labels(labels, confidence, size)
            square, visible = _whole_regions(square, size), _whole_regions(visible, size)
        inside = None
        if square is not None:
            inside = to_device(square.flatten().nonzero().flatten(), labels.device)
        labels = _selected(labels.flatten(), inside)
        keep = torch.ones_like(labels, dtype=torch.bool)
        if self.spec.positive_filtering:
            keep = _selected(confidence.flatten(), inside) > self.spec.min_confidence
        if visible is not None:
            keep = keep & visible.flatten()
        return inside, labels, keep

    def _region_embeddings(self, view: CellView) -> Tensor:
        """Return the mean vectors of the regions (B, D, h, w), at unit length."""
        embeddings, size = _embeddings(view), self.spec.region_size
        return to_unit_length(F.avg_pool2d(embeddings, size)) if size > 1 else embeddings

    def _labels_for_bank(self, view: CellView, target: CellView) -> Tensor:
        """Return the labels of regions (B, h, w): that of the most certain cell of each.

        Labels of the source are certain, void is not; among equals the first cell counts.
        """
        labels, size = view.labels, self.spec.region_size
        if size == 1:
            return labels
        certainty = target.confidence if view.label_confidence is None else view.label_confidence
        if view.square is not None:
            certainty = certainty.masked_fill(~to_device(view.square, labels.device), 1.0)
        return _region_labels(labels, certainty.masked_fill(labels == IGNORE, 0.0), size)[0]

    @torch.no_grad()
    def _new_rows(self, views: Views) -> tuple[Tensor, Tensor]:
        """Return random regions of both views and their labels.

        They are drawn from those of all ranks. All ranks, and all calls in a step, return the same
        regions.
        """
        generator = torch.Generator().manual_seed(views.seed)
        rows, labels, local = [], [], []
        target = views[self.key_view]
        for view in (views[self.image_view], target):
            of_regions = self._labels_for_bank(view, target)
            regions, rank_slice = slice_for_rank(of_regions.numel())
            chosen = torch.randperm(regions, generator=generator)[: self.spec.cells_per_view]
            is_local = (chosen >= rank_slice.start) & (chosen < rank_slice.stop)
            index = chosen[is_local.nonzero().flatten()] - rank_slice.start
            index = to_device(index, of_regions.device)
            rows.append(flatten_cells(self._region_embeddings(view)).index_select(0, index))
            labels.append(of_regions.flatten().index_select(0, index))
            local.append(is_local)
        row, label = _rows_of_all_ranks(torch.cat(rows), torch.cat(labels), torch.cat(local))
        if not self.spec.keep_ignored:
            label = label.masked_fill(label == IGNORE, EMPTY)
        return row, label


def _view_options(spec: Regional) -> dict[str, object]:
    """Return how the step makes the augmented image."""
    match spec.image:
        case "cutmix":
            names = "square_per", "square_corner", "square_share"
            return {name: getattr(spec, name) for name in names}
        case "classmix":
            return {"from_target": True}
        case "target":
            return {}


def _selected(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows.index_select(0, index)


def _whole_regions(mask: Tensor | None, size: int) -> Tensor | None:
    """Return the regions (B, h, w) of which all cells are in a mask (B, H, W)."""
    return None if mask is None else F.max_pool2d(-mask.float(), size) < 0


def _embeddings(view: CellView) -> Tensor:
    assert view.embeddings is not None
    return view.embeddings


def _rows_of_all_ranks(rows: Tensor, labels: Tensor, is_local: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and labels of all ranks, with one collective operation.

    `is_local` (N,), on the CPU, says which of the N rows of all ranks this rank has given.
    """
    if world_size() == 1:
        return rows, labels
    # labels are small integers, which float32 holds exactly
    labelled = torch.cat([rows.float(), labels[:, None].float()], 1)
    place = to_device(is_local.nonzero().flatten(), rows.device)
    every = labelled.new_zeros(len(is_local), labelled.shape[1]).index_copy_(0, place, labelled)
    # each row is nonzero on one rank only, so the sum copies it to all
    every = all_reduce_sum(every)
    return every[:, :-1], every[:, -1].long()


def _region_labels(labels: Tensor, confidence: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the label of the most confident cell of each region and its mean confidence."""
    height, width = (side // size * size for side in labels.shape[-2:])
    _, index = F.max_pool2d(confidence[:, None, :height, :width], size, return_indices=True)
    cropped = labels[:, :height, :width].flatten(1)
    chosen = cropped.gather(1, index.flatten(1)).view_as(index)[:, 0]
    return chosen, F.avg_pool2d(confidence[:, None], size)[:, 0]
