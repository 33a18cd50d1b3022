"""Find the files of a dataset: a folder, archives to unpack, or instructions to get them."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from udaseg.data.archives.unpack import unpack
from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import INDEX_NAME
from udaseg.data.datasets.layouts import has_images
from udaseg.data.files.find import find_files
from udaseg.errors import DataError
from udaseg.files import rename_durably, sync_to_disk

log = logging.getLogger(__name__)
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".rar", ".7z")


def find_dataset_folder(declaration: Declaration, root: Path) -> Path | None:
    """Return the folder of the images, or None if there are only archives.

    If there is nothing, an error says what to get and where to put it.
    """
    if declaration.root is not None:
        if not declaration.root.is_dir():
            raise DataError(f"{declaration.path}: root {declaration.root} is not a folder")
        return declaration.root
    for base in (root, root / "unpacked"):
        for name in (*declaration.folders, declaration.name):
            folder = _find_ignoring_case(base, name)
            if folder is not None and has_images(declaration, folder):
                return folder
    if _find_archives(declaration, root):
        return None
    raise DataError(
        f"{declaration.name}: not found below {root}\n{download_instructions(declaration, root)}"
    )


def prepared_folder(name: str, root: Path) -> Path | None:
    """Return the folder of the dataset that is prepared under this name, or None."""
    folder = root / "prepared" / name
    is_plain = "/" not in name and name not in (".", "..")
    return folder if is_plain and (folder / INDEX_NAME).is_file() else None


def unpack_archives(
    declaration: Declaration,
    root: Path,
    on_unpack: Callable[[int, int], None] | None = None,
) -> Path:
    """Unpack all archives into root/unpacked/NAME and return that folder.

    The folder appears only after all archives are unpacked.
    """
    final = root / "unpacked" / declaration.name
    if final.exists():
        raise DataError(
            f"{final}: exists but has no images of this dataset; move it away, then prepare again"
        )
    temporary = _temporary_folder(declaration, root)
    archives = _find_archives(declaration, root)
    unpack(archives, temporary, on_unpack)
    # the images are in that folder, or up to two levels deeper
    folders = [temporary]
    for pattern in ("*", "*/*"):
        folders += sorted(path for path in temporary.glob(pattern) if path.is_dir())
    image_folder = next((folder for folder in folders if has_images(declaration, folder)), None)
    if image_folder is None:
        nested = [
            path.name
            for path in find_files(temporary, "**/*.*")
            if path.suffix.lower() in _ARCHIVE_SUFFIXES
        ]
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(
            f"{', '.join(map(str, archives))}: unpacked, but no image matches "
            f"{', '.join(declaration.images.values())}; is this another dataset?"
            + (f"\n  it contains {', '.join(nested[:3])}: unpack it yourself" if nested else "")
            + f"\n{download_instructions(declaration, root)}"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    names = "\n".join(path.name for path in archives)
    _archive_list_path(declaration, root).write_bytes(os.fsencode(names))  # rewritten after a kill
    sync_to_disk()
    rename_durably(image_folder, final)
    return final


def clear_leftovers(declaration: Declaration, root: Path) -> None:
    """Remove what a killed run left while unpacking; call this once the images are in place."""
    shutil.rmtree(_temporary_folder(declaration, root), ignore_errors=True)


def warn_of_new_archives(declaration: Declaration, root: Path) -> None:
    """Warn of archives that were added after the others were unpacked."""
    try:
        known = os.fsdecode(_archive_list_path(declaration, root).read_bytes()).split("\n")
    except OSError:
        return
    folder = root / "unpacked" / declaration.name
    added = [path.name for path in _find_archives(declaration, root) if path.name not in known]
    if added and folder.is_dir():
        log.warning(
            "%s was unpacked without %s; delete that folder to unpack all archives again",
            folder,
            ", ".join(added),
        )


def _archive_list_path(declaration: Declaration, root: Path) -> Path:
    """Return the path of the file that lists the unpacked archives."""
    return root / "unpacked" / f".{declaration.name}.archives"


def _temporary_folder(declaration: Declaration, root: Path) -> Path:
    return root / "unpacked" / f".{declaration.name}.tmp"


def download_instructions(declaration: Declaration, root: Path) -> str:
    """Return what to download, where from, under which licence, and where to put it."""
    about = declaration.about
    destination = root / (declaration.folders[0] if declaration.folders else declaration.name)
    lines = []
    if "home" in about:
        what = ", ".join(
            str(part) for part in (about.get("title", declaration.name), about.get("size")) if part
        )
        lines += [
            f"  what     {what}",
            f"  page     {about['home']}",
            f"  licence  {about.get('licence', 'see the page')}",
            f"  files    {', '.join(map(str, about.get('download', [])))}",
        ]
    globs = dict.fromkeys((*declaration.images.values(), *declaration.labels.values()))
    lines += [
        f"  put      the archives into {root}/, or the unpacked folders so that there are",
        *(f"             {destination}/{glob}" for glob in globs),
        f"  then     udaseg prepare {declaration.argument}   (--root DIR if they are elsewhere)",
    ]
    return "\n".join(lines)


def _find_ignoring_case(base: Path, relative: str) -> Path | None:
    """Return the folder `base`/`relative`, whatever the case of its parts, or None."""
    folder = base
    for part in relative.split("/"):
        try:
            with os.scandir(folder) as entries:
                names = {entry.name.lower(): entry.name for entry in entries if entry.is_dir()}
        except OSError:
            return None
        if part.lower() not in names:
            return None
        folder = folder / names[part.lower()]
    return folder


def _find_archives(declaration: Declaration, root: Path) -> list[Path]:
    folders = [root, root / declaration.name]
    folders += filter(None, (_find_ignoring_case(root, name) for name in declaration.folders))
    paths = [
        path
        for folder in folders
        for glob in declaration.archives
        for path in find_files(folder, glob)
    ]
    return list({path.resolve(): path for path in paths}.values())
