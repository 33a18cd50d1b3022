"""SPCL: pixels are drawn to the prototype of their class, the mean feature of the source."""

from typing import Literal

import torch
from torch import Tensor, nn

from udaseg.contrast.prototype_softmax import class_sums, prototype_sum
from udaseg.contrast.vectors import unit
from udaseg.contrast.views import CellView, Regularizer, View, Views
from udaseg.distributed import mean_share, sum_over_ranks
from udaseg.errors import UdasegError

_IGNORE = 255


class ClassPrototypes(nn.Module):
    """One unit vector a class, the moving mean of its source features.

    Args:
        num_classes: K.
        channels: D.
        momentum: Share of the old prototype that stays at an update.
        absent: A class that is not in the batch does `keep` its prototype or `fade` towards zero,
            as released.
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

    @torch.no_grad()
    def start(self, means: Tensor, seen: Tensor) -> None:
        """Begin with the prototypes of a pass over the source; see `PrototypeSums`."""
        first = means.to(self.means)
        self.means.copy_(unit(first) if self.normalise else first)
        self.seen.copy_(seen)

    @torch.no_grad()
    def after(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and seen as they will be after `update`, changing nothing.

        Args:
            embeddings: (N, D) features of the source.
            labels: (N,) integer; 255 is left out.
        """
        sums, counts = class_sums(embeddings, labels, len(self.means))
        sums, counts = sum_over_ranks(sums), sum_over_ranks(counts)
        present = counts > 0
        batch = sums / counts.clamp_min(1)[:, None]
        moved = self.momentum * self.means + (1 - self.momentum) * batch
        # the first batch of a class is its prototype, not a small step away from zero
        moved = torch.where((present & ~self.seen)[:, None], batch, moved)
        if self.normalise:
            moved = unit(moved)
        if self.absent == "keep":
            moved = torch.where(present[:, None], moved, self.means)
        return moved, self.seen | present

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Learn from a source batch; every rank stores the same."""
        means, seen = self.after(embeddings, labels)
        self.means.copy_(means)
        self.seen.copy_(seen)


class PrototypeSums:
    """The first prototypes, by one pass over the source.

    Of each image and class the mean unit feature is taken where the prediction is right; a
    prototype is the mean of these over the images that have the class. Sums are float64, so a pass
    that is split over processes gives the same.

    Args:
        num_classes: K.
        channels: D.

    Reference:
        Xie et al., SPCL (2021), initialisation.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        self.sums = torch.zeros(num_classes, channels, dtype=torch.float64)
        self.images = torch.zeros(num_classes, dtype=torch.float64)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, predictions: Tensor) -> None:
        """Take in one image.

        Args:
            features: (C, h, w).
            labels: (h, w) integer; 255 is left out.
            predictions: (h, w) integer.
        """
        right = labels.masked_fill(labels != predictions, _IGNORE).flatten()
        sums, counts = class_sums(features.flatten(1).T, right, len(self.images))
        present = counts > 0
        means = sums.double() / counts.double().clamp_min(1)[:, None]
        self.sums += torch.where(present[:, None], means, 0).to(self.sums.device)
        self.images += present.to(self.images)

    def merge(self, other: "PrototypeSums") -> None:
        """Take in the images of another part of the pass."""
        self.sums += other.sums
        self.images += other.images

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Return the means (K, D) float64, zero where a class never occurred, and seen (K,)."""
        return self.sums / self.images.clamp_min(1)[:, None], self.images > 0


class PrototypeContrast(Regularizer):
    """SPCL's term: source pixels and those of a second view against the source's prototypes.

    A source cell counts where the student already predicts its label; the same cells make the
    prototypes. A cell of the second view counts with its label.

    Args:
        num_classes: K.
        channels: Of the features.
        weight: Of the term.
        temperature: Of the softmax.
        momentum: See `ClassPrototypes`.
        absent: See `ClassPrototypes`.
        normalise: See `ClassPrototypes`.
        second: `pseudo_labelled` target images, as published, or `mixed` ones inside self-training.
        min_confidence: A mixed cell counts when the teacher is this sure of its label.

    Reference:
        Xie et al., SPCL (2021), L_cl.
    """

    wants_embeddings: bool = False

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        weight: float,
        temperature: float,
        momentum: float,
        absent: Literal["keep", "fade"],
        normalise: bool,
        second: Literal["mixed", "pseudo_labelled"] = "mixed",
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__()
        self.second, self.min_confidence = second, min_confidence
        self.needs: frozenset[View] = frozenset({"source", second})
        self.weight, self.temperature = weight, temperature
        self.prototypes = ClassPrototypes(
            num_classes, channels, momentum=momentum, absent=absent, normalise=normalise
        )

    def forward(self, views: Views) -> Tensor:
        """Return the weighted term, against the prototypes that include this step's source."""
        source, second = self._required(views)
        features, labels = _trusted(source)
        means, seen = self.prototypes.after(features, labels)
        total = self._mean(features, labels, means, seen)
        labels = second.labels
        if views.mixed_confidence is not None and self.second == "mixed":
            labels = labels.masked_fill(views.mixed_confidence < self.min_confidence, _IGNORE)
        return total + self._mean(_flat(second.features), labels.flatten(), means, seen)

    def update(self, views: Views) -> None:
        """Move the prototypes towards this step's source."""
        self.prototypes.update(*_trusted(self._required(views)[0]))

    def _mean(self, features: Tensor, labels: Tensor, means: Tensor, seen: Tensor) -> Tensor:
        total, count = prototype_sum(features, labels, means, seen, self.temperature)
        return self.weight * total / mean_share(count)

    def _required(self, views: Views) -> tuple[CellView, CellView]:
        second = views.mixed if self.second == "mixed" else views.pseudo_labelled
        if views.source is None or second is None:
            raise UdasegError(f"prototype contrast needs the source and the {self.second} view")
        return views.source, second


def _trusted(view: CellView) -> tuple[Tensor, Tensor]:
    """Return flat features and labels, the label void where the prediction is another."""
    labels = view.labels.masked_fill(view.labels != view.predictions, _IGNORE)
    return _flat(view.features), labels.flatten()


def _flat(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
