"""A value that a regularizer computes once in a step, for its loss and for its update."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from udaseg.methods.views import Views

T = TypeVar("T")


class ValueOfStep(Generic[T]):
    """A value computed from the views of a step, kept until `take`.

    Views are told apart by identity. Those of a dropped step, or of a part of the batch, are never
    used for others, and are not kept alive.
    """

    def __init__(self) -> None:
        self._kept: tuple[weakref.ref[Views], T] | None = None

    def get(self, views: Views, compute: Callable[[Views], T]) -> T:
        """Return the value for these views, which is computed at the first call."""
        if self._kept is None or self._kept[0]() is not views:
            self._kept = weakref.ref(views), compute(views)
        return self._kept[1]

    def take(self, views: Views, compute: Callable[[Views], T]) -> T:
        """Return the value for these views, and let it go."""
        value = self.get(views, compute)
        self._kept = None
        return value
