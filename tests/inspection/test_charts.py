"""Charts of the report page: positions of lines, bars and cells."""

import math
import re

import pytest

from udaseg.inspection import charts
from udaseg.inspection.curves import thin_out
from udaseg.inspection.markup import read_asset
from udaseg.inspection.report_content import Reliability


def reliability():
    return Reliability((0, 0, 5, 15), (0, 0, 4, 10), (0, 0, 2, 10), (0, 0, 2.6, 9.5), 0.1)


def points_of(figure):
    drawn = re.findall('points="([^"]*)"', figure)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in drawn]


def test_a_line_goes_through_its_values():
    figure = charts.line_chart("loss", {"a": [(0, 0.0), (50, 1.0), (100, 0.5)]})
    ((left, low), (middle, high), (right, half)) = points_of(figure)[0]
    assert left < middle < right
    assert middle - left == pytest.approx(right - middle)
    assert low > half > high  # y increases downwards
    assert half - high == pytest.approx(low - half, abs=0.11)


def test_a_value_that_is_not_finite_is_a_gap_and_a_lone_value_a_dot():
    series = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 1.0), (7, 2.0)]
    figure = charts.line_chart("loss", {"a": series})
    assert [len(line) for line in points_of(figure)] == [2, 2]
    assert figure.count("<circle") == 1
    assert charts.line_chart("loss", {"a": [(1, math.nan)]}) == ""
    assert charts.line_chart("loss", {}) == ""


@pytest.mark.parametrize("span", [(0, 1), (-3, 8), (0.1, 0.10001), (0, 250_000), (1e-7, 3e-7)])
def test_ticks_are_few_round_and_inside(span):
    ticks = charts._ticks(span)
    width = span[1] - span[0]
    assert 2 <= len(ticks) <= 8
    assert all(span[0] - 1e-6 * width <= tick <= span[1] + 1e-6 * width for tick in ticks)


def test_lines_of_classes_have_their_colours_on_a_ground_of_their_own():
    lines = {"road": [(1, 0.1), (2, 0.2)], "car": [(1, 0.9), (2, 0.8)]}
    figure = charts.line_chart("shares", lines, colors={"road": (1, 2, 3), "car": (0, 0, 142)})
    assert figure.count('class="chart classes"') == 1
    assert "<polyline" in figure
    for name, color in (("road", "rgb(1,2,3)"), ("car", "rgb(0,0,142)")):
        assert re.search(f'<polyline [^>]*stroke="{re.escape(color)}" data-class="{name}"', figure)
    # a stroke in the style sheet would override the attribute
    assert "stroke:" not in re.search(r"\.line \{([^}]*)\}", read_asset("page.css"))[1]
    assert 'class="chart"' in charts.line_chart("loss", {"a": [(1, 1.0), (2, 2.0)]}, colors={})


def test_constant_and_single_values_are_drawn():
    assert "<polyline" in charts.line_chart("lr", {"a": [(1, 5.0), (2, 5.0)]})
    assert "<circle" in charts.line_chart("lr", {"a": [(1, 5.0)]})


def test_bars_are_as_high_as_their_shares():
    figure = charts.histogram("all", reliability())
    heights = [float(value) for value in re.findall('class="bar".*?height="([^"]*)"', figure)]
    assert heights[3] == pytest.approx(3 * heights[2], rel=1e-4)
    assert heights[0] == heights[1] == 0
    chart = charts.reliability_chart("r", reliability())
    assert "accuracy 0.500, mean confidence 0.650, 4 pixels" in chart
    assert chart.count('class="bar"') == 2  # bins without truth have no accuracy


def test_the_confusion_matrix_is_in_percent_of_its_rows():
    figure = charts.confusion_chart(["road", "car"], [[30, 10], [0, 5]])
    assert "road predicted as car: 25.00 %, 10 pixels" in figure
    assert "car predicted as car: 100.00 %, 5 pixels" in figure
    assert "car predicted as road" not in figure  # nothing to show
    assert "nan" not in charts.confusion_chart(["road", "car"], [[0, 0], [0, 5]])


def test_many_points_are_thinned_to_means():
    points = [(float(k), 1.0 if k % 2 else 3.0) for k in range(10_000)]
    few = thin_out(points)
    assert len(few) <= 600
    assert {round(y, 1) for _, y in few} <= {1.9, 2.0, 2.1}
    gap = thin_out([(float(k), math.nan) for k in range(5_000)])
    assert all(math.isnan(y) for _, y in gap)
