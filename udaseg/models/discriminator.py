"""The discriminator of adversarial methods: predicts the domain of a map of class scores."""

import itertools

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Five 4x4 convolutions of stride 2 with leaky ReLUs of slope 0.2.

    Args:
        channels: Channels of the input maps, one per class.
        width: Channels after the first convolution; doubled by each of the next three.

    Reference:
        Tsai et al., AdaptSegNet (2018).

    Example:
        >>> import torch
        >>> from udaseg.models import Discriminator
        >>> scores = torch.rand(2, 19, 64, 128).softmax(1)
        >>> tuple(Discriminator(channels=19)(scores).shape)
        (2, 1, 2, 4)
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (channels, *(width * 2**power for power in range(4)))
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        layers.append(nn.Conv2d(width * 8, 1, 4, 2, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits (B, 1, H / 32, W / 32) of (B, K, H, W) maps; above 0 means target."""
        logits: Tensor = self.layers(maps)
        return logits
