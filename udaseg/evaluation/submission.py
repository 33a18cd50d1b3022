"""`udaseg eval --submit`: write a package for a test server, and check it."""

import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.files.orientation import to_stored
from udaseg.data.labels.classes import lookup_table
from udaseg.data.labels.tables import server_ids
from udaseg.display.progress import WorkProgress
from udaseg.errors import UsageError
from udaseg.evaluation.evaluate import open_eval_data, variant_name
from udaseg.evaluation.servers import SERVERS, Server, check_package, member_names
from udaseg.files import open_atomic
from udaseg.inference import trained_model
from udaseg.inference.pipeline import InferenceOptions, SamplePrediction, infer
from udaseg.runs.folder import run_folder_of

log = logging.getLogger(__name__)
_MAX_CONFIDENCE = 65535
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


@dataclass(frozen=True)
class SubmissionOptions:
    """How to predict for a test server, and where to write the package.

    Attributes:
        weights: `student` or `teacher`.
        inference: Flip, scales, window and batch; the recipe sets the input size.
        out: Folder of the zip; None is `submissions/` in the run.
        root: Folder of the prepared data.
    """

    weights: str = "student"
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    out: str | os.PathLike[str] | None = None
    device: str = "auto"
    root: str | os.PathLike[str] = "data"


@dataclass(frozen=True)
class Submission(os.PathLike[str]):
    """A package for a test server whose content was checked; it is a path.

    Attributes:
        path: The zip.
        server: Requirements that were checked, with the URL to submit the package to.
        images: Number of images in it.
    """

    path: Path
    server: Server
    images: int

    def __fspath__(self) -> str:
        return str(self.path)


def submit(
    run: str | os.PathLike[str],
    server: str,
    *,
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    options: SubmissionOptions | None = None,
) -> Submission:
    """Write the predictions of a split as a package for a test server, and return it checked.

    Args:
        run: Run folder or checkpoint.
        server: Test server: `cityscapes`, `acdc` or `dark-zurich`.
        data: Dataset to predict; None takes the recipe's validation, else its target.
        split: Split of the dataset; None takes `test`, or the only one.
        options: How to predict, and where to write the package.

    Returns:
        The package with what was checked. Nothing is sent to the server.

    Raises:
        UsageError: There is no such server, the images do not have its layout, the network has
            other classes, or the package exists.
        CheckpointError: There is no such network.
        DataError: There are no images, or the finished package is invalid.

    Example:
        package = udaseg.submit("runs/city-rccr", "acdc", data="acdc_test.yaml")
        print(package.path, package.server.url)
    """
    options = options or SubmissionOptions()
    if server not in SERVERS:
        raise UsageError(f"no test server '{server}'; there are {', '.join(SERVERS)}")
    requirements = SERVERS[server]
    model = trained_model.load(Path(run), weights=options.weights, device=options.device)
    table = np.frombuffer(lookup_table(server_ids(model.classes, requirements.ids)), np.uint8)
    dataset, inference = open_eval_data(model.recipe, data, options.inference, options.root)
    split = split or _default_split(dataset)
    samples = dataset.split(split)
    names = member_names(requirements, dataset, samples)
    plain = f"{server}-{dataset.name}-{split}-step-{model.step:06d}"
    folder = Path(options.out) if options.out else run_folder_of(Path(run)) / "submissions"
    path = folder / (variant_name(plain, options.weights, inference) + ".zip")
    if path.exists():
        raise UsageError(f"{path}: exists already; move it, or choose another folder with --out")
    if len(samples) != requirements.images:
        log.warning(
            "the test set of %s has %d images, split '%s' of %s has %d: the server will refuse it",
            server,
            requirements.images,
            split,
            dataset.name,
            len(samples),
        )
    predictions = infer(
        model.segmenter,
        dataset,
        samples,
        inference,
        device=model.device,
        truth=False,
        confidence="confidence" in requirements.folders,
    )
    _write_package(path, predictions, names, table)
    folders = {name: folder for members in names.values() for folder, name in members.items()}
    check_package(path, requirements, folders)
    return Submission(path, requirements, len(names))


def _default_split(dataset: PreparedDataset) -> str:
    if "test" in dataset.splits:
        return "test"
    if len(dataset.splits) == 1:
        return next(iter(dataset.splits))
    raise UsageError(
        f"{dataset.name} has no split 'test', but {', '.join(dataset.splits)}; choose one with "
        "--split, or give the folder of the test images as --data"
    )


def _write_package(
    path: Path,
    predictions: Iterable[SamplePrediction],
    names: Mapping[str, Mapping[str, str]],
    table: NDArray[np.uint8],
) -> None:
    """Write the zip.

    `names` has the file of each image in each folder, `table` (256,) the written id of each train
    id.
    """
    with (
        open_atomic(path) as file,
        zipfile.ZipFile(file, "w") as package,
        WorkProgress("submit", len(names)) as progress,
    ):
        for prediction in predictions:
            for folder, member in names[prediction.sample.image].items():
                pixels = _file_pixels(prediction, folder, table)
                _, png = cv2.imencode(".png", pixels, _PNG_OPTIONS)
                # without a timestamp, so that equal predictions give identical files
                package.writestr(zipfile.ZipInfo(member), png.tobytes())
            progress.advance()


def _file_pixels(
    prediction: SamplePrediction, folder: str, table: NDArray[np.uint8]
) -> NDArray[np.integer[Any]]:
    """Return the pixels of a file, in the orientation of the stored image."""
    if folder == "confidence":
        assert prediction.confidence is not None
        confidence = np.nan_to_num(prediction.confidence).clip(0, 1)
        pixels: NDArray[Any] = np.asarray(np.rint(confidence * _MAX_CONFIDENCE), np.uint16)
    else:
        pixels = np.asarray(cv2.LUT(prediction.labels, table), np.uint8)
    return to_stored(pixels, prediction.sample.orientation)
