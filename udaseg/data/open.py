"""Open the dataset that a user names: a prepared name, a dataset YAML or a folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

from udaseg.data.datasets.catalog import builtin_names
from udaseg.data.datasets.index import INDEX_NAME, PreparedDataset, Sample, read_index
from udaseg.data.files.folders import files_text, find_images, find_images_and_others
from udaseg.data.files.held import HeldFile, hold_now
from udaseg.data.files.images import image_header, image_orientation
from udaseg.data.files.orientation import turned_size
from udaseg.data.files.parallel import map_in_threads
from udaseg.data.prepare.locate import prepared_folder
from udaseg.data.prepare.manifest import find_manifest
from udaseg.data.prepare.prepare import find_declaration, prepare_with_last_options
from udaseg.data.prepare.report import format_first
from udaseg.data.prepare.rules import TOYLAND
from udaseg.data.toyland.writer import make_toyland
from udaseg.display.progress import LazyProgress
from udaseg.errors import DataError
from udaseg.text import count_text, suggestion

log = logging.getLogger(__name__)
_SPLIT_OF_FOLDER = "train"


def open_dataset(data: str, *, root: Path) -> PreparedDataset:
    """Return the dataset that `data` means.

    Args:
        data: A prepared name, a dataset YAML (prepared now if necessary), a built-in name that
            can be generated, or a folder of images without labels.
        root: The folder of data and prepared datasets.

    Raises:
        DataError: There is no such data set, or it cannot be read.
    """
    if data.endswith((".yaml", ".yml")):
        report = prepare_with_last_options(data, root=root)
        if not report.unchanged:
            log.info("prepared %s in %s", data, report.dataset.folder)
        return report.dataset
    if is_image_folder(data, root=root):
        return open_image_folder(Path(data))
    refuse_unknown(data, root=root)
    folder = prepared_folder(data, root)
    if folder is not None:
        return read_index(folder)
    if not (root / "toyland").is_dir():
        log.info("rendering toyland in %s", root / "toyland")
        make_toyland(root)
    return prepare_with_last_options(data, root=root).dataset


def refuse_unknown(data: str, *, root: Path) -> None:
    """Refuse the name of a data set that `open_dataset` does not find; reads no image.

    Raises:
        DataError: It is no prepared name, dataset YAML, set that can be generated, or folder of
            images.
    """
    if not data:
        raise DataError("the name of a data set is empty")  # as a folder, it would be this one
    if data.endswith((".yaml", ".yml")):
        find_declaration(data, root)
        return
    if is_image_folder(data, root=root):
        find_images(Path(data))
        return
    if data in TOYLAND or prepared_folder(data, root) is not None:
        return
    if data in builtin_names():
        raise DataError(f"{data}: not prepared below {root}; run `udaseg prepare {data}`")
    if Path(data).is_file():
        find_images(Path(data))
    prepared = root / "prepared"
    known = sorted(path.parent.name for path in prepared.glob(f"[!.]*/{INDEX_NAME}"))
    hint = suggestion(data, [*known, *builtin_names()])
    raise DataError(
        f"{data}: no prepared dataset, dataset YAML or folder of that name{hint} "
        f"(prepared here: {', '.join(known) or 'nothing'})"
    )


def refuse_unscorable(data: str, split: str | None, *, scored: bool, root: Path) -> None:
    """Refuse a split that a prepared set lacks, and, if it is scored, a set without labels.

    Args:
        data: A data set that `refuse_unknown` accepts; one that is not prepared yet passes.
        split: The split that is named, if any.
        scored: Whether predictions are compared with its labels.
        root: The folder of data and prepared datasets.

    Raises:
        DataError: There is no such split, or there are no labels.
    """
    if split is None and not scored:
        return  # an index of many images takes a while to read
    folder = prepared_folder(data, root)
    dataset = None if folder is None else read_index(folder)
    is_folder = is_image_folder(data, root=root)
    if scored and (is_folder or (dataset is not None and dataset.classes is None)):
        raise DataError(f"{data}: has no labels, so it cannot be used for scoring")
    if is_folder and split not in (None, _SPLIT_OF_FOLDER):
        raise DataError(f"{data}: no split '{split}'; a folder of images has {_SPLIT_OF_FOLDER}")
    if dataset is not None and split is not None:
        dataset.split(split)


def is_image_folder(data: str, *, root: Path) -> bool:
    """Return whether `open_dataset` takes `data` for a folder of images without labels."""
    is_name = data in TOYLAND or data.endswith((".yaml", ".yml"))
    return (
        data != "" and not is_name and prepared_folder(data, root) is None and Path(data).is_dir()
    )


def hold_files(dataset: PreparedDataset, split: str, *, labelled: bool) -> None:
    """Hold the images of a split, and its labels if `labelled`: later reads refuse other content.

    A prepared set has sizes, times and digests in its manifest, so nothing is read. The files of a
    plain folder have none; they are read now, once. Labels are held by their content alone, because
    `prepare` gives them the time of the label that they are made from.
    """
    for part in dataset.parts:
        _hold_files(part, split, labelled=labelled)


def _hold_files(dataset: PreparedDataset, split: str, *, labelled: bool) -> None:
    manifest = find_manifest(dataset.folder)
    recorded = {
        str(base / file.path): HeldFile(file.stamp, file.sha256, "when the data set was prepared")
        for row in (() if manifest is None else manifest.rows)
        for base, file in ((dataset.image_root, row.image), (dataset.folder, row.prepared))
        if file is not None
    }
    samples = dataset.split(split)
    images = list(map(dataset.image_path, samples))
    labels = list(map(dataset.label_path, samples)) if labelled else []
    _refuse_missing(dataset, (*images, *labels))
    unknown = [path for path in (*images, *labels) if str(path) not in recorded]
    with LazyProgress(f"digest {dataset.name}", "files") as on_progress:
        now = {str(path): file for path, file in map_in_threads(hold_now, unknown, -1, on_progress)}
    held = {**recorded, **now}
    dataset.held.update({str(path): held[str(path)] for path in images})
    dataset.held.update({str(path): held[str(path)]._replace(stamp="") for path in labels})


def _refuse_missing(dataset: PreparedDataset, files: Sequence[Path]) -> None:
    """Refuse a data set of which files are gone: training would end at the first that is drawn.

    Raises:
        DataError: Some are gone.
    """
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{dataset.name}: {len(missing):,} of {len(files):,} files are gone, such as "
            f"{missing[0]}; restore them, or prepare the data again"
        )


def open_image_folder(folder: Path) -> PreparedDataset:
    """Return all images below a folder, at any depth, as an unlabelled split `train`."""
    samples, bad, reduced = [], [], []
    images, others = find_images_and_others(folder)
    for path in images:
        try:
            header, orientation = image_header(path), image_orientation(path)
        except DataError as error:
            bad.append(str(error))
        else:
            height, width = turned_size((header.height, header.width), orientation)
            name = path.relative_to(folder).as_posix()
            samples.append(Sample(name, None, height, width, orientation=orientation))
            if header.loss:
                reduced.append(f"{path}: {header.loss}")
    if bad:
        raise DataError(
            f"{folder}: {count_text(len(bad), 'image')} cannot be read:\n{format_first(bad)}"
        )
    if others:
        log.warning("%s: left out %s", folder, files_text(others))
    if reduced:
        log.warning("%s read in part, such as %s", count_text(len(reduced), "image"), reduced[0])
    name = folder.resolve().name or "images"
    splits = {_SPLIT_OF_FOLDER: tuple(samples)}
    return PreparedDataset(name, folder, folder.resolve(), None, splits)
