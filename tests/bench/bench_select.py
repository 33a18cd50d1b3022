"""Compare each criterion of `udaseg select` with the labels on your own runs; run as a script.

    python -m tests.bench.bench_select --root data RUN RUN RUN RUN

Every checkpoint of every run is evaluated once, with the oracle. Two choices are judged: the
checkpoint of one run (regret averaged over the runs, next to the last checkpoint), and one of all
checkpoints of all runs.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from math import isnan, nan
from statistics import mean
from typing import Any

from udaseg.selection.criteria import CRITERIA, mean_ranks, rank_correlation, ranks

BETTER = {criterion.name: criterion.better for criterion in CRITERIA}
Row = dict[str, Any]


def measured(runs: list[str], root: str, images: int) -> list[Row]:
    command = [sys.executable, "-m", "udaseg", "select", *runs, "--every", "--oracle"]
    command += ["--format", "json", "--images", str(images), "--root", root, "-q"]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[Row] = json.loads(process.stdout)["candidates"]
    return rows


def orders(rows: list[Row]) -> dict[str, list[float]]:
    """Return the ranks of the rows by each criterion, by the vote and by the step."""
    columns = {name: [row[name] for row in rows] for name in BETTER}
    known = {name: values for name, values in columns.items() if None not in values}
    result = {name: ranks(values, BETTER[name]) for name, values in known.items()}
    votes = mean_ranks(columns)[0]
    # as in `select`: a checkpoint that predicts almost only one class ranks after all others
    result["consensus"] = ranks(
        [vote + 1e3 * row["collapsed"] for vote, row in zip(votes, rows, strict=True)], "lower"
    )
    result["last"] = ranks([row["step"] for row in rows], "higher")
    return result


def judged(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Return the lost points of mIoU and the rank correlation of each way to choose."""
    scores = [100 * (row["oracle_miou"] or 0) for row in rows]
    truth = ranks(scores, "higher")
    result = {"any": (max(scores) - mean(scores), nan)}
    for name, order in orders(rows).items():
        first = [score for score, rank in zip(scores, order, strict=True) if rank == min(order)]
        # ties go to the later one, as in `select`; each run has a last checkpoint
        score_of_choice = mean(first) if name == "last" else first[-1]
        result[name] = (max(scores) - score_of_choice, rank_correlation(order, truth))
    return result


def table(title: str, parts: list[dict[str, tuple[float, float]]]) -> None:
    sys.stdout.write(f"{title:<24}{'lost':>8}{'worst':>8}{'correlation':>14}\n")
    names = dict.fromkeys(("last", "source", *(key for part in parts for key in part)))
    for name in names:
        lost, order = zip(*(part[name] for part in parts if name in part), strict=True)
        known = [value for value in order if not isnan(value)]
        correlation = f"{mean(known):+.2f}" if known else "-"
        partly = "" if len(lost) == len(parts) else f"  ({len(lost)} of {len(parts)} runs)"
        sys.stdout.write(
            f"  {name:<22}{mean(lost):8.2f}{max(lost):8.2f}{correlation:>14}{partly}\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="regret and rank correlation of the criteria")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--root", default="data")
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    if not arguments.runs:
        sys.stdout.write("name run folders with several checkpoints each: nothing to compare\n")
        return
    rows = measured(arguments.runs, arguments.root, arguments.images)
    by_run = defaultdict(list)
    for row in rows:
        by_run[row["checkpoint"].split("/checkpoints/")[0]].append(row)
    for run, run_rows in by_run.items():
        scores = ", ".join(f"{100 * (row['oracle_miou'] or 0):.1f}" for row in run_rows)
        sys.stdout.write(f"{run}: {scores}\n")
    sys.stdout.write(f"{len(rows)} checkpoints of {len(by_run)} runs, points of mIoU\n")
    table("within a run", [judged(run_rows) for run_rows in by_run.values()])
    table("among all", [judged(rows)])


if __name__ == "__main__":
    main()
