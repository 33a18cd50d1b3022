"""`udaseg select`: choose among checkpoints without target labels."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.errors import NotFiniteError
from udaseg.files import one_or_more, plain_json, write_json
from udaseg.inference import trained_model
from udaseg.runs.best import store_best
from udaseg.runs.leftovers import writing_in_run
from udaseg.selection.candidates import (
    ORACLE_WARNING,
    Candidate,
    EvaluationSets,
    check_comparable,
    find_candidates,
    open_evaluation_sets,
)
from udaseg.selection.criteria import (
    CRITERIA,
    Criterion,
    complete_ranks,
    mean_ranks,
    rank_correlation,
    ranks,
)
from udaseg.selection.measure import compute_criteria

log = logging.getLogger(__name__)
CONSENSUS = "consensus"


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """How `select` compares checkpoints.

    Attributes:
        oracle: Also score on target labels, and mark all results as such.
        all_checkpoints: Take all checkpoints of each of several runs.
        images: Maximum images per dataset.
        weights: `student` or `teacher`.
        root: Folder of the prepared data.
    """

    oracle: bool = False
    all_checkpoints: bool = False
    images: int = 50
    weights: str = "student"
    device: str = "auto"
    root: str | os.PathLike[str] = "data"


@dataclass(frozen=True)
class Selection:
    """The compared candidates with their criteria, and the choices.

    Attributes:
        candidates: The candidates with all values.
        chosen: Choice of each criterion by name, and of the mean rank as `consensus`.
        voters: Names of the criteria in the mean rank.
        sets: The images that the criteria were computed on.
        oracle: Whether the candidates were also scored on target labels.
        weights: `student` or `teacher`.
    """

    candidates: Sequence[Candidate]
    chosen: Mapping[str, Candidate]
    voters: Sequence[str]
    sets: EvaluationSets
    oracle: bool = False
    weights: str = "student"

    @property
    def consensus(self) -> Candidate:
        """The choice of the mean rank."""
        return self.chosen[CONSENSUS]

    @property
    def best(self) -> Path:
        """The checkpoint with the best mean rank."""
        return self.consensus.checkpoint

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria that were computed for at least one candidate."""
        return tuple(
            criterion
            for criterion in CRITERIA
            if any(candidate.values[criterion.name] is not None for candidate in self.candidates)
        )

    @property
    def without_vote(self) -> list[str]:
        """Names of the criteria with no vote because they lack the value of a candidate."""
        return [criterion.name for criterion in CRITERIA if criterion.name not in self.voters]

    @property
    def warning(self) -> str | None:
        """What to tell whoever reads these results, if target labels were used."""
        return ORACLE_WARNING if self.oracle else None

    @property
    def lost_miou(self) -> dict[str, float]:
        """How much mIoU each choice loses to the best candidate; empty without an oracle."""
        if not self.oracle:
            return {}
        best = max(candidate.oracle_miou for candidate in self.candidates)
        return {name: best - candidate.oracle_miou for name, candidate in self.chosen.items()}

    @property
    def rank_correlations(self) -> dict[str, float | None]:
        """Rank correlation of each complete criterion with mIoU; empty without an oracle."""
        if not self.oracle:
            return {}
        truth = ranks([candidate.oracle_miou for candidate in self.candidates], "higher")
        orders = complete_ranks(_values_by_criterion(self.candidates))
        orders[CONSENSUS] = ranks([candidate.mean_rank for candidate in self.candidates], "lower")
        correlations = {name: rank_correlation(order, truth) for name, order in orders.items()}
        return {name: None if math.isnan(value) else value for name, value in correlations.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the selection as a JSON object, as `selection.json` stores it."""
        sets = self.sets
        document: dict[str, Any] = {
            "uses_target_labels": self.oracle,
            "weights": self.weights,
            "target": sets.target.to_json(),
            "source": None if sets.source is None else sets.source.to_json(),
            "criteria": {
                criterion.name: {
                    "better": criterion.better,
                    "meaning": criterion.meaning,
                    "votes": criterion.name in self.voters,
                }
                for criterion in CRITERIA
            },
            "candidates": [
                _describe_candidate(candidate, oracle=self.oracle) for candidate in self.candidates
            ],
            "chosen": {name: str(candidate.checkpoint) for name, candidate in self.chosen.items()},
        }
        if self.oracle and sets.labelled is not None:
            document["oracle"] = {
                "warning": ORACLE_WARNING,
                **sets.labelled.to_json(),
                "lost_miou": self.lost_miou,
                "rank_correlation": self.rank_correlations,
            }
        return {key: plain_json(value) for key, value in document.items()}


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
        CheckpointError: There are no checkpoints to choose from, or all of them have diverged.

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
    candidates = _measured(candidates, sets, options)
    means, voters = mean_ranks(_values_by_criterion(candidates))
    for candidate, mean in zip(candidates, means, strict=True):
        candidate.mean_rank = mean
    chosen = _choose(candidates)
    selection = Selection(candidates, chosen, voters, sets, options.oracle, options.weights)
    _write_into_runs(selection)
    if not options.oracle:  # with target labels, only files that are marked as such are written
        _keep_choice(selection)
    return selection


def _measured(
    candidates: Sequence[Candidate], sets: EvaluationSets, options: SelectOptions
) -> list[Candidate]:
    """Return the candidates with their criteria, without those that have diverged."""
    measured, problem = [], None
    for candidate in candidates:
        try:
            model = trained_model.load(
                candidate.checkpoint, weights=options.weights, device=options.device
            )
            compute_criteria(candidate, model, sets, device=options.device)
            measured.append(candidate)
        except NotFiniteError as error:
            log.warning("left out: %s", error)
            problem = error
    if problem is not None and not measured:
        raise problem
    return measured


def _values_by_criterion(candidates: Sequence[Candidate]) -> dict[str, list[float | None]]:
    """Return the values of all candidates, by the name of the criterion."""
    return {
        criterion.name: [candidate.values[criterion.name] for candidate in candidates]
        for criterion in CRITERIA
    }


def _choose(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the choice of each criterion and of the mean rank; the later one if equal."""
    chosen = {}
    columns = _values_by_criterion(candidates)
    for name, order in complete_ranks(columns).items():
        if not all(value is None or math.isnan(value) for value in columns[name]):
            best = min(range(len(order)), key=lambda index: (order[index], -index))
            chosen[name] = candidates[best]
    chosen[CONSENSUS] = min(
        reversed(candidates), key=lambda candidate: (candidate.collapsed, candidate.mean_rank)
    )
    return chosen


def _write_into_runs(selection: Selection) -> None:
    document = selection.to_json()
    # another name if labels were used, so that no script confuses the two
    name = "selection-oracle.json" if selection.oracle else "selection.json"
    for run in dict.fromkeys(candidate.run for candidate in selection.candidates):
        if run.is_dir():
            with writing_in_run(run):
                write_json(run / name, document)
            log.info("written to %s", run / name)


def _keep_choice(selection: Selection) -> None:
    """Keep the chosen checkpoint of a single run, so that resuming the run does not delete it."""
    best = selection.consensus
    of_one_run = {candidate.run for candidate in selection.candidates} == {best.run}
    in_run = best.checkpoint.parent == best.run / "checkpoints"
    if of_one_run and in_run and len(selection.candidates) > 1:
        with writing_in_run(best.run):
            log.info("kept in %s", store_best(best.run, CONSENSUS, best.checkpoint))


def _describe_candidate(candidate: Candidate, *, oracle: bool) -> dict[str, Any]:
    return {
        "checkpoint": str(candidate.checkpoint),
        "step": candidate.step,
        **candidate.values,
        "mean_rank": candidate.mean_rank,
        "collapsed": candidate.collapsed,
        **({"oracle_miou": candidate.oracle} if oracle else {}),
    }
