"""What a network makes of the images of a domain: features of cells, and labels of pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udaseg.data.datasets.index import Sample
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE, lookup_table
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.inference.sizes import untiled_input_size
from udaseg.inference.tiles import TileOptions, label_logits
from udaseg.inference.trained_model import Model
from udaseg.models.pixels import image_batch
from udaseg.models.segmenter import SegmenterOutput, evaluation_mode
from udaseg.selection.images import ImageSet, network_input


@dataclass(frozen=True)
class Points:
    """Some cells of a domain, in the order of their classes.

    Attributes:
        vectors: (N, C) float32, their features at unit length.
        classes: (N,) class of the label; of the prediction if there are no labels.
        predicted: (N,) class of the prediction.
        places: (N, 3) index of the image, row and column of the cell.
    """

    vectors: NDArray[np.float32]
    classes: NDArray[np.int64]
    predicted: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """What a network makes of some images of a domain.

    Attributes:
        images: The images.
        labelled: Whether classes are those of labels; else they are the network's predictions.
        sums: (K, C) float64, the sum of the unit features of all cells of each class.
        cells: (K,) number of these cells.
        points: Some cells of each class.
        predictions: Labels of pixels against the truth, by the lowest confidence that counts;
            empty without labels.
    """

    images: ImageSet
    labelled: bool
    sums: NDArray[np.float64]
    cells: NDArray[np.int64]
    points: Points
    predictions: dict[float, ConfusionMatrix]


def look_at(
    model: Model,
    images: ImageSet,
    *,
    read: Callable[[Model, Pixels, Sample], Tensor] = lambda model, image, _: network_input(
        model, image
    ),
    points: int,
    confidences: tuple[float, ...] = (),
    on_image: Callable[[], None] = lambda: None,
) -> Domain:
    """Return what a network makes of images.

    The label of a cell is that of the pixel at its centre. Points are drawn at random, the same in
    every run.

    Args:
        model: The network.
        images: With or without labels.
        read: Makes the network's input (1, 3, h, w) of an image.
        points: Cells to keep of each class.
        confidences: Lowest confidences of pixels to compare with the truth; 0 counts all pixels.
        on_image: Called after each image.
    """
    classes, samples = len(model.classes), images.samples
    labelled = images.labelled
    sums = torch.zeros(classes, model.segmenter.feature_channels, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.int64)
    matrices = {limit: ConfusionMatrix(classes, ignore=IGNORE) for limit in confidences}
    kept = _KeptCells(classes, points)
    with torch.no_grad(), evaluation_mode(model.segmenter):
        for index, sample in enumerate(samples):
            image = images.dataset.read_image(sample)
            output: SegmenterOutput = model.segmenter(read(model, image, sample))
            predicted = output.cell_logits()[0].argmax(0)
            truth = read_truth(model, images, sample) if labelled else None
            labels = predicted
            if truth is not None:
                on_cells = resize_labels(truth, (predicted.shape[0], predicted.shape[1]))
                labels = torch.from_numpy(on_cells).to(predicted.device).long()
                _count_pixels(matrices, output.logits[0], truth, model)
            unit = F.normalize(output.features[0].float().flatten(1).T, dim=1)
            members = F.one_hot(labels.flatten().clamp_max(classes), classes + 1)[:, :classes]
            sums += (members.T.to(unit.dtype) @ unit).double().cpu()
            counts += members.sum(0).cpu()
            kept.add(index, labels, predicted, unit)
            on_image()
    predictions = matrices if labelled else {}
    return Domain(images, labelled, sums.numpy(), counts.numpy(), kept.points(), predictions)


def read_truth(model: Model, images: ImageSet, sample: Sample) -> Pixels:
    """Return the label (H, W) of an image in the classes of the network, others ignored."""
    assert images.dataset.classes is not None
    table = lookup_table(images.dataset.classes.train_ids_in(model.classes))
    return np.frombuffer(table, np.uint8)[images.dataset.read_labels(sample)]


def source_input(model: Model, image: Pixels, sample: Sample) -> Tensor:
    """Return an image (1, 3, h, w) in [0, 1] at the size at which source images were trained on."""
    source = model.recipe.source
    trained = source.sizes[sample.part]
    size = untiled_input_size((image.shape[0], image.shape[1]), trained)
    return image_batch([resize_image(image, size, source.resampling)], model.device)


def _count_pixels(
    matrices: dict[float, ConfusionMatrix], logits: Tensor, truth: Pixels, model: Model
) -> None:
    """Compare the labels of all pixels with the truth, for each lowest confidence."""
    aligned = model.recipe.model.align_corners
    options = TileOptions(model.device, confidence=True, align_corners=aligned)
    labels, confidence = label_logits(logits, (truth.shape[0], truth.shape[1]), options)
    assert confidence is not None
    for limit, matrix in matrices.items():
        matrix.update(np.where(confidence >= limit, labels, np.uint8(IGNORE)), truth)


class _KeptCells:
    """Keeps at most `limit` random cells of each class, of all images alike."""

    def __init__(self, classes: int, limit: int) -> None:
        self._limit = limit
        self._random = np.random.default_rng(0)
        self._ranks: list[NDArray[np.float64]] = [np.empty(0) for _ in range(classes)]
        self._facts: list[NDArray[np.int64]] = [np.empty((0, 4), np.int64) for _ in range(classes)]
        self._vectors: list[Tensor] = [torch.empty(0) for _ in range(classes)]

    def add(self, image: int, labels: Tensor, predicted: Tensor, unit: Tensor) -> None:
        """Add the cells of an image: (h, w) labels and predictions, (h w, C) unit features."""
        rows, columns = np.indices(labels.shape).reshape(2, -1)
        own = labels.cpu().numpy().ravel()
        guesses = predicted.cpu().numpy().ravel()
        facts = np.stack([guesses, np.full_like(rows, image), rows, columns], axis=1)
        ranks = self._random.random(own.size)
        for name in range(len(self._ranks)):
            of_class = np.flatnonzero(own == name)
            # what is not among the first of this image is not among the first of all
            of_class = of_class[np.argsort(ranks[of_class])[: self._limit]]
            if not of_class.size:
                continue
            vectors = unit[torch.from_numpy(of_class).to(unit.device)].cpu()
            together = np.concatenate([self._ranks[name], ranks[of_class]])
            first = np.argsort(together)[: self._limit]
            self._ranks[name] = together[first]
            self._facts[name] = np.concatenate([self._facts[name], facts[of_class]])[first]
            before = self._vectors[name].view(-1, vectors.shape[1])
            self._vectors[name] = torch.cat([before, vectors])[torch.from_numpy(first)]

    def points(self) -> Points:
        """Return the cells that were kept."""
        facts = np.concatenate(self._facts)
        vectors = [each for each in self._vectors if each.numel()] or [torch.empty(0, 0)]
        sizes = [len(each) for each in self._facts]
        return Points(
            vectors=torch.cat(vectors).numpy(),
            classes=np.repeat(np.arange(len(sizes)), sizes),
            predicted=facts[:, 0],
            places=facts[:, 1:],
        )
