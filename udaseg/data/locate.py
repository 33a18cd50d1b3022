"""Where a dataset's files are: the user's folder, archives to unpack, or how to get them."""

import os
import shutil
from pathlib import Path

from udaseg.data.archives import unpack
from udaseg.data.declaration import Declaration
from udaseg.data.find import find
from udaseg.errors import DataError


def located(declaration: Declaration, root: Path) -> Path | None:
    """Return the folder of the images, None when only archives are there.

    Raises:
        DataError: Nothing is there; says what to get and where to put it.
    """
    if declaration.root is not None:
        if not declaration.root.is_dir():
            raise DataError(f"{declaration.path}: root {declaration.root} is no folder")
        return declaration.root
    for base in (root, root / "unpacked"):
        for wanted in (*declaration.folders, declaration.name):
            folder = _any_case(base, wanted)
            if folder is not None and _holds_images(declaration, folder):
                return folder
    if _archives(declaration, root):
        return None
    raise DataError(f"{declaration.name}: not found below {root}\n{how_to_get(declaration, root)}")


def unpacked(declaration: Declaration, root: Path) -> Path:
    """Unpack every archive below root/unpacked/NAME and return where the images lie.

    The folder appears when all archives are unpacked, or not at all.

    Raises:
        DataError: An archive is damaged, unsafe, or of something else.
    """
    whole = root / "unpacked" / declaration.name
    building = _building(declaration, root)
    together = building / "together"
    together.mkdir(parents=True)
    try:
        for number, archive in enumerate(_archives(declaration, root)):
            part = building / str(number)
            unpack(archive, part)
            for path in find(part, "**/*"):
                target = together / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        found = _folder_inside(declaration, together)
        if found is None:
            raise DataError(
                f"{', '.join(map(str, _archives(declaration, root)))}: unpacked, but no image "
                f"matches {', '.join(declaration.images.values())}; of another dataset?"
            )
        if whole.exists():
            raise DataError(
                f"{whole}: exists but holds no such images; move it away, then prepare again"
            )
        found.rename(whole)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return whole


def clear_leftovers(declaration: Declaration, root: Path) -> None:
    """Remove what a run that was killed left while it unpacked."""
    shutil.rmtree(_building(declaration, root), ignore_errors=True)


def _building(declaration: Declaration, root: Path) -> Path:
    return root / "unpacked" / f".{declaration.name}.tmp"


def how_to_get(declaration: Declaration, root: Path) -> str:
    """Return what to download, from where, under which licence, and where to put it."""
    about = declaration.about
    put = root / (declaration.folders[0] if declaration.folders else declaration.name)
    lines = []
    if "home" in about:
        what = (about.get("title", declaration.name), about.get("size"))
        lines += [
            f"  what     {', '.join(str(part) for part in what if part)}",
            f"  page     {about['home']}",
            f"  licence  {about.get('licence', 'see the page')}",
            f"  files    {', '.join(map(str, about.get('download', [])))}",
        ]
    globs = dict.fromkeys((*declaration.images.values(), *declaration.labels.values()))
    lines.append(f"  put      the archives into {root}/, or the unpacked folders so that there are")
    lines += [f"             {put}/{glob}" for glob in globs]
    lines.append(
        f"  then     udaseg prepare {declaration.name}   (--root DIR if they lie elsewhere)"
    )
    return "\n".join(lines)


def _folder_inside(declaration: Declaration, whole: Path) -> Path | None:
    """Return `whole` or the folder in it (two deep) that the globs start from."""
    below = [sorted(path for path in whole.glob(deep) if path.is_dir()) for deep in ("*", "*/*")]
    for folder in (whole, *below[0], *below[1]):
        if _holds_images(declaration, folder):
            return folder
    return None


def _holds_images(declaration: Declaration, folder: Path) -> bool:
    return any(find(folder, pattern) for pattern in declaration.images.values())


def _any_case(base: Path, wanted: str) -> Path | None:
    """Return `base`/`wanted`, each part in whatever case it has on disk."""
    folder = base
    for part in wanted.split("/"):
        try:
            names = {
                entry.name.lower(): entry.name for entry in os.scandir(folder) if entry.is_dir()
            }
        except OSError:
            return None
        if part.lower() not in names:
            return None
        folder = folder / names[part.lower()]
    return folder


def _archives(declaration: Declaration, root: Path) -> list[Path]:
    places = [root, root / declaration.name]
    places += [place for name in declaration.folders if (place := _any_case(root, name))]
    found = [
        path for place in places for glob in declaration.archives for path in find(place, glob)
    ]
    return list({path.resolve(): path for path in found}.values())
