"""The segmentation network: normalisation, backbone, head, and an optional projection head."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.backbones import Backbone, TimmBackbone, backbone
from udaseg.models.checkpointing import checkpointed
from udaseg.models.compiling import compile_parts
from udaseg.models.heads import DeepLabV2, DeepLabV3Plus
from udaseg.models.projector import Projector
from udaseg.recipe.load import expand_path
from udaseg.recipe.schema import Model


@dataclass(frozen=True)
class SegmenterOutput:
    """The output of the network for a batch of images.

    Attributes:
        logits: (B, K, h', w'), at the output stride or finer, depending on the head.
        features: (B, C, h, w), the last feature map, which defines the grid of cells.
        embeddings: (B, D, h, w) unit vectors on that grid; None unless requested.
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
        backbone: Returns the feature maps; defines the normalisation that its weights expect.
        head: Called with both feature maps, returns logits.
        output_stride: Input pixels per cell.
        batch_norm: Mode of the backbone's batch norms in training: `train`; `affine_frozen`
            (statistics are updated, scale and shift are not); `frozen` (neither is updated).
        projector: Maps (B, C, h, w) features to (B, D, h, w) unit vectors; not used at test time.

    Attributes:
        recompute: Store only the inputs of blocks for the backward pass and recompute the other
            activations: less memory, one more forward pass, the same numbers.
        channels_last: Use the channels-last memory format, which convolution kernels prefer.
    """

    mean: Tensor
    std: Tensor
    recompute: bool = False
    channels_last: bool = True
    _compiled: Literal["never", "training", "always"] = "never"

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

    def forward(self, images: Tensor, *, embed: bool = False) -> SegmenterOutput:
        """Return logits, features and, if requested, embeddings.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1].
            embed: Also project the features; needs a projector.
        """
        images = (images - self.mean) / self.std
        if not self.channels_last:
            images = images.contiguous()
        if self.recompute and self.training and torch.is_grad_enabled():
            low, features = self.backbone.forward_checkpointed(images)
            call = checkpointed
        else:
            low, features = self._call_part(self.backbone, images)
            call = self._call_part
        embeddings = None
        if embed:
            if self.projector is None:
                raise ValueError("embed=True, but this network has no projector")
            embeddings = call(self.projector, features)
        return SegmenterOutput(call(self.head, low, features), features, embeddings)

    def set_memory_format(self, *, channels_last: bool) -> None:
        """Set the memory format of weights and images, channels last or first."""
        self.channels_last = channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=layout)

    def enable_compile(self, when: Literal["training", "always"]) -> None:
        """Compile backbone, head and projector at their first call.

        Args:
            when: `training` keeps evaluation uncompiled, so that scores equal those of
                `udaseg eval` and new image sizes trigger no compilation.

        Raises:
            EnvironmentFault: This machine has no compiler.
        """
        parts = [self.backbone, self.head, self.projector]
        compile_parts([part for part in parts if part is not None], self.mean.device.type)
        self._compiled = when

    def _call_part(self, module: nn.Module, *inputs: Tensor) -> Any:
        """Return the output of a part of the network, from compiled code if configured."""
        if self._compiled == "training" and not self.training:
            return module.forward(*inputs)
        return module(*inputs)

    def train(self, mode: bool = True) -> "Segmenter":
        """Set training mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for norm in self.frozen_norms():
            norm.eval()
        return self

    def frozen_norms(self) -> list[nn.Module]:
        """Return the batch norms that use their running statistics in training too."""
        return self._backbone_norms() if self.batch_norm == "frozen" else []

    def _backbone_norms(self) -> list[nn.Module]:
        return [part for part in self.backbone.modules() if isinstance(part, nn.BatchNorm2d)]


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode in this context, then restore its mode."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def build_segmenter(
    spec: Model, num_classes: int, *, projector_channels: int | None = None
) -> Segmenter:
    """Return the network of a recipe, with the backbone's weights loaded."""
    weights = spec.weights
    if weights not in ("imagenet", "random"):
        weights = expand_path(weights)
    body = backbone(spec.backbone, output_stride=spec.output_stride, weights=weights)
    head: nn.Module
    match spec.head:
        case "deeplab_v2":
            head = DeepLabV2(body.channels[1], num_classes, spec.aspp_dilations)
        case "deeplab_v3plus":
            head = DeepLabV3Plus(
                body.channels, num_classes, spec.aspp_dilations, spec.head_channels
            )
        case _:
            assert_never(spec.head)
    return Segmenter(
        body,
        head,
        output_stride=spec.output_stride,
        batch_norm=spec.batch_norm,
        projector=None
        if projector_channels is None
        else Projector(body.channels[1], projector_channels),
    )


def with_random_weights(spec: Model) -> Model:
    """Return the model specification with random weights, so that no weights file is needed."""
    # the checkpoint provides all tensors, loaded with strict=True
    return replace(spec, weights="random")
