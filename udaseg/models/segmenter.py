"""The segmentation network: normalisation, backbone, head, and an optional projection head."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg.models import compiling
from udaseg.models.adapters import add_adapters, merge_adapters
from udaseg.models.backbones.backbone import Backbone, BackboneOptions
from udaseg.models.backbones.build import build_backbone
from udaseg.models.checkpointing import checkpointed
from udaseg.models.freezing import freeze, frozen_parameters
from udaseg.models.heads.head import head_class
from udaseg.models.norm_counters import count_together
from udaseg.models.projector import Projector
from udaseg.recipe.contrast import Projector as ProjectorSpec
from udaseg.recipe.load import expand_path
from udaseg.recipe.schema import NAMED_WEIGHTS, Model


@dataclass(frozen=True)
class SegmenterOutput:
    """The output of the network for a batch of images.

    Attributes:
        logits: (B, K, h', w'), at the output stride or finer, depending on the head.
        features: (B, C, h, w), the last feature map, which defines the grid of cells.
        embeddings: (B, D, h, w) unit vectors on that grid; None unless requested.

    Example:
        >>> import torch
        >>> from udaseg.models import SegmenterOutput
        >>> output = SegmenterOutput(
        ...     logits=torch.zeros(1, 19, 32, 64),
        ...     features=torch.zeros(1, 320, 8, 16),
        ...     embeddings=None,
        ... )
        >>> tuple(output.cell_logits().shape)
        (1, 19, 8, 16)
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
        head: From the list of feature maps to logits; see `Head`.
        batch_norm: Mode of the backbone's batch norms in training: `train`; `affine_frozen`
            (statistics are updated, scale and shift are not); `frozen` (neither is updated).
        projector: Maps (B, C, h, w) features to (B, D, h, w) unit vectors; not used at test time.
        align_corners: Whoever enlarges the logits puts the outermost cells on the outermost pixels;
            otherwise each cell is the centre of its pixels.
        frozen: Names of the backbone's parameters that do not learn; a part of it that has no
            others stays in evaluation mode.

    Attributes:
        recompute: Store only the inputs of blocks for the backward pass and recompute the other
            activations: less memory, one more forward pass, the same numbers.

    Example:
        >>> import torch
        >>> from udaseg.models import DeepLabV2, Segmenter, build_backbone
        >>> backbone = build_backbone("resnet18", output_stride=8, weights="random")
        >>> network = Segmenter(backbone, DeepLabV2(backbone.channels, num_classes=19)).eval()
        >>> with torch.no_grad():
        ...     output = network(torch.rand(1, 3, 128, 256))
        >>> tuple(output.logits.shape), tuple(output.features.shape)
        ((1, 19, 16, 32), (1, 512, 16, 32))
    """

    mean: Tensor
    std: Tensor
    recompute: bool = False
    _compiled: Literal["never", "training", "always"] = "never"

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        batch_norm: Literal["train", "affine_frozen", "frozen"] = "train",
        projector: nn.Module | None = None,
        align_corners: bool = False,
        frozen: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1))
        self.backbone = backbone
        self.head = head
        self.projector = projector
        self.batch_norm = batch_norm
        self.align_corners = align_corners
        parts = (*backbone.modules(), *head.modules())
        self._norms = [part for part in parts if isinstance(part, _BatchNorm)]
        if batch_norm != "train":
            for norm in self._backbone_norms():
                norm.requires_grad_(False)
        self._frozen_parts = freeze(backbone, frozen)
        self.train()

    def forward(self, images: Tensor, *, embed: bool = False) -> SegmenterOutput:
        """Return logits, features and, if requested, embeddings.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1].
            embed: Also project the features; needs a projector.
        """
        with count_together(self._norms):
            return self._forward(images, embed=embed)

    def _forward(self, images: Tensor, *, embed: bool) -> SegmenterOutput:
        images = (images - self.mean) / self.std
        if self.backbone.bgr:
            images = images.flip(1)
        if self.recompute and self.training and torch.is_grad_enabled():
            maps = self.backbone.forward_checkpointed(images)
            call = checkpointed
        else:
            maps = self._call_part(self.backbone, images)
            call = self._call_part
        features, embeddings = maps[-1], None
        if embed:
            if self.projector is None:
                raise ValueError("embed=True, but this network has no projector")
            embeddings = call(self.projector, features)
        return SegmenterOutput(call(self.head, maps), features, embeddings)

    @property
    def output_stride(self) -> int:
        """Input pixels per cell of the features."""
        return self.backbone.strides[-1]

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        return self.backbone.channels[-1]

    def enable_compile(self, when: Literal["training", "always"]) -> None:
        """Compile backbone, head and projector at their first call.

        Args:
            when: `training` keeps evaluation uncompiled, so that scores equal those of
                `udaseg eval` and new image sizes trigger no compilation.

        Raises:
            EnvironmentFault: This machine has no compiler.
        """
        compiling.check_compiler(self.mean.device.type)
        for part in (self.backbone, self.head, self.projector):
            if part is not None:
                # once for each input size; names, parameters and hooks do not change
                part.compile(backend=compiling.BACKEND, dynamic=False)
        self._compiled = when

    def _call_part(self, module: nn.Module, inputs: Tensor | Sequence[Tensor]) -> Any:
        """Return the output of a part of the network, from compiled code if configured."""
        if self._compiled == "training" and not self.training:
            return module.forward(inputs)
        return module(inputs)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen parts and batch norms stay in evaluation mode."""
        super().train(mode)
        for part in (*self._frozen_parts, *self.frozen_norms()):
            part.eval()
        return self

    def frozen_norms(self) -> list[nn.Module]:
        """Return the batch norms that use their running statistics in training too."""
        parts = [self.backbone] if self.batch_norm == "frozen" else self._frozen_parts
        return _batch_norms(parts)

    def _backbone_norms(self) -> list[nn.Module]:
        return _batch_norms([self.backbone])


def _batch_norms(modules: Iterable[nn.Module]) -> list[nn.Module]:
    parts = (part for module in modules for part in module.modules())
    return [part for part in parts if isinstance(part, nn.BatchNorm2d)]


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode in this context, then restore the mode of each part.

    Threads may share a network only if it is in evaluation mode already.
    """
    trained = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def build_segmenter(
    spec: Model, num_classes: int, *, projector: ProjectorSpec | None = None
) -> Segmenter:
    """Return the network of a recipe, with the backbone's weights loaded.

    Args:
        spec: The section `model` of the recipe.
        num_classes: Number of outputs.
        projector: Its projection head, a `udaseg.contrast.Projector`; None for no head.

    Raises:
        RecipeError: The backbone is unknown, or has too few stages to freeze so many.
        CheckpointError: The weights file belongs to another network.
        EnvironmentFault: A package or the ImageNet weights are not available.

    Example:
        >>> from udaseg.models import build_segmenter
        >>> from udaseg.recipe.schema import Model
        >>> spec = Model(
        ...     backbone="mobilenet_v2",
        ...     output_stride=16,
        ...     weights="random",
        ...     batch_norm="train",
        ...     head="deeplab_v3plus",
        ...     aspp_dilations=(3, 6),
        ...     head_channels=64,
        ... )
        >>> network = build_segmenter(spec, num_classes=19)
        >>> network.output_stride, network.feature_channels
        (16, 320)
    """
    backbone, built = backbone_of(spec), None
    head = head_class(spec.head).from_spec(spec, backbone, num_classes)
    if projector is not None:
        built = Projector.from_spec(projector, backbone.channels[-1])
    segmenter = Segmenter(
        backbone,
        head,
        batch_norm=spec.batch_norm,
        projector=built,
        align_corners=spec.align_corners,
        frozen=frozen_parameters(backbone, spec),
    )
    if spec.adapters is not None:
        add_adapters(backbone, spec.adapters)
    return segmenter


def backbone_of(spec: Model) -> Backbone:
    """Return the backbone of a recipe with its weights loaded, without adapters.

    It raises what `build_segmenter` raises.
    """
    weights = spec.weights
    if weights not in NAMED_WEIGHTS:
        weights = expand_path(weights)
    return build_backbone(
        spec.backbone,
        output_stride=spec.output_stride,
        weights=weights,
        levels=head_class(spec.head).levels,
        options=BackboneOptions(
            first_dilation=spec.first_dilation,
            ceil_pool=spec.ceil_pool,
            stride_in=spec.stride_in,
            input=spec.input,
            weights_partial=spec.weights_partial,
            drop_path=spec.drop_path,
        ),
    )


def merged_segmenter(
    spec: Model, num_classes: int, tensors: Mapping[str, Tensor], *, base: str | None
) -> Segmenter:
    """Return the network of a checkpoint for use outside training, its adapters merged.

    Args:
        spec: The section `model` of its recipe.
        num_classes: Number of outputs.
        tensors: The tensors of a student or teacher, without its projector.
        base: The weights file with the tensors that the checkpoint leaves out; None if it has all.

    Raises:
        RuntimeError: The tensors are not those of the network.
        CheckpointError: The file is not readable.
    """
    network = build_segmenter(replace(spec, weights=base or "random"), num_classes)
    network.load_state_dict(dict(tensors), strict=True)
    merge_adapters(network)
    return network
