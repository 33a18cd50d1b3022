"""A curve over the values of a setting, as an SVG picture."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 460, 20, 240
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
_MAX_TICKS = 7


def curve_svg(
    x_title: str,
    y_title: str,
    values: Sequence[str],
    lines: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    """Return the means as lines, their spread (n - 1) as bars, and each seed as a dot.

    The values stand at equal distances, numbers in increasing order.

    Args:
        x_title: Text below the axis of the values.
        y_title: Text beside the axis of the scores.
        values: The values as written.
        lines: For each line and value, the scores of the seeds as fractions.
    """
    ordered = sorted(values, key=float) if all(map(_is_number, values)) else list(values)
    step = (_RIGHT - _LEFT) / len(ordered)
    places = {value: _LEFT + step * (index + 0.5) for index, value in enumerate(ordered)}
    shown = [_measured(scores) for points in lines.values() for scores in points.values()]
    ticks = _ticks([end for scores in shown for end in (*scores, *_ends(scores))])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} '
        f'{_HEIGHT + 16 * len(lines)}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_axes(x_title, y_title, places, ticks),
    ]
    for number, (name, points) in enumerate(lines.items()):
        color = _COLORS[number % len(_COLORS)]
        shift = 4 * (number - (len(lines) - 1) / 2)  # so that bars of lines do not hide each other
        placed = {places[value] + shift: points[value] for value in ordered if value in points}
        parts += _line(placed, ticks, color)
        y = _HEIGHT + 16 * number
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + 20}" y1="{y}" y2="{y}" stroke="{color}"/>')
        parts.append(f'<text x="{_LEFT + 26}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _line(
    points: Mapping[float, Sequence[float]], ticks: Sequence[float], color: str
) -> Iterator[str]:
    corners = []
    for x, scores in points.items():
        known = _measured(scores)
        if not known:
            continue
        mean = statistics.fmean(known)
        corners.append(f"{x:.1f},{_y(mean, ticks):.1f}")
        for score in known:
            yield f'<circle cx="{x:.1f}" cy="{_y(score, ticks):.1f}" r="2" fill="{color}"/>'
        y = "".join(f' y{n}="{_y(end, ticks):.1f}"' for n, end in enumerate(_ends(known), 1))
        yield f'<line x1="{x:.1f}" x2="{x:.1f}"{y} stroke="{color}"/>' if y else ""
    yield f'<polyline points="{" ".join(corners)}" fill="none" stroke="{color}" stroke-width="2"/>'


def _axes(
    x_title: str, y_title: str, places: Mapping[str, float], ticks: Sequence[float]
) -> Iterator[str]:
    for tick in ticks:
        y = _y(tick, ticks)
        yield f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for value, x in places.items():
        yield f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{escape(value)}</text>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text x="{middle}" y="{_BOTTOM + 38}" text-anchor="middle">{escape(x_title)}</text>'
    place = f"translate(16 {(_TOP + _BOTTOM) / 2}) rotate(-90)"
    yield f'<text transform="{place}" text-anchor="middle">{escape(y_title)}</text>'


def _measured(scores: Sequence[float]) -> list[float]:
    """Return the scores in percent without NaN."""
    return [100 * score for score in scores if math.isfinite(score)]


def _ends(scores: Sequence[float]) -> list[float]:
    """Return the ends of the bar of the spread; empty for fewer than two seeds."""
    if len(scores) < 2:
        return []
    mean, spread = statistics.fmean(scores), statistics.stdev(scores)
    return [mean - spread, mean + spread]


def _y(score: float, ticks: Sequence[float]) -> float:
    return _BOTTOM - (score - ticks[0]) / (ticks[-1] - ticks[0]) * (_BOTTOM - _TOP)


def _ticks(scores: Sequence[float]) -> list[float]:
    """Return round numbers from below the lowest score to above the highest."""
    low, high = min(scores, default=0.0), max(scores, default=100.0)
    width = max(high - low, 0.5)
    step = 10 ** math.floor(math.log10(width / 2))
    while math.ceil(high / step) - math.floor(low / step) > _MAX_TICKS - 1:
        step *= 2
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [number * step for number in range(first, last + 1)]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
