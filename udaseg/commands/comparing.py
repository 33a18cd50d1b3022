"""`udaseg eval --predictions`: score a folder of prediction PNGs, whatever tool made them."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from udaseg.commands.counting import empty_matrix
from udaseg.commands.label_files import (
    Ids,
    label_ids,
    match_files,
    read_prediction,
    saved_classes,
)
from udaseg.commands.looking import RELEASE_SIZE, Pixels, read_ahead, refuse_release
from udaseg.commands.scoring import gate, show, write_scores
from udaseg.commands.summary import refuse_protocol, shown_size, summarise
from udaseg.data import (
    IGNORE,
    ClassSpace,
    PreparedDataset,
    Sample,
    class_table,
    open_dataset,
    read_train_ids,
    resize_labels,
)
from udaseg.errors import DataError
from udaseg.evaluation import ConfusionMatrix
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress, percent

log = logging.getLogger(__name__)

_SHOWN = 10


def evaluate_files(
    *,
    predictions: Path,
    ids: Ids,
    data: str,
    split: str,
    release: bool,
    protocol: int | None,
    convention: int | None,
    format: str,  # noqa: A002 (the option's own name)
    fail_under: float | None,
    out: Path | None,
    root: Path,
) -> None:
    """Score prediction PNGs, print the table, and write it where `out` says.

    Args:
        predictions: Folder that holds a one-channel PNG of each image, in any nesting.
        ids: `label`, those of Cityscapes; or `train`, of the classes that a `prediction.json` in
            or beside the folder lists, else of the data set's own.
        data: Labelled images.
        split: Which of them.
        release: Truth at 1024x512; the predictions have that size too.
        protocol: Show only the mean over 19, 16 or 13 classes.
        convention: 19 counts truth of classes that SYNTHIA lacks, 16 ignores it.
        format: table, json, csv or md.
        fail_under: Smallest mean IoU in percent that passes.
        out: Folder of the score files; None writes none.
        root: Where prepared data lie.

    Raises:
        UsageError: A mean or a convention that the classes do not allow.
        DataError: An image has no prediction, or several, or one of another size.
        GateError: The mean IoU is below `fail_under`.
    """
    if not predictions.is_dir():
        raise DataError(f"{printable(str(predictions))}: no such folder")
    dataset = open_dataset(data, root=root)
    if release:
        refuse_release(dataset, split)
    classes = _classes(predictions, ids, dataset)
    refuse_protocol(classes.names, protocol, convention)
    matrix = count_files(predictions, ids, classes, dataset, split, release=release)
    facts = {"predictions": f"{printable(str(predictions))} ({ids} ids)"}
    scores = summarise(
        *(matrix, classes, dataset, split, facts),
        protocol=protocol,
        convention=convention,
        release=release,
    )
    beyond = len(scores.names) > len(classes)  # truth that the network lacks is scored too
    strange = int(matrix.abstained.sum()) + beyond * int(matrix.abstained_outside.sum())
    if strange:
        labelled = int(matrix.truth.sum()) + beyond * int(matrix.truth_outside.sum())
        share = percent(strange / labelled)
        note = f"{share} % of the labelled pixels hold an id of no class, which counts as an error"
        scores = replace(scores, notes=[*scores.notes, f"{note}; are these {ids} ids?"])
    if out is not None:
        write_scores(out, scores)
        log.info("scores written to %s", out)
    show(scores, format)
    gate(scores, fail_under)


def count_files(
    folder: Path,
    ids: Ids,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    *,
    release: bool = False,
) -> ConfusionMatrix:
    """Return the confusion matrix of prediction PNGs over a split.

    Args:
        folder: Holds one PNG of each image, see `match_files`.
        ids: Which ids they hold; a known one of no class, such as 255, is a miss.
        classes: Of the predictions.
        dataset: Labelled images.
        split: Which of them.
        release: Truth at 1024x512 by nearest neighbour.

    Raises:
        DataError: An image has no prediction, or several, or one of another size; or a prediction
            holds an id that does not exist.
    """
    matrix, truth_map = empty_matrix(classes, dataset, split)
    prediction_map = _read_ids(classes) if ids == "label" else None
    samples = dataset.split(split)
    files = dict(zip(samples, match_files(folder, samples), strict=True))

    def read(sample: Sample) -> tuple[Pixels, Pixels]:
        truth = read_train_ids(dataset.label_path(sample))
        truth = resize_labels(truth, RELEASE_SIZE) if release else truth
        labels = read_prediction(files[sample])
        if labels.shape != truth.shape:
            have, need = (shown_size((part.shape[0], part.shape[1])) for part in (labels, truth))
            raise DataError(f"{files[sample]}: is {have}, but {need} is scored")
        return labels, truth

    strangers: dict[Path, list[int]] = {}
    known, strange = _known(ids, classes), 0
    with WorkProgress("eval", len(samples)) as progress:
        for sample, (labels, truth) in zip(samples, read_ahead(read, samples), strict=True):
            matrix.update(labels, truth, truth_map, prediction_map)
            # ids of no class are rare, so a file is looked through only when it has some
            if (total := int(matrix.abstained.sum() + matrix.abstained_outside.sum())) > strange:
                strange = total
                unknown = [int(number) for number in np.unique(labels) if number not in known]
                strangers |= {files[sample]: unknown} if unknown else {}
            progress.advance()
    if strangers:
        raise DataError(_unknown_ids(strangers, ids, len(samples)))
    return matrix


def _known(ids: Ids, classes: ClassSpace) -> frozenset[int]:
    """Return the ids that a prediction may hold; those of no class count as errors."""
    if ids == "train":
        return frozenset((*range(len(classes)), IGNORE))
    table = class_table("cityscapes19")
    return table.ignore | {number for own in table.ids for number in own}


def _unknown_ids(strangers: dict[Path, list[int]], ids: Ids, images: int) -> str:
    listed = [
        f"  {printable(str(path))}: {', '.join(map(str, unknown[:_SHOWN]))}"
        f"{' ...' if len(unknown) > _SHOWN else ''}"
        for path, unknown in list(strangers.items())[:_SHOWN]
    ]
    other = "label" if ids == "train" else "train"
    return (
        f"{len(strangers)} of {images} predictions hold ids that are no {ids} ids; if they are "
        f"{other} ids, say --ids {other}:\n" + "\n".join(listed)
    )


def _classes(folder: Path, ids: Ids, dataset: PreparedDataset) -> ClassSpace:
    """Return the classes that the files of a folder speak of."""
    if ids == "label":
        return class_table("cityscapes19").classes
    saved = saved_classes(folder)
    if saved is not None:
        return saved
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so nothing can be scored on it")
    return dataset.classes


def _read_ids(classes: ClassSpace) -> bytes:
    """Return 256 entries: the train id of each label id, `IGNORE` for those of no class."""
    table = bytearray([IGNORE] * 256)
    for train_id, label_id in enumerate(label_ids(classes)):
        table[label_id] = train_id
    return bytes(table)
