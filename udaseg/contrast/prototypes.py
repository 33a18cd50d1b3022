"""SPCL: pixels are drawn to the prototype of their class, the mean feature of the source."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from udaseg.contrast.vectors import LENGTH_EPS, unit
from udaseg.contrast.views import CellView, Regularizer, View, Views
from udaseg.distributed import mean_share, sum_over_ranks
from udaseg.errors import UdasegError

_CHUNK = 4096
_IGNORE = 255


def prototype_loss(
    embeddings: Tensor, labels: Tensor, prototypes: Tensor, seen: Tensor, *, temperature: float
) -> Tensor:
    """Return the mean cross-entropy of each vector's class among its similarities to prototypes.

    Args:
        embeddings: (N, D), scaled to unit length here; the only input that gets a gradient.
        labels: (N,) integer; 255 is left out, and so is a class without a prototype.
        prototypes: (K, D), as they are.
        seen: (K,) bool; prototypes that are not seen yet are in no denominator.
        temperature: Divides every similarity; above 0.

    Returns:
        A scalar; exactly 0, with a graph, when no vector counts.

    Raises:
        ValueError: Shapes that do not fit, or a temperature of 0 or less.

    Reference:
        Xie et al., SPCL (2021), L_cl. Differs: classes without a prototype are left out.
    """
    total, count = prototype_sum(embeddings, labels, prototypes, seen, temperature)
    return total / count.clamp_min(1)


def prototype_sum(
    embeddings: Tensor, labels: Tensor, prototypes: Tensor, seen: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted vectors and their number; see `prototype_loss`."""
    if labels.shape != embeddings.shape[:1] or prototypes.shape[1:] != embeddings.shape[1:]:
        shapes = tuple(embeddings.shape), tuple(labels.shape), tuple(prototypes.shape)
        raise ValueError(f"embeddings (N, D), labels (N,), prototypes (K, D) do not fit: {shapes}")
    if seen.shape != prototypes.shape[:1]:
        raise ValueError(f"seen {tuple(seen.shape)} but {len(prototypes)} prototypes")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    known = labels != _IGNORE
    counted = known & seen[labels.long().masked_fill(~known, 0)]
    with torch.autocast(embeddings.device.type, enabled=False):
        total: Tensor = _PrototypeSum.apply(
            embeddings, labels.long(), prototypes.detach(), seen, temperature, counted
        )
    return total, counted.sum()


class _PrototypeSum(torch.autograd.Function):
    """The sum with its gradient formed in the forward pass, a chunk of vectors at a time.

    With q = f / |f| the gradient of f is (g - q (q . g)) / |f|, where g, the gradient of q, is
    (softmax . prototypes - own prototype) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        seen: Tensor,
        temperature: float,
        counted: Tensor,
    ) -> Tensor:
        """Return the sum; keep the gradient for `backward`."""
        scaled_KD = prototypes.float() / temperature
        missing_K = ~seen
        gradient_ND = torch.empty(embeddings.shape, device=embeddings.device)
        loss = gradient_ND.new_zeros(())
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            feature_nD = embeddings[part].detach().float()
            length_n = (
                torch.linalg.vector_norm(feature_nD, dim=1).square() + LENGTH_EPS**2
            ).sqrt_()
            weight_n = counted[part].float()
            label_n1 = labels[part].masked_fill(~counted[part], 0)[:, None]
            # divided after the product: no unit vector of size n x D is ever made
            plain_nK = (feature_nD @ scaled_KD.T).div_(length_n[:, None])
            score_nK = plain_nK.masked_fill(missing_K, -torch.inf)
            # where nothing is seen every score is -inf; such rows do not count, keep them finite
            top_n1 = score_nK.amax(1, keepdim=True).nan_to_num_(neginf=0.0)
            own_n = (score_nK.gather(1, label_n1) - top_n1)[:, 0].nan_to_num_(neginf=0.0)
            share_nK = (score_nK - top_n1).exp_()
            total_n = share_nK.sum(1).clamp_min_(torch.finfo(torch.float32).tiny)
            loss = loss + ((total_n.log() - own_n) * weight_n).sum()
            share_nK.mul_((weight_n / total_n)[:, None])
            share_nK.scatter_add_(1, label_n1, -weight_n[:, None])
            along_n = (share_nK * plain_nK).sum(1)
            share_nK.div_(length_n[:, None])
            gradient_nD = gradient_ND[part]
            torch.mm(share_nK, scaled_KD, out=gradient_nD)
            gradient_nD.addcmul_(feature_nD, (along_n / length_n.square())[:, None], value=-1)
        # not a saved tensor: backward scales it in place, one copy of the features less
        ctx.gradient = gradient_ND.to(embeddings.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the embeddings alone."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("prototype_loss: the graph was used already; compute the loss again")
        return (gradient.mul_(grad), *[None] * 5)


def class_sums(embeddings: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum (K, D) of unit vectors of each class and their number (K,).

    Args:
        embeddings: (N, D), scaled to unit length here; no gradient flows.
        labels: (N,) integer; 255 is left out.
        num_classes: K.
    """
    sums = torch.zeros(num_classes, embeddings.shape[1], device=embeddings.device)
    counts = torch.zeros(num_classes, device=embeddings.device)
    classes = torch.arange(num_classes, device=embeddings.device)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            wide = embeddings[part].float()
            # compared, not one_hot: that looks at the largest label and waits for the device
            member_nK = (labels[part, None] == classes).float()
            counts += member_nK.sum(0)
            # the lengths go into the small factor: no scaled copy of the embeddings is made
            squares = torch.linalg.vector_norm(wide, dim=1).square_()
            sums += (member_nK * torch.rsqrt(squares + LENGTH_EPS**2)[:, None]).T @ wide
    return sums, counts


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
