"""Match images to the entries of label files that are about several images."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.labels.formats import object_format
from udaseg.data.labels.objects.shared import read_shared

log = logging.getLogger(__name__)


class SharedFiles:
    """The label files of a data set, if each is about several images.

    Args:
        declaration: Their format, and the endings of names that do not count.

    Attributes:
        reader: Reads a file; None if a label file is about one image.
    """

    def __init__(self, declaration: Declaration) -> None:
        found = object_format(declaration.label_format)
        self.reader = found.read if found is not None and found.shared else None
        self._declaration = declaration
        self._listed: dict[tuple[Path, int], str] = {}
        self._used: set[tuple[Path, int]] = set()

    def match(
        self, paths: Sequence[Path], images: Mapping[str, Path], folder: Path
    ) -> dict[str, tuple[Path, int]]:
        """Return the file and the position in it for the key of each image that is listed.

        An entry means the image whose key is its name or, if there is none, whose path below
        `folder` ends with its name, or with the last parts of its name. The suffix does not count.
        If several images do, or several entries mean one image, a warning names them, and none is
        taken.
        """
        assert self.reader is not None
        tails: dict[tuple[str, ...], list[str]] = {}
        for key, image in images.items():
            parts = self._parts(image.relative_to(folder).as_posix())
            for start in range(len(parts)):
                tails.setdefault(parts[start:], []).append(key)
        tails |= {PurePosixPath(key).parts: [key] for key in images}
        entries: dict[str, list[tuple[Path, int]]] = {}
        for path in paths:
            for position, listed in enumerate(read_shared(path, self.reader).images):
                name = listed.names[0] if listed.names else ""
                self._listed[path, position] = name
                keys = self._keys_of(listed.names, tails)
                if len(keys) > 1:
                    log.warning("%s: %s can mean %s or %s", path, name, *map(images.get, keys[:2]))
                elif keys:
                    entries.setdefault(keys[0], []).append((path, position))
        for key, found in entries.items():
            self._used.update(found)
            if len(found) > 1:
                log.warning("%s: is listed %d times, first in %s", key, len(found), found[0][0])
        return {key: found[0] for key, found in entries.items() if len(found) == 1}

    def warn_of_unused(self) -> None:
        """Warn of entries whose image does not exist."""
        unused = self._listed.keys() - self._used
        if unused:
            path, position = min(unused)
            log.warning(
                "%s: %d of %d listed images are not in the data set, such as %s",
                path,
                len(unused),
                len(self._listed),
                self._listed[path, position] or "one without a name",
            )

    def _keys_of(
        self, names: Sequence[str], tails: Mapping[tuple[str, ...], list[str]]
    ) -> list[str]:
        """Return the keys of the images that one of the names can mean, the best name first."""
        for name in names:
            parts = self._parts(name)
            for start in range(len(parts)):
                if keys := tails.get(parts[start:]):
                    return keys
        return []

    def _parts(self, name: str) -> tuple[str, ...]:
        path = PurePosixPath(name.replace("\\", "/"))
        return (*path.parts[:-1], self._declaration.without_endings(path.stem))
