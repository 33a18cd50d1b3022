"""Predict the same images with several runs, for the images and confidence of a report."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.data.datasets.index import PreparedDataset, Sample, evenly_spaced_indices
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE, ClassSpace, lookup_table
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.display.progress import WorkProgress
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.inference.predictor import infer_batch
from udaseg.inference.sizes import input_size, network_input_size, size_within
from udaseg.inference.tiles import TileOptions
from udaseg.inference.trained_model import Model
from udaseg.inspection.report_content import Color, ExampleImage, ImageLayer
from udaseg.runs.scores import Scores
from udaseg.selection.temperature import ConfidenceHistogram
from udaseg.text import percent

MAX_SIDE_PX = 640
_QUALITY = 82


@dataclass
class _EvaluatedImage:
    """A photo, and the masks of all runs and of the truth, downscaled.

    `score` is that of the last run.
    """

    name: str
    photo: Pixels
    masks: list[tuple[str, Pixels, ClassSpace]] = field(default_factory=list)
    confidences: dict[str, Pixels] = field(default_factory=dict)
    score: float = float("nan")

    def example(self, reason: str) -> ExampleImage:
        layers = [ImageLayer("image", photo_uri(self.photo), is_mask=False)]
        for title, labels, classes in self.masks:
            layers.append(ImageLayer(title, mask_uri(labels, classes.colors), is_mask=True))
        for name, confidence in self.confidences.items():
            title = f"confidence, {name}" if len(self.confidences) > 1 else "confidence"
            layers.append(ImageLayer(title, confidence_uri(confidence), is_mask=False))
        return ExampleImage(self.name, reason, layers)


@dataclass
class ReportImages:
    """Images to show, how they were chosen, and each run's results on all evaluated images.

    `scores` is empty without labels.
    """

    examples: list[ExampleImage] = field(default_factory=list)
    reliability: dict[str, ConfidenceHistogram] = field(default_factory=dict)
    caption: str = ""
    scores: dict[str, Scores] = field(default_factory=dict)


def render_report_images(
    runs: Mapping[str, Model],
    dataset: PreparedDataset,
    split: str,
    *,
    show: int,
    scan: int,
) -> ReportImages:
    """Return some images with their predictions, and each run's confidence.

    With labels, the worst images have the lowest mIoU of the last run; without, its lowest mean
    confidence. Half of the images shown are evenly spaced, the other half are the worst of the
    remaining ones.

    Args:
        runs: Networks by the name to show.
        dataset: With or without labels.
        split: Split of the dataset.
        show: Images to show, at least 1.
        scan: Maximum number of images to evaluate, evenly spaced.
    """
    samples = dataset.split(split)
    chosen = [samples[position] for position in evenly_spaced_indices(len(samples), scan)]
    counts = {name: ConfidenceHistogram() for name in runs}
    matrices = {
        name: ConfusionMatrix(len(run.classes), ignore=IGNORE) for name, run in runs.items()
    }
    evaluated = []
    with WorkProgress("report", len(chosen)) as progress:
        for sample in chosen:
            evaluated.append(_evaluate_image(runs, dataset, sample, counts, matrices))
            progress.advance()
    labelled = dataset.classes is not None and all(sample.label is not None for sample in chosen)
    measure = "mIoU" if labelled else "mean confidence"
    last = f" ({list(runs)[-1]})" if len(runs) > 1 else ""
    spaced = evenly_spaced_indices(len(evaluated), max(1, show // 2))
    others = [index for index in range(len(evaluated)) if index not in spaced]
    worst = sorted(others, key=lambda index: np.nan_to_num(evaluated[index].score, nan=2.0))
    examples = []
    for index in [*spaced, *worst[: max(0, show - len(spaced))]]:
        prefix = "" if index in spaced else "among the worst: "
        reason = f"{prefix}{measure} {percent(evaluated[index].score)} %{last}"
        examples.append(evaluated[index].example(reason))
    caption = (
        f"{len(chosen)} of {len(samples)} images of {dataset.name}, {split}, were evaluated. "
        f"Shown are evenly spaced images, then those with the lowest {measure}{last}."
    )
    where = {"data": dataset.name, "split": split, "images": f"{len(chosen)} of {len(samples)}"}
    scores = {name: _scores(matrices[name], run.classes, where) for name, run in runs.items()}
    return ReportImages(examples, counts, caption, scores if labelled else {})


def _scores(matrix: ConfusionMatrix, classes: ClassSpace, protocol: Mapping[str, str]) -> Scores:
    def by_class(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(classes.names, values.tolist(), strict=True))

    return Scores(
        protocol,
        by_class(matrix.iou()),
        by_class(matrix.accuracy()),
        by_class(matrix.truth_share()),
        {"mIoU": matrix.mean_iou()},
        matrix.pixel_accuracy(),
        matrix.counts.tolist(),
    )


def _evaluate_image(
    runs: Mapping[str, Model],
    dataset: PreparedDataset,
    sample: Sample,
    counts: Mapping[str, ConfidenceHistogram],
    matrices: Mapping[str, ConfusionMatrix],
) -> _EvaluatedImage:
    """Predict an image with every run, and add the results to `counts` and `matrices`."""
    image = dataset.read_image(sample)
    result = _EvaluatedImage(sample.image, shrink(image, mask=False))
    truth = None
    if dataset.classes is not None and sample.label is not None:
        truth = dataset.read_labels(sample)
    height, width = image.shape[:2]
    size = (height, width) if truth is None else (truth.shape[0], truth.shape[1])
    for name, run in runs.items():
        input_px = input_size((height, width), network_input_size(run.recipe))
        resized = resize_image(image, input_px, run.recipe.target.resampling)
        options = TileOptions(run.device, confidence=True)
        (prediction,) = infer_batch(run.segmenter, [resized], [size], options)
        labels, confidence = prediction.labels, prediction.confidence
        assert confidence is not None
        run_truth = None
        result.score = float(confidence.mean())
        if truth is not None and dataset.classes is not None:
            table = lookup_table(dataset.classes.train_ids_in(run.classes))
            run_truth = np.frombuffer(table, np.uint8)[truth]
            matrix = ConfusionMatrix(len(run.classes), ignore=IGNORE)
            matrix.update(labels, run_truth)
            matrices[name].update(labels, run_truth)
            result.score = matrix.mean_iou()
        counts[name].update(confidence, labels, run_truth)
        result.masks.append((name, shrink(labels, mask=True), run.classes))
        levels = np.rint(255 * confidence).astype(np.uint8)
        result.confidences[name] = shrink(levels, mask=False)
    if truth is not None and dataset.classes is not None:
        result.masks.append(("truth", shrink(truth, mask=True), dataset.classes))
    return result


def shrink(picture: NDArray[np.uint8], *, mask: bool) -> NDArray[np.uint8]:
    """Resize a picture to at most `MAX_SIDE_PX` per side; class ids are never interpolated."""
    resize = resize_labels if mask else resize_image
    return resize(picture, size_within(picture.shape[:2], MAX_SIDE_PX))


def photo_uri(picture: NDArray[np.uint8]) -> str:
    """Return an (H, W, 3) RGB image as a JPEG `data:` URI."""
    return _data_uri(Image.fromarray(picture), "jpeg", quality=_QUALITY)


def confidence_uri(levels: NDArray[np.uint8]) -> str:
    """Return (H, W) confidence from 0 to 255 as a JPEG `data:` URI, from dark to yellow."""
    return photo_uri(
        np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])
    )


def mask_uri(labels: NDArray[np.uint8], colors: Sequence[Color]) -> str:
    """Return (H, W) class ids as a PNG `data:` URI in class colours; black without a class."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    return _data_uri(picture, "png", optimize=True)


def _data_uri(picture: Image.Image, image_type: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=image_type, **options)
    return f"data:image/{image_type};base64,{base64.b64encode(buffer.getvalue()).decode()}"
