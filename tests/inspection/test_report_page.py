"""The report page: well formed, safe with hostile names, and with correct figures."""

import base64
import dataclasses
import hashlib
import io
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from udaseg.figures.table import NumberTable
from udaseg.inspection.report_content import (
    ExampleImage,
    FeatureContent,
    ImageLayer,
    PageContent,
    RunContent,
)
from udaseg.inspection.report_images import mask_uri, photo_uri, shrink
from udaseg.inspection.report_page import TEMPLATES, report_page
from udaseg.inspection.summary import summarize
from udaseg.runs.scores import Scores
from udaseg.runs.worth import ComparedCriterion, ComparedNetwork, Worth
from udaseg.selection.temperature import ConfidenceHistogram

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x00\x1b[31m\udcff"
VOID = {"meta", "img", "input", "br"}


class Reader(HTMLParser):
    """Parse a page, and fail if elements are not properly nested."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def scores(iou=(0.5, 0.25), names=("road", "car"), **protocol):
    return Scores(
        protocol={"data": "city", "split": "val", **protocol},
        iou=dict(zip(names, iou, strict=True)),
        accuracy=dict(zip(names, iou, strict=True)),
        truth_share=dict(zip(names, (0.75, 0.25), strict=True)),
        means={"mIoU": float(np.nanmean(iou))},
        pixel_accuracy=0.5,
        confusion=[[30, 10], [0, 5]],
        notes=["a note"],
    )


def reliability():
    counts = ConfidenceHistogram()
    counts.pixels[-2:] = 5, 15
    counts.labelled[-2:] = 4, 10
    counts.correct[-2:] = 2, 10
    counts.confidence[-2:] = 2.6, 9.5
    return counts


def shot(seed=0, side=24):
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, (side, side), dtype=np.uint8)
    mask = mask_uri(labels, [(128, 64, 128), (0, 0, 142)])
    layers = [ImageLayer("image", photo_uri(photo), False), ImageLayer("rccr", mask, True)]
    return ExampleImage(f"{seed}.png", "chosen", layers)


def run(name="rccr", **more):
    events = [{"step": s, "losses": {"total": 2 / s, "confident": 0.1 * s}} for s in (1, 2, 3)]
    return RunContent(name=name, scores=scores(), metrics=events, **more)


def worth(text, verdict="worse"):
    networks = [ComparedNetwork(text, step, text, False, {text: 1.0}) for step in (7, 3)]
    rows = [ComparedCriterion(text, "lower", 0.25, None, "baseline")]
    return Worth(verdict, text, rows, [text], [text], *networks)


def page(*runs, **more):
    colors = {"road": (128, 64, 128), "car": (0, 0, 142)}
    given = runs or (run(reliability=reliability()),)
    return PageContent("a page", given, colors=colors, examples=[shot()], **more)


def evil_page():
    bad = RunContent(
        name=EVIL,
        facts={EVIL: EVIL},
        command=EVIL,
        recipe=EVIL,
        settings={EVIL: EVIL},
        scores=Scores(
            {EVIL: EVIL}, {EVIL: 0.5}, {EVIL: 0.5}, {EVIL: 1}, {EVIL: 0.5}, 0.5, [[4]], [EVIL]
        ),
        evaluations={EVIL: {EVIL: 0.5}, "other": {EVIL: 0.1}},
        metrics=[{"step": s, "losses": {EVIL: 1.0}, EVIL: {EVIL: 0.5}} for s in (1, 2)],
        cost={EVIL: EVIL},
        environment={EVIL: EVIL},
        warnings=[EVIL],
        reliability=reliability(),
        features=FeatureContent(
            {EVIL: EVIL}, "data:,", [NumberTable(EVIL, {EVIL: {EVIL: 0.5}})], [EVIL]
        ),
        worth=worth(EVIL),
    )
    shots = [ExampleImage(EVIL, EVIL, [ImageLayer(EVIL, 'x" onerror="alert(3)', True)])]
    return PageContent(
        EVIL, [bad, run()], True, {EVIL: (1, 2, 3)}, shots, EVIL, [EVIL], created=EVIL
    )


def test_the_result_is_the_first_section():
    text = report_page(page(run("a", worth=worth("entropy `x`")), run("b")))
    assert re.search("<h2>(.*?)</h2>", text)[1] == "Result"
    first = text[text.index('id="s-result"') : text.index('id="s-images"')]
    assert ">Adaptation probably made it worse<" in first
    assert "Verdict without target labels: worse; entropy <code>x</code>." in first
    assert first.count("<h3>") == 2
    criteria = text[text.index('id="s-verdict-without-labels"') :]
    cells = re.findall("<td[^>]*>(.*?)</td>", criteria)[:4]
    assert cells == ["lower", "0.250", "-", "baseline"]
    assert "a: step 7 (adapted) and entropy" in criteria
    assert 'id="s-verdict-without-labels"' not in report_page(page(run("b")))


def test_the_result_has_the_score_the_gain_and_the_classes_won_and_lost():
    base, other = run("base"), run("new", worth=worth("x", "better"), cost={"peak memory": "9 MiB"})
    other = dataclasses.replace(other, scores=scores((0.75, 0.15)))
    first, second = summarize(page(base, other, has_baseline=True))
    assert (first.verdict, first.change, first.score) == ("", "", 0.375)
    assert (second.verdict, second.tone) == ("Adaptation helped", "gain")
    assert (second.score, second.points) == (pytest.approx(0.45), pytest.approx(7.5))
    assert second.won == {"road": pytest.approx(25)}
    assert second.lost == {"car": pytest.approx(-10)}
    text = report_page(page(base, other, has_baseline=True))
    first = text[text.index('id="s-result"') : text.index('id="s-images"')]
    for expected in ("+7.50", "45.00", "road +25.0", "car -10.0", "9 MiB", "change from base"):
        assert expected in first, expected


@pytest.mark.parametrize(
    ("points", "own", "verdict"),
    [
        (1, "better", "Adaptation helped"),
        (0.2, "better", "Adaptation made little difference"),
        (-1, "better", "Adaptation made it worse"),  # labels count more than criteria
        (1, None, "Better than base"),
        (-1, None, "Worse than base"),
    ],
)
def test_labels_decide_the_verdict(points, own, verdict):
    new = run("new", worth=None if own is None else worth("x", own))
    iou = (0.5 + points / 100, 0.25 + points / 100)
    new = dataclasses.replace(new, scores=scores(iou))
    (_, summary) = summarize(page(run("base"), new, has_baseline=True))
    assert summary.verdict == verdict
    # one run has the network without the adaptation instead of a baseline
    alone = dataclasses.replace(new, before=scores(), after=scores(iou))
    (summary,) = summarize(page(alone))
    assert summary.points == pytest.approx(points)
    assert summary.change == "change by adaptation"
    assert f"mIoU from 37.50 to {37.5 + points:.2f} %" in summary.reasons[0]
    assert any("after 3 steps; adapted: after 7" in text for text in summary.reasons) == bool(own)
    assert "in brackets the change by adaptation in points" in report_page(page(alone))


def test_a_bar_has_what_was_gained_or_lost_in_another_colour():
    base, other = run("base"), RunContent("new", scores=scores((0.75, 0.15)))
    text = report_page(page(base, other, has_baseline=True))
    assert '<rect class="won" x="50" width="25"' in text
    assert '<rect class="missed" x="15" width="10"' in text
    assert 'rect class="won"' not in report_page(page(base, other))


def test_hostile_text_stays_text_wherever_it_stands():
    text = report_page(evil_page())
    reader = read(text)
    assert [tag for tag, _ in reader.elements].count("script") == 1
    assert [tag for tag, _ in reader.elements].count("img") == 2  # features, and layers
    assert not any(key.startswith("on") for _, given in reader.elements for key in given)
    shown = "".join(part for place, part in reader.texts if place not in ("script", "style"))
    assert shown.count("<script>alert(1)</script>") > 20
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", text)
    text.encode("utf-8")


@pytest.mark.parametrize("given", [page(), evil_page(), PageContent("none", [RunContent("r")])])
def test_the_page_loads_nothing_and_is_well_formed(given):
    text = report_page(given)
    reader = read(text)
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "base", "form", "a") or tag == "a"
        assert attributes.get("href", "#").startswith("#")
        if given.title != EVIL:
            assert attributes.get("src", "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    for drawing in re.findall("<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)


def test_every_link_leads_to_a_section_and_ids_are_unique():
    reader = read(report_page(page()))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = {given["href"][1:] for tag, given in reader.elements if tag == "a"}
    assert links <= set(ids)
    assert len(links) == 6


def test_only_our_script_may_run():
    text = report_page(page())
    script = re.search("<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_what_people_cannot_see_is_said_in_words():
    reader = read(report_page(page()))
    for tag, attributes in reader.elements:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg" and "class" in attributes and attributes["class"] in ("chart", "confusion"):
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert dict(reader.elements)["html"]["lang"] == "en"


def test_gain_and_loss_against_the_baseline_are_in_points():
    base, other = run("base"), RunContent("new", scores=scores((0.75, 0.15)))
    text = report_page(page(base, other, has_baseline=True))
    assert "(+25.00)" in text
    assert "(-10.00)" in text
    assert text.count("(+7.50)") == 1  # the change of the mean
    assert "(+" not in report_page(page(base, other))


def test_an_unmeasured_class_has_a_dash_and_no_change():
    base, other = run("base"), RunContent("new", scores=scores((math.nan, 0.25)))
    shown = "".join(
        part for _, part in read(report_page(page(base, other, has_baseline=True))).texts
    )
    assert "nan" not in shown.lower().replace("lifted", "")
    assert re.search(r"road\s*50\.00\s*-\s*75\.00", shown)


def test_scores_that_do_not_compare_are_warned_of():
    text = report_page(page(run("a"), RunContent("b", scores=scores(images="100"))))
    assert "these scores are not comparable: they differ in images (-, 100)" in text
    same = report_page(page(run("a"), RunContent("b", scores=scores(weights="teacher"))))
    assert "not comparable" not in same


def test_a_page_that_is_too_large_loses_images_and_says_so():
    shots = [shot(seed, 64) for seed in range(8)]
    whole = PageContent("t", [run()], examples=shots)
    size = len(report_page(whole))
    small = report_page(whole, max_bytes=size - 2000)
    assert len(small) <= size - 2000
    assert "images were omitted" in small
    assert 0 < small.count("<article") < 8
    assert "images were omitted" not in report_page(whole, max_bytes=size + 2000)


def test_runs_without_anything_make_a_page():
    text = report_page(PageContent("t", [RunContent("r")]))
    assert "No scores" in text
    assert "No metrics were written" in text


def test_curves_of_each_number_have_a_line_of_each_run_that_looks_the_same_everywhere():
    other = RunContent("b", metrics=[{"step": s, "losses": {"regional": 1.0 * s}} for s in (1, 2)])
    text = report_page(page(run("a"), other))
    regional = re.search("loss, regional</figcaption>.*?</figure>", text, re.DOTALL)[0]
    assert 'class="line s1"' in regional
    assert 'class="line s0"' not in regional
    assert re.search("share of confident target pixels", text)


def test_shares_by_class_are_drawn_in_class_colours():
    events = [{"step": s, "pseudo_label_shares": {"road": 0.9, "car": 0.1}} for s in (1, 2)]
    text = report_page(page(RunContent("r", metrics=events)))
    chart = re.search("pseudo label shares</figcaption>.*?</figure>", text, re.DOTALL)[0]
    assert 'stroke="rgb(128,64,128)"' in chart
    assert 'data-class="car"' in chart


def test_a_line_has_a_dot_at_a_lone_value_and_a_ground_of_its_own_for_classes():
    text = report_page(page(run(), RunContent("b", metrics=[{"step": 1, "grip": 2.0}])))
    chart = re.search("grip</figcaption>.*?</figure>", text, re.DOTALL)[0]
    assert 'class="chart"' in chart
    assert chart.count("<circle") == 1
    assert "<polyline" not in chart
    events = [{"step": s, "shares": {"road": 0.9, "car": 0.1}} for s in (1, 2)]
    text = report_page(page(RunContent("r", metrics=events)))
    assert text.count('class="chart classes"') == 1
    line = '<polyline [^>]*stroke="rgb\\(0,0,142\\)" data-class="car"/>'
    assert re.search(line, text)


def test_the_confusion_matrix_is_in_percent_of_its_rows():
    text = report_page(page())
    assert "road predicted as car: 25.00 %, 10 pixels" in text
    assert "car predicted as car: 100.00 %, 5 pixels" in text
    assert "car predicted as road" not in text  # nothing to show
    empty = dataclasses.replace(scores(), confusion=[[0, 0], [0, 5]])
    matrix = re.search(
        'class="confusion".*?</svg>', report_page(page(RunContent("r", scores=empty))), re.DOTALL
    )
    assert "predicted as" in matrix[0]
    assert "nan" not in matrix[0]


def decoded(uri):
    kind, data = uri.split(",", 1)
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_a_mask_keeps_its_exact_colours():
    labels = np.array([[0, 1], [255, 1]], np.uint8)
    shown = decoded(mask_uri(labels, [(128, 64, 128), (0, 0, 142)]))
    expected = [[[128, 64, 128], [0, 0, 142]], [[0, 0, 0], [0, 0, 142]]]
    assert shown.tolist() == expected


def test_a_shrunk_mask_has_no_class_that_was_not_there():
    labels = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (900, 1300))
    small = shrink(labels, mask=True)
    assert max(small.shape) == 640
    assert set(np.unique(small)) <= {0, 7, 255}
    assert shrink(labels[:50, :50], mask=True).shape == (50, 50)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_is_javascript():
    path = TEMPLATES / "page.js"
    subprocess.run(["node", "--check", path], check=True, capture_output=True)
    assert "</" not in path.read_text(encoding="utf-8")
