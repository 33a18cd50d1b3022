"""Toyland: an unlimited, seeded benchmark of street scenes in two cities, rendered on demand.

`source` is a sunny, clean render of one city with labels. `target` is another city, photographed
with haze, rain, dusk or low sun through an imperfect camera. Both share 13 classes and the layout
of a street, so a network trained on one can be adapted to the other.
"""

from udaseg.data.toyland.city import Domain
from udaseg.data.toyland.classes import CLASSES
from udaseg.data.toyland.scene import render
from udaseg.data.toyland.writer import DEFAULT_COUNTS, SETTINGS_NAME, write

__all__ = ["CLASSES", "DEFAULT_COUNTS", "SETTINGS_NAME", "Domain", "render", "write"]
