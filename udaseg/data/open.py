"""Open the dataset that a user names: a prepared name, a dataset YAML or a folder."""

import logging
from pathlib import Path

from udaseg.data.datasets.catalog import builtin_names
from udaseg.data.datasets.index import INDEX_NAME, PreparedDataset, Sample, read_index
from udaseg.data.files.find import find_files
from udaseg.data.files.images import IMAGE_SUFFIXES, image_size
from udaseg.data.prepare.prepare import prepare_with_last_options
from udaseg.data.toyland.make import make_toyland
from udaseg.documents import did_you_mean
from udaseg.errors import DataError

log = logging.getLogger(__name__)
_MAX_LISTED = 10
_TOYLAND_NAMES = ("toyland", "toyland-target")


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
        report = prepare_with_last_options(data, root=root)
        if not report.unchanged:
            log.info("prepared %s in %s", data, report.dataset.folder)
        return report.dataset
    folder = root / "prepared" / data
    plain = "/" not in data and data not in (".", "..")
    if plain and (folder / INDEX_NAME).is_file():
        return read_index(folder)
    if data in _TOYLAND_NAMES:
        if not (root / "toyland").is_dir():
            log.info("rendering toyland in %s", root / "toyland")
            make_toyland(root)
        return prepare_with_last_options(data, root=root).dataset
    if Path(data).is_dir():
        return open_image_folder(Path(data))
    if data in builtin_names():
        raise DataError(f"{data}: not prepared below {root}; run `udaseg prepare {data}`")
    prepared = root / "prepared"
    known = sorted(path.parent.name for path in prepared.glob(f"[!.]*/{INDEX_NAME}"))
    hint = did_you_mean(data, [*known, *builtin_names()])
    raise DataError(
        f"{data}: no prepared dataset, dataset YAML or folder of that name{hint} "
        f"(prepared here: {', '.join(known) or 'nothing'})"
    )


def open_image_folder(folder: Path) -> PreparedDataset:
    """Return all images below a folder, at any depth, as an unlabelled split `train`.

    Raises:
        DataError: The folder has no images, or one cannot be read.
    """
    paths = [path for path in find_files(folder, "**/*") if path.suffix.lower() in IMAGE_SUFFIXES]
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
        listed = "\n  ".join(bad[:_MAX_LISTED])
        more = f"\n  and {len(bad) - _MAX_LISTED} more" if len(bad) > _MAX_LISTED else ""
        raise DataError(f"{folder}: {len(bad)} images cannot be read:\n  {listed}{more}")
    name = folder.resolve().name or "images"
    return PreparedDataset(name, folder, folder.resolve(), None, {"train": tuple(samples)})
