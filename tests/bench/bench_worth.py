"""How often the verdict of `udaseg select --worth-it` is right; run as a script.

    python -m tests.bench.bench_worth [FILE]

Reads the results of `tests.bench.measure`, or another file of such lines, judges each comparison
again by the rule of today, and prints it beside the mIoU on target labels, as Markdown; wrong
verdicts are bold. Then it prints what would be gained by following the verdict (the adapted
network, unless it is `worse`), beside adapting always and never. To try another rule, change
`udaseg/selection/verdict.py` and run this again: no network is run. The rule was fixed on the
comparisons of `tests/bench/verdict_development.jsonl`, runs on toyland of another seed.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tests.bench.measure import RESULTS
from udaseg.runs.worth import Verdict, Worth
from udaseg.selection.verdict import judge

_NO_DIFFERENCE = 1.0
"""Networks that differ by fewer points of mIoU are equally good."""
_STORED = TypeAdapter(Worth)
_PREFERS = {"adapted": "better", "baseline": "worse", None: "unclear"}
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One comparison, as it was judged, and the truth.

    Attributes:
        line: Its line in the file of results, from 1.
        run: Name of the job.
        against: What the adapted network was compared with.
        won: mIoU of the adapted network minus that of the network compared with, in points.
        verdict: Without target labels.
        criteria: What each criterion says alone.
    """

    line: int
    run: str
    against: str
    won: float
    verdict: Verdict
    criteria: dict[str, str]

    @property
    def differs(self) -> bool:
        return abs(self.won) >= _NO_DIFFERENCE

    @property
    def marked(self) -> str:
        """The verdict, bold if it is wrong."""
        wrong = self.differs and self.verdict == ("worse" if self.won > 0 else "better")
        return f"**{self.verdict}**" if wrong else self.verdict


def read_cases(lines: Sequence[str]) -> list[Case]:
    """Return the comparisons of a file of results, in its order."""
    results = [json.loads(line) for line in lines]
    by_name = {each["name"]: each for each in results}
    cases = []
    for number, result in enumerate(results, start=1):
        group, _, seed = result["name"].split("/")
        before = by_name.get(f"{group}/source_only/{seed}")
        for key, against, network in (
            ("worth", "its warm-up", result.get("warm")),
            ("worth_source_only", "source only", before),
        ):
            if key in result and network is not None:
                worth = judge(_STORED.validate_python(result[key]))
                criteria = {row.name: _PREFERS[row.prefers] for row in worth.criteria}
                won = result["miou"] - network["miou"]
                case = Case(number, result["name"], against, won, worth.verdict, criteria)
                cases.append(case)
    return cases


def summary(cases: Sequence[Case]) -> list[str]:
    """Return what three ways to choose a network gain over the one before, as a Markdown table."""
    unequal = [case for case in cases if case.differs]
    hurt = [case for case in unequal if case.won < 0]
    ways: dict[str, Callable[[Case], bool]] = {
        "follow the verdict": lambda case: case.verdict != "worse",
        "always adapt": lambda _: True,
        "never adapt": lambda _: False,
    }
    rows = [
        "| | right choices | gain, points of mIoU | harm taken | false alarms |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, adapts in ways.items():
        right = sum(adapts(case) == (case.won > 0) for case in unequal)
        gain = statistics.mean(case.won * adapts(case) for case in cases)
        taken = sum(map(adapts, hurt))
        alarms = sum(not adapts(case) and case.won > 0 for case in unequal)
        rows.append(
            f"| {name} | {right} of {len(unequal)} | {gain:+.2f} | {taken} of {len(hurt)} "
            f"| {alarms} of {len(unequal) - len(hurt)} |"
        )
    return rows


def by_criterion(cases: Sequence[Case]) -> list[str]:
    """Return how often verdict and criteria were right about unequal networks, as a table."""
    rows = ["| | right | wrong | unclear |", "|---|---:|---:|---:|"]
    unequal = [case for case in cases if case.differs]
    words: dict[str, list[str]] = {"verdict": [case.verdict for case in unequal]}
    for name in dict.fromkeys(name for case in cases for name in case.criteria):
        words[name] = [case.criteria.get(name, "unclear") for case in unequal]
    for name, said in words.items():
        truth = ["better" if case.won > 0 else "worse" for case in unequal]
        right = sum(word == true for word, true in zip(said, truth, strict=True))
        unclear = said.count("unclear")
        rows.append(f"| {name} | {right} | {len(said) - right - unclear} | {unclear} |")
    return rows


def table(cases: Sequence[Case]) -> list[str]:
    """Return the cases as a Markdown table, the seeds of a row side by side."""
    rows = defaultdict(list)
    for case in cases:
        rows[case.run.rsplit("/", 1)[0], case.against].append(case)
    lines = ["| runs | lines | compared with | points won | verdict |", "|---|---|---|---|---|"]
    for (run, against), seeds in sorted(rows.items(), key=lambda row: row[0][::-1]):
        same = len({case.marked for case in seeds}) == 1
        words = [case.marked for case in (seeds[:1] if same else seeds)]
        cells = (
            run,
            ", ".join(str(case.line) for case in seeds),
            against,
            ", ".join(f"{case.won:+.1f}" for case in seeds),
            ", ".join(words),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the cases, what following the verdict gains, and how good each criterion is."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS)
    cases = read_cases(file.read_text(encoding="utf-8").splitlines())
    tables = (table(cases), summary(cases), by_criterion(cases))
    sys.stdout.write("\n".join(line for each in tables for line in [*each, ""]))


if __name__ == "__main__":
    main()
