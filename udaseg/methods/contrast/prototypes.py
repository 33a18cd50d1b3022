"""SPCL: pull pixels towards the prototype of their class, the mean source feature."""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import all_reduce_sum, divisor_of_total
from udaseg.methods.contrast.class_losses import prototype_sum
from udaseg.methods.contrast.regularizer import PerViewRegularizer
from udaseg.methods.contrast.value_of_step import ValueOfStep
from udaseg.methods.fused import float32_products, rows_at_once
from udaseg.methods.pixel_loss import count_classes
from udaseg.methods.views import (
    MIXED,
    SOURCE,
    CellLabels,
    CellView,
    Need,
    View,
    Views,
    flatten_cells,
)
from udaseg.models.projector import LENGTH_EPS, to_unit_length
from udaseg.recipe.contrast import Prototypes


@torch.no_grad()
def class_sums(embeddings: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum (K, D) and the number (K,) of the unit vectors of each class.

    Embeddings (N, D) are normalised to unit length here; label 255 is ignored.
    """
    classes = torch.arange(num_classes, device=embeddings.device)
    step = rows_at_once(embeddings.shape[1], embeddings.device)
    with float32_products(embeddings.device):
        sums, counts = _sums_of_chunk(embeddings[:step], labels[:step], classes)
        for start in range(step, len(embeddings), step):
            part = slice(start, start + step)
            new_sums, new_counts = _sums_of_chunk(embeddings[part], labels[part], classes)
            sums += new_sums
            counts += new_counts
    return sums, counts


def _sums_of_chunk(embeddings: Tensor, labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    feature_nD = embeddings.float()
    # compared, not one_hot: one_hot reads the largest label and waits for the device
    member_nK = (labels[:, None] == classes).float()
    counts = member_nK.sum(0)
    # scales the small factor by the lengths, so the embeddings are not copied
    length_n1 = torch.linalg.vector_norm(feature_nD, dim=1, keepdim=True)
    member_nK *= length_n1.square_().add_(LENGTH_EPS**2).rsqrt_()
    return member_nK.T @ feature_nD, counts


class ClassPrototypes(nn.Module):
    """One vector per class: the moving mean of its unit source features.

    Args:
        num_classes: K.
        channels: D.
        momentum: Weight of the old prototype in an update.
        absent: For a class that is not in the batch, `keep` the prototype or let it `fade` towards
            zero, as in the release.
        normalise: Scale prototypes to unit length after an update; the release does not.

    Attributes:
        means: (K, D) float32.
        seen: (K,) bool, whether the class ever occurred.
    """

    means: Tensor
    seen: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        momentum: float,
        absent: Literal["keep", "fade"],
        normalise: bool,
    ) -> None:
        super().__init__()
        self.momentum, self.absent, self.normalise = momentum, absent, normalise
        self.register_buffer("means", torch.zeros(num_classes, channels))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @classmethod
    def from_spec(cls, spec: Prototypes, *, num_classes: int, channels: int) -> Self:
        """Return the prototypes that a recipe describes."""
        return cls(
            num_classes,
            channels,
            momentum=spec.momentum,
            absent=spec.absent,
            normalise=spec.normalise,
        )

    @torch.no_grad()
    def initialise(self, means: Tensor, seen: Tensor) -> None:
        """Set the initial prototypes, from a pass over the source."""
        initial = means.to(self.means)
        self.means.copy_(to_unit_length(initial) if self.normalise else initial)
        self.seen.copy_(seen)

    @torch.no_grad()
    def preview_update(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and seen as they would be after `update`; change nothing.

        Args:
            embeddings: (N, D) features of the source.
            labels: (N,) integer; 255 is ignored.
        """
        return self.preview_with_count(embeddings, labels)[:2]

    @torch.no_grad()
    def preview_with_count(
        self, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `preview_update` and the number of labelled embeddings of all ranks."""
        sums, counts = class_sums(embeddings, labels, len(self.means))
        # joined for one collective operation
        joined = all_reduce_sum(torch.cat([sums, counts[:, None]], 1))
        sums, counts = joined[:, :-1], joined[:, -1:]
        present = counts > 0
        batch = sums / counts.clamp_min(1)
        updated = self.momentum * self.means + (1 - self.momentum) * batch
        # the first batch of a class sets its prototype; a moving mean would stay near zero
        updated = torch.where(present & ~self.seen[:, None], batch, updated)
        if self.normalise:
            updated = to_unit_length(updated)
        if self.absent == "keep":
            updated = torch.where(present, updated, self.means)
        return updated, self.seen | present[:, 0], counts.sum()

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Update the prototypes from a source batch; all ranks store the same values."""
        self.become(*self.preview_update(embeddings, labels))

    @torch.no_grad()
    def become(self, means: Tensor, seen: Tensor) -> None:
        """Take the values that `preview_update` returned."""
        self.means.copy_(means)
        self.seen.copy_(seen)


def image_means(view: CellView, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean unit feature (K, D) of correctly predicted cells, and seen (K,)."""
    sums, counts = class_sums(*_correct_cells(view), num_classes)
    return sums.double() / counts.double().clamp_min(1)[:, None], counts > 0


class PrototypeContrast(PerViewRegularizer):
    """SPCL's loss: contrast cells of the source and of a second view with source prototypes.

    A source cell counts if the student predicts its label; the prototypes are updated from the same
    cells. Cells of the second view count with their labels.

    Args:
        spec: Settings of the loss and of the prototypes.
        num_classes: K.
        channels: Channels of the features.
        second_view: `PSEUDO_LABELLED` target images, as published, or `MIXED` images in
            self-training.

    Reference:
        Xie et al., SPCL (2021), L_cl.
    """

    def __init__(
        self, spec: Prototypes, *, num_classes: int, channels: int, second_view: View = MIXED
    ) -> None:
        super().__init__()
        self.spec = spec
        self.second_view = second_view
        self.needs = (Need(SOURCE), Need(second_view))
        self.prototypes = ClassPrototypes.from_spec(
            spec, num_classes=num_classes, channels=channels
        )
        self._prototypes_of_step: ValueOfStep[tuple[Tensor, Tensor, Tensor]] = ValueOfStep()

    def view_loss(self, view: View, views: Views) -> Tensor:
        """Return the weighted loss of a view; the prototypes already include this step's source."""
        means, seen, source_total = self._prototypes_of_step.get(views, self._preview_update)
        cells = _correct_cells(views[view]) if view == SOURCE else self._sure_cells(views[view])
        total, count = prototype_sum(*cells, means, seen, self.spec.temperature)
        if view == SOURCE:  # its cells were counted with the prototypes
            divisor = divisor_of_total(source_total)
        else:
            divisor = self.divisor(views, count, lambda totals: (totals * seen).sum())
        return self.spec.weight * total / divisor

    def local_counts(self, views: Views) -> Tensor:
        """Return the cells of each class in the second view, (K,)."""
        labels = sure_labels(views.labels[self.second_view], self.spec.min_confidence)
        return count_classes(labels, len(self.prototypes.means))

    def update(self, views: Views) -> None:
        """Update the prototypes with the source features of this step."""
        means, seen, _ = self._prototypes_of_step.take(views, self._preview_update)
        self.prototypes.become(means, seen)

    def _preview_update(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        return self.prototypes.preview_with_count(*_correct_cells(views[SOURCE]))

    def _sure_cells(self, view: CellView) -> tuple[Tensor, Tensor]:
        """Return flat features and labels; the label is 255 where the teacher is not sure."""
        labels = sure_labels(view, self.spec.min_confidence)
        return flatten_cells(view.features), labels.flatten()


def sure_labels(view: CellView | CellLabels, min_confidence: float) -> Tensor:
    """Return the labels of a view, 255 where the teacher is less confident than this in them."""
    if view.label_confidence is None:
        return view.labels
    return view.labels.masked_fill(view.label_confidence < min_confidence, IGNORE)


def _correct_cells(view: CellView) -> tuple[Tensor, Tensor]:
    """Return flat features and labels; the label is 255 where the prediction differs."""
    labels = view.labels.masked_fill(view.labels != view.predictions, IGNORE)
    return flatten_cells(view.features), labels.flatten()
