"""Entropy minimisation on the target (MinEnt), and style transfer to source images (FDA)."""

import math

import torch
from torch import Tensor

from udaseg.adaptation.objective import LossReport, Objective, unit_range
from udaseg.adaptation.pixels import pixel_loss
from udaseg.data import Batch
from udaseg.models import Segmenter

_ROOT_EPS = 1e-8


class EntropyMinimization(Objective):
    """Cross-entropy on the source, plus the entropy of the predictions on the target.

    Args:
        student: The network to adapt.
        weight: Weight of the entropy term.
        power: The penalty of an entropy e is (e^2 + 1e-8) ** power, as in FDA; None uses e itself.
        band: Source images get the target's amplitude in these low frequencies; see
            `fourier_style`. None leaves the source images unchanged.

    Reference:
        Vu et al., ADVENT (2019), MinEnt; Yang and Soatto, FDA (2020). Differs: the entropy is taken
        at the logits' resolution, as FDA does; ADVENT upsamples them first.
    """

    def __init__(
        self, student: Segmenter, *, weight: float, power: float | None, band: float | None
    ) -> None:
        super().__init__()
        self.student = student
        self.weight, self.power, self.band = weight, power, band

    def forward(self, batch: Batch) -> LossReport:
        """Return the source loss and the entropy loss of the target."""
        if batch.target_images is None:
            raise ValueError("entropy minimisation needs target images in the batch")
        source, target = self.source_images(batch), unit_range(batch.target_images)
        if self.band is not None:
            partner = torch.arange(len(source), device=source.device) % len(target)
            source = fourier_style(source, target[partner], band=self.band)
        supervised = pixel_loss(self.student(source).logits, batch.source_labels)
        entropy = normalised_entropy(self.student(target).logits)
        penalty = entropy
        if self.power is not None:
            penalty = (entropy.square() + _ROOT_EPS) ** self.power
        term = self.weight * penalty.mean()
        figures = {"uncertainty": entropy.detach().mean()}
        return LossReport(supervised + term, {"source": supervised, "entropy": term}, figures)

    def after_step(self, step: int, report: LossReport) -> None:
        """Do nothing; this objective keeps no state."""


def normalised_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each cell divided by the maximum log(K), (B, h, w) in [0, 1].

    Args:
        logits: (B, K, h, w); finite values of any size give a finite gradient.
    """
    logs = logits.float().log_softmax(1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])


def fourier_style(content: Tensor, style: Tensor, *, band: float) -> Tensor:
    """Return `content` with the low-frequency amplitude of `style`.

    Args:
        content: (B, 3, H, W) images.
        style: (B, 3, H', W'); resized bilinearly if the size differs from `content`.
        band: The window covers b = floor(min(H, W) * band) frequencies on each side of frequency 0.
            Frequency 0, the mean, is always included.

    Returns:
        (B, 3, H, W) float32 in the value range of `content`, not clamped, as published.

    Reference:
        Yang and Soatto, FDA (2020), with the centred window of the numpy code.
    """
    height, width = content.shape[-2:]
    with torch.autocast(content.device.type, enabled=False):
        if style.shape[-2:] != content.shape[-2:]:
            style = torch.nn.functional.interpolate(
                style, (height, width), mode="bilinear", align_corners=False
            )
        content_spectrum, style_spectrum = (
            torch.fft.fft2(content.float()),
            torch.fft.fft2(style.float()),
        )
        reach = math.floor(min(height, width) * band)
        low = _near_zero(height, reach, content_spectrum.device)[:, None] & _near_zero(
            width, reach, content_spectrum.device
        )
        amplitude = torch.where(low, style_spectrum.abs(), content_spectrum.abs())
        styled: Tensor = torch.fft.ifft2(torch.polar(amplitude, content_spectrum.angle())).real
        return styled.contiguous(memory_format=torch.channels_last)


def _near_zero(size: int, reach: int, device: torch.device) -> Tensor:
    """Return a mask of the `size` frequencies, in FFT order, that are at most `reach` from 0."""
    number = torch.arange(size, device=device)
    return torch.minimum(number, size - number) <= reach
