"""`udaseg report` writes one page from a run folder, even if parts of the run are missing."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests.cli.running import udaseg
from tests.support.browser import Browser, needs_browser
from tests.support.colors import COLORS, ColorNetwork, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from tests.support.small import shipped
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.errors import CheckpointError
from udaseg.inference import run_data
from udaseg.inspection import report as report_module
from udaseg.recipe.load import dump
from udaseg.runs.worth import ComparedNetwork, Worth, write_worth

OVERRIDES = ["validation.resize=null", "validation.data=city"]


class Mirrored(nn.Module):
    """Predicts the mirrored image: mostly wrong, and confident."""

    def forward(self, images):
        return ColorNetwork()(images.flip(-1))


def write_city(folder, labelled=True, count=6):
    samples = []
    for index in range(count):
        truth = random_labels(16, 24, index)
        if index == 4:  # only road, so mirroring makes no difference
            truth[:] = 0
        for part, stored in (("images", painted(truth)), ("labels", truth)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored).save(folder / part / f"{index}.png")
        samples.append(Sample(f"{index}.png", f"labels/{index}.png", *truth.shape))
    splits = {"val": tuple(samples), "train": tuple(samples)}
    classes = COLORS if labelled else None
    if not labelled:
        splits = {
            key: tuple(Sample(s.image, None, s.height, s.width) for s in value)
            for key, value in splits.items()
        }
    return PreparedDataset("city", folder, folder / "images", classes, splits)


def score_document(iou, **protocol):
    names = COLORS.names
    return {
        "protocol": {"data": "city", "split": "val", "images": "6", **protocol},
        "classes": [
            {"name": name, "iou": value, "accuracy": value, "truth_share": 1 / 3}
            for name, value in zip(names, iou, strict=True)
        ],
        "means": {"mIoU": float(np.mean([value for value in iou if value is not None]))},
        "pixel_accuracy": 0.5,
        "confusion": (np.eye(3, dtype=int) * 10).tolist(),
        "notes": [],
    }


def write_run(folder, iou=(0.5, 0.6, 0.7), seed=0, **protocol):
    (folder / "eval" / "city-val").mkdir(parents=True)
    recipe = shipped("toyland/rccr", [*OVERRIDES, f"seed={seed}"])
    (folder / "recipe.yaml").write_text(dump(recipe))
    (folder / "command.txt").write_text(f"udaseg adapt --seed {seed}\n")
    status = {"state": "done", "time": "2026-01-02T03:04:05", "seconds": 75, "miou": 0.6}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "environment.json").write_text(json.dumps({"cores": 2, "packages": {"torch": "9"}}))
    lines = [{"step": s, "losses": {"total": 1 / s, "confident": 0.1}} for s in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = "2026-01-02 03:04:06,678 WARNING udaseg.x: look out\n"
    (folder / "train.log").write_text(log)
    scores = json.dumps(score_document(iou, **protocol))
    (folder / "eval" / "city-val" / "scores.json").write_text(scores)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Write two scored runs; the first network is correct, the second predicts mirrored images."""
    write_run(tmp_path / "adapted")
    write_run(tmp_path / "plain", iou=(0.4, None, 0.9), seed=1)
    networks = {"adapted": ColorNetwork(), "plain": Mirrored()}
    cities = {"city": write_city(tmp_path / "city")}

    def load(path, **_):
        if path.name not in networks:
            raise CheckpointError(f"{path}: holds no readable checkpoint")
        return loaded_colors(OVERRIDES, networks[path.name])

    replace_load(monkeypatch, load)
    monkeypatch.setattr(run_data, "open_dataset", lambda data, *, root: cities["city"])
    return {"path": tmp_path, "networks": networks, "cities": cities}


def report(home, *words, expect=0):
    output = udaseg("report", *words, cwd=home["path"], expect=expect)
    return output, (home["path"] / "adapted" / "report.html")


def test_the_page_says_what_was_run_and_what_came_of_it(home):
    output, page = report(home, "adapted")
    assert "adapted/report.html: 0." in output.stdout
    text = page.read_text()
    for expected in (
        *("udaseg adapt --seed 0", "toyland, train", "60.00", "2026-01-02T03:04:05", "0:01:15"),
        *(">torch</th>", "look out", "backbone: mobilenet_v2", "loss, total"),
    ):
        assert expected in text, expected


def test_the_verdict_on_the_adaptation_is_shown(home):
    text = report(home, "adapted", "--images", 0)[1].read_text()
    assert "Not known whether adaptation helped" in text
    assert "select --worth-it adapted --baseline SOURCE_ONLY_RUN" in text
    networks = [ComparedNetwork("a.pt", step, "", False, {}) for step in (30, 10)]
    write_worth(home["path"] / "adapted", Worth("worse", "drift says so", [], [], [], *networks))
    text = report(home, "adapted", "--images", 0)[1].read_text()
    assert "Verdict without target labels: worse; drift says so." in text
    assert "worse by the adaptation, say criteria without labels: drift says so" in text


def test_cost_is_told_over_all_starts_where_it_was_counted(home):
    cost = {"step": 30, "seconds": 100.0, "images": 1250, "peak_memory_mib": 2048}
    cost["peak_memory_of"] = "tensors on the GPU"
    (home["path"] / "adapted" / "cost.json").write_text(json.dumps(cost))
    _, page = report(home, "adapted", "--images", 0)
    for expected in ("0:01:40 for 30 steps", "12.5", "2048 MiB (tensors on the GPU)", "0:01:15"):
        assert f"<td>{expected}</td>" in page.read_text(), expected


def test_curves_show_entropy_and_the_share_of_each_class(home):
    metrics = home["path"] / "adapted" / "metrics.jsonl"
    shares = {"road": 0.5, "car": 0.25, "sky": 0.25}
    lines = [
        {"step": s, "losses": {"total": 1.0, "uncertainty": 0.5}, "pseudo_labels": shares}
        for s in (10, 20)
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(home, "adapted")[1].read_text()
    assert "share of each class in the pseudo-labels over steps 10 to 20: road ends at 0.5" in text
    assert "mean entropy of the pseudo-labels" in text
    assert "loss, uncertainty" not in text


def test_a_baseline_is_the_first_column_and_the_others_have_points(home):
    _, page = report(home, "adapted", "--baseline", "plain")
    text = page.read_text()
    heads = re.search("<thead>.*?</thead>", text[text.index('id="s-scores"') :], re.DOTALL)[0]
    assert heads.index("plain") < heads.index("adapted")
    assert "baseline" in heads
    assert "(+10.00)" in text  # road
    assert "(-20.00)" in text  # car
    assert "seed</th><td>1</td><td>0</td>" in text  # the recipes differ in the seed


def test_pictures_show_every_run_and_the_worst_come_last(home):
    _, page = report(home, "plain", "--images", 4, "--out", "adapted/report.html")
    names = re.findall(r"<h3[^>]*>(\d)\.png<small> ([^<]*)</small>", page.read_text())
    assert len(names) == 4
    assert [name for name, why in names if "worst" not in why] == ["0", "3"]
    scores = [float(re.search(r"([0-9.]+) %", why)[1]) for _, why in names[2:]]
    assert scores == sorted(scores)
    assert max(scores) < 100  # the image with only road is correct, so it is not among the worst
    assert all("mIoU " in why for _, why in names)


def test_pictures_are_the_labels_in_class_colours(home):
    _, page = report(home, "adapted", "--images", 1)
    uris = re.findall(r'src="data:image/png;base64,([^"]*)"', page.read_text())
    expected = np.array(COLORS.colors, np.uint8)[random_labels(16, 24, 0)]
    assert len(uris) == 2  # prediction and truth; this network is correct
    for uri in uris:
        shown = Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB")
        assert np.array_equal(np.asarray(shown), expected)


def test_confidence_is_counted_where_it_can_be_checked(home):
    _, page = report(home, "adapted", "plain", "--images", 2)
    text = page.read_text()
    assert "adapted: accuracy by confidence (calibration error 0.0" in text
    wrong = float(
        re.search(r"plain: accuracy by confidence \(calibration error ([0-9.]+) %", text)[1]
    )
    assert wrong > 20


def test_a_target_without_labels_has_pictures_and_a_histogram(home, tmp_path):
    home["cities"]["city"] = write_city(tmp_path / "bare", labelled=False)
    _, page = report(home, "adapted", "--images", 2)
    text = page.read_text()
    assert "mean confidence 9" in text
    assert "share of pixels by confidence" in text
    assert "accuracy by confidence" not in text
    assert 'data-title="truth"' not in text


def test_without_a_checkpoint_the_rest_is_shown_and_it_is_said(home):
    home["networks"].clear()
    output, page = report(home, "adapted")
    assert "no readable checkpoint" in output.stderr
    text = page.read_text()
    assert "no images of adapted" in text
    assert "60.00" in text
    assert "<article" not in text


def test_no_images_means_that_no_network_looks(home, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("looked")

    monkeypatch.setattr(report_module, "render_report_images", refuse)
    _, page = report(home, "adapted", "--images", 0)
    assert "<article" not in page.read_text()


def test_a_run_that_failed_half_way_has_a_page_with_warnings(home):
    folder = home["path"] / "adapted"
    failed = {"state": "failed", "code": 6, "reason": "loss is NaN", "counts": {"dropped_steps": 5}}
    (folder / "status.json").write_text(json.dumps(failed))
    (folder / "environment.json").unlink()
    (folder / "eval" / "city-val" / "scores.json").write_text('{"classes": [')
    with (folder / "metrics.jsonl").open("a") as file:
        alarm = {"step": 40, "losses": {"total": None}, "alarms": {"one_class": "all is road"}}
        file.write(json.dumps(alarm) + '\n{"step": 50, "los')
    text = report(home, "adapted")[1].read_text()
    warnings = re.search('<section class="warnings">.*?</section>', text, re.DOTALL)[0]
    for expected in (
        *("not finished: failed (code 6, reason loss is NaN)", "dropped steps: 5"),
        *("environment.json is missing", "city-val/scores.json cannot be read"),
        *("1 lines of metrics.jsonl cannot be read", "step 40: all is road"),
    ):
        assert expected in warnings, expected
    assert "No scores" in text


def test_scores_of_another_protocol_are_warned_of(home):
    write_run(home["path"] / "other", images="3")
    _, page = report(home, "adapted", "other", "--images", 0)
    assert "differ in images (3, 6)" in page.read_text()


def test_runs_of_one_name_are_told_apart(home):
    write_run(home["path"] / "b" / "adapted")
    _, page = report(home, "adapted", "b/adapted", "--images", 0)
    assert "b/adapted</th>" in page.read_text()


def test_what_is_no_run_is_refused(home):
    (home["path"] / "empty").mkdir()
    assert "no recipe.yaml" in report(home, "empty", expect=3)[0].stderr
    assert "nowhere: no such run" in report(home, "nowhere", expect=3)[0].stderr


def place_of(browser, selector, share=0.5):
    """Scroll to an element and return a point in it, at the fraction `share` of its width."""
    script = f"""(() => {{
        const found = document.querySelector({json.dumps(selector)});
        found.scrollIntoView({{ block: "center" }});
        const box = found.getBoundingClientRect();
        return [box.left + {share} * box.width, box.top + box.height / 2];
    }})()"""
    return tuple(browser.run(script))


def pixel(browser, row, column):
    """Return the colour of a pixel of the first slider, read from a copy of its canvas."""
    return tuple(
        browser.run(f"""(() => {{
            const pen = document.createElement("canvas").getContext("2d");
            pen.drawImage(document.querySelector("canvas"), 0, 0);
            return [...pen.getImageData({column}, {row}, 1, 1).data].slice(0, 3);
        }})()""")
    )


@pytest.mark.slow
@needs_browser
def test_in_a_browser_it_loads_quietly_shows_its_images_and_the_slider_moves(home):
    _, page = report(home, "adapted", "--baseline", "plain", "--images", 3)
    with Browser(home["path"] / "profile") as browser:
        browser.open(page)
        assert browser.console == []
        # the page requests only itself; its images are embedded
        assert {address.partition(":")[0] for address in browser.asked} == {"file", "data"}
        assert [a for a in browser.asked if a.startswith("file")] == [page.resolve().as_uri()]
        sizes = browser.run("[...document.images].map((i) => [i.naturalWidth, i.naturalHeight])")
        assert sizes == [[24, 16]] * 18  # photo, truth, two predictions and their confidence
        assert browser.run("document.querySelectorAll('article.shot canvas').length") == 3
        label = browser.run("document.querySelector('canvas').getAttribute('aria-label')")
        assert label == "0.png: plain on the left, adapted on the right"

        truth, colors = random_labels(16, 24, 0), np.array(COLORS.colors)
        # a pixel that differs between the runs (the baseline predicts the mirrored image) and
        # is not covered by the slider's handle
        differ = np.argwhere(truth != truth[:, ::-1])
        row, column = next(place for place in differ.tolist() if 4 < place[1] < 20)
        adapted, plain = (
            tuple(colors[labels[row, column]].tolist()) for labels in (truth, truth[:, ::-1])
        )
        value = "document.querySelector('.stage input').value"
        middle = place_of(browser, "canvas")
        browser.drag(middle, place_of(browser, "canvas", 0.02))
        assert float(browser.run(value)) < 5
        assert pixel(browser, row, column) == adapted
        browser.drag(middle, place_of(browser, "canvas", 0.98))
        assert float(browser.run(value)) > 95
        assert pixel(browser, row, column) == plain
        browser.run("document.querySelector('.stage input').focus()")
        before = float(browser.run(value))
        browser.press("ArrowLeft")
        assert float(browser.run(value)) == before - 1
        assert browser.console == []


@pytest.mark.slow
@needs_browser
def test_in_a_browser_a_class_is_lifted_out_by_a_click(home):
    _, page = report(home, "adapted", "--images", 2)
    with Browser(home["path"] / "profile") as browser:
        browser.open(page)
        assert browser.run("document.querySelectorAll('.dim').length") == 0
        button = place_of(browser, ".scores button[data-lift=car]", 0.2)
        browser.drag(button, button)
        dim = "[...document.querySelectorAll('.scores tr.dim')].map((row) => row.dataset.class)"
        assert browser.run(dim) == [name for name in COLORS.names if name != "car"]
        pressed = "document.querySelectorAll('button[aria-pressed=true]').length"
        assert browser.run(pressed) == 2  # in the table and in the legend
        browser.drag(button, button)
        assert browser.run(dim) == []
        assert browser.console == []


@pytest.mark.slow
@needs_browser
def test_in_a_browser_a_strange_script_is_refused(home):
    _, page = report(home, "adapted", "--images", 0)
    strange = "<script>document.title = 'taken'</script></body>"
    page.write_text(page.read_text().replace("</body>", strange))
    with Browser(home["path"] / "profile") as browser:
        browser.open(page)
        assert browser.run("document.title") == "adapted"
        assert len(browser.console) == 1
        assert "Content Security Policy" in browser.console[0]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_cut_off_and_classes_keep_their_colours(home, dark):
    metrics = home["path"] / "adapted" / "metrics.jsonl"
    shares = [{"step": s, "pseudo_labels": {"road": 0.5, "car": s / 90}} for s in (10, 20, 30)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in shares))
    _, page = report(home, "adapted", "--baseline", "plain", "--images", 2)
    with Browser(home["path"] / "profile", width=390, height=844, dark=dark) as browser:
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth") == 390
        back = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall("[0-9]+", back)[:3])) < 200) == dark
        for name, color in zip(COLORS.names, COLORS.colors, strict=True):
            line = f"svg.chart polyline[data-class={name}]"
            if name in ("road", "car"):
                drawn = browser.run(f"getComputedStyle(document.querySelector('{line}')).stroke")
                assert drawn == f"rgb{color}"
        assert browser.console == []
