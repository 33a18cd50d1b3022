"""Networks: library backbones, segmentation heads, and the segmenter that combines them."""

from udaseg.models.backbones import BACKBONES, Backbone, TimmBackbone, backbone
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads import DeepLabV2, DeepLabV3Plus
from udaseg.models.recompute import segments
from udaseg.models.segmenter import Segmented, Segmenter
from udaseg.models.weights import LoadReport, load_into, read_state_dict

__all__ = [
    "BACKBONES",
    "Backbone",
    "DeepLabV2",
    "DeepLabV3Plus",
    "Discriminator",
    "LoadReport",
    "Segmented",
    "Segmenter",
    "TimmBackbone",
    "backbone",
    "load_into",
    "read_state_dict",
    "segments",
]
