"""The curve of a sweep: where its points are."""

import math
import re
import statistics
from xml.etree import ElementTree as ET

from udaseg.experiments.curve import curve_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(values, lines):
    picture = ET.fromstring(curve_svg("key <a>", "mIoU %", values, lines))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    ticks = {
        float(text.text): float(text.get("y")) - 4
        for text in picture.iter(f"{SVG}text")
        if text.get("text-anchor") == "end"
    }
    return picture, texts, ticks


def at(score, ticks):
    """Return the height of a score, from those of the lowest and the highest tick."""
    low, high = min(ticks), max(ticks)
    return ticks[low] + (score - low) / (high - low) * (ticks[high] - ticks[low])


def test_means_spreads_and_seeds_are_where_the_axis_says():
    scores = {"1": (0.30, 0.34), "0.1": (0.2, math.nan), "10": (0.5, 0.6)}
    picture, texts, ticks = drawn(list(scores), {"rccr": scores})
    assert min(ticks) <= 20
    assert max(ticks) >= 60
    values = [text for text in texts if text in scores]
    assert values == ["0.1", "1", "10"]  # numbers in increasing order, at equal distances
    (polyline,) = picture.iter(f"{SVG}polyline")
    points = [tuple(map(float, p.split(","))) for p in polyline.get("points").split()]
    assert [round(x) for x, _ in points] == [127, 260, 393]
    for (_, y), mean in zip(points, (20, 32, 55), strict=True):
        assert abs(y - at(mean, ticks)) < 0.1
    dots = [float(dot.get("cy")) for dot in picture.iter(f"{SVG}circle")]
    for y, score in zip(dots, (20, 30, 34, 50, 60), strict=True):
        assert abs(y - at(score, ticks)) < 0.1
    bars = [b for b in picture.iter(f"{SVG}line") if b.get("x1") == b.get("x2")]
    for bar, pair in zip(bars, ((30, 34), (50, 60)), strict=True):
        for end, sign in (("y1", -1), ("y2", 1)):
            expected = statistics.fmean(pair) + sign * statistics.stdev(pair)
            assert abs(float(bar.get(end)) - at(expected, ticks)) < 0.1


def test_words_stay_in_their_order_and_lines_have_names():
    lines = {"a & b": {"true": (0.5,), "null": (0.5,)}, "c": {"null": (0.4,)}}
    picture, texts, _ = drawn(["true", "null"], lines)
    assert [text for text in texts if text in ("true", "null")] == ["true", "null"]
    assert {"a & b", "c", "key <a>", "mIoU %"} <= set(texts)
    colors = {line.get("stroke") for line in picture.iter(f"{SVG}polyline")}
    assert len(colors) == 2
    assert re.fullmatch(r"0 0 480 \d+", picture.get("viewBox"))


def test_equal_or_missing_scores_have_an_axis_too():
    _, _, ticks = drawn(["1", "2"], {"a": {"1": (0.5, 0.5), "2": (math.nan,)}})
    assert min(ticks) < max(ticks)
    assert min(ticks) <= 50 <= max(ticks)
