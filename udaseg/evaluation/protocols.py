"""Which mean IoUs a class list allows: over 19, 16 or 13 Cityscapes classes, or over all."""

from collections.abc import Sequence

CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
_NOT_IN_16 = {"terrain", "truck", "train"}
_NOT_IN_13 = _NOT_IN_16 | {"wall", "fence", "pole"}
SUBSETS = {
    19: CITYSCAPES,
    16: tuple(name for name in CITYSCAPES if name not in _NOT_IN_16),
    13: tuple(name for name in CITYSCAPES if name not in _NOT_IN_13),
}
"""The classes of each published protocol; 16 and 13 are SYNTHIA's."""


def mean_subsets(names: Sequence[str]) -> dict[int, tuple[int, ...]]:
    """Return, for each protocol whose classes all occur in `names`, their positions there."""
    position = {name: index for index, name in enumerate(names)}
    return {
        count: tuple(position[name] for name in subset)
        for count, subset in SUBSETS.items()
        if all(name in position for name in subset)
    }
