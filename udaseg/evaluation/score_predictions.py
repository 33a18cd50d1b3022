"""`udaseg eval --predictions`: score a folder of prediction PNGs made by any tool."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.tables import Ids, builtin_label_table, check_ids, label_ids
from udaseg.data.loading.threads import read_ahead
from udaseg.data.loading.transforms import resize_labels
from udaseg.data.open import open_dataset
from udaseg.display.progress import WorkProgress
from udaseg.errors import DataError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import empty_matrix, write_scores
from udaseg.evaluation.prediction_files import (
    match_predictions,
    read_upright_prediction,
    recorded_classes,
    refuse_other_ids,
)
from udaseg.evaluation.scores import ScoringOptions, check_protocol, summarise
from udaseg.inference.pipeline import RELEASE_SIZE, check_release_sizes
from udaseg.runs.scores import Scores
from udaseg.text import percent

log = logging.getLogger(__name__)
_MAX_LISTED = 10


def score_predictions(
    predictions: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str = "val",
    ids: Ids = "train",
    release: bool = False,
    scoring: ScoringOptions | None = None,
    root: str | os.PathLike[str] = "data",
) -> Scores:
    """Return the scores of prediction PNGs made by any tool, and write them to `scoring.out`.

    Args:
        predictions: Folder with one single-channel PNG per image, nested in any way.
        data: Labelled images: a prepared name or a dataset YAML.
        split: Split of `data`.
        ids: `label` for Cityscapes label ids, or `train` for indices into the classes of a
            `prediction.json` in or next to the folder, else into the data set's classes.
        release: Score at 1024x512: the truth is resized, and the predictions must have that size.
        scoring: Which mean by which convention, and where to write the scores.
        root: Folder of the prepared data.

    Returns:
        Scores at the size of the labels.

    Raises:
        UsageError: The classes do not allow the mean or the convention.
        DataError: An image has no prediction, several predictions, or one of another size.

    Example:
        scores = udaseg.score_predictions("their_masks", "cityscapes", ids="label")
        scores.miou
    """
    check_ids(ids)
    folder, scoring = Path(predictions), scoring or ScoringOptions()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    dataset = open_dataset(os.fspath(data), root=Path(root))
    if release:
        check_release_sizes(dataset, split)
    classes = _prediction_classes(folder, ids, dataset)
    check_protocol(classes.names, scoring)
    matrix = count_predictions(folder, ids, classes, dataset, split, release=release)
    facts = {"predictions": f"{folder} ({ids} ids)"}
    scores = summarise(matrix, classes, dataset, split, facts, scoring, release=release)
    # truth of classes that the network lacks counts under some conventions
    counts_outside = len(scores.class_names) > len(classes)
    counted = matrix.table if counts_outside else matrix.table[: len(classes)]
    unclassified = counted[:, -1].sum()
    if unclassified:
        note = (
            f"{percent(unclassified / counted.sum())} % of the labelled pixels hold an id without "
            f"a class, which counts as an error; are these {ids} ids?"
        )
        scores = replace(scores, notes=[*scores.notes, note])
    if scoring.out is not None:
        write_scores(Path(scoring.out), scores)
        log.info("scores written to %s", scoring.out)
    return scores


def count_predictions(
    folder: Path,
    ids: Ids,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    *,
    release: bool = False,
) -> ConfusionMatrix:
    """Return the confusion matrix of prediction PNGs over a split.

    A known id without a class, such as 255, counts as an error; an unknown id is refused.
    `release` resizes the truth to 1024x512 by nearest neighbour.
    """
    matrix, truth_map = empty_matrix(classes, dataset, split)
    prediction_map = _train_id_table(classes) if ids == "label" else None
    samples = dataset.split(split)
    files = dict(zip(samples, match_predictions(folder, samples), strict=True))

    def read(sample: Sample) -> tuple[Pixels, Pixels]:
        truth = dataset.read_labels(sample)
        truth = resize_labels(truth, RELEASE_SIZE) if release else truth
        size = (truth.shape[0], truth.shape[1])
        return read_upright_prediction(files[sample], sample, size), truth

    valid_ids = _valid_ids(ids, classes)
    unknown_by_file: dict[Path, list[int]] = {}
    num_unclassified = 0
    with WorkProgress("eval", len(samples)) as progress:
        for sample, (labels, truth) in zip(samples, read_ahead(read, samples), strict=True):
            matrix.update(labels, truth, truth_map, prediction_map)
            # ids without a class are rare: a file is searched only if it has some
            total = int(matrix.table[:, -1].sum())
            if total > num_unclassified:
                num_unclassified = total
                unknown = [int(value) for value in np.unique(labels) if value not in valid_ids]
                unknown_by_file |= {files[sample]: unknown} if unknown else {}
            progress.advance()
    if unknown_by_file:
        raise DataError(_unknown_ids_message(unknown_by_file, ids, len(samples)))
    return matrix


def _valid_ids(ids: Ids, classes: ClassSpace) -> set[int]:
    """Return the ids that a prediction may hold, including ids without a class."""
    if ids == "train":
        return {*range(len(classes)), IGNORE}
    table = builtin_label_table("cityscapes19")
    return set(table.ignore).union(*table.ids)


def _unknown_ids_message(unknown_by_file: dict[Path, list[int]], ids: Ids, images: int) -> str:
    listed = [
        f"  {path}: {', '.join(map(str, unknown[:_MAX_LISTED]))}"
        f"{' ...' if len(unknown) > _MAX_LISTED else ''}"
        for path, unknown in list(unknown_by_file.items())[:_MAX_LISTED]
    ]
    other_ids = "label" if ids == "train" else "train"
    return (
        f"{len(unknown_by_file)} of {images} predictions hold ids that are not {ids} ids; if they "
        f"are {other_ids} ids, use --ids {other_ids}:\n" + "\n".join(listed)
    )


def _prediction_classes(folder: Path, ids: Ids, dataset: PreparedDataset) -> ClassSpace:
    """Return the classes that the ids in a folder refer to."""
    refuse_other_ids(folder, ids)
    if ids == "label":
        return builtin_label_table("cityscapes19").classes
    recorded = recorded_classes(folder)
    if recorded is not None:
        return recorded
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so nothing can be scored on it")
    return dataset.classes


def _train_id_table(classes: ClassSpace) -> bytes:
    """Return 256 entries: the train id of each label id, `IGNORE` for ids without a class."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(label_ids(classes))] = range(len(classes))
    return table.tobytes()
