"""Open the dataset that a user names: a prepared name, a dataset YAML or a folder."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from udaseg.data.catalog_list import builtin_names
from udaseg.data.document import did_you_mean
from udaseg.data.find import find
from udaseg.data.images import IMAGE_SUFFIXES, image_size
from udaseg.data.index import INDEX_NAME, PreparedDataset, Sample, read_index
from udaseg.data.lock import held
from udaseg.data.prepare import prepare_as_before
from udaseg.data.toyland import write
from udaseg.errors import DataError

log = logging.getLogger(__name__)

TOYLAND_SIZE = (128, 256)

_SHOWN = 10
_TOYLAND = ("toyland", "toyland-target")


def open_dataset(data: str, *, root: Path) -> PreparedDataset:
    """Return the dataset that `data` means.

    Args:
        data: A prepared name, a dataset YAML (prepared now if necessary), a built-in name that
            can be generated, or a folder of images without labels.
        root: The folder of data and prepared datasets.

    Raises:
        DataError: No dataset has this name, or it is not prepared; the message says what to do.
    """
    if data.endswith((".yaml", ".yml")):
        report = prepare_as_before(data, root=root)
        if not report.unchanged:
            log.info("prepared %s in %s", data, report.dataset.folder)
        return report.dataset
    folder = root / "prepared" / data
    plain = "/" not in data and data not in (".", "..")
    if plain and (folder / INDEX_NAME).is_file():
        return read_index(folder)
    if data in _TOYLAND:
        if not (root / "toyland").is_dir():
            log.info("rendering toyland in %s", root / "toyland")
            make_toyland(root)
        return prepare_as_before(data, root=root).dataset
    if Path(data).is_dir():
        return folder_of_images(Path(data))
    if data in builtin_names():
        raise DataError(f"{data}: not prepared below {root}; run `udaseg prepare {data}`")
    prepared = root / "prepared"
    known = sorted(path.parent.name for path in prepared.glob(f"[!.]*/{INDEX_NAME}"))
    hint = did_you_mean(data, [*known, *builtin_names()])
    raise DataError(
        f"{data}: no prepared dataset, dataset YAML or folder of that name{hint} "
        f"(prepared here: {', '.join(known) or 'nothing'})"
    )


def make_toyland(
    root: Path,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write toyland below `root`, unless it already exists.

    Raises:
        DataError: It exists with another seed or size.
    """
    with held(root / ".toyland.lock"):
        write(
            root / "toyland",
            seed=seed,
            size=size or TOYLAND_SIZE,
            workers=os.cpu_count() or 1,
            on_progress=on_progress,
        )


def folder_of_images(folder: Path) -> PreparedDataset:
    """Return all images below a folder, at any depth, as an unlabelled split `train`.

    Raises:
        DataError: There is no image, or one cannot be read.
    """
    paths = [path for path in find(folder, "**/*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise DataError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)})")
    samples, bad = [], []
    for path in paths:
        try:
            height, width = image_size(path)
        except DataError as error:
            bad.append(str(error))
            continue
        samples.append(Sample(path.relative_to(folder).as_posix(), None, height, width))
    if bad:
        listed = "\n  ".join(bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(f"{folder}: {len(bad)} images cannot be read:\n  {listed}{more}")
    name = folder.resolve().name or "images"
    return PreparedDataset(name, folder, folder.resolve(), None, {"train": tuple(samples)})
