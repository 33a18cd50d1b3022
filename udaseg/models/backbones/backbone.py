"""The contract of backbones: a list of feature maps, with their channels and strides."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from torch import Tensor, nn

from udaseg.models.backbones.blocks import find_blocks, layers_of_parameters
from udaseg.models.checkpointing import checkpointed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
"""Means of red, green and blue that weights converted from Caffe expect (DeepLab's release)."""
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)

_UNDECAYED = ("pos_embed", "_token", "position_bias_table", "cpb_mlp", "logit_scale")
"""Parts of the names of parameters that timm's `no_weight_decay` lists, and of their like."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class BackboneOptions:
    """How a network is computed with given weights: what differs between released networks.

    Attributes:
        first_dilation: Rate of the first block of a dilated layer: its `own` layer's (DeepLab-v2),
            or that of the `previous` layer (torchvision's `replace_stride_with_dilation`).
        ceil_pool: The max pooling rounds sizes up: 65 cells of 8 px for 512 px, not 64.
        stride_in: The convolution of a bottleneck that has its stride.
        input: `imagenet` is what the backbone's own weights expect; `caffe` is BGR in [0, 255] less
            a mean.
        weights_partial: Accept a file that lacks many of the network's tensors, or has many others.
        drop_path: Rate of stochastic depth of the last block; that of the first is 0, and it rises
            in equal steps. For networks of timm.

    `first_dilation`, `ceil_pool` and `stride_in` are for torchvision's ResNets, `stride_in` for
    those with bottlenecks.

    Example:
        >>> import torch
        >>> from udaseg.models import BackboneOptions, build_backbone
        >>> options = BackboneOptions(ceil_pool=True)
        >>> body = build_backbone("resnet18", output_stride=8, weights="random", options=options)
        >>> tuple(body(torch.zeros(1, 3, 128, 256))[-1].shape)
        (1, 512, 17, 33)
    """

    first_dilation: Literal["own", "previous"] = "own"
    ceil_pool: bool = False
    stride_in: Literal["3x3", "1x1"] = "3x3"
    input: Literal["imagenet", "caffe"] = "imagenet"
    weights_partial: bool = False
    drop_path: float = 0.0


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
        has_tokens: Whether it is a ViT whose maps have a cell for each patch of its input, of side
            `strides[-1]`.
        one_size_onnx: Whether an ONNX file of it would be for images of one size only.
        ceil_pool: Whether the maps are larger than said above, because the pooling rounds up.
        bgr: Whether `forward` takes the channels as blue, green, red, after `mean` and `std`.
        stage_ends: Number of the last block of each stage, counted from 1; one stage for each map
            that the network has, also for those that `levels` leaves out. Empty if unknown.
        block_names: Names of the modules that are its blocks, in order.
        depth: Number of blocks.
        undecayed: Names of positions, tokens and the like, which weight decay leaves out.
        base_names: Frozen parameters that a weights file has, so that `state_dict` leaves them out.

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
    bgr: bool = False
    one_size_onnx: bool = False
    ceil_pool: bool = False
    has_tokens: bool = False
    stage_ends: tuple[int, ...] = ()
    base_names: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of (B, 3, H, W) normalised images, finest first."""

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Return rows and columns of the last map of images of a size (height, width)."""
        return self.map_sizes(size)[-1]

    def map_sizes(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Return rows and columns of each map of images of a size (height, width)."""
        (height, width), strides = size, self.strides
        if self.ceil_pool:  # after the pooling a side of s has (s + 1) // 2 // 2 + 1 cells
            height, width = ((side + 1) // 4 + 1 for side in size)
            strides = tuple(stride // 4 for stride in strides)
        return [(divided_up(height, each), divided_up(width, each)) for each in strides]

    @cached_property
    def block_names(self) -> tuple[str, ...]:
        """Names of its blocks in order; those of its layers if it has no blocks."""
        return find_blocks(self)

    @cached_property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.block_names)

    @cached_property
    def undecayed(self) -> frozenset[str]:
        """Names of the parameters that weight decay leaves out, beside norms and biases."""
        names = [name for name, _ in self.named_parameters()]
        return frozenset(name for name in names if any(part in name for part in _UNDECAYED))

    def layer_of(self, name: str) -> int:
        """Return the number of the block that a parameter belongs to.

        It is 0 for what is before the first block (stem, patch embedding, positions, tokens), 1 to
        `depth` for blocks, and `depth` for what is after the last.

        Args:
            name: As in `named_parameters()` of this backbone.

        Raises:
            KeyError: There is no such parameter.

        Example:
            >>> from udaseg.models import build_backbone
            >>> backbone = build_backbone("resnet18", output_stride=8, weights="random")
            >>> backbone.depth, backbone.stage_ends
            (8, (2, 4, 6, 8))
            >>> [backbone.layer_of(name) for name in ("low.0.weight", "rest.0.0.conv1.weight")]
            [0, 3]
        """
        if name not in self._layers:  # adapters come later than the blocks
            self._layers = layers_of_parameters(self, self.block_names)
        return self._layers[name]

    @cached_property
    def _layers(self) -> dict[str, int]:
        return {}

    def forward_checkpointed(self, images: Tensor) -> list[Tensor]:
        """Return the same maps; store only some activations and recompute the others.

        Outputs, gradients and batch-norm statistics are those of `forward` to the bit. Unless a
        subclass cuts its network into segments, the whole network is one.
        """
        maps: list[Tensor] = checkpointed(self, images)
        return maps


def divided_up(side: int, by: int) -> int:
    """Return a length divided by another one and rounded up.

    ONNX rounds negative quotients up, not down as Python, so none occurs here.
    """
    return (side + by - 1) // by


def at_levels(values: Sequence[_T], levels: Sequence[int] | None) -> tuple[_T, ...]:
    """Return the values, one per map, at some positions such as (0, -1); all of them for None."""
    if levels is None:
        return tuple(values)
    kept = {range(len(values))[level] for level in levels}
    return tuple(values[position] for position in sorted(kept))
