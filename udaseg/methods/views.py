"""The views of a step: network outputs on the grid of cells, which regularizers compare.

A regularizer asks for views by name. A step makes only those that are needed: first those of the
teacher, then those of the student in the order of `STUDENT_VIEWS`. A pass of the student changes
batch-norm statistics, so the order is part of the result.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NewType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import to_device
from udaseg.errors import UdasegError
from udaseg.methods.augmentation import generator_for
from udaseg.methods.mixing import cells_to_pixels, paste, square_mask
from udaseg.models.segmenter import Segmenter, SegmenterOutput

View = NewType("View", str)

SOURCE = View("source")
"""The student on source images, with their labels."""

MIXED = View("mixed")
"""The student on ClassMix images, with mixed labels and the teacher's confidence in them."""

CUTMIX = View("cutmix")
"""The student on source images with a pasted square of the target. Labels come from the source
outside the square and from the teacher inside. Option `square_per`: `image` or `batch`."""

TARGET = View("target")
"""The teacher on plain target images; no gradient."""

TARGET_BY_STUDENT_HEAD = View("target_by_student_head")
"""`TARGET` with the teacher's features projected by the student's head; for an ablation."""

TEACHER_SOURCE = View("teacher_source")
"""The teacher on plain source images, with their labels; no gradient."""

PSEUDO_LABELLED = View("pseudo_labelled")
"""The student on plain target images, with pseudo-labels written before the stage."""


@dataclass(frozen=True)
class Need:
    """A view that a regularizer reads.

    Attributes:
        embed: Whether it needs embeddings, which need a projection head.
        options: How to make the view; two regularizers cannot ask for different values.
    """

    view: View
    embed: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class CellView:
    """The output of a network for a batch, on the grid of cells.

    Attributes:
        features: (B, C, h, w).
        embeddings: (B, D, h, w) unit vectors; None unless needed.
        labels: (B, h, w) int64, a class or `IGNORE`; pseudo-labels if there is no ground truth.
        predictions: (B, h, w) int64, the most probable class; no gradient.
        confidence: (B, h, w) in [0, 1], probability of the prediction; no gradient.
        label_confidence: (B, h, w) in [0, 1], confidence of the teacher in `labels`, 1 where they
            come from the source; None if all labels count.
        square: (B, h, w) bool on the CPU, the cells of the pasted square; None in other views.
    """

    features: Tensor
    embeddings: Tensor | None
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    label_confidence: Tensor | None = None
    square: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """The views of one step, by name: `views[SOURCE]`.

    Attributes:
        progress: As `Batch.progress`, in [0, 1).
        seed: Seed of the regularizers' random choices.
        by_name: The views that exist; grows during the step.
    """

    step: int
    progress: float
    seed: int
    by_name: dict[View, CellView]

    def __getitem__(self, view: View) -> CellView:
        if view not in self.by_name:
            raise UdasegError(f"the step has no view '{view}', only {', '.join(self.by_name)}")
        return self.by_name[view]

    def drop_graph(self, view: View) -> None:
        """Free the graph of a view that exists."""
        seen = self.by_name[view]
        embeddings = None if seen.embeddings is None else seen.embeddings.detach()
        self.by_name[view] = replace(seen, features=seen.features.detach(), embeddings=embeddings)


@dataclass(frozen=True)
class StepContext:
    """The images of a step and the output of the teacher, from which views are computed.

    Attributes:
        augment: The strong augmentation of the student's images.
        source: (B, 3, H, W) source images in [0, 1].
        target: (B, 3, H, W) target images in [0, 1].
        target_output: Output of the teacher.
        target_labels: (B, H, W) uint8, the teacher's pseudo-labels.
        target_confidence: (B, H, W), the teacher's probability of its pseudo-labels.
    """

    batch: Batch
    student: Segmenter
    teacher: nn.Module
    augment: Callable[[Tensor, torch.Generator], Tensor]
    source: Tensor
    target: Tensor
    target_output: SegmenterOutput
    target_labels: Tensor
    target_confidence: Tensor

    @cached_property
    def target_view(self) -> CellView:
        """The teacher's view of the target images."""
        return cell_view(self.target_output, None)


def merge_needs(needs: Iterable[Need]) -> dict[View, Need]:
    """Return one need for each view, with embeddings if any of them needs embeddings."""
    merged: dict[View, Need] = {}
    for need in needs:
        if not isinstance(need, Need) or need.view not in SELF_TRAINING_VIEWS:
            raise UdasegError(
                f"a regularizer needs {need!r}, which is no Need of a view that self-training "
                f"makes: {', '.join(SELF_TRAINING_VIEWS)}"
            )
        earlier = merged.setdefault(need.view, need)
        for name, value in need.options.items():
            if earlier.options.get(name, value) != value:
                raise UdasegError(
                    f"two regularizers need the view '{need.view}' with {name}={value} and "
                    f"{name}={earlier.options[name]}; they cannot be combined"
                )
        options = {**earlier.options, **need.options}
        merged[need.view] = Need(need.view, earlier.embed or need.embed, options)
    return merged


def _cutmix(context: StepContext, need: Need) -> CellView:
    source, stride = context.source, context.student.output_stride
    size = (source.shape[-2], source.shape[-1])
    generator = generator_for(context.batch.seed, "cutmix")
    per: Literal["image", "batch"] = (
        "batch" if need.options.get("square_per") == "batch" else "image"
    )
    square = square_mask(len(source), size, stride, generator, per=per)
    pixels = to_device(cells_to_pixels(square, size, stride), source.device)
    pasted = paste(pixels, context.target, source)
    output: SegmenterOutput = context.student(context.augment(pasted, generator), embed=need.embed)
    source_labels = labels_on_cells(context.batch.source_labels, output)
    on_device = to_device(square, source.device)
    labels = paste(on_device, context.target_view.predictions, source_labels)
    return replace(cell_view(output, labels), square=square)


@torch.no_grad()
def _target_by_student_head(context: StepContext, _need: Need) -> CellView:
    assert context.student.projector is not None
    embeddings: Tensor = context.student.projector(context.target_view.features)
    return replace(context.target_view, embeddings=embeddings)


Maker = Callable[[StepContext, Need], CellView]

TEACHER_MAKERS: Mapping[View, Maker] = {
    TARGET: lambda context, _need: context.target_view,
    TEACHER_SOURCE: lambda context, need: labelled_view(
        context.teacher(context.source, embed=need.embed), context.batch.source_labels
    ),
    TARGET_BY_STUDENT_HEAD: _target_by_student_head,
}
"""How self-training makes each view without a graph."""

STUDENT_MAKERS: Mapping[View, Maker] = {CUTMIX: _cutmix}
"""How self-training makes each view of the student, in this order, after `SOURCE` and `MIXED`."""

SELF_TRAINING_VIEWS = (*TEACHER_MAKERS, SOURCE, MIXED, *STUDENT_MAKERS)

STUDENT_VIEWS = (SOURCE, MIXED, *STUDENT_MAKERS, PSEUDO_LABELLED)
"""The views with a graph, in the order in which a step makes them."""


def labels_on_cells(labels: Tensor, segmented: SegmenterOutput) -> Tensor:
    """Return (B, H, W) labels resized to the grid of cells by nearest neighbour, int64."""
    size = segmented.features.shape[-2:]
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def labelled_view(segmented: SegmenterOutput, labels: Tensor) -> CellView:
    """Return an output on the grid of cells, with (B, H, W) labels."""
    return cell_view(segmented, labels_on_cells(labels, segmented))


def mixed_view(
    segmented: SegmenterOutput, labels: Tensor, mask: Tensor, confidence: Tensor
) -> CellView:
    """Return the view of mixed images, with the teacher's confidence outside the mask.

    All maps are (B, H, W): the mixed labels, the pixels pasted from the source, and the teacher's
    confidence.
    """
    size = segmented.features.shape[-2:]
    on_cells = F.interpolate(confidence.masked_fill(mask, 1.0)[:, None], size)[:, 0]
    return replace(labelled_view(segmented, labels), label_confidence=on_cells)


def flatten_cells(maps: Tensor) -> Tensor:
    """Return (B, D, h, w) maps as (B h w, D), one row for each cell."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def cell_view(segmented: SegmenterOutput, labels: Tensor | None) -> CellView:
    """Return an output on the grid of cells; without labels, its predictions are the labels."""
    with torch.no_grad():
        confidence, predictions = segmented.cell_logits().float().softmax(1).max(1)
    return CellView(
        features=segmented.features,
        embeddings=segmented.embeddings,
        labels=predictions if labels is None else labels,
        predictions=predictions,
        confidence=confidence,
    )
