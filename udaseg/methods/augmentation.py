"""Photometric augmentation of image batches: colour jitter and blur, seeded by a generator.

Random numbers are drawn for the images of all ranks in order. An image gets the same numbers
however the images are distributed over ranks.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import slice_for_rank
from udaseg.recipe.methods import SourceJitter, StrongAugmentation

_BLUR_RADIUS = 5


def strong_augment(images: Tensor, generator: torch.Generator, spec: StrongAugmentation) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] with colour jitter and blur, drawn for each image.

    Reference:
        Tranheden et al., DACS (2021). Differs: the kernel radius is 5 px instead of a tenth of
        the image, which changes no pixel by more than 4e-6 at the largest published sigma.
    """
    augmented = []
    numbers = _random_numbers(8, len(images), generator)
    for image, (draws, order) in zip(images, numbers, strict=True):
        if draws[0] < spec.jitter_probability:
            image = _jitter_image(image, spec.jitter, spec.jitter, draws[1:5], order)
        if draws[5] < spec.blur_probability:
            low, high = spec.blur_sigma
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
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, size = F.pad(images, padding, mode="replicate"), images.shape[dim]
        images = padded.narrow(dim, 0, size) * weights[0]
        for index in range(1, len(weights)):
            images.add_(padded.narrow(dim, index, size), alpha=weights[index])
    return images


def color_jitter(images: Tensor, generator: torch.Generator, spec: SourceJitter) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] with colour jitter, drawn separately for each image."""
    numbers = _random_numbers(4, len(images), generator)
    return torch.stack(
        [
            _jitter_image(image, spec.strength, spec.hue, draws, order)
            for image, (draws, order) in zip(images, numbers, strict=True)
        ]
    )


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

    factors = [1 + strength * (2 * draw - 1) for draw in draws[:3]]
    adjustments = (
        (transforms.adjust_brightness, factors[0]),
        (transforms.adjust_contrast, factors[1]),
        (transforms.adjust_saturation, factors[2]),
        (transforms.adjust_hue, hue * (2 * draws[3] - 1)),
    )
    for step in order:
        adjust, amount = adjustments[step]
        image = adjust(image, amount)
    return image


def fourier_style(content: Tensor, style: Tensor, *, band: float) -> Tensor:
    """Return images `content` (B, 3, H, W) with the low-frequency amplitude of `style`.

    The window covers floor(min(H, W) * band) frequencies on each side of frequency 0, the mean,
    which is always included. `style` is resized to `content`. The result is float32 and not
    clamped, as published.

    Reference:
        Yang and Soatto, FDA (2020), with the centred window of the numpy code.
    """
    height, width = content.shape[-2:]
    with torch.autocast(content.device.type, enabled=False):
        if style.shape[-2:] != content.shape[-2:]:
            style = F.interpolate(style, (height, width), mode="bilinear", align_corners=False)
        spectrum = torch.fft.fft2(content.float())
        reach = math.floor(min(height, width) * band)
        low_rows = _low_frequencies(height, reach, content.device)[:, None]
        low = low_rows & _low_frequencies(width, reach, content.device)
        amplitude = torch.where(low, torch.fft.fft2(style.float()).abs(), spectrum.abs())
        styled: Tensor = torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real
        return styled.contiguous(memory_format=torch.channels_last)


def _low_frequencies(size: int, reach: int, device: torch.device) -> Tensor:
    """Return a mask of the `size` frequencies, in FFT order, that are at most `reach` from 0."""
    number = torch.arange(size, device=device)
    return torch.minimum(number, size - number) <= reach


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose, whose numbers do not depend on other purposes."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
