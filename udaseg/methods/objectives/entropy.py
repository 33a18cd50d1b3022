"""Entropy minimisation on the target (MinEnt), and style transfer to source images (FDA)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.augmentation import fourier_style
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import count_labelled, pixel_loss
from udaseg.models.segmenter import Segmenter
from udaseg.models.upsampling import upsample
from udaseg.recipe.methods import EntropyMinimization as EntropySpec

_ROOT_EPS = 1e-8


class EntropyMinimization(Objective):
    """Cross-entropy on the source, plus the entropy of the predictions on the target.

    Args:
        spec: Settings of the penalty and of the style of source images; see `fourier_style`.

    Reference:
        Vu et al., ADVENT (2019), MinEnt; Yang and Soatto, FDA (2020).
    """

    def __init__(self, student: Segmenter, spec: EntropySpec) -> None:
        super().__init__(student)
        self.spec = spec

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the source loss, then the entropy loss of the target."""
        source, target = self.source_images(batch), self.target_images(batch)
        if self.spec.band is not None:
            partner = torch.arange(len(source), device=source.device) % len(target)
            source = fourier_style(
                source, target[partner], band=self.spec.band, window=self.spec.window
            )
        labels = batch.source_labels
        labelled = sums.reduce(labelled=count_labelled(labels))["labelled"]
        logits: Tensor = self.student(source).logits
        aligned = self.student.align_corners
        supervised = pixel_loss(logits, labels, num_labelled=labelled, align_corners=aligned)
        yield LossReport.of({"source": supervised}, is_last=False)

        logits = self.student(target).logits
        if self.spec.at == "pixels":
            logits = upsample(logits.float(), target.shape[-2:], align_corners=aligned)
        entropy = normalised_entropy(logits, self.spec.max_entropy)
        penalty = entropy
        if self.spec.power is not None:
            penalty = (entropy.square() + _ROOT_EPS) ** self.spec.power
        weight = self.spec.weight if batch.progress >= self.spec.start else 0.0
        figures = {"uncertainty": entropy.detach().mean()}
        yield LossReport.of({"entropy": weight * penalty.mean()}, figures=figures)


def normalised_entropy(logits: Tensor, maximum: float | None = None) -> Tensor:
    """Return the entropy of each cell of (B, K, h, w) logits divided by `maximum`, or else log(K).

    Finite values of any size give a finite gradient.
    """
    logs = logits.float().log_softmax(1)
    return -(logs.exp() * logs).sum(1) / (maximum or math.log(logits.shape[1]))
