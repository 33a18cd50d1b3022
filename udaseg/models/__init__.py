"""Networks: backbones, segmentation heads, and the segmenter that combines them.

    from udaseg.models import DeepLabV2, Segmenter, build_backbone

Each name is imported when it is first used. Inside udaseg, import from the module that defines it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.models.backbones.backbone import Backbone as Backbone
    from udaseg.models.backbones.backbone import BackboneOptions as BackboneOptions
    from udaseg.models.backbones.build import build_backbone as build_backbone
    from udaseg.models.discriminator import Discriminator as Discriminator
    from udaseg.models.heads.daformer import DAFormerHead as DAFormerHead
    from udaseg.models.heads.deeplab_v2 import DeepLabV2 as DeepLabV2
    from udaseg.models.heads.deeplab_v3plus import DeepLabV3Plus as DeepLabV3Plus
    from udaseg.models.heads.head import Head as Head
    from udaseg.models.heads.linear import LinearHead as LinearHead
    from udaseg.models.heads.pyramid import PyramidHead as PyramidHead
    from udaseg.models.heads.upsample import UpsampleHead as UpsampleHead
    from udaseg.models.projector import Projector as Projector
    from udaseg.models.segmenter import Segmenter as Segmenter
    from udaseg.models.segmenter import SegmenterOutput as SegmenterOutput
    from udaseg.models.segmenter import build_segmenter as build_segmenter

_MODULES = {
    "Backbone": "udaseg.models.backbones.backbone",
    "BackboneOptions": "udaseg.models.backbones.backbone",
    "DAFormerHead": "udaseg.models.heads.daformer",
    "DeepLabV2": "udaseg.models.heads.deeplab_v2",
    "DeepLabV3Plus": "udaseg.models.heads.deeplab_v3plus",
    "Discriminator": "udaseg.models.discriminator",
    "Head": "udaseg.models.heads.head",
    "LinearHead": "udaseg.models.heads.linear",
    "Projector": "udaseg.models.projector",
    "PyramidHead": "udaseg.models.heads.pyramid",
    "Segmenter": "udaseg.models.segmenter",
    "SegmenterOutput": "udaseg.models.segmenter",
    "UpsampleHead": "udaseg.models.heads.upsample",
    "build_backbone": "udaseg.models.backbones.build",
    "build_segmenter": "udaseg.models.segmenter",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
