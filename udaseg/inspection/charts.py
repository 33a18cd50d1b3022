"""Charts of the report as positions in pixels, which `charts.svg.j2` draws."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from udaseg.inspection.report_content import Color
from udaseg.selection.temperature import BINS, ConfidenceHistogram

Points = Sequence[tuple[float, float]]
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 344.0, 8.0, 176.0
_STYLE_COUNT = 6


@dataclass(frozen=True)
class Line:
    """A line with gaps; `color` only if it is the line of a class."""

    name: str
    segments: Sequence[Points]
    css_class: str
    color: Color | None = None


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    tooltip: str


@dataclass(frozen=True)
class Chart:
    """Lines or bars; `description` says in words what they show. Ticks are (position, text)."""

    title: str
    description: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    has_legend: bool = False


class _Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        is_wide = high - low > 1e-12 * max(1.0, abs(high))
        margin = 0.0 if is_wide else max(0.5, abs(high) * 1e-9)  # 1e308 + 0.5 is 1e308
        self.low, self.high = low - margin, high + margin
        self._start, self._end = start, end

    def pixel(self, value: float) -> float:
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[tuple[float, str]]:
        return [(self.pixel(value), _format(value)) for value in _ticks(self.low, self.high)]


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    span: tuple[float, float] | None = None,
    colors: Mapping[str, Color] | None = None,
    styles: Sequence[str] = (),
) -> Chart | None:
    """Return lines over steps, with gaps at values that cannot be drawn; None if there is no other.

    Args:
        title: Title of the chart.
        lines: Points (x, y) by name of the line, with increasing x.
        span: Lowest and highest y; None uses the range of the values.
        colors: Colours of the lines that are classes; each other line has a colour and a dash
            pattern by its position.
        styles: All line names on the page, so that a name has the same style in every chart.
    """
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points if _can_be_drawn(y)]
    if not ys:
        return None
    low, high = span or (min(0.0, min(ys)) if min(ys) < max(ys) / 4 else min(ys), max(ys))
    x_axis = _Axis(min(xs), max(xs), _LEFT, _RIGHT)
    y_axis = _Axis(low, high, _BOTTOM, _TOP)
    positions = list(styles or lines)
    drawn, last_values = [], []
    for name, points in lines.items():
        groups = itertools.groupby(points, lambda point: _can_be_drawn(point[1]))
        segments = [list(group) for is_finite, group in groups if is_finite]
        pixels = [[(x_axis.pixel(x), y_axis.pixel(y)) for x, y in segment] for segment in segments]
        css_class = f"line s{positions.index(name) % _STYLE_COUNT}"
        drawn.append(Line(name, pixels, css_class, (colors or {}).get(name)))
        if segments:
            last_values.append(f"{name} ends at {_format(segments[-1][-1][1])}")
    steps = f"over steps {_format(x_axis.low)} to {_format(x_axis.high)}"
    description = f"{title} {steps}: {'; '.join(last_values)}"
    has_legend = len(positions) > 1
    return Chart(title, description, x_axis.ticks(), y_axis.ticks(), drawn, has_legend=has_legend)


def histogram(title: str, counts: ConfidenceHistogram) -> Chart:
    """Return the share of pixels in each bin of confidence."""
    shares = (counts.pixels / max(1, counts.pixels.sum())).tolist()
    confident = 100 * sum(shares[-BINS // 10 :])
    description = f"{title}: share of pixels by confidence; {confident:.1f} % are above 0.9"
    bars = [(index, share, f"{100 * share:.2f} %") for index, share in enumerate(shares)]
    return _bar_chart(title, description, bars, highest=max(*shares, 1e-9))


def reliability_chart(title: str, counts: ConfidenceHistogram) -> Chart | None:
    """Return accuracy by confidence, with the diagonal where they are equal; None without truth."""
    if not counts.labelled.any():
        return None
    bars = []
    for index, pixels in enumerate(counts.labelled.tolist()):
        if pixels:
            accuracy, confidence = counts.correct[index] / pixels, counts.confidence[index] / pixels
            text = f"accuracy {accuracy:.3f}, mean confidence {confidence:.3f}, {pixels} pixels"
            bars.append((index, accuracy, text))
    error = f"calibration error {100 * counts.expected_calibration_error():.2f} %"
    diagonal = Line("diagonal", [[(_LEFT, _BOTTOM), (_RIGHT, _TOP)]], "diagonal")
    return _bar_chart(f"{title} ({error})", f"{title}: expected {error}", bars, lines=[diagonal])


def _bar_chart(
    title: str,
    description: str,
    bars: Iterable[tuple[int, float, str]],
    *,
    highest: float = 1.0,
    lines: Sequence[Line] = (),
) -> Chart:
    """Return a chart of bars over confidence, given as (bin, height, text for the tooltip)."""
    x_axis, y_axis = _Axis(0.0, 1.0, _LEFT, _RIGHT), _Axis(0.0, highest, _BOTTOM, _TOP)
    width = (_RIGHT - _LEFT) / BINS
    drawn = []
    for index, height, text in bars:
        top = y_axis.pixel(height)
        tooltip = f"confidence {index / BINS:.2f} to {(index + 1) / BINS:.2f}: {text}"
        left = _LEFT + index * width
        drawn.append(Bar(left + 0.5, top, width - 1, _BOTTOM - top, tooltip))
    return Chart(title, description, x_axis.ticks(), y_axis.ticks(), lines, drawn)


def _can_be_drawn(value: float) -> bool:
    """Return whether differences of such values are finite too; a NaN is not below anything."""
    return abs(value) < 1e300


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers inside an interval."""
    width = high - low
    step = 10 ** math.floor(math.log10(width / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if width / (step * factor) <= 7)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _format(value: float) -> str:
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
