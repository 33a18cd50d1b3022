"""Builds a head by its name in a recipe. A new one is a module here and a line in the table."""

from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.heads.deeplab_v3plus import DeepLabV3Plus
from udaseg.models.heads.head import Head

HEADS: dict[str, type[Head]] = {
    "deeplab_v2": DeepLabV2,
    "deeplab_v3plus": DeepLabV3Plus,
}
