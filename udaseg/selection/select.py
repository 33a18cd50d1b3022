"""`udaseg select`: choose among checkpoints without target labels."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from udaseg.data.datasets.index import PreparedDataset
from udaseg.display.console import open_console, safe_text
from udaseg.files import write_json
from udaseg.inference import trained_model
from udaseg.runs.best import store_best
from udaseg.selection.candidates import (
    ORACLE_WARNING,
    Candidate,
    EvaluationSets,
    check_comparable,
    find_candidates,
    open_evaluation_sets,
)
from udaseg.selection.criteria import CRITERIA, mean_ranks, rank_correlation, ranks
from udaseg.selection.measure import compute_criteria

log = logging.getLogger(__name__)
CONSENSUS = "consensus"
_MIN_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What `select` compares, and on which images.

    Attributes:
        data: Dataset of unlabelled images; None takes the recipe's target.
        split: Split of the dataset; None takes the recipe's, or with other data `train`, `val` or
            the first split.
        oracle: Also score on target labels, and mark all results as such.
        all_checkpoints: Take all checkpoints of each of several runs.
        images: Maximum images per dataset.
        weights: `student` or `teacher`.
        device: Device to compute on.
        root: Folder of the prepared data.
    """

    data: str | None = None
    split: str | None = None
    oracle: bool = False
    all_checkpoints: bool = False
    images: int = 50
    weights: str = "student"
    device: str = "auto"
    root: Path = Path("data")


@dataclass(frozen=True)
class _Selection:
    """The compared candidates with their criteria, and the choices.

    Attributes:
        candidates: The candidates with all values.
        chosen: Choice of each criterion and of the mean rank, by name.
        voters: Names of the criteria in the mean rank.
        sets: The images that the criteria were computed on.
        oracle: Whether the candidates were also scored on target labels.
    """

    candidates: Sequence[Candidate]
    chosen: dict[str, Candidate]
    voters: Sequence[str]
    sets: EvaluationSets
    oracle: bool


def select(
    *,
    runs: Sequence[Path],
    options: SelectOptions,
    format: str = "table",  # noqa: A002 (the option's own name)
) -> None:
    """Compute all criteria for all candidates, print them, and write them into the runs.

    Args:
        runs: Runs or checkpoints. A single run stands for all its checkpoints; with several runs,
            each stands for its newest checkpoint.
        options: What to compare, and on which images.
        format: `table` or `json`.

    Raises:
        UsageError: The candidates differ in classes or target, so they are not comparable.
        CheckpointError: There are no checkpoints to choose from.
    """
    selection = _compare(runs, options)
    document = _document(selection, options.weights)
    if format == "json":
        console = open_console(soft_wrap=True)
        console.print(json.dumps(document, indent=2), markup=False)
    else:
        _print_selection(selection)
    _write_into_runs(document, selection)
    if not options.oracle:  # with target labels, only files that are marked as such are written
        _keep_choice(selection)


def _compare(runs: Sequence[Path], options: SelectOptions) -> _Selection:
    """Return the candidates with all criteria and their mean rank, and the choices."""
    candidates = find_candidates(runs, all_checkpoints=options.all_checkpoints)
    recipe = check_comparable(candidates, same_target=options.data is None)
    sets = open_evaluation_sets(
        recipe,
        options.data,
        options.split,
        options.images,
        oracle=options.oracle,
        root=options.root,
    )
    for candidate in candidates:
        loaded = trained_model.load(
            candidate.checkpoint, weights=options.weights, device=options.device
        )
        compute_criteria(candidate, loaded, sets, device=options.device)
    columns = {
        criterion.name: [candidate.values[criterion.name] for candidate in candidates]
        for criterion in CRITERIA
    }
    means, voters = mean_ranks(columns)
    for candidate, mean in zip(candidates, means, strict=True):
        candidate.mean_rank = mean
    return _Selection(candidates, choose(candidates), voters, sets, options.oracle)


def _write_into_runs(document: dict[str, Any], selection: _Selection) -> None:
    """Write the results into the folder of each run; with an oracle, under another name."""
    # another name if labels were used, so that no script confuses the two
    name = "selection-oracle.json" if selection.oracle else "selection.json"
    for folder in dict.fromkeys(
        candidate.run for candidate in selection.candidates if candidate.run.is_dir()
    ):
        write_json(folder / name, document)
        log.info("written to %s", folder / name)


def choose(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the choice of each criterion and of the mean rank; the later one if equal."""
    chosen = {}
    for criterion in CRITERIA:
        sign = 1.0 if criterion.better == "higher" else -1.0
        scored = [(candidate.values[criterion.name], candidate) for candidate in candidates]
        computed = [(sign * value, candidate) for value, candidate in scored if value is not None]
        finite = [pair for pair in computed if not math.isnan(pair[0])]
        if finite and len(computed) == len(candidates):
            chosen[criterion.name] = max(reversed(finite), key=lambda pair: pair[0])[1]
    chosen[CONSENSUS] = min(
        reversed(candidates), key=lambda candidate: (candidate.collapsed, candidate.mean_rank)
    )
    return chosen


def _keep_choice(selection: _Selection) -> None:
    """Keep the chosen checkpoint of a single run, so that resuming the run does not delete it."""
    candidates, best = selection.candidates, selection.chosen[CONSENSUS]
    in_run = best.checkpoint.parent == best.run / "checkpoints"
    if (
        in_run
        and len(candidates) > 1
        and all(candidate.run == best.run for candidate in candidates)
    ):
        log.info("kept in %s", store_best(best.run, CONSENSUS, best.checkpoint))


def _document(selection: _Selection, weights: str) -> dict[str, Any]:
    """Return all results as JSON values."""
    sets = selection.sets
    source = None
    if sets.source is not None:
        source = _describe_set(sets.source, sets.source_split)
    document: dict[str, Any] = {
        "uses_target_labels": selection.oracle,
        "weights": weights,
        "target": _describe_set(sets.target, sets.target_split),
        "source": source,
        "criteria": {
            criterion.name: {
                "better": criterion.better,
                "meaning": criterion.meaning,
                "votes": criterion.name in selection.voters,
            }
            for criterion in CRITERIA
        },
        "candidates": [
            _describe_candidate(candidate, oracle=selection.oracle)
            for candidate in selection.candidates
        ],
        "chosen": {name: str(candidate.checkpoint) for name, candidate in selection.chosen.items()},
    }
    if selection.oracle and sets.labelled is not None:
        document["oracle"] = {
            "warning": ORACLE_WARNING,
            **_describe_set(sets.labelled, sets.labelled_split),
            "lost_miou": _miou_lost(selection),
            "rank_correlation": _correlations(selection.candidates),
        }
    return document


def _describe_set(dataset: PreparedDataset, split: str) -> dict[str, Any]:
    return {"data": dataset.name, "split": split, "images": len(dataset.split(split))}


def _describe_candidate(candidate: Candidate, *, oracle: bool) -> dict[str, Any]:
    return {
        "checkpoint": str(candidate.checkpoint),
        "step": candidate.step,
        **{name: _json_number(value) for name, value in candidate.values.items()},
        "mean_rank": _json_number(candidate.mean_rank),
        "collapsed": candidate.collapsed,
        **({"oracle_miou": _json_number(candidate.oracle)} if oracle else {}),
    }


def _print_selection(selection: _Selection) -> None:
    """Print one row per candidate, with a star at each criterion's choice, and the choice."""
    console = open_console()
    if not console.is_terminal:
        console.width = max(console.width, _MIN_WIDTH)
    table = _candidate_table(selection)
    wrapped = open_console(soft_wrap=True)
    if selection.oracle:
        wrapped.print(safe_text(ORACLE_WARNING, style="bold red"))
    console.print(table)
    for line in _exclusion_lines(selection):
        wrapped.print(safe_text(line))
    consensus = selection.chosen[CONSENSUS]
    wrapped.print(safe_text(f"chosen by mean rank: {consensus.checkpoint}"))
    if selection.oracle:
        for line in _oracle_lines(selection):
            wrapped.print(safe_text(line))


def _candidate_table(selection: _Selection) -> Table:
    """Return the table of criteria, without those that no candidate has."""
    candidates, chosen = selection.candidates, selection.chosen
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("candidate", overflow="fold")
    computed = [
        criterion
        for criterion in CRITERIA
        if any(candidate.values[criterion.name] is not None for candidate in candidates)
    ]
    for criterion in computed:
        arrow = "↑" if criterion.better == "higher" else "↓"
        table.add_column(f"{criterion.name} {arrow}", justify="right")
    table.add_column("mean rank ↓", justify="right")
    if selection.oracle:
        table.add_column("ORACLE mIoU %", justify="right", style="red")
    one_run = len({candidate.run for candidate in candidates}) == 1
    for candidate in candidates:
        cells = [
            _format_value(candidate.values[criterion.name])
            + _mark_chosen(chosen.get(criterion.name) is candidate)
            for criterion in computed
        ]
        rank = f"{candidate.mean_rank:.2f}" + _mark_chosen(chosen[CONSENSUS] is candidate)
        score = [f"{100 * _oracle_score(candidate):.2f}"] if selection.oracle else []
        name = f"step {candidate.step}" if one_run else candidate.name
        table.add_row(safe_text(name), *map(safe_text, [*cells, rank, *score]))
    return table


def _exclusion_lines(selection: _Selection) -> list[str]:
    """Return which candidates could not be chosen, and which criteria did not vote."""
    lines = []
    collapsed = [candidate.name for candidate in selection.candidates if candidate.collapsed]
    if collapsed:
        lines.append(f"predicts almost only one class, so not chosen: {', '.join(collapsed)}")
    excluded = [
        criterion.name
        for criterion in CRITERIA
        if criterion.votes and criterion.name not in selection.voters
    ]
    if excluded:
        lines.append(
            "not computed for every candidate, so not included in the mean rank: "
            f"{', '.join(excluded)}"
        )
    return lines


def _oracle_lines(selection: _Selection) -> list[str]:
    """Return how far each criterion is from the order of the target labels."""
    losses = [f"{name} {100 * points:.2f}" for name, points in _miou_lost(selection).items()]
    correlations = [
        f"{name} {'-' if value is None else f'{value:+.2f}'}"
        for name, value in _correlations(selection.candidates).items()
    ]
    return [
        f"ORACLE: mIoU points that each choice loses to the best candidate: {', '.join(losses)}",
        f"ORACLE: rank correlation with mIoU (1: same order): {', '.join(correlations)}",
    ]


def _miou_lost(selection: _Selection) -> dict[str, float]:
    """Return how much mIoU each choice loses to the best candidate, by the oracle."""
    best = max(_oracle_score(candidate) for candidate in selection.candidates)
    return {name: best - _oracle_score(candidate) for name, candidate in selection.chosen.items()}


def _correlations(candidates: Sequence[Candidate]) -> dict[str, float | None]:
    """Return the rank correlation of each complete criterion with the oracle."""
    truth = ranks([_oracle_score(candidate) for candidate in candidates], "higher")
    orders = {CONSENSUS: ranks([candidate.mean_rank for candidate in candidates], "lower")}
    for criterion in CRITERIA:
        values = [candidate.values[criterion.name] for candidate in candidates]
        computed = [value for value in values if value is not None]
        if len(computed) == len(values):
            orders[criterion.name] = ranks(computed, criterion.better)
    names = [*(criterion.name for criterion in CRITERIA if criterion.name in orders), CONSENSUS]
    return {name: _json_number(rank_correlation(orders[name], truth)) for name in names}


def _oracle_score(candidate: Candidate) -> float:
    """Return the oracle's mIoU; 0 if there is none."""
    score = candidate.oracle
    return 0.0 if score is None or math.isnan(score) else score


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mark_chosen(chosen: bool) -> str:
    return "*" if chosen else " "


def _json_number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
