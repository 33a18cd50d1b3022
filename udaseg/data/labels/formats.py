"""Label formats by name: the built-in ones, and those of other installed packages."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.data.labels import ids, rgb, synthia
from udaseg.data.labels.objects import cityscapes, coco, cvat, label_studio, labelme
from udaseg.data.labels.objects.shared import ObjectReader
from udaseg.errors import DataError, EnvironmentFault, UdasegError
from udaseg.plugins import Plugin, find_plugin, list_plugins
from udaseg.text import suggestion

LabelReader = Callable[[Path, bytes], NDArray[Any]]
"""Returns the (H, W) integer ids in the content of a label file; the path is for messages."""

GROUP: Literal["udaseg.label_formats"] = "udaseg.label_formats"

_OF_IDS: Mapping[str, tuple[LabelReader, tuple[str, ...]]] = {
    "ids": (ids.read, (*IMAGE_SUFFIXES, ".gif", ".npy")),
    "rgb": (rgb.read, (*IMAGE_SUFFIXES, ".gif")),
    "synthia": (synthia.read, IMAGE_SUFFIXES),
}


class ObjectFormat(NamedTuple):
    """A format whose labels are named objects instead of ids.

    Attributes:
        read: Its reader.
        suffix: Suffix of its files.
        shared: Whether a file is about several images.
        unscored: Labels that belong to no class unless the classes name them.
    """

    read: ObjectReader
    suffix: str = ".json"
    shared: bool = False
    unscored: tuple[str, ...] = ()


_OF_OBJECTS: Mapping[str, ObjectFormat] = {
    "coco": ObjectFormat(coco.read, shared=True),
    "labelme": ObjectFormat(labelme.read),
    "cvat": ObjectFormat(cvat.read, ".xml", shared=True),
    "label_studio": ObjectFormat(label_studio.read, shared=True),
    "cityscapes_polygons": ObjectFormat(cityscapes.read, unscored=cityscapes.UNSCORED),
}
BUILT_IN = (*_OF_IDS, *_OF_OBJECTS)
"""The names of the formats that need no other package."""


def object_format(name: str) -> ObjectFormat | None:
    """Return a format of named objects; None for a format of ids."""
    return _OF_OBJECTS.get(name)


def label_suffixes(name: str) -> tuple[str, ...] | None:
    """Return the suffixes of the label files of a format; None for that of a package."""
    if name in _OF_OBJECTS:
        return (_OF_OBJECTS[name].suffix,)
    return _OF_IDS[name][1] if name in _OF_IDS else None


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
    """Return the reader of a label format of ids.

    Raises:
        EnvironmentFault: Nothing reads the format, or its package cannot be imported.
    """
    if name in _OF_IDS:
        return _OF_IDS[name][0]
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
