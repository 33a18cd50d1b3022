"""The base class of training objectives, and what they share."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.augmentation import color_jitter, generator_for
from udaseg.methods.views import Views
from udaseg.models.pixels import to_unit_range
from udaseg.models.segmenter import Segmenter
from udaseg.recipe.methods import ColorJitter
from udaseg.runs.base import BaseWeights


@dataclass(frozen=True)
class LossReport:
    """The loss of one step and its components, or those of one of its backward passes.

    Attributes:
        parts: Scalars by name; their sum is the total.
        figures: Scalars by name that are monitored but not minimised; no gradient.
        views: Input of the regularizers; None without regularizers.
        predicted_counts: (K,) int64, target pixels that the teacher assigned to each class, counted
            in every fourth row and column; None without a teacher.
        is_last: Whether no backward pass of the step follows.
        seen: Sums over the images of all ranks, by name, that `after_step` remembers.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    views: Views | None = None
    predicted_counts: Tensor | None = None
    is_last: bool = True
    seen: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Mapping[str, Tensor], **rest: Any) -> Self:
        """Return a report whose total is the sum of the parts."""
        return cls(torch.stack(list(parts.values())).sum(), parts, **rest)


class Objective(nn.Module, ABC):
    """A training loss with the networks that it trains and the state that it keeps.

    Args:
        student: The network to adapt, and the one that inference uses.

    Attributes:
        source_jitter: Colour jitter of the source images; None applies none.
        target_jitter: The same for the target images.
        base: The weights file with the parameters that the state leaves out; None if it has all.
    """

    source_jitter: ColorJitter | None = None
    target_jitter: ColorJitter | None = None
    base: BaseWeights | None = None

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student

    @abstractmethod
    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the losses of a batch, those of each forward pass of the student by themselves.

        Every rank calls `sums.reduce` once, with the numbers that its losses need of all ranks.

        The caller runs the backward pass of each report before it asks for the next one, so that
        only one graph exists at a time, and gradients of all passes meet in the precision of the
        weights. The sum of all reports (`add_reports`) is the report of the step. No state changes
        except batch-norm statistics.
        """

    def forward(self, batch: Batch) -> LossReport:
        """Return the loss of a batch as one graph; in training, use `passes`."""
        return functools.reduce(add_reports, self.passes(batch, RankSums()))

    def after_step(self, step: int, report: LossReport) -> None:
        """Update the state of the objective after the optimiser step; by default there is none."""

    def idle_parameters(self, step: int) -> Iterable[nn.Parameter]:  # noqa: ARG002 (one contract)
        """Return the parameters that no loss of this step reaches, so that it changes none of them.

        Over several ranks, their gradients would be 0, and weight decay would change them.
        """
        return ()

    def target_images(self, batch: Batch) -> Tensor:
        """Return the batch's target images (B, 3, H, W) in [0, 1], with jitter if configured."""
        if batch.target_images is None:
            raise ValueError(f"{type(self).__name__} needs target images in the batch")
        return _jittered(batch.target_images, batch.seed, "target", self.target_jitter)

    def source_images(self, batch: Batch) -> Tensor:
        """Return the batch's source images (B, 3, H, W) in [0, 1], with jitter if configured."""
        return _jittered(batch.source_images, batch.seed, "source", self.source_jitter)


def _jittered(images: Tensor, seed: int, domain: str, jitter: ColorJitter | None) -> Tensor:
    images = to_unit_range(images)
    return images if jitter is None else color_jitter(images, generator_for(seed, domain), jitter)


def add_reports(first: LossReport, second: LossReport) -> LossReport:
    """Return the report of two backward passes; losses with the same name are added."""
    parts = dict(first.parts)
    for name, value in second.parts.items():
        parts[name] = parts[name] + value if name in parts else value
    return LossReport.of(
        parts,
        figures={**first.figures, **second.figures},
        views=first.views or second.views,
        predicted_counts=(
            second.predicted_counts if first.predicted_counts is None else first.predicted_counts
        ),
        is_last=second.is_last,
        seen=first.seen or second.seen,
    )
