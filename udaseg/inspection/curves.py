"""Render the curves of `metrics.jsonl`: one small chart per metric, one line per run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from udaseg.inspection.charts import line_chart
from udaseg.inspection.markup import Html, element, join
from udaseg.inspection.report_content import Color, RunContent

# metrics between 0 and 1, drawn with a fixed y axis
_UNIT_INTERVAL_METRICS = {"confident", "confidence", "top_class", "oracle_miou", "uncertainty"}
_TABLE_TITLES = {
    "pseudo_labels": "share of each class in the pseudo-labels",
    "select": "criterion for the best checkpoint",
}
_NOT_PLOTTED = {"step", "stage", "losses", "dropped", "alarms"}
_TITLES = {
    "total": "loss, total",
    "confident": "share of confident target pixels",
    "confidence": "mean confidence of the pseudo-labels",
    "top_class": "share of the most frequent pseudo-label",
    "uncertainty": "mean entropy of the target's labels (1 is a uniform guess)",
    "oracle_miou": "mIoU on labelled target images (for reporting only; never used for selection)",
    "gradient_norm": "gradient norm before clipping",
}
_MAX_POINTS = 600
Series = dict[str, list[tuple[float, float]]]


def curve_section(runs: Sequence[RunContent], colors: Mapping[str, Color]) -> Html:
    """Return charts of all metrics of the runs, or a sentence if there are none."""
    numbers: dict[str, Series] = {}
    tables: dict[tuple[str, str], Series] = {}
    for run in runs:
        for event in run.metrics:
            step = event.get("step")
            if not isinstance(step, int | float):
                continue
            for name, value in _numbers(event):
                numbers.setdefault(name, {}).setdefault(run.name, []).append((step, value))
            for table, row in _tables(event):
                for name, value in row.items():
                    series = tables.setdefault((table, run.name), {})
                    series.setdefault(str(name), []).append((step, value))
    charts = [
        line_chart(
            _TITLES.get(name, name.replace("_", " ")),
            {run: thin_out(points) for run, points in series.items()},
            span=(0.0, 1.0) if name in _UNIT_INTERVAL_METRICS else None,
            styles=[run.name for run in runs],
        )
        for name, series in numbers.items()
    ]
    for (table, run_name), series in tables.items():
        lines = {name: thin_out(points) for name, points in series.items()}
        title = _TABLE_TITLES.get(table, table.replace("_", " "))
        title += f", {next(iter(lines))}" if len(lines) == 1 else ""
        title += f" — {run_name}" if len(runs) > 1 else ""
        charts.append(line_chart(title, lines, colors=colors))
    non_empty = [chart for chart in charts if chart]
    if not non_empty:
        return element("p", "No metrics were written.")
    note = element(
        "p", "Metrics over optimiser steps; gaps are values that were not finite.", class_="note"
    )
    return join([note, element("div", *non_empty, class_="charts")])


def thin_out(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Reduce a curve to a few hundred points by averaging neighbours.

    A point is a gap only if all values that it averages are gaps.
    """
    size = -(-len(points) // _MAX_POINTS)
    if size <= 1:
        return list(points)
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        finite = [y for _, y in group if math.isfinite(y)]
        mean = sum(finite) / len(finite) if finite else math.nan
        kept.append((sum(x for x, _ in group) / len(group), mean))
    return kept


def _numbers(event: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the scalar metrics of an event; null (a non-finite number) becomes NaN, a gap."""
    metrics = {}
    losses = event.get("losses")
    if isinstance(losses, Mapping):
        # only losses that are minimised get the prefix; monitored values do not
        for name, value in losses.items():
            monitored = name in _TITLES or name in _UNIT_INTERVAL_METRICS
            metrics[str(name) if monitored else f"loss, {name}"] = value
    metrics |= {name: value for name, value in event.items() if name not in _NOT_PLOTTED}
    rates = event.get("lr")
    if isinstance(rates, Mapping) and len(set(rates.values())) == 1:
        metrics["learning rate"] = next(iter(rates.values()))
    return [(name, _float(value)) for name, value in metrics.items() if _is_number(value)]


def _tables(event: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Return the tables of an event by name, such as pseudo-label shares per class."""
    tables = []
    for key, value in event.items():
        if key in _NOT_PLOTTED or not isinstance(value, Mapping) or not value:
            continue
        if key == "lr":
            if len(set(value.values())) == 1:
                continue
            key = "learning rate"
        if all(map(_is_number, value.values())):
            tables.append((key, {name: _float(part) for name, part in value.items()}))
    return tables


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
