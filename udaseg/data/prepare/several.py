"""Several data sets in one call, of which one that fails does not stop the others."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from udaseg.errors import DataError
from udaseg.files import one_or_more

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One or several built-in names or dataset YAMLs."""

TOYLAND = ("toyland", "toyland-target")
"""The data sets that can be generated; `prepare toyland` means both."""


class SomeDataFailed(DataError):
    """Data sets failed, and the message names them; the work on the others is finished.

    Attributes:
        finished: The results of the other data sets.
    """

    def __init__(self, message: str, finished: Sequence[Any]) -> None:
        super().__init__(message)
        self.finished = list(finished)


def expand_names(names: Names) -> list[str]:
    """Return each name once, with toyland expanded to its two data sets."""
    expanded: list[str] = []
    for name in one_or_more(names):
        expanded += TOYLAND if name == "toyland" else [name]
    return list(dict.fromkeys(expanded))


class Faults(list[str]):
    """The messages on data sets that failed."""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the message of a `DataError` instead of raising it."""
        try:
            yield
        except DataError as error:
            self.append(str(error))

    def raise_if_any(self, finished: Sequence[Any]) -> None:
        """Raise a `SomeDataFailed` that lists all faults, each once, if there are any."""
        if self:
            raise SomeDataFailed("\n\n".join(dict.fromkeys(self)), finished)
