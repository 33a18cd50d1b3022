"""`udaseg select --worth-it`: is a run better than the network before its adaptation?

No target label is read: the criteria of `udaseg select` compare both networks.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from udaseg.errors import UsageError
from udaseg.inference import trained_model
from udaseg.inference.trained_model import Model
from udaseg.recipe.stages import adapts
from udaseg.runs.best import warm_up_folder
from udaseg.runs.folder import run_folder_of
from udaseg.runs.leftovers import writing_in_run
from udaseg.runs.manifests import digest_of_newest, list_manifests
from udaseg.runs.worth import ComparedCriterion, ComparedNetwork, Worth, unknown_worth, write_worth
from udaseg.selection.candidates import (
    Candidate,
    EvaluationSets,
    open_evaluation_sets,
    refuse_other_classes,
)
from udaseg.selection.criteria import CRITERIA
from udaseg.selection.measure import compute_criteria, source_shares
from udaseg.selection.verdict import COMPARED, judge

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorthOptions:
    """How `worth_it` compares two networks.

    Attributes:
        images: Maximum images per data set.
        root: Folder of the prepared data.
    """

    images: int = 50
    device: str = "auto"
    root: str | os.PathLike[str] = "data"


def worth_it(
    run: str | os.PathLike[str],
    *,
    baseline: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    options: WorthOptions | None = None,
) -> Worth:
    """Return whether an adaptation was worth it, without target labels, and store it in the run.

    The students of both are compared on the same images. `adapt` does so at its end, if the run has
    a warm-up. What is stored is about the newest checkpoint, and compared on the source, too.

    Args:
        run: Run folder or checkpoint of the adapted network.
        baseline: Run or checkpoint to compare with; None takes the network at the end of the run's
            own warm-up on the source.
        data: Dataset of unlabelled images; None takes the recipe's target.
        split: Split of the dataset; None takes the recipe's, or with other data `train`, `val` or
            the first split.
        options: How to compare them.

    Returns:
        The verdict with the values of the criteria. It is `unknown`, and nothing is stored, if
        there is nothing to compare with.

    Raises:
        UsageError: The networks differ in their classes, the baseline is the run itself, or the run
            did not adapt.
        CheckpointError: There is no such network.
        NotFiniteError: The outputs of a network are NaN or infinite.
        DataError: The images cannot be read.

    Example:
        worth = udaseg.worth_it("runs/city-rccr", baseline="runs/city-source_only")
        if worth.verdict == "worse":
            print(worth.reason)
    """
    options = options or WorthOptions()
    adapted = trained_model.load(run, device=options.device)
    folder = run_folder_of(adapted.checkpoint)
    other = warm_up_folder(folder) if baseline is None else Path(baseline)
    if baseline is None and not other.is_dir():
        if not adapts(adapted.recipe):
            raise UsageError(
                f"{folder}: was trained on the source alone, so there is no adaptation to judge"
            )
        return unknown_worth(Path(run))
    before = trained_model.load(other, device=options.device)
    if before.sha256 == adapted.sha256:
        raise UsageError(f"{before.checkpoint}: is the network itself; name another baseline")
    refuse_other_classes(
        before.checkpoint, before.classes.names, adapted.checkpoint, adapted.classes.names
    )
    sets = open_evaluation_sets(
        adapted.recipe,
        None if data is None else os.fspath(data),
        split,
        options.images,
        oracle=False,
        root=Path(options.root),
    )
    worth = compare_networks(adapted, before, sets, folder)
    _store(folder, worth)
    return worth


def _store(folder: Path, worth: Worth) -> None:
    """Write a comparison into the run that it is about, unless that would say too little of it."""
    assert worth.adapted is not None
    is_run = bool(list_manifests(folder / "checkpoints"))
    if not is_run or worth.adapted.sha256 != digest_of_newest(folder):
        log.info("not stored, because it is not about the newest checkpoint of a run")
    elif worth.source is None:
        log.warning("not stored, because the source is missing")
    else:
        with writing_in_run(folder):
            log.info("written to %s", write_worth(folder, worth))


def compare_networks(adapted: Model, baseline: Model, sets: EvaluationSets, folder: Path) -> Worth:
    """Return how an adapted network compares with another one.

    Args:
        adapted: The network of the run in `folder`.
        baseline: The other one, with the same classes.
        sets: Images to compare them on.
        folder: Run folder.
    """
    ours, theirs = (_measured(model, sets, folder) for model in (adapted, baseline))
    rows = [
        ComparedCriterion(
            each.name, each.better, ours.values[each.name], theirs.values[each.name], None
        )
        for each in CRITERIA
        if each.name in COMPARED
    ]
    source = None
    if sets.source is not None:
        source = {**sets.source.to_json(), "shares": source_shares(sets.source, adapted.classes)}
    return judge(
        Worth(
            "unclear",
            "",
            rows,
            adapted=_described(adapted, ours, folder),
            baseline=_described(baseline, theirs, folder),
            target=sets.target.to_json(),
            source=source,
        )
    )


def _measured(model: Model, sets: EvaluationSets, folder: Path) -> Candidate:
    candidate = Candidate(folder, model.checkpoint, model.step)
    compute_criteria(candidate, model, sets, device=str(model.device), criteria=COMPARED)
    return candidate


def _described(model: Model, candidate: Candidate, folder: Path) -> ComparedNetwork:
    path = model.checkpoint.absolute()
    if path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    return ComparedNetwork(
        checkpoint=str(path),
        step=model.step,
        sha256=model.sha256,
        collapsed=candidate.collapsed,
        shares=candidate.shares,
        source_iou=candidate.source_iou,
    )
