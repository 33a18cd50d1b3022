"""Photometric augmentation of image batches: colour jitter and blur, seeded by a generator.

Random numbers are drawn for the images of all ranks in order. An image gets the same numbers
however the images are distributed over ranks.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import slice_for_rank, to_device
from udaseg.recipe.methods import ColorJitter, StrongAugmentation

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

Adjustment = tuple[int, float]
"""What to adjust, and by how much: a factor of at least 0, or for `HUE` turns in [-0.5, 0.5]."""

Kind = Literal["torchvision", "kornia_0_4"]
"""The library whose operations are used; see `StrongAugmentation.kind`."""

_Edges = Literal["replicate", "reflect"]

_GREY = (0.2989, 0.587, 0.114)
_BLUR_RADIUS = 5
_ROUNDS, _NUMBERS = 7, 5


class Change(NamedTuple):
    """What happens to one image.

    Attributes:
        adjustments: All four, in the order to apply them; empty for no jitter.
        sigma: Of the blur, in px; None for no blur.
    """

    adjustments: Sequence[Adjustment]
    sigma: float | None


def strong_augment(images: Tensor, generator: torch.Generator, spec: StrongAugmentation) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] with colour jitter and blur, drawn for each image.

    With `spec.per` batch, the first image of all ranks decides for all whether there is jitter and
    blur; their strength and order are always those of the image. The result is channels last.

    Reference:
        Tranheden et al., DACS (2021). Differs: the kernel radius is 5 px instead of a tenth of
        the image, which changes no pixel by more than 4e-6 at the largest published sigma (where
        edges are reflected, as there, with `spec.kind` kornia_0_4).
    """
    drawn, rank_slice = _random_numbers(8, len(images), generator)
    changes = []
    for draws, order in drawn[rank_slice]:
        adjustments = _adjustments(draws[1:5], order, spec.jitter, spec.jitter)
        low, high = spec.blur_sigma
        sigma = low + (high - low) * draws[6]
        decides = drawn[0][0] if spec.per == "batch" else draws
        jittered, blurred = decides[0] < spec.jitter_probability, decides[5] < spec.blur_probability
        changes.append(Change(adjustments if jittered else [], sigma if blurred else None))
    return change_images(images, changes, together=images.is_cuda, kind=spec.kind)


def color_jitter(images: Tensor, generator: torch.Generator, spec: ColorJitter) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] with colour jitter, drawn separately for each image.

    The result is channels last.
    """
    drawn, rank_slice = _random_numbers(4, len(images), generator)
    changes = [
        Change(_adjustments(draws, order, spec.strength, spec.hue), None)
        for draws, order in drawn[rank_slice]
    ]
    return change_images(images, changes, together=images.is_cuda)


def _random_numbers(
    numbers: int, images: int, generator: torch.Generator
) -> tuple[list[tuple[list[float], list[int]]], slice]:
    """Return uniform numbers and a permutation of 4 for each image of all ranks, and our part."""
    total, rank_slice = slice_for_rank(images)
    drawn = [
        (
            torch.rand(numbers, generator=generator).tolist(),
            torch.randperm(4, generator=generator).tolist(),
        )
        for _ in range(total)
    ]
    return drawn, rank_slice


def _adjustments(
    draws: Sequence[float], order: Sequence[int], strength: float, hue: float
) -> list[Adjustment]:
    amounts = [1 + strength * (2 * draw - 1) for draw in draws[:3]]
    amounts.append(hue * (2 * draws[3] - 1))
    return [(kind, amounts[kind]) for kind in order]


def change_images(
    images: Tensor, changes: Sequence[Change], *, together: bool, kind: Kind = "torchvision"
) -> Tensor:
    """Return float (B, 3, H, W) images in [0, 1], each with its change, channels last.

    An image without a change keeps its bits. All images go `together` through the same operations,
    the fewest, for a GPU; or one after the other, with the least arithmetic, for a CPU.
    """
    changed = torch.empty_like(images, memory_format=torch.channels_last)
    count = len(images) if together else 1
    with torch.autocast(images.device.type, enabled=False):
        for first in range(0, len(images), count):
            part = slice(first, first + count)
            changed[part].copy_(_changed(images[part], changes[part], kind, together=together))
    return changed


def _changed(images: Tensor, changes: Sequence[Change], kind: Kind, *, together: bool) -> Tensor:
    """Return the changed images in any layout; `images` if nothing happens to them."""
    jittered = [bool(change.adjustments) for change in changes]
    blurred = [change.sigma is not None for change in changes]
    if not any(jittered + blurred):
        return images
    numbers = torch.tensor([_numbers(change, kind) for change in changes], dtype=images.dtype)
    plain, sharp, taps, per_round = to_device(numbers, images.device).split_with_sizes(
        (1, 1, 2 * _BLUR_RADIUS + 1, _ROUNDS * _NUMBERS), 1
    )
    # in planes, which a CPU changes several times faster than interleaved channels
    changed = images.clone(memory_format=torch.contiguous_format)
    if any(jittered):
        rounds = zip(*(_in_rounds(change.adjustments) for change in changes), strict=True)
        changed = _jitter(changed, rounds, per_round, kind)
    if not all(jittered):
        changed = torch.lerp(changed, images, plain[..., None, None])  # exact at 0 and 1
    if any(blurred):
        edges: _Edges = "reflect" if kind == "kornia_0_4" else "replicate"
        soft = gaussian_blur(changed, taps, convolve=together, edges=edges)
        changed = soft if all(blurred) else torch.lerp(soft, changed, sharp[..., None, None])
    return changed


def _numbers(change: Change, kind: Kind) -> list[float]:
    """Return what the operations need for an image: no jitter? no blur? taps; of each round."""
    return [
        float(not change.adjustments),
        float(change.sigma is None),
        *gaussian_taps(change.sigma or 1.0),
        *(
            number
            for each in _in_rounds(change.adjustments)
            for number in _round_numbers(each, kind)
        ),
    ]


def _in_rounds(adjustments: Sequence[Adjustment]) -> list[Adjustment | None]:
    """Return what happens in each of 7 rounds; all images turn their hue in the middle one."""
    rounds: list[Adjustment | None] = [None] * _ROUNDS
    if adjustments:
        first = _ROUNDS // 2 - [kind for kind, _ in adjustments].index(HUE)
        rounds[first : first + len(adjustments)] = adjustments
    return rounds


def _round_numbers(adjustment: Adjustment | None, kind: Kind) -> list[float]:
    """Return the arguments of `_turn_hue`, `_blend` or `_scale`; for None, without an effect."""
    what, amount = adjustment or (BRIGHTNESS, 1.0)
    if what == HUE:
        return [*(math.remainder(6 * amount + peak, 6) for peak in (0, 4, 2)), 0.0, 0.0]
    if kind == "kornia_0_4":
        factor, shift = (1.0, amount - 1) if what == BRIGHTNESS else (amount, 0.0)
        return [factor, shift, float(what == SATURATION), 0.0, 0.0]
    rest = 0.0 if what == BRIGHTNESS else 1 - amount
    return [amount, *(rest * weight for weight in _GREY), float(what == SATURATION)]


def _jitter(
    images: Tensor, rounds: Iterable[Sequence[Adjustment | None]], numbers: Tensor, kind: Kind
) -> Tensor:
    """Return the images after all rounds, with (B, 7 x 5) numbers; overwrite `images`."""
    of_rounds = numbers[..., None, None].chunk(_ROUNDS, 1)
    for adjustments, of_round in zip(rounds, of_rounds, strict=True):
        kinds = {adjustment[0] for adjustment in adjustments if adjustment}
        if HUE in kinds:
            images = _turn_hue(images, of_round[:, :3])
        elif kinds and kind == "kornia_0_4":
            _scale(images, kinds, of_round)
        elif kinds:
            _blend(images, kinds, of_round)
    return images


def _blend(images: Tensor, kinds: set[int], numbers: Tensor) -> None:
    """Blend the images with black, their mean grey or their grey, in place, as torchvision does.

    `kinds` has all adjustments of this round. `numbers` (B, 5, 1, 1) are the factor of the image,
    those of its red, green and blue in the grey, and 1 for the grey of each pixel or 0 for the
    mean.
    """
    factor, red_weight, green_weight, blue_weight, own = numbers.chunk(5, 1)
    if kinds == {BRIGHTNESS}:
        images.mul_(factor).clamp_(0, 1)
        return
    red, green, blue = images.chunk(3, 1)
    grey = (red * red_weight).addcmul_(green, green_weight).addcmul_(blue, blue_weight)
    if CONTRAST in kinds:
        mean = grey.mean((2, 3), keepdim=True)
        grey = torch.lerp(mean, grey, own) if SATURATION in kinds else mean
    torch.addcmul(grey, images, factor, out=images).clamp_(0, 1)


def _scale(images: Tensor, kinds: set[int], numbers: Tensor) -> None:
    """Add to the images, multiply them or their saturation, in place, as kornia 0.4 does.

    `kinds` has all adjustments of this round. `numbers` (B, 5, 1, 1) are the factor and the summand
    of the image, and 1 if the factor is for the saturation of HSV, (high - low) / high, which ends
    at 1. At equal hue and value, a channel becomes high - (high - channel) * factor.
    """
    factor, summand, of_saturation = numbers[:, :3].chunk(3, 1)
    if SATURATION in kinds:
        low, high = images.amin(1, keepdim=True), images.amax(1, keepdim=True)
        most = high / (high - low).clamp_min_(1e-30)
        factor = torch.where(of_saturation > 0, torch.minimum(factor, most), factor)
        summand = torch.where(of_saturation > 0, high - high * factor, summand)
    torch.addcmul(summand, images, factor, out=images).clamp_(0, 1)


def _turn_hue(images: Tensor, sixths: Tensor) -> Tensor:
    """Return the images with their hue turned, at equal saturation and value, as in HSV.

    In sixths of a turn, the hue of a pixel is 1 + (green + blue - red - low) / (high - low), and
    minus that where blue is above green; `low` and `high` are its lowest and highest channel. A
    channel is low + (high - low) * clamp(far - 1, 0, 1), where `far` is how far the hue is from
    the one opposite to the channel's. The hue plus `sixths` (B, 3, 1, 1), in [-3, 3], is relative
    to the channel's hue.
    """
    red, green, blue = images.chunk(3, 1)
    low, high = images.amin(1, keepdim=True), images.amax(1, keepdim=True)
    span = (high - low).clamp_min_(1e-30)
    hue = (green - red).add_(blue - low).div_(span).add_(1).copysign_(green - blue)
    far = (hue + sixths).abs_().sub_(3).abs_()
    return torch.addcmul(low - span, far, span, out=far).clamp_(low, high)


def gaussian_taps(sigma: float) -> list[float]:
    """Return the 11 weights of a Gaussian of `sigma` px, with sum 1."""
    taps = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(-_BLUR_RADIUS, _BLUR_RADIUS + 1)]
    return [tap / sum(taps) for tap in taps]


def gaussian_blur(
    images: Tensor,
    taps: Tensor,
    *,
    convolve: bool,
    edges: _Edges = "replicate",
) -> Tensor:
    """Return (B, 3, H, W) images blurred with the (B, 11) `taps` of each.

    At the `edges`, the last pixel is repeated, or the image is mirrored there. Depthwise
    convolutions (`convolve`) are slow on a CPU; sums of shifted images are many operations for a
    GPU.
    """
    reach = _BLUR_RADIUS
    if convolve:
        padded = F.pad(images, (reach,) * 4, mode=edges).flatten(0, 1)[None]
        kernels = taps.repeat_interleave(images.shape[1], 0)[:, None, None]
        rows = F.conv2d(padded, kernels, groups=len(kernels))
        return F.conv2d(rows, kernels.mT, groups=len(kernels)).view_as(images)
    weights = taps.T[..., None, None, None]
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, size = F.pad(images, padding, mode=edges), images.shape[dim]
        images = padded.narrow(dim, 0, size) * weights[0]
        for index in range(1, len(weights)):
            images.addcmul_(padded.narrow(dim, index, size), weights[index])
    return images


def fourier_style(
    content: Tensor, style: Tensor, *, band: float, window: Literal["numpy", "torch"] = "numpy"
) -> Tensor:
    """Return images `content` (B, 3, H, W) with the low-frequency amplitude of `style`.

    With b = floor(min(H, W) * band), the window `numpy` has the frequencies -b..b in both
    directions, so always 0, the mean. `torch` has -b..b-1: with b = 0, it has none, and images
    keep their amplitude. `style` is resized to `content`. The result is float32 and not clamped, as
    published.

    Reference:
        Yang and Soatto, FDA (2020); the windows of its numpy and of its torch code.
    """
    height, width = content.shape[-2:]
    with torch.autocast(content.device.type, enabled=False):
        if style.shape[-2:] != content.shape[-2:]:
            style = F.interpolate(style, (height, width), mode="bilinear", align_corners=False)
        spectrum = torch.fft.fft2(content.float())
        reach = math.floor(min(height, width) * band)
        above = reach if window == "numpy" else reach - 1
        low_rows = _low_frequencies(height, reach, above, content.device)[:, None]
        low = low_rows & _low_frequencies(width, reach, above, content.device)
        amplitude = torch.where(low, torch.fft.fft2(style.float()).abs(), spectrum.abs())
        styled: Tensor = torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real
        return styled.contiguous(memory_format=torch.channels_last)


def _low_frequencies(size: int, below: int, above: int, device: torch.device) -> Tensor:
    """Return a mask of the `size` frequencies, in FFT order, from -`below` to `above`."""
    low = torch.zeros(size, dtype=torch.bool, device=device)
    low[: above + 1] = True
    low[size - below :] = True
    return low


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose, whose numbers do not depend on other purposes."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
