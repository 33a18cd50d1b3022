"""The curves of `metrics.jsonl`: one small chart per metric, one line per run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from udaseg.inspection.charts import Chart, Points, line_chart
from udaseg.inspection.report_content import Color, RunContent

# metrics between 0 and 1, drawn with a fixed y axis
_UNIT_INTERVAL_METRICS = {"confident", "confidence", "top_class", "oracle_miou", "uncertainty"}
_NOT_PLOTTED = {"step", "stage", "losses", "lr", "dropped", "alarms"}
_TITLES = {
    "total": "loss, total",
    "confident": "share of confident target pixels",
    "confidence": "mean confidence of the pseudo-labels",
    "top_class": "share of the most frequent pseudo-label",
    "uncertainty": "mean entropy of the pseudo-labels (1 is a uniform guess)",
    "oracle_miou": "mIoU on labelled target images (for reporting only; never used for selection)",
    "gradient_norm": "gradient norm before clipping",
    "pseudo_labels": "share of each class in the pseudo-labels",
    "select": "criterion for the best checkpoint",
}
_MAX_POINTS = 600


def metric_curves(runs: Sequence[RunContent], colors: Mapping[str, Color]) -> list[Chart]:
    """Return charts of all metrics: scalars of all runs together, then tables run by run."""
    scalars: dict[str, dict[str, list[tuple[float, float]]]] = {}
    tables: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for event in run.metrics:
            for metric, part, value in _values(event):
                if part is None:
                    lines, name = scalars.setdefault(metric, {}), run.name
                else:
                    lines, name = tables.setdefault((metric, run.name), {}), part
                lines.setdefault(name, []).append((event["step"], value))
    names = [run.name for run in runs]
    charts = []
    for metric, lines in scalars.items():
        span = (0.0, 1.0) if metric in _UNIT_INTERVAL_METRICS else None
        charts.append(line_chart(_title(metric), _thin_out_all(lines), span=span, styles=names))
    for (metric, run_name), lines in tables.items():
        title = _title(metric)
        title += f", {next(iter(lines))}" if len(lines) == 1 else ""
        title += f" — {run_name}" if len(runs) > 1 else ""
        charts.append(line_chart(title, _thin_out_all(lines), colors=colors))
    return [chart for chart in charts if chart is not None]


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_", " "))


def _values(event: Mapping[str, Any]) -> Iterator[tuple[str, str | None, float]]:
    """Yield metric, part and value; the part is None for a scalar, or for example a class."""
    metrics = {}
    for name, value in event.get("losses", {}).items():
        # only losses that are minimised get the prefix; monitored values do not
        metrics[name if name in _TITLES else f"loss, {name}"] = value
    metrics |= {name: value for name, value in event.items() if name not in _NOT_PLOTTED}
    if rates := event.get("lr"):
        is_same = len(set(rates.values())) == 1
        metrics["learning rate"] = next(iter(rates.values())) if is_same else rates
    for metric, value in metrics.items():
        if _is_number(value):
            yield metric, None, _float(value)
        elif isinstance(value, Mapping) and all(map(_is_number, value.values())):
            for part, number in value.items():
                yield metric, part, _float(number)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _float(value: float | None) -> float:
    """Return a value, or NaN, which is a gap, for null: a number that was not finite."""
    return math.nan if value is None else float(value)


def _thin_out_all(lines: Mapping[str, Points]) -> dict[str, Points]:
    return {name: thin_out(points) for name, points in lines.items()}


def thin_out(points: Points) -> Points:
    """Reduce a curve to a few hundred points by averaging neighbours.

    A point is a gap only if all values that it averages are gaps.
    """
    size = math.ceil(len(points) / _MAX_POINTS)
    if size <= 1:
        return points
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        finite = [y for _, y in group if math.isfinite(y)]
        mean = sum(finite) / len(finite) if finite else math.nan
        kept.append((sum(x for x, _ in group) / len(group), mean))
    return kept
