"""Heads by their names in a recipe.

A new one is a module in this folder, a line in `HEADS`, and its name in the type of `Model.head` in
`udaseg/recipe/schema.py`, which does not import torch.
"""

from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.heads.deeplab_v3plus import DeepLabV3Plus
from udaseg.models.heads.head import Head

HEADS: dict[str, type[Head]] = {
    "deeplab_v2": DeepLabV2,
    "deeplab_v3plus": DeepLabV3Plus,
}
