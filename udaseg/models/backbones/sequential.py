"""A backbone that is one sequence of blocks."""

from collections.abc import Sequence

from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.models.backbones.blocks import blocks_up_to
from udaseg.models.checkpointing import checkpointed_in_sequence


class SequentialBackbone(Backbone):
    """A sequence of blocks in two parts, with feature maps after some of the blocks.

    Args:
        low: From the images to the map at stride 4.
        rest: The blocks after it.
        ends: The blocks of `rest` that lead to each map: 0 is the map of `low`, 3 the map after
            three blocks. Other maps are freed as soon as the next block has read them.
        channels: Channels of each map.
        strides: Input pixels per cell of each map.
        stages: The blocks of `rest` that lead to each map of the whole network; None if `ends` has
            them all.
    """

    def __init__(
        self,
        low: nn.Module,
        rest: nn.Sequential,
        *,
        ends: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        # the names `low` and `rest` are part of the checkpoint format
        self.low = low
        self.rest = rest
        self.ends = tuple(ends)
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        parts = [f"rest.{end - 1}" if end else "low" for end in stages or ends]
        self.stage_ends = tuple(blocks_up_to(self, self.block_names, part) for part in parts)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of (B, 3, H, W) normalised images, finest first."""
        features: Tensor = self.low(images)
        maps = [features] if 0 in self.ends else []
        for number, block in enumerate(self.rest, 1):
            features = block(features)
            if number in self.ends:
                maps.append(features)
        return maps

    def forward_checkpointed(self, images: Tensor) -> list[Tensor]:
        """Return the same maps; store only the inputs of blocks for the backward pass."""
        features = checkpointed_in_sequence(self.low, images)
        maps = [features] if 0 in self.ends else []
        begin = 0
        for end in self.ends:
            if end > 0:
                features = checkpointed_in_sequence(self.rest[begin:end], features)
                maps.append(features)
                begin = end
        return maps
