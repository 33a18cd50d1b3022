"""ClassMix and CutMix masks, and pasting by mask."""

from typing import Literal

import torch
from torch import Tensor

from udaseg.distributed import slice_for_rank, to_device


def class_mask(
    labels: Tensor, num_classes: int, generator: torch.Generator, *, ignore_is_class: bool
) -> Tensor:
    """Return a mask (B, H, W) of the pixels of half of each image's classes, chosen at random.

    Of n classes present, ceil(n / 2) are chosen with all their pixels. With `ignore_is_class`,
    `IGNORE` may be chosen like a class, as in the released DACS. Random numbers are drawn for the
    images of all ranks, so they do not depend on how the images are distributed over ranks.

    Reference:
        Olsson et al., ClassMix (2021).
    """
    slots = labels.clamp(max=num_classes).flatten(1)  # IGNORE, the largest label, becomes class K
    classes = torch.arange(num_classes + 1, dtype=labels.dtype, device=labels.device)
    # no scatter: it sorts all pixels on a GPU that must be deterministic
    present = (slots[:, None] ^ classes[:, None]).amin(2) == 0
    total, rank_slice = slice_for_rank(len(labels))
    order = torch.rand((total, num_classes + 1), generator=generator)[rank_slice].argsort(1)
    place = order.argsort(1)
    # of n classes present, one that r of them precede gets the sum n - 2 r
    signs = 1 - 2 * (place[:, None] < place[:, :, None]).to(torch.int8)
    if not ignore_is_class:
        signs[:, num_classes] = signs[:, :, num_classes] = 0
    chosen = (to_device(signs, labels.device) * present[:, None]).sum(2) > 0
    return chosen.gather(1, slots.long()).view_as(labels)


def square_mask(
    batch: int,
    size: tuple[int, int],
    stride: int,
    generator: torch.Generator,
    *,
    per: Literal["image", "batch"],
    corner: Literal["all", "released"] = "all",
    share: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Return a mask (B, h, w) of one random square of cells for each image, on the CPU.

    The side is floor(shorter side of the image * sqrt(u)) with u uniform in `share`, rounded down
    to whole cells, but at least one cell. The corner is uniform on the grid, which has h = ceil(H /
    stride) rows; only whole cells are in the square. With `corner` released, squares never touch
    the last row and column of whole cells (unless they are as large as the image), as in RCCR's
    release.
    Squares are drawn for the images of all ranks, or one for all of them with `per` batch.

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
        drawn, down, right = torch.rand(3, generator=generator).tolist()
        area = share[0] + (share[1] - share[0]) * drawn
        side = min(max(1, int(min(size) * area**0.5) // stride), *whole)
        places = [length - side + (corner == "all") for length in whole]
        top = min(int(down * places[0]), whole[0] - side)
        left = min(int(right * places[1]), whole[1] - side)
        mask[image, top : top + side, left : left + side] = True
    return mask[:1].expand(batch, -1, -1).clone() if per == "batch" else mask[rank_slice]


def cells_to_pixels(mask: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return a (B, h, w) mask of cells as a contiguous (B, H, W) mask of pixels."""
    pixels = mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return pixels[:, : size[0], : size[1]].contiguous()


def paste(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Return `over` where `mask` (B, H, W) is true and `under` elsewhere, for images or labels."""
    return torch.where(mask[:, None] if over.dim() == 4 else mask, over, under)
