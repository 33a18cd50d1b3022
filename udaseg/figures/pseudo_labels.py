"""Accuracy of pseudo-labels by class; this uses target labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.pseudo_labels import pseudo_label_path
from udaseg.data.loading.transforms import resize_labels
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.figures.cells import read_truth
from udaseg.figures.table import NumberTable
from udaseg.inference.run_data import open_run_data
from udaseg.inference.trained_model import Model
from udaseg.selection.images import choose_images


def quality_table(title: str, names: Sequence[str], matrix: ConfusionMatrix) -> NumberTable:
    """Return how right pseudo-labels are; pixels without one are abstentions of the matrix.

    Precision: of the pixels labelled as a class, the share that is. Recall: of the true pixels of a
    class, the share that is labelled as it. Labelled: the share that has any pseudo-label. The last
    row is over all pixels with a true class.
    """
    hits, labelled = np.diag(matrix.counts), matrix.counts.sum(0)
    without = matrix.table[: matrix.num_classes, -1]
    columns = {
        "precision": (hits, labelled),
        "recall": (hits, matrix.truth),
        "labelled": (matrix.truth - without, matrix.truth),
    }
    rows = {
        name: {key: _share(part[index], whole[index]) for key, (part, whole) in columns.items()}
        for index, name in enumerate(names)
    }
    rows["all pixels"] = {
        key: _share(part.sum(), whole.sum()) for key, (part, whole) in columns.items()
    }
    return NumberTable(title, rows)


def stored_quality(model: Model, run: Path, limit: int, root: Path) -> list[NumberTable]:
    """Return how right the pseudo-labels are that the stages of a run have written.

    They are compared with labels of the training images of the target, at the size of these labels;
    without such labels there is nothing to compare.
    """
    # the file is written when all of them are
    folders = [path.with_suffix("") for path in sorted(run.glob("stages/*/pseudo_labels.json"))]
    if not folders:
        return []
    target = model.recipe.target
    dataset = open_run_data(model.recipe, target.data, root=root)
    images = choose_images(dataset, target.split, limit)
    if not images.labelled:
        return []
    tables = []
    for folder in folders:
        matrix = ConfusionMatrix(len(model.classes), ignore=IGNORE)
        for sample in images.samples:
            truth = read_truth(model, images, sample)
            stored = read_train_ids(pseudo_label_path(folder, sample))
            matrix.update(resize_labels(stored, (truth.shape[0], truth.shape[1])), truth)
        title = f"pseudo-labels of stage {folder.parent.name}, {target.data}, {target.split}"
        tables.append(quality_table(title, model.classes.names, matrix))
    return tables


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
