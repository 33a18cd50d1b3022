"""Photometric augmentation of image batches: colour jitter and blur, seeded by a generator.

Random numbers are drawn for the images of all ranks in order. An image gets the same numbers
however the images are distributed over ranks.
"""

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import slice_for_rank

_BLUR_RADIUS = 5


def strong_augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    jitter: float,
    jitter_probability: float,
    blur_probability: float,
    blur_sigma: tuple[float, float],
) -> Tensor:
    """Return the images with colour jitter and Gaussian blur, drawn separately for each image.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1].
        generator: A generator on the CPU.
        jitter: Strength s: brightness, contrast and saturation factors in [1 - s, 1 + s], hue
            rotated by at most s of a circle, in random order.
        jitter_probability: Probability of jitter for each image.
        blur_probability: Probability of blur for each image.
        blur_sigma: Range of the standard deviation in pixels.

    Returns:
        A new tensor in [0, 1].

    Reference:
        Tranheden et al., DACS (2021). Differs: the kernel radius is 5 px instead of a tenth of
        the image, which changes no pixel by more than 4e-6 at the largest published sigma.
    """
    augmented = []
    for image, (draws, order) in zip(
        images, _random_numbers(8, len(images), generator), strict=True
    ):
        if draws[0] < jitter_probability:
            image = _jitter_image(image, jitter, jitter, draws[1:5], order)
        if draws[5] < blur_probability:
            low, high = blur_sigma
            image = gaussian_blur(image[None], low + (high - low) * draws[6])[0]
        augmented.append(image)
    return torch.stack(augmented)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Return (B, 3, H, W) images blurred by a Gaussian of `sigma` px, with replicated edges.

    Uses sums of shifted images, because a depthwise convolution is slow on a CPU.
    """
    reach = _BLUR_RADIUS
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (taps / taps.sum()).tolist()
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach, reach, 0, 0), mode="replicate")
    blurred = padded[..., :width] * weights[0]
    for index in range(1, len(weights)):
        blurred.add_(padded[..., index : index + width], alpha=weights[index])
    padded = F.pad(blurred, (0, 0, reach, reach), mode="replicate")
    result: Tensor = padded[..., :height, :] * weights[0]
    for index in range(1, len(weights)):
        result.add_(padded[..., index : index + height, :], alpha=weights[index])
    return result


def color_jitter(
    images: Tensor, generator: torch.Generator, *, strength: float, hue: float
) -> Tensor:
    """Return the images with colour jitter, drawn separately for each image.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1].
        generator: A generator on the CPU.
        strength: s in [0, 1]: brightness, contrast and saturation factors in [1 - s, 1 + s].
        hue: h in [0, 0.5]: hue rotated by at most h of a circle. The four adjustments are applied
            in random order.

    Returns:
        A new tensor in [0, 1].
    """
    jittered = []
    for image, (draws, order) in zip(
        images, _random_numbers(4, len(images), generator), strict=True
    ):
        jittered.append(_jitter_image(image, strength, hue, draws, order))
    return torch.stack(jittered)


def _random_numbers(
    numbers: int, images: int, generator: torch.Generator
) -> list[tuple[list[float], list[int]]]:
    """Return uniform numbers and a permutation of 4 for each image of this rank."""
    total, rank_slice = slice_for_rank(images)
    drawn = [
        (
            torch.rand(numbers, generator=generator).tolist(),
            torch.randperm(4, generator=generator).tolist(),
        )
        for _ in range(total)
    ]
    return drawn[rank_slice]


def _jitter_image(
    image: Tensor, strength: float, hue: float, draws: list[float], order: list[int]
) -> Tensor:
    from torchvision.transforms.v2 import functional as transforms

    jittered: Any = image
    factors = [1 + strength * (2 * draw - 1) for draw in draws[:3]]
    for step in order:
        if step == 0:
            jittered = transforms.adjust_brightness(jittered, factors[0])
        elif step == 1:
            jittered = transforms.adjust_contrast(jittered, factors[1])
        elif step == 2:
            jittered = transforms.adjust_saturation(jittered, factors[2])
        else:
            jittered = transforms.adjust_hue(jittered, hue * (2 * draws[3] - 1))
    result: Tensor = jittered
    return result


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
        low = _low_frequencies(height, reach, content_spectrum.device)[:, None] & _low_frequencies(
            width, reach, content_spectrum.device
        )
        amplitude = torch.where(low, style_spectrum.abs(), content_spectrum.abs())
        styled: Tensor = torch.fft.ifft2(torch.polar(amplitude, content_spectrum.angle())).real
        return styled.contiguous(memory_format=torch.channels_last)


def _low_frequencies(size: int, reach: int, device: torch.device) -> Tensor:
    """Return a mask of the `size` frequencies, in FFT order, that are at most `reach` from 0."""
    number = torch.arange(size, device=device)
    return torch.minimum(number, size - number) <= reach


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose, whose numbers do not depend on other purposes."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
