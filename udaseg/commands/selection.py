"""`udaseg select`: choose among checkpoints without a label of the target."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg import build
from udaseg.commands.candidates import (
    ORACLE_WARNING,
    Candidate,
    Sets,
    find_candidates,
    open_sets,
    refuse_others,
)
from udaseg.commands.keeping import keep_choice
from udaseg.commands.measuring import measure
from udaseg.evaluation import CRITERIA, mean_ranks, rank_correlation, ranks
from udaseg.recipe import printable
from udaseg.reporting import write_json_atomic

log = logging.getLogger(__name__)

CONSENSUS = "consensus"
_WIDE = 110


def select(
    *,
    runs: Sequence[Path],
    data: str | None,
    split: str | None,
    oracle: bool,
    every: bool,
    images: int,
    weights: str,
    format: str,  # noqa: A002 (the option's own name)
    device: str,
    root: Path,
) -> None:
    """Compute all criteria for all candidates, print them, and write them into the runs.

    Args:
        runs: Runs or checkpoints. One run alone stands for all its checkpoints, each of several
            for its newest.
        data: Unlabelled images to look at; None takes the recipe's target.
        split: Which split of them; None takes the recipe's, of other data `train`, `val` or the
            first that there is.
        oracle: Also score on target labels, and mark everything with it.
        every: Take all checkpoints of each of several runs.
        images: Most images of each data set to look at.
        weights: `student` or `teacher`.
        format: `table` or `json`.
        device: Where to compute.
        root: Where prepared data lie.

    Raises:
        UsageError: The candidates have other classes or other targets, so that numbers would not
            compare.
        CheckpointError: There is nothing to choose among.
    """
    candidates = find_candidates(runs, every=every)
    recipe = refuse_others(candidates, same_target=data is None)
    sets = open_sets(recipe, data, split, images, oracle=oracle, root=root)
    for candidate in candidates:
        loaded = build.load_run(candidate.checkpoint, weights=weights, device=device)
        measure(candidate, loaded, sets, device=device)
    columns = {
        criterion.name: [each.values[criterion.name] for each in candidates]
        for criterion in CRITERIA
    }
    means, voted = mean_ranks(columns)
    for candidate, mean in zip(candidates, means, strict=True):
        candidate.mean_rank = mean
    chosen = choices(candidates)
    document = _document(candidates, chosen, voted, sets, weights=weights, oracle=oracle)
    if format == "json":
        screen = Console(highlight=False, soft_wrap=True)
        screen.print(json.dumps(document, indent=2), markup=False)
    else:
        _print_table(candidates, chosen, voted, oracle=oracle)
    # with labels it goes under another name, so that no script takes one for the other
    name = "selection-oracle.json" if oracle else "selection.json"
    for folder in dict.fromkeys(each.run for each in candidates if each.run.is_dir()):
        write_json_atomic(folder / name, document)
        log.info("written to %s", folder / name)
    if not oracle:  # all that a look at target labels leaves behind is marked
        _keep(candidates, chosen[CONSENSUS])


def _keep(candidates: Sequence[Candidate], best: Candidate) -> None:
    """Keep the choice among a run's own checkpoints, so that going on with the run spares it."""
    own = best.checkpoint.parent == best.run / "checkpoints"
    if own and len(candidates) > 1 and all(each.run == best.run for each in candidates):
        log.info("kept in %s", keep_choice(best.run, CONSENSUS, best.checkpoint))


def choices(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return whom each criterion chooses, then whom their mean rank does; of equals the later."""
    chosen = {}
    for criterion in CRITERIA:
        sign = 1.0 if criterion.better == "higher" else -1.0
        scored = [(each.values[criterion.name], each) for each in candidates]
        computed = [(sign * value, each) for value, each in scored if value is not None]
        known = [pair for pair in computed if not math.isnan(pair[0])]
        if known and len(computed) == len(candidates):
            chosen[criterion.name] = max(reversed(known), key=lambda pair: pair[0])[1]
    chosen[CONSENSUS] = min(reversed(candidates), key=lambda each: (each.collapsed, each.mean_rank))
    return chosen


def _document(
    candidates: Sequence[Candidate],
    chosen: dict[str, Candidate],
    voted: Sequence[str],
    sets: Sets,
    *,
    weights: str,
    oracle: bool,
) -> dict[str, Any]:
    """Return everything as JSON values."""
    source = None
    if sets.source is not None:
        count = len(sets.source.split(sets.source_split))
        source = {"data": sets.source.name, "split": sets.source_split, "images": count}
    document: dict[str, Any] = {
        "uses_target_labels": oracle,
        "weights": weights,
        "target": {
            "data": sets.target.name,
            "split": sets.target_split,
            "images": len(sets.target.split(sets.target_split)),
        },
        "source": source,
        "criteria": {
            each.name: {"better": each.better, "meaning": each.meaning, "votes": each.name in voted}
            for each in CRITERIA
        },
        "candidates": [
            {
                "checkpoint": str(each.checkpoint),
                "step": each.step,
                **{name: _plain(value) for name, value in each.values.items()},
                "mean_rank": _plain(each.mean_rank),
                "collapsed": each.collapsed,
                **({"oracle_miou": _plain(each.oracle)} if oracle else {}),
            }
            for each in candidates
        ],
        "chosen": {name: str(each.checkpoint) for name, each in chosen.items()},
    }
    if oracle and sets.labelled is not None:
        document["oracle"] = {
            "warning": ORACLE_WARNING,
            "data": sets.labelled.name,
            "split": sets.labelled_split,
            "images": len(sets.labelled.split(sets.labelled_split)),
            "lost_miou": _lost(candidates, chosen),
            "rank_correlation": _correlations(candidates),
        }
    return document


def _print_table(
    candidates: Sequence[Candidate],
    chosen: dict[str, Candidate],
    voted: Sequence[str],
    *,
    oracle: bool,
) -> None:
    """Print a row a candidate, a star at each criterion's choice, and the choice of the vote."""
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = max(screen.width, _WIDE)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("candidate", overflow="fold")
    shown = [each for each in CRITERIA if any(c.values[each.name] is not None for c in candidates)]
    for criterion in shown:
        arrow = "↑" if criterion.better == "higher" else "↓"
        table.add_column(f"{criterion.name} {arrow}", justify="right")
    table.add_column("mean rank ↓", justify="right")
    if oracle:
        table.add_column("ORACLE mIoU %", justify="right", style="red")
    one_run = len({each.run for each in candidates}) == 1
    for each in candidates:
        cells = [
            _shown(each.values[criterion.name]) + _star(chosen.get(criterion.name) is each)
            for criterion in shown
        ]
        rank = f"{each.mean_rank:.2f}" + _star(chosen[CONSENSUS] is each)
        score = [f"{100 * _score(each):.2f}"] if oracle else []
        name = f"step {each.step}" if one_run else printable(each.name)
        table.add_row(Text(name), *map(Text, [*cells, rank, *score]))
    say = Console(highlight=False, soft_wrap=True)
    if oracle:
        say.print(Text(ORACLE_WARNING, style="bold red"))
    screen.print(table)
    collapsed = [printable(each.name) for each in candidates if each.collapsed]
    if collapsed:
        say.print(Text(f"calls nearly everything one class, so not chosen: {', '.join(collapsed)}"))
    silent = [each.name for each in CRITERIA if each.votes and each.name not in voted]
    if silent:
        say.print(Text(f"not computed for every candidate, so without a vote: {', '.join(silent)}"))
    say.print(Text(f"chosen by mean rank: {printable(str(chosen[CONSENSUS].checkpoint))}"))
    if oracle:
        lost = [f"{name} {100 * points:.2f}" for name, points in _lost(candidates, chosen).items()]
        say.print(
            Text(f"ORACLE: points of mIoU that each choice loses to the best: {', '.join(lost)}")
        )
        order = [
            f"{name} {'-' if value is None else f'{value:+.2f}'}"
            for name, value in _correlations(candidates).items()
        ]
        say.print(Text(f"ORACLE: rank correlation with mIoU (1 is its order): {', '.join(order)}"))


def _lost(candidates: Sequence[Candidate], chosen: dict[str, Candidate]) -> dict[str, float]:
    """Return how much mIoU each choice loses to the best candidate, by the oracle."""
    best = max(_score(each) for each in candidates)
    return {name: best - _score(each) for name, each in chosen.items()}


def _correlations(candidates: Sequence[Candidate]) -> dict[str, float | None]:
    """Return how far each criterion that has all its values orders as the oracle does."""
    truth = ranks([_score(each) for each in candidates], "higher")
    orders = {CONSENSUS: ranks([each.mean_rank for each in candidates], "lower")}
    for criterion in CRITERIA:
        values = [each.values[criterion.name] for each in candidates]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            orders[criterion.name] = ranks(known, criterion.better)
    names = [*(each.name for each in CRITERIA if each.name in orders), CONSENSUS]
    return {name: _plain(rank_correlation(orders[name], truth)) for name in names}


def _score(candidate: Candidate) -> float:
    """Return the oracle's mIoU; a network without any counts as nothing."""
    score = candidate.oracle
    return 0.0 if score is None or math.isnan(score) else score


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _star(chosen: bool) -> str:
    return "*" if chosen else " "


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
