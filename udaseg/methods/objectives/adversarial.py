"""Adversarial adaptation in output space: make target outputs look like source outputs."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.fused import float32_products
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import count_labelled, pixel_loss
from udaseg.models.segmenter import Segmenter
from udaseg.models.upsampling import upsample
from udaseg.recipe.methods import Adversarial as AdversarialSpec

_SOURCE, _TARGET = 0.0, 1.0
_LOG_EPS = 1e-30


class Adversarial(Objective):
    """Cross-entropy on the source, plus an adversarial loss on the outputs for the target.

    One backward pass serves both networks: the discriminator's weights are constants in the
    student's term, and the output maps are constants in the discriminator's term.

    Args:
        discriminator: Maps (B, K, H, W) to logits; above 0 means target.
        spec: Settings of the losses.

    Reference:
        Tsai et al., AdaptSegNet (2018); Vu et al., ADVENT (2019); Xie et al., SPCL (2021), stage 1.
        Differs: one level.
    """

    def __init__(self, student: Segmenter, discriminator: nn.Module, spec: AdversarialSpec) -> None:
        super().__init__(student)
        self.discriminator = discriminator
        self.spec = spec

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the losses on the source, then the adversarial loss and those on the target.

        The discriminator's own loss is the mean of one term on each domain.
        """
        source_images, target_images = self.source_images(batch), self.target_images(batch)
        labelled = sums.reduce(labelled=count_labelled(batch.source_labels))["labelled"]
        source = self._logits(source_images, self.spec.temperature)
        parts = {
            "source": pixel_loss(
                source,
                batch.source_labels,
                num_labelled=labelled,
                align_corners=self.student.align_corners,
            ),
            "discriminator": self._discriminator_loss(source, source_images, _SOURCE) / 2,
        }
        yield LossReport.of(parts, is_last=False)

        target = self._logits(target_images, self.spec.target_temperature or self.spec.temperature)
        target_map = self._output_map(target, target_images)
        constants = {name: part.detach() for name, part in self.discriminator.named_parameters()}
        domain_logits = functional_call(self.discriminator, constants, (target_map,))
        parts = {
            "adversarial": self.spec.weight * _domain_loss(domain_logits, _SOURCE),
            "discriminator": _domain_loss(self.discriminator(target_map.detach()), _TARGET) / 2,
        }
        yield LossReport.of(
            parts, figures={"uncertainty": normalised_entropy(target.detach()).mean()}
        )

    def _logits(self, images: Tensor, temperature: float) -> Tensor:
        """Return the student's logits divided by the temperature, in float32."""
        logits: Tensor = self.student(images).logits
        return logits.float() / temperature

    def _discriminator_loss(self, logits: Tensor, images: Tensor, domain: float) -> Tensor:
        return _domain_loss(self.discriminator(self._output_map(logits.detach(), images)), domain)

    def _output_map(self, logits: Tensor, images: Tensor) -> Tensor:
        size, aligned = images.shape[-2:], self.student.align_corners
        return output_map(logits, size, self.spec.sees, align_corners=aligned)


def output_map(
    logits: Tensor,
    size: Sequence[int],
    discriminator_input: Literal["softmax", "self_information"],
    *,
    align_corners: bool = False,
) -> Tensor:
    """Return the input of a discriminator, (B, K, H, W) float32, for logits (B, K, h, w).

    It is `softmax` probabilities p, or `self_information` -p log2(p) / log2(K).
    """
    with float32_products(logits.device):
        probabilities = upsample(logits.float(), size, align_corners=align_corners).softmax(1)
    if discriminator_input == "softmax":
        return probabilities
    return -probabilities * torch.log2(probabilities + _LOG_EPS) / math.log2(logits.shape[1])


def _domain_loss(logits: Tensor, domain: float) -> Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, domain))
