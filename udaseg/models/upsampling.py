"""Bilinear enlarging as products, whose gradient needs no atomic additions on a GPU."""

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

_P = ParamSpec("_P")
_KEPT = 64


def constant(make: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Decorate a function of sizes and a device so that it makes each of its tensors once.

    Inside compiled code the tensor is a part of the graph. Fake tensors are not kept.
    """
    kept: dict[object, Tensor] = {}

    @functools.wraps(make)
    def made_once(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        if torch.compiler.is_compiling():
            return make(*args, **kwargs)
        key = args, tuple(kwargs.items())
        if key in kept:
            return kept[key]
        # a tensor made in inference mode could not be used in training
        with torch.inference_mode(False):
            tensor = make(*args, **kwargs)
        if type(tensor) is Tensor:
            if len(kept) == _KEPT:
                kept.clear()
            kept[key] = tensor
        return tensor

    return made_once


@constant
def row_weights(low: int, high: int, device: torch.device, align_corners: bool = False) -> Tensor:
    """Return the (high, low) matrix that resizes `low` rows to `high` rows bilinearly.

    It is that of `F.interpolate` with the same `align_corners`.
    """
    rows = torch.arange(high, dtype=torch.float64, device=device)
    if align_corners:
        positions = rows * ((low - 1) / max(1, high - 1))
    else:
        positions = ((rows + 0.5) * (low / high) - 0.5).clamp(0, low - 1)
    inputs = torch.arange(low, device=device)
    return (1 - (positions[:, None] - inputs).abs()).clamp_min(0).float()


def upsample(maps: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Return maps (B, C, h, w) at another size, bilinearly.

    With `align_corners`, the outermost cells lie on the outermost pixels.

    On a GPU, the gradient of `F.interpolate` adds in an order that changes from run to run, and
    its deterministic form sorts. Products do neither.
    """
    if not maps.is_cuda:
        return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)
    return upsample_by_products(maps, size, align_corners=align_corners)


def upsample_by_products(
    maps: Tensor, size: Sequence[int], *, align_corners: bool = False
) -> Tensor:
    """Return what `upsample` returns, on any device, in the layout `channels_last`.

    It is computed in float32, even under autocast.
    """
    (batch, channels, low_rows, low_columns), (rows, columns) = maps.shape, size
    with torch.autocast(maps.device.type, enabled=False):
        cells = maps.float().permute(0, 2, 3, 1)
        tall = row_weights(low_rows, rows, maps.device, align_corners) @ cells.flatten(2)
        tall = tall.view(batch, rows, low_columns, channels)
        enlarged = row_weights(low_columns, columns, maps.device, align_corners) @ tall
        return enlarged.permute(0, 3, 1, 2).to(maps.dtype)
