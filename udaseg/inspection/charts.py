"""Draw small charts as inline SVG: lines, histograms, reliability and confusion matrices."""

import math
from collections.abc import Mapping, Sequence

from udaseg.inspection.markup import Html, css_color, element, join
from udaseg.inspection.report_content import Color, Reliability

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 16.0, 8.0, 24.0
_STYLE_COUNT = 6

# confusion matrix: cell size, margins for names at the top and left, lowest share shown as text
_CELL, _HEAD, _SIDE, _MIN_SHARE_SHOWN = 26.0, 92.0, 100.0, 0.01


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    span: tuple[float, float] | None = None,
    colors: Mapping[str, Color] | None = None,
    styles: Sequence[str] = (),
) -> Html:
    """Draw lines over steps, with gaps at non-finite values.

    Args:
        title: Title of the chart.
        lines: Points (x, y) by name of the line, with increasing x.
        span: Lowest and highest y; None uses the range of the values.
        colors: RGB colour of each line, if lines are classes; otherwise each line gets a colour and
            a dash pattern.
        styles: All line names on the page, so that a name has the same style in every chart.
    """
    finite_x = {
        name: [(x, y) for x, y in points if math.isfinite(x)] for name, points in lines.items()
    }
    xs = [x for points in finite_x.values() for x, _ in points]
    ys = [y for points in finite_x.values() for _, y in points if math.isfinite(y)]
    if not xs or not ys:
        return Html("")
    x_span = _nonempty_span((min(xs), max(xs)))
    y_span = _nonempty_span(span or (min(*ys, 0.0) if min(ys) < max(ys) / 4 else min(ys), max(ys)))
    parts = [_axes(x_span, y_span)]
    legend_entries = []
    for number, (name, points) in enumerate(finite_x.items()):
        style_index = styles.index(name) if name in styles else number
        style = {"class_": f"line s{style_index % _STYLE_COUNT}"}
        if colors and name in colors:
            style = {"class_": "line", "stroke": css_color(colors[name]), "data_class": name}
        parts += _line(points, x_span, y_span, style)
        legend_entries.append(_legend_entry(name, style))
    description = f"{title} over steps {_format_number(x_span[0])} to {_format_number(x_span[1])}"
    description += f": {_last_values(finite_x)}"
    by_class = any(name in (colors or {}) for name in finite_x)
    legend = legend_entries if len({*lines, *styles}) > 1 else []
    return _figure(
        title, parts, description, legend, css_class="chart classes" if by_class else "chart"
    )


def _line(
    points: Points,
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    style: Mapping[str, str],
) -> list[Html]:
    """Draw the segments of a line between its gaps; a single point is a dot."""
    parts = []
    for piece in _segments(points):
        positions = [(_x_pixel(x, x_span), _y_pixel(y, y_span)) for x, y in piece]
        if len(positions) == 1:
            (x, y), *_ = positions
            parts.append(element("circle", cx=x, cy=y, r=2, **style))
            continue
        coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
        parts.append(element("polyline", points=coordinates, **style))
    return parts


def _last_values(lines: Mapping[str, Points]) -> str:
    """Return the last finite value of each line as text."""
    return "; ".join(
        f"{name} ends at {_format_number(finite[-1])}"
        for name, points in lines.items()
        if (finite := [y for _, y in points if math.isfinite(y)])
    )


def histogram(title: str, reliability: Reliability) -> Html:
    """Draw the share of pixels in each bin of confidence."""
    total = max(1, sum(reliability.pixels))
    shares = [count / total for count in reliability.pixels]
    y_span = (0.0, max(*shares, 1e-9))
    width = 1 / len(shares)
    bars = [
        _bar(
            index * width, width, share, y_span, f"{_bin_title(index, width)}: {100 * share:.2f} %"
        )
        for index, share in enumerate(shares)
    ]
    confident = 100 * sum(shares[-len(shares) // 10 :])
    description = f"{title}: share of pixels by confidence; {confident:.1f} % are above 0.9"
    return _figure(title, [_axes((0.0, 1.0), y_span), *bars], description, [])


def reliability_chart(title: str, reliability: Reliability) -> Html:
    """Draw accuracy by confidence; on the diagonal, confidence equals accuracy."""
    if not sum(reliability.labelled):
        return Html("")
    span = (0.0, 1.0)
    width = 1 / len(reliability.labelled)
    bars = []
    for index, count in enumerate(reliability.labelled):
        if count:
            accuracy = reliability.correct[index] / count
            mean_confidence = reliability.confidence[index] / count
            tooltip = (
                f"{_bin_title(index, width)}: accuracy {accuracy:.3f}, "
                f"mean confidence {mean_confidence:.3f}, {count} pixels"
            )
            bars.append(_bar(index * width, width, accuracy, span, tooltip))
    corners = [(_x_pixel(0, span), _y_pixel(0, span)), (_x_pixel(1, span), _y_pixel(1, span))]
    coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    diagonal = element("polyline", points=coordinates, class_="diagonal")
    error = f"calibration error {100 * reliability.error:.2f} %"
    parts = [_axes(span, span), *bars, diagonal]
    return _figure(f"{title} ({error})", parts, f"{title}: expected {error}", [])


def confusion_chart(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """Draw the confusion matrix, each row in percent of its ground truth.

    Args:
        names: Class names.
        counts: Rows are ground truth, columns are predictions.
    """
    side = _CELL * len(names)
    heads = [
        element(
            "text", name, transform=f"translate({_column_x(n) + 16:.1f} {_HEAD - 6}) rotate(-55)"
        )
        for n, name in enumerate(names)
    ]
    rows = [_matrix_row(names, number, row) for number, row in enumerate(counts)]
    frame = element("rect", x=_SIDE, y=_HEAD, width=side, height=side, class_="frame")
    label = "confusion matrix: rows are ground truth, columns predictions, in percent of each row"
    picture = element(
        "svg",
        join([*heads, *rows, frame]),
        viewBox=f"0 0 {_SIDE + side + 60:.0f} {_HEAD + side + 4:.0f}",
        class_="confusion",
        role="img",
        aria_label=label,
    )
    return element("figure", picture, element("figcaption", label))


def _matrix_row(names: Sequence[str], number: int, counts: Sequence[int]) -> Html:
    """Draw a row of the confusion matrix: the true class, and a cell per predicted class."""
    total, y, name = sum(counts), _HEAD + number * _CELL, names[number]
    parts = [element("text", name, x=_SIDE - 6, y=y + 17, text_anchor="end")]
    for column, (other, count) in enumerate(zip(names, counts, strict=True)):
        if not count:
            continue
        share, x = count / total, _column_x(column)
        cell = [
            element("title", f"{name} predicted as {other}: {100 * share:.2f} %, {count} pixels"),
            element("rect", x=x, y=y, width=_CELL, height=_CELL, class_="cell", fill_opacity=share),
        ]
        if share >= _MIN_SHARE_SHOWN:
            css_class = "deep" if share > 0.5 else None
            text, middle = f"{100 * share:.0f}", x + _CELL / 2
            cell.append(
                element("text", text, class_=css_class, x=middle, y=y + 17, text_anchor="middle")
            )
        parts.append(element("g", *cell))
    return element("g", *parts, data_class=name)


def _column_x(column: int) -> float:
    return _SIDE + column * _CELL


def _figure(
    title: str,
    parts: Sequence[Html],
    description: str,
    legend_entries: Sequence[Html],
    css_class: str = "chart",
) -> Html:
    picture = element(
        "svg",
        join(list(parts)),
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        class_=css_class,
        role="img",
        aria_label=description,
    )
    legend = element("ul", *legend_entries, class_="keys") if legend_entries else Html("")
    return element("figure", element("figcaption", title), picture, legend)


def _legend_entry(name: str, style: Mapping[str, str]) -> Html:
    line = element("line", x1=0, y1=5, x2=22, y2=5, **style)
    css_class = "classes" if "data_class" in style else None
    mark = element("svg", line, viewBox="0 0 22 10", class_=css_class)
    return element("li", mark, name, data_class=style.get("data_class"))


def _axes(x_span: tuple[float, float], y_span: tuple[float, float]) -> Html:
    parts = []
    for value in _ticks(y_span):
        y = _y_pixel(value, y_span)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(
            element("text", _format_number(value), x=_LEFT - 5, y=y + 4, text_anchor="end")
        )
    for value in _ticks(x_span):
        x = _x_pixel(value, x_span)
        parts.append(
            element("text", _format_number(value), x=x, y=_HEIGHT - 6, text_anchor="middle")
        )
    return join(parts)


def _bar(x: float, width: float, share: float, y_span: tuple[float, float], tooltip: str) -> Html:
    left, right = _x_pixel(x, (0.0, 1.0)), _x_pixel(x + width, (0.0, 1.0))
    top, bottom = _y_pixel(share, y_span), _y_pixel(0, y_span)
    box = {"x": left + 0.5, "y": top, "width": right - left - 1, "height": bottom - top}
    return element("g", element("title", tooltip), element("rect", class_="bar", **box))


def _segments(points: Points) -> list[list[tuple[float, float]]]:
    """Split points into segments at the gaps."""
    segments: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            segments[-1].append((x, y))
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def _ticks(span: tuple[float, float]) -> list[float]:
    """Return four to eight round numbers inside an interval."""
    width = span[1] - span[0]
    step = 10 ** math.floor(math.log10(width / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if width / (step * factor) <= 7)
    first = math.ceil(span[0] / step - 1e-9)
    last = math.floor(span[1] / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _nonempty_span(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high - low > 1e-12 * max(1.0, abs(high)) else (low - 0.5, high + 0.5)


def _x_pixel(x: float, span: tuple[float, float]) -> float:
    return _LEFT + (x - span[0]) / (span[1] - span[0]) * (_WIDTH - _LEFT - _RIGHT)


def _y_pixel(y: float, span: tuple[float, float]) -> float:
    share = min(1.0, max(0.0, (y - span[0]) / (span[1] - span[0])))
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _bin_title(index: int, width: float) -> str:
    return f"confidence {index * width:.2f} to {(index + 1) * width:.2f}"


def _format_number(value: float) -> str:
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
