"""ClassMix and CutMix masks, and pasting by mask."""

from typing import Literal

import torch
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import slice_for_rank, to_device


def class_mask(
    labels: Tensor, num_classes: int, generator: torch.Generator, *, ignore_is_class: bool
) -> Tensor:
    """Return a mask of the pixels of half of each image's classes, chosen at random.

    Random numbers are drawn for the images of all ranks. An image gets the same numbers however
    the images are distributed over ranks.

    Args:
        labels: (B, H, W) integer, a class or `IGNORE`.
        num_classes: K.
        generator: A generator on the CPU, the only source of randomness.
        ignore_is_class: `IGNORE` may be chosen like a class, as in the released DACS.

    Returns:
        (B, H, W) bool; of n classes present, ceil(n / 2) are chosen with all their pixels.

    Reference:
        Olsson et al., ClassMix (2021).
    """
    batch = labels.shape[0]
    # IGNORE becomes class K, so the same table works for both settings
    slots = torch.where(labels == IGNORE, num_classes, labels).long()
    present = torch.zeros((batch, num_classes + 1), dtype=torch.bool, device=labels.device)
    present.scatter_(1, slots.flatten(1), True)
    if not ignore_is_class:
        present[:, num_classes] = False
    total, rank_slice = slice_for_rank(batch)
    order = torch.rand((total, num_classes + 1), generator=generator)[rank_slice]
    order = to_device(order, labels.device)
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
    """Return a mask of one random square for each image on the grid of cells, on the CPU.

    The side is floor(side of the crop * sqrt(u)) with u uniform, rounded down to whole cells, but
    at least one cell. The corner is uniform on the grid. Squares are drawn for the images of all
    ranks.

    Args:
        batch: B.
        size: (H, W) of the image in pixels; the side of the crop is the shorter of them.
        stride: Pixels per cell.
        generator: A generator on the CPU.
        per: One square for each `image`, or one square for the whole `batch` on all ranks.

    Returns:
        (B, h, w) bool with h = ceil(H / stride); only whole cells are in the square.

    Raises:
        ValueError: The image is smaller than one cell.

    Reference:
        Zhou et al., RCCR (2022), augmented image.
    """
    cells = (-(-size[0] // stride), -(-size[1] // stride))
    whole = (size[0] // stride, size[1] // stride)
    if min(whole) < 1:
        raise ValueError(f"an image of {size[1]}x{size[0]} px is smaller than one cell of {stride}")
    total, rank_slice = slice_for_rank(batch)
    mask = torch.zeros((total, *cells), dtype=torch.bool)
    for image in range(1 if per == "batch" else total):
        share, down, right = torch.rand(3, generator=generator).tolist()
        side = min(max(1, int(min(size) * share**0.5) // stride), *whole)
        top = min(int(down * (whole[0] - side + 1)), whole[0] - side)
        left = min(int(right * (whole[1] - side + 1)), whole[1] - side)
        mask[image, top : top + side, left : left + side] = True
    return mask[:1].expand(batch, -1, -1).clone() if per == "batch" else mask[rank_slice]


def cells_to_pixels(mask: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return a (B, h, w) mask of cells as a (B, H, W) mask of pixels."""
    pixels = mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return pixels[:, : size[0], : size[1]]


def paste(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Return `over` where `mask` (B, H, W) is true and `under` elsewhere, for images or labels."""
    return torch.where(mask[:, None] if over.dim() == 4 else mask, over, under)
