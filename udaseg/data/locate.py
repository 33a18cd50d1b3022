"""Where a dataset's files are: the user's folder, archives to unpack, or how to get them."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from udaseg.data.archives import unpack
from udaseg.data.declaration import Declaration
from udaseg.data.durable import moved, written_out
from udaseg.data.find import find
from udaseg.data.layouts import holds_images
from udaseg.errors import DataError

log = logging.getLogger(__name__)


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
            if folder is not None and holds_images(declaration, folder):
                return folder
    if _archives(declaration, root):
        return None
    raise DataError(f"{declaration.name}: not found below {root}\n{how_to_get(declaration, root)}")


def unpacked(
    declaration: Declaration,
    root: Path,
    on_unpack: Callable[[int, int], None] | None = None,
) -> Path:
    """Unpack every archive below root/unpacked/NAME and return where the images lie.

    The folder appears when all archives are unpacked, or not at all.

    Args:
        declaration: Of the set.
        root: Where its archives lie.
        on_unpack: Called with the megabytes that are unpacked, and those in all.

    Raises:
        DataError: An archive is damaged, unsafe, or of something else.
        EnvironmentFault: No room on the disk; the next run goes on.
    """
    whole = root / "unpacked" / declaration.name
    if whole.exists():
        raise DataError(
            f"{whole}: exists but holds no such images; move it away, then prepare again"
        )
    building = _building(declaration, root)
    archives = _archives(declaration, root)
    unpack(archives, building, on_unpack)
    found = _folder_inside(declaration, building)
    if found is None:
        inner = [path.name for path in find(building, "**/*.*") if _is_archive(path)]
        shutil.rmtree(building, ignore_errors=True)
        raise DataError(
            f"{', '.join(map(str, archives))}: unpacked, but no image matches "
            f"{', '.join(declaration.images.values())}; of another dataset?"
            + (f"\n  it holds {', '.join(inner[:3])}: unpack it yourself" if inner else "")
            + f"\n{how_to_get(declaration, root)}"
        )
    whole.parent.mkdir(parents=True, exist_ok=True)
    names = "\n".join(path.name for path in archives)
    _record(declaration, root).write_bytes(os.fsencode(names))  # half of it is written again
    written_out()
    moved(found, whole)
    return whole


def clear_leftovers(declaration: Declaration, root: Path) -> None:
    """Remove what a run that was killed left while it unpacked; for when the images are there."""
    shutil.rmtree(_building(declaration, root), ignore_errors=True)


def tell_of_later_archives(declaration: Declaration, root: Path) -> None:
    """Warn of archives that lie here now and did not when the others were unpacked."""
    try:
        known = os.fsdecode(_record(declaration, root).read_bytes()).split("\n")
    except OSError:
        return
    whole = root / "unpacked" / declaration.name
    later = [path.name for path in _archives(declaration, root) if path.name not in known]
    if later and whole.is_dir():
        log.warning(
            "%s was unpacked without %s; delete that folder to unpack all archives again",
            *(whole, ", ".join(later)),
        )


def _record(declaration: Declaration, root: Path) -> Path:
    """Return where the names of the archives are noted that were unpacked."""
    return root / "unpacked" / f".{declaration.name}.archives"


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".xz", ".rar", ".7z")


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
        f"  then     udaseg prepare {declaration.word}   (--root DIR if they lie elsewhere)"
    )
    return "\n".join(lines)


def _folder_inside(declaration: Declaration, whole: Path) -> Path | None:
    """Return `whole` or the folder in it (two deep) that the globs start from."""
    below = [sorted(path for path in whole.glob(deep) if path.is_dir()) for deep in ("*", "*/*")]
    for folder in (whole, *below[0], *below[1]):
        if holds_images(declaration, folder):
            return folder
    return None


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
