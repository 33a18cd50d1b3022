"""Plain vision transformers of timm: DINOv2, DINOv3, EVA02, SigLIP, DeiT, ViT and their like."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models import is_model_in_modules
from torch import Tensor

from udaseg.models.backbones.backbone import Backbone, at_levels, divided_up
from udaseg.models.backbones.create_timm import create_timm
from udaseg.models.checkpointing import checkpointed_parts

_MODULES = ("vision_transformer", "eva", "deit")
"""Modules of timm whose networks take images of any size, by `dynamic_img_size`."""
_LEVELS = 4


class PlainViT(Backbone):
    """A plain ViT of timm: maps of one stride, its patch, from four depths.

    The maps are those after the blocks at 1/4, 1/2, 3/4 and 1 of its depth (block 3, 6, 9 and 12
    of 12), each after the final norm, as timm's `forward_intermediates(norm=True)`. Position
    embeddings are resampled to the grid of the images as timm does it (bicubic, antialiased).

    Images whose sides are no multiples of the patch are enlarged bilinearly to the next ones, by
    less than a patch, so that the grid covers exactly the image.

    Args:
        network: Of `create_plain`.
        levels: Positions of the maps to return; None for all four.
    """

    has_tokens = True

    def __init__(self, network: Any, *, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        # this name is part of the checkpoint format
        self.network = network
        self.patch = network.patch_embed.patch_size[0]
        depth = len(network.blocks)
        self.stage_ends = tuple(max(1, depth * part // _LEVELS) for part in range(1, _LEVELS + 1))
        self.indices = [end - 1 for end in at_levels(self.stage_ends, levels)]
        self.channels = (network.embed_dim,) * len(self.indices)
        self.strides = (self.patch,) * len(self.indices)
        self.mean = tuple(network.pretrained_cfg["mean"])
        self.std = tuple(network.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of (B, 3, H, W) normalised images, the earliest first."""
        size = tuple(images.shape[-2:])
        whole = tuple(divided_up(side, self.patch) * self.patch for side in size)
        # an exported graph is for all sizes
        if whole != size or torch.compiler.is_exporting():
            images = F.interpolate(images, whole, mode="bilinear", align_corners=False)
        maps: list[Tensor] = self.network.forward_intermediates(
            images, indices=self.indices, norm=True, intermediates_only=True
        )
        return maps

    def forward_checkpointed(self, images: Tensor) -> list[Tensor]:
        """Return the same maps; store only the inputs of blocks for the backward pass."""
        with checkpointed_parts(self, self.block_names):
            return self.forward(images)


def is_plain(name: str) -> bool:
    """Return whether a network of timm is a plain ViT."""
    return bool(is_model_in_modules(name, _MODULES))


def create_plain(name: str, *, pretrained: bool, drop_path: float) -> Any:
    """Return a plain ViT without its classifier; see `create_timm`."""
    options = {"dynamic_img_size": True}
    network = create_timm(name, pretrained=pretrained, drop_path=drop_path, options=options)
    network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    rope = getattr(network, "rope", None)
    if type(rope) is RotaryEmbeddingDinoV3:
        rope.__class__ = _Rope
    return network


class _Rope(RotaryEmbeddingDinoV3):
    """Rotary positions of DINOv3; timm's own make an exported graph one for a single grid."""

    def get_embed(self, shape: list[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return (rows * columns, 2 * dim) sines and cosines of a grid of (rows, columns)."""
        if shape is None or not torch.compiler.is_exporting():
            return super().get_embed(shape, dtype)
        sides = [(torch.arange(side, dtype=torch.float32) + 0.5) / side for side in shape]
        cells = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, 1)
        return torch.cat(self._get_pos_embed_from_coords(2 * cells - 1), -1)
