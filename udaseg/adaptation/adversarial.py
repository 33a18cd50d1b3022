"""Adversarial adaptation in output space: a discriminator must not tell target from source."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from udaseg.adaptation.entropy import normalised_entropy
from udaseg.adaptation.objective import LossReport, Objective, unit_range
from udaseg.adaptation.pixels import pixel_loss
from udaseg.data import Batch
from udaseg.models import Segmenter

_SOURCE, _TARGET = 0.0, 1.0
_LOG_EPS = 1e-30


class Adversarial(Objective):
    """Cross-entropy on the source, and target outputs that pass for the source's.

    One backward serves both networks: the discriminator's weights are constants in the student's
    term, and the maps are constants in the discriminator's.

    Args:
        student: The network.
        discriminator: Maps (B, K, H, W) to logits; above 0 means target.
        sees: It sees `softmax` or weighted `self_information`.
        weight: Of the adversarial term.
        temperature: Divides the logits, of both domains.

    Reference:
        Tsai et al., AdaptSegNet (2018); Vu et al., ADVENT (2019); Xie et al., SPCL (2021), stage 1.
        Differs: one level; SPCL's release divides only source logits for the discriminator.
    """

    def __init__(
        self,
        student: Segmenter,
        discriminator: nn.Module,
        *,
        sees: Literal["softmax", "self_information"],
        weight: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.student = student
        self.discriminator = discriminator
        self.sees: Literal["softmax", "self_information"] = sees
        self.weight, self.temperature = weight, temperature

    def forward(self, batch: Batch) -> LossReport:
        """Return the loss of the source, of the student's disguise, and of the discriminator."""
        if batch.target_images is None:
            raise ValueError("adversarial training needs target images in the batch")
        source = self.student(self.source_images(batch)).logits / self.temperature
        target = self.student(unit_range(batch.target_images)).logits / self.temperature
        size = (batch.source_images.shape[-2], batch.source_images.shape[-1])
        target_size = (batch.target_images.shape[-2], batch.target_images.shape[-1])
        source_map = output_map(source.detach(), size, self.sees)
        target_map = output_map(target, target_size, self.sees)

        constant = {name: part.detach() for name, part in self.discriminator.named_parameters()}
        taken_for = functional_call(self.discriminator, constant, (target_map,))
        adversarial = self.weight * _guilt(taken_for, _SOURCE)
        told_source = _guilt(self.discriminator(source_map), _SOURCE)
        told_target = _guilt(self.discriminator(target_map.detach()), _TARGET)
        parts = {
            "source": pixel_loss(source, batch.source_labels),
            "adversarial": adversarial,
            "discriminator": (told_source + told_target) / 2,
        }
        figures = {"uncertainty": normalised_entropy(target.detach()).mean()}
        return LossReport(torch.stack(list(parts.values())).sum(), parts, figures)

    def after_step(self, step: int, report: LossReport) -> None:
        """Nothing to remember."""


def output_map(
    logits: Tensor, size: tuple[int, int], sees: Literal["softmax", "self_information"]
) -> Tensor:
    """Return what a discriminator sees of logits (B, K, h, w), at `size`, (B, K, H, W) float32.

    Args:
        logits: Enlarged bilinearly before the softmax.
        size: (H, W).
        sees: `softmax` probabilities, or `self_information` -p log2(p) / log2(K).
    """
    wide = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    shares = wide.softmax(1)
    if sees == "softmax":
        return shares
    return -shares * torch.log2(shares + _LOG_EPS) / math.log2(logits.shape[1])


def _guilt(logits: Tensor, domain: float) -> Tensor:
    wide = logits.float()
    return F.binary_cross_entropy_with_logits(wide, torch.full_like(wide, domain))
