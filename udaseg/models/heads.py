"""Segmentation heads: DeepLab-v2 and DeepLab-v3+."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INIT_STD = 0.01


class DeepLabV2(nn.Module):
    """Sum of dilated 3x3 convolutions on the last feature map.

    Args:
        channels: Channels of the last feature map.
        num_classes: Number of outputs.
        dilations: (6, 12, 18, 24) in the paper; the releases of RCCR and DACS use only (6, 12).

    Reference:
        Chen et al., DeepLab (2018), figure 7. The bias of each branch is kept, as published.
    """

    def __init__(self, channels: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=_INIT_STD)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, low: Tensor, last: Tensor) -> Tensor:  # noqa: ARG002 (same signature for all heads)
        """Return logits (B, K, h, w) on the grid of `last`."""
        logits: Tensor = self.branches[0](last)
        for branch in list(self.branches)[1:]:
            logits = logits + branch(last)
        return logits


class DeepLabV3Plus(nn.Module):
    """Atrous pooling with depthwise-separable convolutions, refined with the map at stride 4.

    Args:
        channels: Channels of the map at stride 4 and of the last map.
        num_classes: Number of outputs.
        dilations: Dilations of the separable 3x3 branches.
        width: Channels inside the head.

    Reference:
        Chen et al., DeepLab-v3+ (2018). Differs: the image-pooling branch has no batch norm, so
        that a batch of one works, and the decoder has one refining convolution instead of two.
    """

    def __init__(
        self, channels: tuple[int, int], num_classes: int, dilations: Sequence[int], width: int
    ) -> None:
        super().__init__()
        low, last = channels
        low_width = max(8, min(48, width // 2))
        self.point = _conv(last, width, 1)
        self.branches = nn.ModuleList(
            _separable(last, width, dilation=dilation) for dilation in dilations
        )
        self.pool = nn.Conv2d(last, width, 1)
        self.project = _conv(width * (2 + len(dilations)), width, 1)
        self.low = _conv(low, low_width, 1)
        self.refine = _separable(width + low_width, width, dilation=1)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, low: Tensor, last: Tensor) -> Tensor:
        """Return logits (B, K, h, w) on the grid of `low`."""
        size = last.shape[-2:]
        pooled = F.relu(self.pool(last.mean((2, 3), keepdim=True))).expand(-1, -1, *size)
        branches = [self.point(last), *(branch(last) for branch in self.branches), pooled]
        context = self.project(torch.cat(branches, 1))
        context = F.interpolate(context, low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(self.refine(torch.cat([context, self.low(low)], 1)))
        return logits


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _separable(inputs: int, outputs: int, *, dilation: int) -> nn.Sequential:
    depthwise = nn.Conv2d(
        inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), *_conv(inputs, outputs, 1)
    )
