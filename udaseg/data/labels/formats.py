"""Label formats by name: the built-in ones, and those of other installed packages."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udaseg.data.labels import ids, rgb, synthia
from udaseg.errors import DataError, EnvironmentFault, UdasegError
from udaseg.plugins import Plugin, find_plugin, list_plugins
from udaseg.text import suggestion

LabelReader = Callable[[Path, bytes], NDArray[Any]]
"""Returns the (H, W) integer ids in the content of a label file; the path is for messages."""

GROUP: Literal["udaseg.label_formats"] = "udaseg.label_formats"

BUILT_IN: Mapping[str, LabelReader] = {
    "ids": ids.read,
    "rgb": rgb.read,
    "synthia": synthia.read,
}


class LabelPackage(NamedTuple):
    """The package that reads a label format.

    Attributes:
        name: Name of the package.
        fingerprint: Digest that changes with its version or its code.
    """

    name: str
    fingerprint: str


def format_package(name: str) -> LabelPackage | None:
    """Return the installed package that reads a label format; None if none does, or it is built in.

    Raises:
        EnvironmentFault: Several packages read it.
    """
    plugin = None if name in BUILT_IN else find_plugin(GROUP, name)
    return None if plugin is None else LabelPackage(plugin.package, plugin.fingerprint())


@cache
def label_reader(name: str) -> LabelReader:
    """Return the reader of a label format.

    Raises:
        EnvironmentFault: Nothing reads the format, or its package cannot be imported.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    plugin = find_plugin(GROUP, name)
    if plugin is None:
        raise EnvironmentFault(f"label_format {unknown_format_message(name)}")
    return _checked_reader(plugin)


def unknown_format_message(name: object) -> str:
    """Return the message for a label format that nothing reads."""
    known = [*BUILT_IN, *(plugin.name for plugin in list_plugins(GROUP))]
    listed = f"{', '.join(known[:-1])} or {known[-1]}"
    hint = suggestion(name, known) if isinstance(name, str) else ""
    return f"must be {listed}, got {name!r}{hint} (no installed package has it in {GROUP})"


def _checked_reader(plugin: Plugin) -> LabelReader:
    """Return the reader of a package; what it returns is checked."""
    reader = plugin.load()
    title = f"label_format {plugin.name} of package {plugin.package}"
    if not callable(reader):
        raise EnvironmentFault(f"{title}: {type(reader).__name__} is not a function")

    def read(path: Path, data: bytes) -> NDArray[Any]:
        try:
            labels = reader(path, data)
        except UdasegError:
            raise
        except Exception as error:
            raise DataError(f"{path}: {title}: {type(error).__name__}: {error}") from error
        if not isinstance(labels, np.ndarray):
            raise EnvironmentFault(f"{path}: {title} returned {type(labels).__name__}, no array")
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise EnvironmentFault(
                f"{path}: {title} must return (H, W) integers, "
                f"returned {labels.dtype} {labels.shape}"
            )
        return np.ascontiguousarray(labels)

    return read
