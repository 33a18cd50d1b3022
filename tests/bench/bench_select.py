"""How far each criterion of `udaseg select` is from the labels, on your own runs; as a script.

    python -m tests.bench.bench_select --root data RUN RUN RUN RUN

Every checkpoint of every run is looked at once, with the oracle. Two choices are judged: the
checkpoint of one run (regret averaged over the runs, beside the last checkpoint), and one of all
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
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[Row] = json.loads(done.stdout)["candidates"]
    return rows


def orders(rows: list[Row]) -> dict[str, list[float]]:
    """Return the ranks that each criterion, the vote and the step give to the rows."""
    columns = {name: [row[name] for row in rows] for name in BETTER}
    known = {name: values for name, values in columns.items() if None not in values}
    found = {name: ranks(values, BETTER[name]) for name, values in known.items()}
    votes = mean_ranks(columns)[0]
    # as `select` has it: who calls nearly all one class comes after all others
    found["consensus"] = ranks(
        [vote + 1e3 * row["collapsed"] for vote, row in zip(votes, rows, strict=True)], "lower"
    )
    found["last"] = ranks([row["step"] for row in rows], "higher")
    return found


def judged(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Return for each way to choose the points of mIoU that it loses, and its correlation."""
    scores = [100 * (row["oracle_miou"] or 0) for row in rows]
    truth = ranks(scores, "higher")
    result = {"any": (max(scores) - mean(scores), nan)}
    for name, order in orders(rows).items():
        first = [score for score, rank in zip(scores, order, strict=True) if rank == min(order)]
        # of equals the later, as `select` has it; there is a last one for each run
        taken = mean(first) if name == "last" else first[-1]
        result[name] = (max(scores) - taken, rank_correlation(order, truth))
    return result


def table(title: str, parts: list[dict[str, tuple[float, float]]]) -> None:
    sys.stdout.write(f"{title:<24}{'lost':>8}{'worst':>8}{'correlation':>14}\n")
    names = dict.fromkeys(("last", "source", *(key for part in parts for key in part)))
    for name in names:
        lost, order = zip(*(part[name] for part in parts if name in part), strict=True)
        known = [value for value in order if not isnan(value)]
        shown = f"{mean(known):+.2f}" if known else "-"
        partly = "" if len(lost) == len(parts) else f"  ({len(lost)} of {len(parts)} runs)"
        sys.stdout.write(f"  {name:<22}{mean(lost):8.2f}{max(lost):8.2f}{shown:>14}{partly}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="regret and rank correlation of the criteria")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--root", default="data")
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    if not given.runs:
        sys.stdout.write("name run folders with several checkpoints each: nothing to compare\n")
        return
    rows = measured(given.runs, given.root, given.images)
    by_run = defaultdict(list)
    for row in rows:
        by_run[row["checkpoint"].split("/checkpoints/")[0]].append(row)
    for run, own in by_run.items():
        scores = ", ".join(f"{100 * (row['oracle_miou'] or 0):.1f}" for row in own)
        sys.stdout.write(f"{run}: {scores}\n")
    sys.stdout.write(f"{len(rows)} checkpoints of {len(by_run)} runs, points of mIoU\n")
    table("within a run", [judged(own) for own in by_run.values()])
    table("among all", [judged(rows)])


if __name__ == "__main__":
    main()
