"""Unit vectors with a bounded gradient, and the projection head that makes them."""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from udaseg.recipe.contrast import Projector as ProjectorSpec

LENGTH_EPS = 1e-4
"""Added to a length in quadrature, so that a zero vector has a gradient of at most 1e4."""


def to_unit_length(vectors: Tensor, dim: int = 1) -> Tensor:
    """Return `vectors` scaled to length 1 along `dim`.

    A zero vector stays zero with a gradient of at most 1e4, where `F.normalize` has up to 1e12. For
    lengths of 1 and more the result differs from `F.normalize` by less than 1e-8.
    """
    vectors_float32 = vectors.float()
    return vectors_float32 * torch.rsqrt(
        vectors_float32.square().sum(dim, keepdim=True) + LENGTH_EPS**2
    )


class ExactConv2d(nn.Conv2d):
    """A convolution that is computed in the type of its weights, even under autocast."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, D, h, w) maps of (B, C, h, w) features, float32 if the weights are."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


class Projector(nn.Module):
    """Projection head: 1x1 convolution, ReLU, 1x1 convolution, unit length.

    Args:
        channels: Channels of the features.
        embedding: Channels of the embedding.
        kind: `mlp`; `norm`, a batch norm and ReLU after each convolution; `linear`, a single
            convolution; `none`, the features at unit length.
        hidden: Channels between the convolutions of `mlp` and `norm`; None takes `channels`.

    Reference:
        Zhou et al., RCCR (2022); Xie et al., SePiCo (2023), whose release has `norm`.

    Example:
        >>> import torch
        >>> from udaseg.models import Projector
        >>> vectors = Projector(channels=320, embedding=64)(torch.rand(2, 320, 8, 16))
        >>> tuple(vectors.shape), bool((vectors.norm(dim=1) < 1.001).all())
        ((2, 64, 8, 16), True)
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        *,
        kind: Literal["mlp", "norm", "linear", "none"] = "mlp",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        width = channels if hidden is None else hidden
        self.layers: nn.Module
        match kind:
            case "mlp":
                self.layers = nn.Sequential(
                    nn.Conv2d(channels, width, 1),
                    nn.ReLU(inplace=True),
                    ExactConv2d(width, embedding, 1),
                )
            case "norm":
                self.layers = nn.Sequential(
                    nn.Conv2d(channels, width, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    ExactConv2d(width, embedding, 1, bias=False),
                    nn.BatchNorm2d(embedding),
                    nn.ReLU(inplace=True),
                )
            case "linear":
                self.layers = ExactConv2d(channels, embedding, 1)
            case "none":
                self.layers = nn.Identity()

    @classmethod
    def from_spec(cls, spec: ProjectorSpec, channels: int) -> Self:
        """Return the head of a recipe, for features of `channels` channels."""
        return cls(channels, spec.channels, kind=spec.kind, hidden=spec.hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, D, h, w) float32 unit vectors of (B, C, h, w) features."""
        return to_unit_length(self.layers(features))
