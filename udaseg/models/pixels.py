"""Images as networks take them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def image_batch(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Return (H, W, 3) RGB images of one size as (B, 3, H, W) floats in [0, 1], channels last."""
    pixels = torch.from_numpy(np.stack(images))
    if device.type == "cuda":  # a copy from pinned memory does not wait for the device
        pixels = pixels.pin_memory()
    return to_unit_range(pixels.to(device, non_blocking=True).permute(0, 3, 1, 2))


def to_unit_range(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) uint8 images as floats in [0, 1], channels last."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)
