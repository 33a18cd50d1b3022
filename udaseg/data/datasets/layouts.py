"""Known layouts of a dataset, such as other releases, and which of them a folder has."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.files.find import find_files


def match_layout(declaration: Declaration, folder: Path) -> Declaration:
    """Return the declaration with the globs of the layout that `folder` has.

    Prefers the first layout with images and, if it declares labels, labels; then the first with
    images; then the declaration's own layout.
    """
    if not declaration.layouts:
        return declaration
    candidates = [
        declaration,
        *(
            replace(
                declaration,
                images=layout.images,
                labels=layout.labels,
                stem_endings=layout.stem_endings,
            )
            for layout in declaration.layouts
        ),
    ]
    with_images = [candidate for candidate in candidates if _any_match(candidate.images, folder)]
    complete = [
        candidate
        for candidate in with_images
        if not candidate.labels or _any_match(candidate.labels, folder)
    ]
    return next(iter(complete or with_images), declaration)


def has_images(declaration: Declaration, folder: Path) -> bool:
    """Return whether `folder` has an image of the dataset, in any of its layouts."""
    globs = [declaration.images, *(layout.images for layout in declaration.layouts)]
    return any(_any_match(images, folder) for images in globs)


def _any_match(globs: Mapping[str, str], folder: Path) -> bool:
    return any(find_files(folder, pattern) for pattern in globs.values())
