"""How often the verdict of `udaseg select --worth-it` is right; run as a script.

    python -m tests.bench.bench_worth [FILE]

Reads the results of `tests.bench.measure`, or another file of such lines, judges each comparison
again by the rule of today, and prints it beside the mIoU on target labels. A difference below one
point of mIoU counts as none. To try another rule, change the constants of
`udaseg/selection/verdict.py` and run this again: no network is run.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tests.bench.measure import RESULTS, Job, read_results, source_only
from udaseg.runs.worth import Worth
from udaseg.selection.verdict import judge

_NO_DIFFERENCE = 1.0
_STORED = TypeAdapter(Worth)
Result = dict[str, Any]


def points_won(result: Result, by_name: dict[str, Result]) -> float | None:
    """Return mIoU minus that of the network compared with; None if that was not scored."""
    before = result.get("warm")
    if before is None:
        before = by_name.get(source_only(Job(result["name"], ())).name)
    return None if before is None else float(result["miou"] - before["miou"])


def outcome(verdict: str, won: float) -> str:
    """Return whether a verdict fits the points that were won: right, wrong or open."""
    if verdict == "unclear" or abs(won) < _NO_DIFFERENCE:
        return "open"
    return "right" if (verdict == "better") == (won > 0) else "wrong"


def main() -> None:
    """Print a line for each comparison, then how often verdict and criteria were right."""
    lines = Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS)
    results = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    results = read_results() if lines == RESULTS else results
    by_name = {result["name"]: result for result in results}
    counts: dict[str, Counter[str]] = {"verdict": Counter()}
    for result in results:
        won = points_won(result, by_name)
        if not result.get("worth") or won is None:
            continue
        worth = judge(_STORED.validate_python(result["worth"]))
        how = outcome(worth.verdict, won)
        sys.stdout.write(
            f"{result['name']:40} {won:+6.2f} {worth.verdict:8} {how:6} {worth.reason}\n"
        )
        counts["verdict"][how] += 1
        for row in worth.criteria:
            word = {"adapted": "better", "baseline": "worse", None: "unclear"}[row.prefers]
            counts.setdefault(row.name, Counter())[outcome(word, won)] += 1
    for name, count in counts.items():
        told = ", ".join(f"{count[how]} {how}" for how in ("right", "wrong", "open"))
        sys.stdout.write(f"{name:10} {told}\n")


if __name__ == "__main__":
    main()
