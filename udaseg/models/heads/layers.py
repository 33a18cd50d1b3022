"""Layers that several heads share."""

from torch import nn


def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def separable(inputs: int, outputs: int, *, dilation: int) -> nn.Sequential:
    """Return a 3x3 convolution of each channel and a 1x1 of all, each with batch norm and ReLU."""
    depthwise = nn.Conv2d(
        inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), *conv(inputs, outputs, 1)
    )


def up_conv(inputs: int, outputs: int, factor: int) -> nn.Module:
    """Return a convolution that makes factor x factor cells of each cell; 1x1 for factor 1."""
    if factor == 1:
        return nn.Conv2d(inputs, outputs, 1)
    return nn.ConvTranspose2d(inputs, outputs, factor, stride=factor)
