"""Which of the known layouts of a set lies in a folder: another release, or rearranged files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from udaseg.data.declaration import Declaration
from udaseg.data.find import find


def laid_out(declaration: Declaration, folder: Path) -> Declaration:
    """Return the declaration with the globs of the layout that lies in `folder`.

    That is the first that has images and, where it names labels, labels; without such, the first
    that has images, and without that, the declaration's own.
    """
    if not declaration.layouts:
        return declaration
    known = [
        declaration,
        *(
            replace(declaration, images=other.images, labels=other.labels, strip=other.strip)
            for other in declaration.layouts
        ),
    ]
    with_images = [one for one in known if _any(one.images, folder)]
    whole = [one for one in with_images if not one.labels or _any(one.labels, folder)]
    return next(iter(whole or with_images), declaration)


def holds_images(declaration: Declaration, folder: Path) -> bool:
    """Return whether `folder` has an image of the set, in any of its layouts."""
    globs = [declaration.images, *(other.images for other in declaration.layouts)]
    return any(_any(images, folder) for images in globs)


def _any(globs: Mapping[str, str], folder: Path) -> bool:
    return any(find(folder, pattern) for pattern in globs.values())
