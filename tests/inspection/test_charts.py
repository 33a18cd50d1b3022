"""Charts of the report page: positions of lines and bars."""

import math
import re

import pytest

from tests.inspection.test_report_page import reliability
from udaseg.inspection import charts
from udaseg.inspection.curves import thin_out
from udaseg.inspection.report_page import TEMPLATES


def segments_of(chart):
    return [segment for line in chart.lines for segment in line.segments]


def test_a_line_goes_through_its_values():
    chart = charts.line_chart("loss", {"a": [(0, 0.0), (50, 1.0), (100, 0.5)]})
    ((left, low), (middle, high), (right, half)) = segments_of(chart)[0]
    assert left < middle < right
    assert middle - left == pytest.approx(right - middle)
    assert low > half > high  # y increases downwards
    assert half - high == pytest.approx(low - half)


def test_a_value_that_is_not_finite_is_a_gap_and_a_lone_value_a_dot():
    series = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 1.0), (7, 2.0)]
    chart = charts.line_chart("loss", {"a": series})
    assert [len(segment) for segment in segments_of(chart)] == [2, 1, 2]
    assert charts.line_chart("loss", {"a": [(1, math.nan)]}) is None
    assert charts.line_chart("loss", {}) is None


@pytest.mark.parametrize("span", [(0, 1), (-3, 8), (0.1, 0.10001), (0, 250_000), (1e-7, 3e-7)])
def test_ticks_are_few_round_and_inside(span):
    ticks = charts._ticks(*span)
    width = span[1] - span[0]
    assert 2 <= len(ticks) <= 8
    assert all(span[0] - 1e-6 * width <= tick <= span[1] + 1e-6 * width for tick in ticks)


def test_lines_of_classes_have_their_colours():
    lines = {"road": [(1, 0.1), (2, 0.2)], "car": [(1, 0.9), (2, 0.8)]}
    chart = charts.line_chart("shares", lines, colors={"road": (1, 2, 3), "car": (0, 0, 142)})
    colors = [(line.name, line.color) for line in chart.lines]
    assert colors == [("road", (1, 2, 3)), ("car", (0, 0, 142))]
    # a stroke in the style sheet would override the attribute
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert "stroke:" not in re.search(r"\.line \{([^}]*)\}", css)[1]
    (line,) = charts.line_chart("loss", {"a": [(1, 1.0), (2, 2.0)]}, colors={}).lines
    assert line.color is None


def test_constant_and_single_values_are_drawn():
    assert len(segments_of(charts.line_chart("lr", {"a": [(1, 5.0), (2, 5.0)]}))[0]) == 2
    assert len(segments_of(charts.line_chart("lr", {"a": [(1, 5.0)]}))[0]) == 1


def test_bars_are_as_high_as_their_shares():
    heights = [bar.height for bar in charts.histogram("all", reliability()).bars]
    assert heights[-1] == pytest.approx(3 * heights[-2])
    assert set(heights[:-2]) == {0}
    chart = charts.reliability_chart("r", reliability())
    assert len(chart.bars) == 2  # bins without truth have no accuracy
    assert chart.bars[0].tooltip.endswith("accuracy 0.500, mean confidence 0.650, 4 pixels")


def test_many_points_are_thinned_to_means():
    points = [(float(k), 1.0 if k % 2 else 3.0) for k in range(10_000)]
    few = thin_out(points)
    assert len(few) <= 600
    assert {round(y, 1) for _, y in few} <= {1.9, 2.0, 2.1}
    gap = thin_out([(float(k), math.nan) for k in range(5_000)])
    assert all(math.isnan(y) for _, y in gap)
