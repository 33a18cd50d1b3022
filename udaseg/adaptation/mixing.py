"""ClassMix and CutMix masks, pasting, and the strong augmentation of what is mixed."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.data import IGNORE

_BLUR_REACH = 5


def class_mask(
    labels: Tensor, num_classes: int, generator: torch.Generator, *, ignore_is_class: bool
) -> Tensor:
    """Return where half of each image's classes lie, chosen without replacement.

    Args:
        labels: (B, H, W) integer, a class or `IGNORE`.
        num_classes: K.
        generator: On the CPU; the only source of randomness.
        ignore_is_class: `IGNORE` may be chosen like a class, as DACS released it.

    Returns:
        (B, H, W) bool; of n classes present ceil(n / 2) are chosen, each whole.

    Reference:
        Olsson et al., ClassMix (2021).
    """
    batch = labels.shape[0]
    # IGNORE becomes class K, so that one table serves both settings
    slots = torch.where(labels == IGNORE, num_classes, labels).long()
    present = torch.zeros((batch, num_classes + 1), dtype=torch.bool, device=labels.device)
    present.scatter_(1, slots.flatten(1), True)
    if not ignore_is_class:
        present[:, num_classes] = False
    order = torch.rand((batch, num_classes + 1), generator=generator).to(labels.device)
    rank = order.masked_fill(~present, 2.0).argsort(1).argsort(1)
    chosen = (rank < (present.sum(1, keepdim=True) + 1) // 2) & present
    return chosen.gather(1, slots.flatten(1)).view_as(slots)


def square_mask(
    batch: int,
    size: tuple[int, int],
    stride: int,
    generator: torch.Generator,
    *,
    per: Literal["image", "batch"],
) -> Tensor:
    """Return random squares on the grid of cells, on the CPU.

    The side is floor(side of the crop * sqrt(u)), u uniform, rounded down to whole cells, at least
    one; the corner is uniform on the grid.

    Args:
        batch: B.
        size: (H, W) of the image in pixels; the shorter side is the crop's.
        stride: Pixels a cell.
        generator: On the CPU.
        per: One square for each `image`, or one for the whole `batch`.

    Returns:
        (B, h, w) bool with h = ceil(H / stride); only whole cells are inside.

    Raises:
        ValueError: The image is smaller than one cell.

    Reference:
        Zhou et al., RCCR (2022), the augmented image.
    """
    cells = (-(-size[0] // stride), -(-size[1] // stride))
    whole = (size[0] // stride, size[1] // stride)
    if min(whole) < 1:
        raise ValueError(f"an image of {size[1]}x{size[0]} px is smaller than one cell of {stride}")
    mask = torch.zeros((batch, *cells), dtype=torch.bool)
    for image in range(1 if per == "batch" else batch):
        share, down, right = torch.rand(3, generator=generator).tolist()
        side = min(max(1, int(min(size) * share**0.5) // stride), *whole)
        top = min(int(down * (whole[0] - side + 1)), whole[0] - side)
        left = min(int(right * (whole[1] - side + 1)), whole[1] - side)
        mask[image, top : top + side, left : left + side] = True
    return mask[:1].expand(batch, -1, -1).clone() if per == "batch" else mask


def cells_to_pixels(mask: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return a (B, h, w) mask of cells as (B, H, W) pixels."""
    wide = mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return wide[:, : size[0], : size[1]]


def paste(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Return `over` where `mask` (B, H, W) holds and `under` elsewhere; images or label maps."""
    return torch.where(mask[:, None] if over.dim() == 4 else mask, over, under)


def strong_augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    jitter: float,
    jitter_probability: float,
    blur_probability: float,
    blur_sigma: tuple[float, float],
) -> Tensor:
    """Return the images with colour jitter and Gaussian blur, drawn for each image alone.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1].
        generator: On the CPU.
        jitter: Strength s: brightness, contrast and saturation factors in [1 - s, 1 + s], hue
            turned by at most s of a circle, in random order.
        jitter_probability: Chance of jitter.
        blur_probability: Chance of blur.
        blur_sigma: Range of the standard deviation in pixels.

    Returns:
        A new tensor in [0, 1].

    Reference:
        Tranheden et al., DACS (2021). Differs: the kernel reaches 5 px instead of a tenth of the
        image, which changes no pixel by more than 4e-6 at the largest published sigma.
    """
    augmented = []
    for image in images:
        draws = torch.rand(8, generator=generator).tolist()
        order = torch.randperm(4, generator=generator).tolist()
        if draws[0] < jitter_probability:
            image = _jitter(image, jitter, draws[1:5], order)
        if draws[5] < blur_probability:
            low, high = blur_sigma
            image = gaussian_blur(image[None], low + (high - low) * draws[6])[0]
        augmented.append(image)
    return torch.stack(augmented)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Return (B, 3, H, W) images blurred by a Gaussian of `sigma` px, edges repeated.

    Shifted sums instead of a depthwise convolution, which is slow on a CPU.
    """
    reach = _BLUR_REACH
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


def _jitter(image: Tensor, strength: float, draws: list[float], order: list[int]) -> Tensor:
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
            jittered = transforms.adjust_hue(jittered, strength * (2 * draws[3] - 1))
    result: Tensor = jittered
    return result
