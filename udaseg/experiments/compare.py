"""`udaseg table`: the scores of several runs, by method and class, with their differences."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from udaseg.errors import DataError, UsageError
from udaseg.evaluation.protocols import class_positions_by_protocol
from udaseg.experiments.bootstrap import RESAMPLES, interval, mean_of_classes, resampled_iou
from udaseg.experiments.seeds import statistics_by_name
from udaseg.experiments.table import Difference, MethodScores, RunTable
from udaseg.files import one_or_more, read_json
from udaseg.recipe.stages import recipe_digest
from udaseg.runs.folder import START_FILE
from udaseg.runs.groups import RunGroup, refuse_without_runs, run_groups
from udaseg.runs.image_counts import IMAGES_FILE, ImageCounts, read_image_counts
from udaseg.runs.manifests import list_manifests
from udaseg.runs.run import Run
from udaseg.runs.scores import Scores, find_score_files, read_scores

log = logging.getLogger(__name__)
StrPath = str | os.PathLike[str]

_Paired = list[list[ImageCounts]]
"""Counts of the same images, by the runs of two rows."""


@dataclass(frozen=True)
class _Row:
    """Runs of one method, with their scores and the counts of their images, where known."""

    name: str
    runs: tuple[Run, ...]
    scores: tuple[Scores, ...]
    counts: tuple[ImageCounts | None, ...]


def compare_runs(
    runs: StrPath | Sequence[StrPath],
    *,
    baseline: StrPath | None = None,
    evaluation: str | None = None,
) -> RunTable:
    """Return a table of the scores of runs, with one row for all seeds of a method.

    With a baseline, each row has its differences, with a 95 % interval of a paired bootstrap over
    the images where all runs of both rows have the counts of the same images.

    Args:
        runs: Run folders, folders of several seeds, or folders of sweeps. Runs that differ only in
            their seeds become one row.
        baseline: Run, or folder of seeds, that the others are compared with; it is the first row.
        evaluation: Name of the evaluation to compare, such as `cityscapes-val+teacher`; None takes
            the newest plain one that all runs have.

    Raises:
        CheckpointError: A path is no run.
        UsageError: The baseline has several methods.
        RecipeError: The recipe of a run cannot be loaded.
        DataError: The runs have no evaluation in common.

    Example:
        table = udaseg.compare_runs(["runs/rccr", "runs/dacs"], baseline="runs/source_only")
        print(table.to_markdown())
    """
    paths = [Path(run) for run in one_or_more(runs)]
    first = [] if baseline is None else _merged([Path(baseline)])
    if len(first) > 1:
        names = ", ".join(str(group.folder) for group in first)
        raise UsageError(f"{baseline}: the baseline must be one method; give one of {names}")
    groups = _merged([*([] if baseline is None else [Path(baseline)]), *paths])
    chosen, notes = _common_evaluation(groups, evaluation)
    rows = _read_rows(groups, chosen, notes)
    if not rows or (baseline is not None and len(rows) < 2):
        known = sorted(
            {name for group in groups for run in group.runs for name in find_score_files(run)}
        )
        there = f"; they have {', '.join(known) or 'none'}"
        raise DataError("\n".join([f"too few runs with scores of {chosen}{there}", *notes]))
    notes = [f"{chosen}: {rows[0].scores[0].protocol_line}", *_protocol_notes(rows), *notes]
    if any(len(row.runs) > 1 for row in rows):
        notes.append("±: standard deviation over the seeds (n - 1)")
    methods = [_method(row) for row in rows]
    notes += _class_notes(methods)
    if baseline is None:
        return RunTable(methods, chosen, notes=notes)
    reference, *others = methods
    paired = [_paired(rows[0], row) for row in rows[1:]]
    compared = [
        replace(other, differences=_differences(reference, other, counts))
        for other, counts in zip(others, paired, strict=True)
    ]
    notes += _interval_notes(others, paired)
    return RunTable([reference, *compared], chosen, reference.name, notes)


def _merged(paths: Sequence[Path]) -> list[RunGroup]:
    """Return the runs of each row: single runs of one recipe and start are the seeds of a row."""
    rows: dict[object, dict[Path, RunGroup]] = {}
    for path in paths:
        refuse_without_runs(path)
        for group in run_groups(path):
            is_single = group.runs == (group.folder,)
            key = _method_key(group.folder) if is_single else group.folder.resolve()
            same = rows.setdefault(key, {})
            place = group.folder.resolve()
            if place not in same or group.name is not None:  # a sweep names its settings
                same[place] = group
    return [_as_one(list(groups.values())) for groups in rows.values()]


def _as_one(groups: Sequence[RunGroup]) -> RunGroup:
    """Return the runs of all groups by seed, without copies of one of them."""
    runs = sorted((run for group in groups for run in group.runs), key=lambda r: Run(r).recipe.seed)
    kept: dict[object, Path] = {}
    for run in runs:
        first = kept.setdefault(_content_of(run), run)
        if first != run:
            log.warning("%s: left out, it is a copy of %s", run, first)
    return replace(groups[0], runs=tuple(kept.values()))


def _content_of(run: Path) -> object:
    """Return what is equal for copies of a run only; the path of a run without checkpoints."""
    manifests = list_manifests(run / "checkpoints")
    digest = read_json(manifests[0]).get("sha256") if manifests else None
    return run if digest is None else (recipe_digest(Run(run).recipe), digest)


def _method_key(run: Path) -> tuple[object, ...]:
    """Return what single runs of one row have in common: their settings but the seed, and start."""
    digest = recipe_digest(replace(Run(run).recipe, seed=0))
    return digest, read_json(run / START_FILE).get("sha256")


def _common_evaluation(groups: Sequence[RunGroup], evaluation: str | None) -> tuple[str, list[str]]:
    """Return the evaluation to compare, and a note for each run that lacks it."""
    names = {run: list(find_score_files(run)) for group in groups for run in group.runs}
    scored = {run: known for run, known in names.items() if known}
    common = [
        name
        for name in next(iter(scored.values()), [])
        if all(name in known for known in scored.values())
    ]
    if evaluation is None and not common:
        listed = "\n".join(f"  {run}: {', '.join(known) or '-'}" for run, known in names.items())
        raise DataError(
            "the runs have no evaluation in common; score them alike with `udaseg eval RUN --data "
            f"DATA`, or name one with --scores:\n{listed}"
        )
    chosen = common[0] if evaluation is None else evaluation
    missing = [run for run, known in names.items() if chosen not in known]
    return chosen, [f"{run}: left out, it has no scores of {chosen}" for run in missing]


def _read_rows(groups: Sequence[RunGroup], evaluation: str, notes: list[str]) -> list[_Row]:
    """Return the rows of runs with readable scores; a note is added for each unreadable file."""
    rows = []
    for group, name in zip(groups, _row_names(groups), strict=True):
        runs, scores, counts = [], [], []
        for run in group.runs:
            path, faults = find_score_files(run).get(evaluation), list[str]()
            read = None if path is None else read_scores(path, faults)
            notes += [f"{run}: left out, {fault}" for fault in faults]
            if path is None or read is None:
                continue
            runs.append(Run(run))
            scores.append(read)
            counts.append(_counts(path.with_name(IMAGES_FILE), read))
        if runs:
            rows.append(_Row(name, tuple(runs), tuple(scores), tuple(counts)))
    return rows


def _counts(path: Path, scores: Scores) -> ImageCounts | None:
    """Return the counts of the images of an evaluation; None if they do not give its scores."""
    counts = read_image_counts(path, scores.class_names)
    if counts is None or not counts.images:
        return None
    (iou,) = counts.iou(np.ones((1, len(counts.images))))
    return counts if np.allclose(iou, list(scores.iou.values()), equal_nan=True) else None


def _row_names(groups: Sequence[RunGroup]) -> list[str]:
    """Return the names of the settings or recipes; where they repeat, with the folder."""
    names = [group.name or Run(group.runs[0]).recipe.name for group in groups]
    pairs = list(zip(names, groups, strict=True))
    in_folders = [f"{name} ({group.folder.resolve().name})" for name, group in pairs]
    in_paths = [f"{name} ({group.folder})" for name, group in pairs]
    columns = (names, in_folders, in_paths)
    return [
        next((column[row] for column in columns if column.count(column[row]) == 1), in_paths[row])
        for row in range(len(groups))
    ]


def _method(row: _Row) -> MethodScores:
    return MethodScores(
        row.name,
        row.runs,
        iou=statistics_by_name([scores.iou for scores in row.scores]),
        means=statistics_by_name([scores.means for scores in row.scores]),
    )


def _protocol_notes(rows: Sequence[_Row]) -> list[str]:
    """Return a note for each fact of the evaluation that is not the same for all runs."""
    protocols = [scores.protocol for row in rows for scores in row.scores]
    # weights are written as `student at step 500`; the step may differ
    known = [{**each, "weights": each.get("weights", "-").split()[0]} for each in protocols]
    keys = dict.fromkeys(key for protocol in known for key in protocol)
    values = {key: dict.fromkeys(each.get(key, "-") for each in known) for key in keys}
    return [
        f"scored differently: {key} {' and '.join(found)}"
        for key, found in values.items()
        if len(found) > 1
    ]


def _class_notes(methods: Sequence[MethodScores]) -> list[str]:
    """Return a note for each row whose classes, and so whose scores, are not those of the first."""
    first, notes = methods[0], []
    for method in methods[1:]:
        listed = {
            "without": [name for name in first.iou if name in first.measured - method.measured],
            "with": [name for name in method.iou if name in method.measured - first.measured],
        }
        parts = [f"{word} {', '.join(found)}" for word, found in listed.items() if found]
        if parts:
            notes.append(
                f"{method.name}: scored on other classes than {first.name}, {' and '.join(parts)}. "
                "Pixels of a class that a network lacks are not scored, so the numbers of these "
                "rows are not comparable"
            )
    return notes


def _paired(baseline: _Row, row: _Row) -> _Paired | None:
    """Return the counts of both rows; None unless all are known, for the same images."""
    both = [[each for each in one.counts if each is not None] for one in (baseline, row)]
    if len(both[0]) < len(baseline.counts) or len(both[1]) < len(row.counts):
        return None
    images = {each.images for counts in both for each in counts}
    classes = [{each.classes for each in counts} for counts in both]
    same = len(images) == 1 and max(map(len, classes)) == 1
    return both if same and _have_same_truth(both) else None


def _have_same_truth(groups: Sequence[Sequence[ImageCounts]]) -> bool:
    """Return whether the labels of the classes that all have were the same in each evaluation."""
    counts = [each for group in groups for each in group]
    shared = [name for name in counts[0].classes if all(name in each.classes for each in counts)]
    truths = [each.truth[:, [each.classes.index(name) for name in shared]] for each in counts]
    return all(np.array_equal(truths[0], truth) for truth in truths)


def _differences(
    first: MethodScores, second: MethodScores, paired: _Paired | None
) -> dict[str, Difference]:
    """Return the differences of the scores that both rows have."""
    intervals = {} if paired is None else _intervals(paired)
    differences = {}
    for name in first.scores.keys() & second.scores.keys():
        before, after = first.scores[name].mean, second.scores[name].mean
        if before is not None and after is not None and first.is_comparable(second, name):
            differences[name] = Difference(after - before, intervals.get(name))
    return differences


def _intervals(paired: _Paired) -> dict[str, tuple[float, float] | None]:
    """Return the interval of the difference of each class and mean, where it can be computed."""
    drawn = []
    for counts, iou_RK in zip(paired, resampled_iou(paired), strict=True):
        classes = counts[0].classes
        values = dict(zip(classes, iou_RK.T, strict=True))
        for number, positions in class_positions_by_protocol(classes).items():
            values[f"mIoU-{number}"] = mean_of_classes(iou_RK[:, list(positions)])
        drawn.append({**values, "mIoU": mean_of_classes(iou_RK)})
    return {name: interval(drawn[1][name] - drawn[0][name]) for name in drawn[0].keys() & drawn[1]}


def _interval_notes(others: Sequence[MethodScores], paired: Sequence[_Paired | None]) -> list[str]:
    """Return how to read the intervals, and which rows have none."""
    without = [row.name for row, counts in zip(others, paired, strict=True) if counts is None]
    notes = []
    if len(without) < len(others):
        notes.append(
            f"[low, high]: 95 % of {RESAMPLES} resamples of the images, the same for both rows; "
            "the seeds are not resampled"
        )
    if without:
        notes.append(
            f"no interval for {', '.join(without)}: not all runs have the counts of the same "
            "images with the same labels; score them again with `udaseg eval RUN`"
        )
    return notes
