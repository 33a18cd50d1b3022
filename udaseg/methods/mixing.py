"""ClassMix and CutMix masks, and pasting by mask."""

from typing import Literal

import torch
from torch import Tensor

from udaseg.distributed import all_reduce_sum, slice_for_rank, to_device
from udaseg.methods.pixel_loss import count_classes
from udaseg.recipe.methods import TargetCrop


def class_mask(
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    *,
    ignore_is_class: bool,
    classes_of: Literal["image", "batch"] = "image",
) -> Tensor:
    """Return a mask (B, H, W) of the pixels of half of each image's classes, chosen at random.

    Of n classes present, ceil(n / 2) are chosen with all their pixels. With `ignore_is_class`,
    `IGNORE` may be chosen like a class, as in the released DACS. With `classes_of` batch, each
    image is given half of the classes of all images of all ranks, as in DAFormer. Random numbers
    are drawn for the images of all ranks, so they do not depend on how the images are distributed
    over ranks.

    Reference:
        Olsson et al., ClassMix (2021).
    """
    slots = labels.clamp(max=num_classes).flatten(1)  # IGNORE, the largest label, becomes class K
    classes = torch.arange(num_classes + 1, dtype=labels.dtype, device=labels.device)
    # no scatter: it sorts all pixels on a GPU that must be deterministic
    present = (slots[:, None] ^ classes[:, None]).amin(2) == 0
    if classes_of == "batch":
        present = (all_reduce_sum(present.sum(0, keepdim=True)) > 0).expand_as(present)
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


def balanced_crop(
    images: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    num_classes: int,
    generator: torch.Generator,
    spec: TargetCrop,
) -> Tensor:
    """Return the crop of each image, of `spec.tries` random ones, with the most balanced classes.

    The score of a crop is the sum of ln(pixels) over its classes, and 0 if one of them has
    `max_share` of its pixels or more; the first of equal crops is taken. Corners are drawn for the
    images of all ranks.

    Args:
        images: (B, 3, H, W).
        labels: (B, H, W) uint8 without `IGNORE`.
        size: (h, w) of the crops in pixels, at most those of the images.
        num_classes: K.
        generator: Of the corners.
        spec: Number of crops, at least 1, and `max_share`.

    Returns:
        (B, 3, h, w), channels last.

    Reference:
        Xie et al., SePiCo (2023), class-balanced cropping.
    """
    height, width = size
    room = torch.tensor([labels.shape[1] - height + 1, labels.shape[2] - width + 1])
    total, rank_slice = slice_for_rank(len(images))
    draws = torch.rand((total, spec.tries, 2), generator=generator)[rank_slice]
    corners = (draws * room).long().minimum(room - 1)
    counts = torch.stack(
        [
            count_classes(image[top : top + height, left : left + width], num_classes)
            for image, drawn in zip(labels, corners.tolist(), strict=True)
            for top, left in drawn
        ]
    ).view(len(images), spec.tries, num_classes)
    balanced = counts.amax(2) < spec.max_share * height * width
    score = counts.clamp_min(1).log().sum(2) * balanced
    best = score == score.amax(1, keepdim=True)
    # the first of the best; read by the device alone
    place = (best & (best.cumsum(1) == 1)).long()[..., None]
    corner = (to_device(corners, labels.device) * place).sum(1)
    rows = corner[:, :1] + torch.arange(height, device=labels.device)
    columns = corner[:, 1:] + torch.arange(width, device=labels.device)
    tall = images.gather(2, rows[:, None, :, None].expand(-1, 3, -1, images.shape[3]))
    crops = tall.gather(3, columns[:, None, None].expand(-1, 3, height, -1))
    return crops.contiguous(memory_format=torch.channels_last)


def fill_edge_rows(maps: Tensor, rows: tuple[int, int], value: int) -> Tensor:
    """Return a copy of maps (B, H, W) with a value in the (top, bottom) `rows`."""
    (top, bottom), filled = rows, maps.clone()
    filled[:, :top] = value
    filled[:, maps.shape[1] - bottom :] = value
    return filled


def cells_to_pixels(mask: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return a (B, h, w) mask of cells as a contiguous (B, H, W) mask of pixels."""
    pixels = mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return pixels[:, : size[0], : size[1]].contiguous()


def paste(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Return `over` where `mask` (B, H, W) is true and `under` elsewhere, for images or labels."""
    return torch.where(mask[:, None] if over.dim() == 4 else mask, over, under)
