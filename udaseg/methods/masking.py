"""Masked image consistency: the student labels a target image of which it sees only parts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import slice_for_rank, to_device
from udaseg.methods.augmentation import generator_for
from udaseg.methods.views import StepContext, StudentInput
from udaseg.models.backbones.backbone import divided_up
from udaseg.recipe.methods import Masking


def masked_input(context: StepContext, spec: Masking) -> StudentInput:
    """Return the target images of a step after strong augmentation, with hidden blocks or tokens.

    For tokens, images whose sides are no multiples of the patch are enlarged to the next ones, as
    the network would do.
    """
    generator, side = generator_for(context.batch.seed, "masked"), spec.size
    images = context.augment(context.target, generator)
    if spec.kind == "token":
        side = context.student.output_stride
        whole = [divided_up(length, side) * side for length in images.shape[-2:]]
        if whole != list(images.shape[-2:]):
            images = F.interpolate(images, whole, mode="bilinear", align_corners=False)
    height, width = images.shape[-2:]
    hidden = hidden_blocks(len(images), (height, width), side, spec.ratio, generator)
    return StudentInput(hide(images, hidden, context.student.mean), None)


def hidden_blocks(
    batch: int, size: tuple[int, int], side: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """Return a mask (B, H, W) of the pixels of blocks that are hidden at random, on the CPU.

    The image is divided into round(H / side) x round(W / side) blocks, a half to the even number,
    so blocks are exactly as large as asked for if the image is a multiple of them. Numbers are
    drawn for the images of all ranks; a block is hidden if its number is at most `ratio`.

    Args:
        batch: Images of this rank.
        size: (H, W) of the images in pixels.
        side: Of a block, in pixels.
        ratio: Expected share of hidden blocks; 0 hides none.
        generator: Of the numbers.

    Example:
        >>> import torch
        >>> from udaseg.methods.masking import hidden_blocks
        >>> mask = hidden_blocks(1, (64, 128), 32, 0.5, torch.Generator().manual_seed(0))
        >>> mask.shape, mask[0, ::32, ::32].tolist()
        (torch.Size([1, 64, 128]), [[True, False, True, True], [True, False, True, False]])

    Reference:
        Hoyer et al., MIC (2023).
    """
    grid = [max(1, round(length / side)) for length in size]
    total, rank_slice = slice_for_rank(batch)
    numbers = torch.rand((total, *grid), generator=generator)[rank_slice]
    hidden = numbers <= ratio if ratio > 0 else torch.zeros_like(numbers, dtype=torch.bool)
    rows, columns = (
        torch.arange(length) * cells // length for length, cells in zip(size, grid, strict=True)
    )
    return hidden[:, rows[:, None], columns]


def hide(images: Tensor, hidden: Tensor, color: Tensor) -> Tensor:
    """Return images (B, 3, H, W) with a color (1, 3, 1, 1) at the pixels of a mask (B, H, W).

    In the mean colour of a network, hidden pixels are exactly 0 once it has normalised them, and
    the token of a patch of them is the bias of the patch embedding.
    """
    return torch.where(to_device(hidden, images.device)[:, None], color, images)
