"""`udaseg select`: choose among checkpoints without target labels."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from udaseg.files import one_or_more, write_json
from udaseg.inference import trained_model
from udaseg.runs.best import store_best
from udaseg.selection.candidates import check_comparable, find_candidates, open_evaluation_sets
from udaseg.selection.choice import CONSENSUS, Selection, choose, values_by_criterion
from udaseg.selection.criteria import mean_ranks
from udaseg.selection.measure import compute_criteria

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """How `select` compares checkpoints.

    Attributes:
        oracle: Also score on target labels, and mark all results as such.
        all_checkpoints: Take all checkpoints of each of several runs.
        images: Maximum images per dataset.
        weights: `student` or `teacher`.
        device: Device to compute on.
        root: Folder of the prepared data.
    """

    oracle: bool = False
    all_checkpoints: bool = False
    images: int = 50
    weights: str = "student"
    device: str = "auto"
    root: str | os.PathLike[str] = "data"


def select(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    options: SelectOptions | None = None,
) -> Selection:
    """Return the best checkpoint by criteria without target labels, and write them to the runs.

    The choice among the checkpoints of one run is also kept in `checkpoints/best-consensus`.

    Args:
        runs: Runs or checkpoints. A single run stands for all its checkpoints; with several runs,
            each stands for its newest checkpoint.
        data: Dataset of unlabelled images to compare them on; None takes the recipe's target.
        split: Split of the dataset; None takes the recipe's, or with other data `train`, `val` or
            the first split.
        options: How to compare them.

    Returns:
        The candidates with their criteria, and the choices.

    Raises:
        UsageError: The candidates differ in classes or target, so they are not comparable.
        CheckpointError: There are no checkpoints to choose from.

    Example:
        selection = udaseg.select(["runs/a", "runs/b"])
        udaseg.predict("my_photos", selection.best)
    """
    options = options or SelectOptions()
    candidates = find_candidates(
        [Path(run) for run in one_or_more(runs)], all_checkpoints=options.all_checkpoints
    )
    recipe = check_comparable(candidates, same_target=data is None)
    sets = open_evaluation_sets(
        recipe,
        None if data is None else os.fspath(data),
        split,
        options.images,
        oracle=options.oracle,
        root=Path(options.root),
    )
    for candidate in candidates:
        model = trained_model.load(
            candidate.checkpoint, weights=options.weights, device=options.device
        )
        compute_criteria(candidate, model, sets, device=options.device)
    means, voters = mean_ranks(values_by_criterion(candidates))
    for candidate, mean in zip(candidates, means, strict=True):
        candidate.mean_rank = mean
    chosen = choose(candidates)
    selection = Selection(candidates, chosen, voters, sets, options.oracle, options.weights)
    _write_into_runs(selection)
    if not options.oracle:  # with target labels, only files that are marked as such are written
        _keep_choice(selection)
    return selection


def _write_into_runs(selection: Selection) -> None:
    document = selection.to_json()
    # another name if labels were used, so that no script confuses the two
    name = "selection-oracle.json" if selection.oracle else "selection.json"
    for run in dict.fromkeys(candidate.run for candidate in selection.candidates):
        if run.is_dir():
            write_json(run / name, document)
            log.info("written to %s", run / name)


def _keep_choice(selection: Selection) -> None:
    """Keep the chosen checkpoint of a single run, so that resuming the run does not delete it."""
    best = selection.consensus
    of_one_run = {candidate.run for candidate in selection.candidates} == {best.run}
    in_run = best.checkpoint.parent == best.run / "checkpoints"
    if of_one_run and in_run and len(selection.candidates) > 1:
        log.info("kept in %s", store_best(best.run, CONSENSUS, best.checkpoint))
