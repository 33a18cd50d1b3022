"""The first section of a report: what came of a run, in the numbers that one looks for first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from udaseg.inspection.report_content import PageContent, RunContent
from udaseg.runs.scores import Scores
from udaseg.runs.worth import Worth
from udaseg.text import percent

LEVEL_POINTS = 0.5
"""Mean IoUs closer than this, in points, count as the same."""

CLASS_POINTS = 1.0
"""A class is won or lost from this change of its IoU on, in points."""

WITHOUT_ADAPTATION = "without adaptation"
_GUESSES = {
    "better": "Adaptation probably helped",
    "worse": "Adaptation probably made it worse",
    "unclear": "Unclear whether adaptation helped",
    "unknown": "Not known whether adaptation helped",
}
Tone = Literal["gain", "loss", "same"]
_TONES: Mapping[str, Tone] = {"better": "gain", "worse": "loss"}


@dataclass(frozen=True)
class Summary:
    """What came of one run.

    Attributes:
        name: Name of the run.
        task: What was run, in a line; empty if the page does not know.
        verdict: Whether it helped, in a few words; empty if there is nothing to compare with.
        tone: Whether that is good or bad.
        reasons: Sentences that the verdict is based on.
        measure: Name of the mean IoU, such as `mIoU-19`.
        score: The mean IoU as a fraction; NaN without scores.
        points: Its change, in points; NaN if it was not measured.
        change: What the change is due to or compared with; empty without a comparison.
        won: Classes that are better by `CLASS_POINTS` or more, best first, with the change.
        lost: Classes that are worse by as much, worst first.
        cost: Time and memory.
    """

    name: str
    task: str = ""
    verdict: str = ""
    tone: Tone = "same"
    reasons: list[str] = field(default_factory=list)
    measure: str = "mIoU"
    score: float = math.nan
    points: float = math.nan
    change: str = ""
    won: Mapping[str, float] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, str] = field(default_factory=dict)


def summarize(page: PageContent) -> list[Summary]:
    """Return the summary of each run of a page, in their order."""
    baseline = page.runs[0] if page.has_baseline else None
    return [_summary(run, None if run is baseline else baseline) for run in page.runs]


def _summary(run: RunContent, baseline: RunContent | None) -> Summary:
    before, after, against = run.before, run.after, WITHOUT_ADAPTATION
    if baseline is not None:
        before, after, against = baseline.scores, run.scores, baseline.name
    changes = _changes(before, after)
    points = math.nan
    if before is not None and after is not None:
        points = 100 * (after.miou - before.miou)
    is_measured = math.isfinite(points)
    verdict = ""
    tone: Tone = "same"
    if is_measured:
        adapted = run.worth is not None and (baseline is None or baseline.worth is None)
        verdict, tone = _measured(points, "" if adapted else against)
    elif run.worth is not None:
        verdict, tone = _GUESSES[run.worth.verdict], _TONES.get(run.worth.verdict, "same")
    shown = run.scores or after
    return Summary(
        run.name,
        task=_task(run.facts),
        verdict=verdict,
        tone=tone,
        reasons=_measured_reasons(run, before, after) if is_measured else _guessed_reasons(run),
        measure="mIoU" if shown is None else next(iter(shown.means), "mIoU"),
        score=math.nan if shown is None else shown.miou,
        points=points,
        change=change_text(against) if is_measured else "",
        won={name: change for name, change in changes.items() if change >= CLASS_POINTS},
        lost={name: changes[name] for name in reversed(changes) if changes[name] <= -CLASS_POINTS},
        cost={key: run.cost[key] for key in ("training time", "peak memory") if key in run.cost},
    )


def change_text(other: str) -> str:
    """Return the words for a change from another network to that of a run."""
    return "change by adaptation" if other == WITHOUT_ADAPTATION else f"change from {other}"


def _measured(points: float, against: str) -> tuple[str, Tone]:
    """Return the verdict of labels; `against` is empty if only the adaptation differs."""
    if points >= LEVEL_POINTS:
        return (f"Better than {against}" if against else "Adaptation helped"), "gain"
    if points <= -LEVEL_POINTS:
        return (f"Worse than {against}" if against else "Adaptation made it worse"), "loss"
    return (f"As good as {against}" if against else "Adaptation made little difference"), "same"


def _measured_reasons(run: RunContent, before: Scores | None, after: Scores | None) -> list[str]:
    """Return what labels say, and the verdict without them."""
    assert before is not None
    assert after is not None
    protocol = {"images": "all", "data": "the data", **after.protocol}
    where = ", ".join(protocol[key] for key in ("data", "split") if key in protocol)
    reasons = [
        f"The change is measured with labels, on {protocol['images']} images of {where}: "
        f"mIoU from {percent(before.miou)} to {percent(after.miou)} %."
    ]
    worth = run.worth
    if worth is None or worth.verdict == "unknown":
        return reasons
    if before is run.before and worth.baseline is not None and worth.adapted is not None:
        checkpoint, step = worth.baseline.checkpoint, worth.baseline.step
        reasons.append(
            f"Without adaptation: `{checkpoint}`, after {step} steps; adapted: after "
            f"{worth.adapted.step}. `--baseline RUN` compares with another run."
        )
    return [*reasons, _verdict_without_labels(worth)]


def _guessed_reasons(run: RunContent) -> list[str]:
    """Return what the criteria without labels say, and how to compare with labels."""
    if run.worth is None:
        return []
    reasons = [_verdict_without_labels(run.worth)]
    if run.scores is not None and run.worth.verdict != "unknown":
        reasons.append("This used no labels; `--baseline RUN` compares the scores, too.")
    return reasons


def _verdict_without_labels(worth: Worth) -> str:
    return f"Verdict without target labels: {worth.verdict}; {worth.reason}."


def _changes(before: Scores | None, after: Scores | None) -> dict[str, float]:
    """Return the change of the IoU of each class that both have, in points, best first."""
    if before is None or after is None:
        return {}
    points = {
        name: 100 * (after.iou[name] - value)
        for name, value in before.iou.items()
        if name in after.iou
    }
    measured = {name: change for name, change in points.items() if math.isfinite(change)}
    return dict(sorted(measured.items(), key=lambda item: -item[1]))


def _task(facts: Mapping[str, str]) -> str:
    if "method" not in facts:
        return ""
    source, target = (facts[key].partition(",")[0] for key in ("source", "target (unlabelled)"))
    data = source if target.startswith("none") else f"{source} to {target}"
    return f"{facts['method']} · {data} · {facts['network']} · {facts['steps']} steps"
