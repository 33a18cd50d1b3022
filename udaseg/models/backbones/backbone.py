"""The contract of backbones: a list of feature maps, with their channels and strides."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from udaseg.models.checkpointing import checkpointed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_T = TypeVar("_T")


class Backbone(nn.Module, ABC):
    """A network from normalised images to feature maps, finest first.

    `forward` accepts images of any size and a batch of one. Map `i` of (B, 3, H, W)
    images has the shape (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). The result of
    an image in evaluation mode depends on nothing but that image. `tests/contracts/backbone.py` has
    a test of each of these promises, for a new backbone to inherit.

    Attributes:
        channels: Channels of each map.
        strides: Input pixels per cell of each map; they never fall, and the last is the output
            stride. Maps of a dilated network have the same stride.
        mean: Means of the channels that the weights expect, for RGB in [0, 1].
        std: Standard deviations of the channels that the weights expect.

    Example:
        >>> import torch
        >>> from udaseg.models import Backbone
        >>> class Thin(Backbone):
        ...     channels, strides = (8, 16), (4, 8)
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fine = torch.nn.Conv2d(3, 8, 7, stride=4, padding=3)
        ...         self.coarse = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
        ...
        ...     def forward(self, images):
        ...         fine = self.fine(images).relu()
        ...         return [fine, self.coarse(fine).relu()]
        >>> [tuple(each.shape) for each in Thin()(torch.zeros(1, 3, 65, 97))]
        [(1, 8, 17, 25), (1, 16, 9, 13)]
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of (B, 3, H, W) normalised images, finest first."""

    def forward_checkpointed(self, images: Tensor) -> list[Tensor]:
        """Return the same maps; store only some activations and recompute the others.

        Outputs, gradients and batch-norm statistics are those of `forward` to the bit. Unless a
        subclass cuts its network into segments, the whole network is one.
        """
        maps: list[Tensor] = checkpointed(self, images)
        return maps


def at_levels(values: Sequence[_T], levels: Sequence[int] | None) -> tuple[_T, ...]:
    """Return the values, one per map, at some positions such as (0, -1); all of them for None."""
    if levels is None:
        return tuple(values)
    kept = {range(len(values))[level] for level in levels}
    return tuple(values[position] for position in sorted(kept))
