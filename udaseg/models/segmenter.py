"""The network: normalisation, backbone, head, and a projection head where a method wants one."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.backbones import Backbone, TimmBackbone


@dataclass(frozen=True)
class Segmented:
    """What the network says of a batch of images.

    Attributes:
        logits: (B, K, h', w'); at the output stride or finer, as the head makes them.
        features: (B, C, h, w); the last feature map, the grid of cells.
        embeddings: (B, D, h, w) unit vectors on that grid, when asked for.
    """

    logits: Tensor
    features: Tensor
    embeddings: Tensor | None

    def cell_logits(self) -> Tensor:
        """Return the logits on the grid of cells, (B, K, h, w)."""
        size = self.features.shape[-2:]
        if self.logits.shape[-2:] == size:
            return self.logits
        return F.interpolate(self.logits, size, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """A segmentation network from RGB images in [0, 1] to logits.

    Args:
        backbone: Makes the feature maps and knows the normalisation that its weights expect.
        head: Called with both feature maps, returns logits.
        output_stride: Pixels of input a cell.
        batch_norm: How the backbone's batch norms behave in training: `train`; `affine_frozen`
            (statistics follow, scale and shift stay); `frozen` (both stay).
        projector: Maps (B, C, h, w) features to (B, D, h, w) unit vectors; dropped at test time.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone | TimmBackbone,
        head: nn.Module,
        *,
        output_stride: int,
        batch_norm: Literal["train", "affine_frozen", "frozen"],
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1))
        self.backbone = backbone
        self.head = head
        self.projector = projector
        self.output_stride = output_stride
        self.batch_norm = batch_norm
        if batch_norm != "train":
            for norm in self._backbone_norms():
                norm.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor, *, embed: bool = False) -> Segmented:
        """Return what the network says.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1].
            embed: Also project the features; needs a projector.
        """
        low, features = self.backbone((images - self.mean) / self.std)
        embeddings = None
        if embed:
            if self.projector is None:
                raise ValueError("embed=True, but this network has no projector")
            embeddings = self.projector(features)
        return Segmented(self.head(low, features), features, embeddings)

    def train(self, mode: bool = True) -> "Segmenter":
        """Set training mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for norm in self._backbone_norms():
                norm.eval()
        return self

    def _backbone_norms(self) -> list[nn.Module]:
        return [part for part in self.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
