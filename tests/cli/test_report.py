"""`udaseg report` writes one page from what a run folder holds, whatever is missing in it."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests.cli.running import udaseg
from tests.colors import COLORS, ColorNetwork, loaded_colors, painted, random_labels
from tests.small import shipped
from udaseg import build
from udaseg.commands import reporting_page
from udaseg.data import PreparedDataset, Sample
from udaseg.errors import CheckpointError
from udaseg.recipe import dump

OVERRIDES = ["validation.resize=null", "validation.data=city"]


class Mirrored(nn.Module):
    """Labels the mirrored image: mostly wrong, and sure of it."""

    def forward(self, images):
        return ColorNetwork()(images.flip(-1))


def write_city(folder, labelled=True, count=6):
    samples = []
    for index in range(count):
        truth = random_labels(16, 24, index)
        if index == 4:  # nothing but road: right or wrong, the mirror makes no difference
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
    log = "2026-01-02 03:04:05,678 INFO udaseg.reporting.progress: step 30/30   12.5 img/s  ETA 0\n"
    log += "2026-01-02 03:04:06,678 WARNING udaseg.x: look out\n"
    (folder / "train.log").write_text(log)
    scores = json.dumps(score_document(iou, **protocol))
    (folder / "eval" / "city-val" / "scores.json").write_text(scores)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Two scored runs; the first network is right, the second sees a mirrored world."""
    write_run(tmp_path / "adapted")
    write_run(tmp_path / "plain", iou=(0.4, None, 0.9), seed=1)
    networks = {"adapted": ColorNetwork(), "plain": Mirrored()}
    cities = {"city": write_city(tmp_path / "city")}

    def load_run(path, **_):
        if path.name not in networks:
            raise CheckpointError(f"{path}: holds no readable checkpoint")
        return loaded_colors(OVERRIDES, networks[path.name])

    monkeypatch.setattr(build, "load_run", load_run)
    monkeypatch.setattr(reporting_page, "open_dataset", lambda data, *, root: cities["city"])
    return {"path": tmp_path, "networks": networks, "cities": cities}


def report(home, *words, expect=0):
    said = udaseg("report", *words, cwd=home["path"], expect=expect)
    return said, (home["path"] / "adapted" / "report.html")


def test_the_page_says_what_was_run_and_what_came_of_it(home):
    said, page = report(home, "adapted")
    assert "adapted/report.html: 0." in said.stdout
    text = page.read_text()
    for expected in (
        *("udaseg adapt --seed 0", "toyland, train", "60.00", "2026-01-02T03:04:05", "0:01:15"),
        *("<td>12.5</td>", "packages.torch", "look out", "backbone: mobilenet_v2", "loss, total"),
    ):
        assert expected in text, expected


def test_a_baseline_is_the_first_column_and_the_others_have_points(home):
    _, page = report(home, "adapted", "--baseline", "plain")
    text = page.read_text()
    heads = re.search("<thead>.*?</thead>", text[text.index('id="s-scores"') :])[0]
    assert heads.index("plain") < heads.index("adapted")
    assert "baseline" in heads
    assert "(+10.00)" in text  # road
    assert "(-20.00)" in text  # car
    assert "seed</th><td>1</td><td>0</td>" in text  # where the recipes differ


def test_pictures_show_every_run_and_the_worst_come_last(home):
    _, page = report(home, "plain", "--images", 4, "--out", "adapted/report.html")
    names = re.findall(r"<h3>(\d)\.png<small> ([^<]*)</small>", page.read_text())
    assert len(names) == 4
    assert [name for name, why in names if "worst" not in why] == ["0", "3"]
    scores = [float(re.search(r"([0-9.]+) %", why)[1]) for _, why in names[2:]]
    assert scores == sorted(scores)
    assert max(scores) < 100  # the image of nothing but road is right, so it is not among them
    assert all("mIoU of plain" in why for _, why in names)


def test_pictures_are_the_labels_in_class_colours(home):
    _, page = report(home, "adapted", "--images", 1)
    uris = re.findall(r'src="data:image/png;base64,([^"]*)"', page.read_text())
    wanted = np.array(COLORS.colors, np.uint8)[random_labels(16, 24, 0)]
    assert len(uris) == 2  # what the run says, and the truth; this network is right
    for uri in uris:
        shown = Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB")
        assert np.array_equal(np.asarray(shown), wanted)


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
    assert "mean confidence of adapted" in text
    assert "share of pixels by confidence" in text
    assert "accuracy by confidence" not in text
    assert 'data-title="truth"' not in text


def test_without_a_checkpoint_the_rest_is_shown_and_it_is_said(home):
    home["networks"].clear()
    said, page = report(home, "adapted")
    assert "no readable checkpoint" in said.stderr
    text = page.read_text()
    assert "adapted has no pictures" in text
    assert "60.00" in text
    assert "<article" not in text


def test_no_images_means_that_no_network_looks(home, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("looked")

    monkeypatch.setattr(reporting_page, "look", refuse)
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
    assert "Not scored" in text


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
    assert "no recipe.yaml" in report(home, "empty", expect=2)[0].stderr
    assert "no such run folder" in report(home, "nowhere", expect=2)[0].stderr


BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


def browse(page, profile):
    """Return the page as a real browser has it after its scripts, and what the console said."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"),
        *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", page.as_uri()),
    ]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return seen.stdout, [line for line in seen.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_in_a_browser_the_sliders_are_made_and_nothing_is_refused(home):
    _, page = report(home, "adapted", "--baseline", "plain", "--images", 3)
    text, console = browse(page, home["path"] / "profile")
    assert console == []
    assert '<html lang="en" class="scripted">' in text
    assert text.count("<canvas") == text.count('<input type="range"') == 3
    assert 'aria-label="0.png: plain on the left, adapted on the right"' in text
    assert ' class="dim"' not in text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_in_a_browser_a_class_is_lifted_out_and_a_strange_script_is_not_run(home):
    _, page = report(home, "adapted", "--images", 2)
    press = "<script>document.querySelector('button[data-lift=car]').click()</script></body>"
    text = page.read_text().replace("</body>", press)
    page.write_text(text)
    seen, console = browse(page, home["path"] / "profile")
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
    assert ' class="dim"' not in seen
    page.write_text(re.sub("<meta http-equiv[^>]*>", "", text))
    seen, console = browse(page, home["path"] / "profile")
    assert console == []
    assert '<tr data-class="road" class="dim">' in seen
    assert '<tr data-class="car">' in seen or '<tr data-class="car" class="">' in seen
    pressed = re.findall('<button[^>]*aria-pressed="true"', seen)
    assert len(pressed) == 2  # in the table and in the legend
