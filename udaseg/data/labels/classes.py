"""The meaning of label values: the ignored value, and class spaces (names with colours)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORE = 255
"""The train id of pixels without a class; losses and scores skip it."""


@dataclass(frozen=True)
class ClassSpace:
    """The classes of a dataset or a network, in train-id order.

    Attributes:
        names: One lower-case name per class; the position is the train id.
        colors: One RGB triple (0..255) per class, for masks and pictures.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ValueError(f"{len(self.names)} class names but {len(self.colors)} colours")
        if any(
            len(color) != 3 or not 0 <= min(color) <= max(color) <= 255 for color in self.colors
        ):
            raise ValueError(f"a colour is three numbers from 0 to 255: {self.colors}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"class names repeat: {self.names}")
        if not 1 <= len(self.names) < IGNORE:
            raise ValueError(f"a class space has 1 to 254 classes, got {len(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def train_ids_in(self, other: "ClassSpace") -> tuple[int, ...]:
        """Return each class's train id in `other`, or `IGNORE` if `other` lacks the class.

        Classes are matched by name, so source and target may have different lists.
        """
        position = {name: train_id for train_id, name in enumerate(other.names)}
        return tuple(position.get(name, IGNORE) for name in self.names)


def lookup_table(train_ids: Sequence[int]) -> bytes:
    """Return a 256-entry table that maps id i to `train_ids[i]` and all others to `IGNORE`."""
    if len(train_ids) > 256:
        raise ValueError(f"a lookup table has 256 entries, got {len(train_ids)}")
    return bytes(train_ids) + bytes([IGNORE]) * (256 - len(train_ids))


def classes_to_dict(classes: ClassSpace) -> dict[str, Any]:
    """Return a class space as the plain values that a checkpoint stores."""
    return {"names": list(classes.names), "colors": [list(color) for color in classes.colors]}
