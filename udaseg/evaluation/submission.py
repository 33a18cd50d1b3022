"""`udaseg eval --submit`: write a package for a test server, and check it."""

import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import lookup_table
from udaseg.data.labels.tables import server_ids
from udaseg.display.console import open_console, safe_text
from udaseg.display.progress import WorkProgress
from udaseg.errors import UsageError
from udaseg.evaluation.evaluate import open_eval_data, option_words
from udaseg.evaluation.servers import SERVERS, Server, check_package, member_names
from udaseg.files import open_atomic
from udaseg.inference import trained_model
from udaseg.inference.pipeline import InferenceOptions, SamplePrediction, infer
from udaseg.runs.folder import run_folder_of
from udaseg.text import format_size

log = logging.getLogger(__name__)
_MAX_CONFIDENCE = 65535
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


@dataclass(frozen=True)
class SubmissionOptions:
    """What to predict for a test server, and how.

    Attributes:
        data: Dataset to predict; None takes the recipe's validation, else its target.
        split: Split of the dataset; None takes `test`, or the only one.
        weights: `student` or `teacher`.
        inference: Flip, scales, window and batch; the recipe sets the input size.
        out: Folder of the zip; None is `submissions/` in the run.
        device: Device to compute on.
        root: Folder of the prepared data.
    """

    data: str | None = None
    split: str | None = None
    weights: str = "student"
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    out: Path | None = None
    device: str = "auto"
    root: Path = Path("data")


def submit(*, run: Path, server: str, options: SubmissionOptions) -> None:
    """Write the predictions of a split as a package for a test server, and check the package.

    Args:
        run: Run folder or checkpoint.
        server: One of `SERVERS`.
        options: What to predict, and how.

    Raises:
        UsageError: The images do not have the server's layout, the network has other classes, or
            the package exists.
        DataError: There are no images, or the finished package is invalid.
    """
    requirements = SERVERS[server]
    loaded = trained_model.load(run, weights=options.weights, device=options.device)
    table = np.frombuffer(lookup_table(server_ids(loaded.classes, requirements.ids)), np.uint8)
    dataset, inference = open_eval_data(
        loaded.recipe, options.data, options.inference, options.root
    )
    split = options.split or _default_split(dataset)
    samples = dataset.split(split)
    names = member_names(requirements, dataset, samples)
    variants = [
        *([] if options.weights == "student" else [options.weights]),
        *option_words(inference),
    ]
    name = "+".join([f"{server}-{dataset.name}-{split}-step-{loaded.step:06d}", *variants]) + ".zip"
    path = (options.out or run_folder_of(run) / "submissions") / name
    if path.exists():
        raise UsageError(f"{path}: exists already; move it, or choose another folder with --out")
    _warn_if_incomplete(requirements, dataset, split)
    predictions = infer(
        loaded.segmenter,
        dataset,
        samples,
        inference,
        device=loaded.device,
        truth=False,
        confidence="confidence" in requirements.folders,
    )
    _write_package(path, predictions, names, table)
    folders = {name: folder for members in names.values() for folder, name in members.items()}
    check_package(path, requirements, folders)
    _print_package(path, requirements, folders)


def _default_split(dataset: PreparedDataset) -> str:
    """Return the default split for a server.

    Raises:
        UsageError: There are several splits, and none is `test`.
    """
    if "test" in dataset.splits or len(dataset.splits) == 1:
        return "test" if "test" in dataset.splits else next(iter(dataset.splits))
    raise UsageError(
        f"{dataset.name} has no split 'test', but {', '.join(dataset.splits)}; choose one with "
        "--split, or give the folder of the test images as --data"
    )


def _warn_if_incomplete(server: Server, dataset: PreparedDataset, split: str) -> None:
    """Log a warning if a split does not have as many images as the server's test set."""
    count = len(dataset.split(split))
    if count != server.images:
        log.warning(
            "the test set of %s has %d images, split '%s' of %s has %d: the server will refuse it",
            server.name,
            server.images,
            split,
            dataset.name,
            count,
        )


def _write_package(
    path: Path,
    predictions: Iterable[SamplePrediction],
    names: Mapping[str, Mapping[str, str]],
    table: NDArray[np.uint8],
) -> None:
    """Write the zip.

    Args:
        path: The zip.
        predictions: One for each image in `names`.
        names: The file of each image in each folder, as `member_names` returns them.
        table: (256,) id in the file of each train id.
    """
    with (
        open_atomic(path) as file,
        zipfile.ZipFile(file, "w") as package,
        WorkProgress("submit", len(names)) as progress,
    ):
        for prediction in predictions:
            for folder, member in names[prediction.sample.image].items():
                # without a timestamp, so that equal predictions give identical files
                package.writestr(
                    zipfile.ZipInfo(member), _encode_png(_file_pixels(prediction, folder, table))
                )
            progress.advance()


def _file_pixels(
    prediction: SamplePrediction, folder: str, table: NDArray[np.uint8]
) -> NDArray[np.integer[Any]]:
    """Return the pixels of one file of the package."""
    if folder == "confidence":
        assert prediction.confidence is not None
        confidence = np.nan_to_num(prediction.confidence).clip(0, 1)
        return np.asarray(np.rint(confidence * _MAX_CONFIDENCE), np.uint16)
    return np.asarray(cv2.LUT(prediction.labels, table), np.uint8)


def _encode_png(pixels: NDArray[np.integer[Any]]) -> bytes:
    ok, encoded = cv2.imencode(".png", pixels, _PNG_OPTIONS)
    if not ok:
        raise ValueError(f"{pixels.shape} could not be encoded as a PNG")
    return encoded.tobytes()


def _print_package(path: Path, server: Server, folders: Mapping[str, str]) -> None:
    """Print to stdout where the package is and what was checked."""
    images = len(folders) // len(server.folders)
    folder_names = ", ".join(folder for folder in server.folders if folder)
    lines = (
        f"{path}: {path.stat().st_size / 1e6:.1f} MB",
        f"checked: {images} images{f' in each of {folder_names}' if folder_names else ''}, all "
        f"of {format_size(server.size)}, {server.ids} ids, named as the server requires, no other "
        "files in the zip",
        *(
            []
            if images == server.images
            else [f"but the test set of {server.name} has {server.images} images"]
        ),
        f"submit it at {server.url}",
    )
    open_console(soft_wrap=True).print(safe_text("\n".join(lines)))
