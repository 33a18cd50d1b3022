"""No command sends a terminal what a hostile name contains; run on a real pseudo-terminal."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import files
from tests.support.films import write_film
from tests.support.terminal import forbidden, on_terminal
from tests.support.toy import TINY
from udaseg.cli.app import app

# colour, window title, C1 control, direction and invisible characters, markup, overwritten lines
EVIL = "a\x1b[45;5mb\x1b]0;pwned\x07c\x9b7md\u202ee\u200bf[link=http:x]g\rh\x08i"
EVIL_FILE = f"{EVIL}\nj"
# written with escapes, as YAML allows
EVIL_YAML = '"' + EVIL_FILE.encode("unicode_escape").decode().replace("'", "''") + '%d"'
GROUPS = {"recipes": ("ls", "cat", "cp", "schema"), "datasets": ("ls",)}
COMMANDS = {
    *(
        "init",
        "prepare",
        "train",
        "adapt",
        "eval",
        "predict",
        "calibrate",
        "doctor",
        "report",
        "select",
    ),
    *("export", "info", "verify", "demo", "methods", "grid", "features", "import", "sweep"),
    *("init", "table", "tile"),
}


def write_set(folder):
    """Write three labelled images; names of files, classes and rules are hostile."""
    for number, name in enumerate(("0", f"1{EVIL_FILE}", f"2{EVIL_FILE}")):
        files.put(folder / f"images/{name}.png", files.image_png(64, 96, number))
        ids = np.random.default_rng(number).choice([0, 1, 2], (64, 96))
        files.put(folder / f"labels/{name}.png", files.gray_png(ids))
    classes = ", ".join(f"{{name: {EVIL_YAML % number}, ids: [{number}]}}" for number in range(3))
    return files.dataset_yaml(
        folder,
        "name: own\nimages: images/*.png\nlabels: labels/*.png\nignore: [255]\n"
        f"splits: {{train: 0.67, val: 0.33}}\nclasses: [{classes}]\n",
    )


def write_target(folder):
    for number in range(3):
        path = folder / f"{number}{EVIL_FILE}.png"
        files.put(path, files.image_png(64, 96, 9 + number))
    return folder


class Place:
    """Data and runs whose names are hostile wherever a name can be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / f"root{EVIL_FILE}"
        self.yaml = write_set(folder / "set[link=http:x]")
        self.target = write_target(folder / "target[link=http:x]")
        self.run, self.other = folder / f"run{EVIL_FILE}", folder / f"other{EVIL_FILE}"
        self.recipe = folder / f"recipe{EVIL}.yaml"

    def said(self, *words, expect=0):
        """Return what a command sent to the terminal, which may not be more than text."""
        code, sent = on_terminal(*words, cwd=self.folder)
        assert code == expect, sent
        assert forbidden(sent) == []
        assert "Traceback" not in sent
        return sent

    def options(self):
        settings = [
            *(f"source.data={self.yaml}", f"validation.data={self.yaml}", "validation.split=val"),
            *("machine.log_every=1", "machine.preview_every=0"),
        ]
        return ["--root", self.root, "--steps", 1, *TINY, *settings]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return prepared data, a finished `train` and a finished `adapt`, all run on a terminal."""
    made = Place(tmp_path_factory.mktemp("place"))
    made.said("prepare", made.yaml, "--root", made.root)
    made.said("recipes", "cp", "toyland/source_only", made.recipe)
    assert r"\x1b]0;pwned" in made.said("train", made.recipe, "--out", made.other, *made.options())
    options = [*made.options(), "--target", made.target]
    assert r"\u202e" in made.said("adapt", "toyland/dacs", "--out", made.run, *options)
    return made


def test_prepare(place):
    assert r"\x1b[45;5m" in place.said("prepare", place.yaml, "--root", place.root, "--check-only")
    place.said("prepare", place.yaml, "--root", place.root, "--verify")


def test_damaged_and_changed_files(place, tmp_path):
    yaml, root = write_set(tmp_path / "set"), tmp_path / f"root{EVIL_FILE}"
    place.said("prepare", yaml, "--root", root)
    (tmp_path / f"set/images/1{EVIL_FILE}.png").write_bytes(b"no image")
    (tmp_path / f"set/labels/2{EVIL_FILE}.png").unlink()
    assert r"\x1b]0;" in place.said("prepare", yaml, "--root", root, "--verify", expect=3)
    assert r"\x1b]0;" in place.said("prepare", yaml, "--root", root, expect=3)
    assert r"\x1b]0;" in place.said("doctor", yaml, "--root", root, expect=3)


@pytest.mark.parametrize("words", [[], ["--json"]], ids=str)
def test_doctor(place, words):
    assert r"pwned" in place.said("doctor", place.yaml, "--root", place.root, *words)


def test_doctor_of_a_pair(place):
    assert "odd-name" in place.said(
        "doctor", place.yaml, "--root", place.root, "--target", place.target
    )


@pytest.mark.slow
def test_a_plan(place):
    options = [*place.options(), "--target", place.target]
    out = place.folder / f"planned{EVIL_FILE}"
    assert "pwned" in place.said("adapt", "toyland/dacs", "--out", out, *options, "--dry-run")


@pytest.mark.parametrize("form", ["table", "csv", "md", "json"])
def test_eval(place, form):
    assert "pwned" in place.said("eval", place.run, "--root", place.root, "--format", form)


def test_predict(place, tmp_path):
    film = tmp_path / f"film{EVIL_FILE}.mp4"
    write_film(film, 2)
    words = ["--checkpoint", place.run, "--out", tmp_path / f"masks{EVIL_FILE}"]
    assert "pwned" in place.said("predict", place.target, film, *words)
    assert "pwned" in place.said("predict", place.target, film, *words, expect=2)


def test_predict_names_images_that_fail(place, tmp_path):
    bad = files.put(tmp_path / f"in/1{EVIL_FILE}.png", b"no image")
    words = ["--checkpoint", place.run, "--out", tmp_path / f"masks{EVIL_FILE}"]
    assert "pwned" in place.said("predict", place.target, bad, *words, expect=4)


def test_select(place):
    assert "pwned" in place.said("select", place.run, "--root", place.root)


@pytest.mark.slow
def test_select_among_runs(place):
    words = ["--root", place.root, "--data", place.yaml, "--split", "val", "--oracle"]
    assert "pwned" in place.said("select", place.run, place.other, *words)


@pytest.mark.parametrize("labels", ["source", "pseudo"])
def test_calibrate(place, labels):
    sent = place.said("calibrate", place.run, "--root", place.root, "--on", labels)
    assert "temperature" in sent


def test_report(place):
    assert "pwned" in place.said("report", place.run, "--root", place.root)


def test_export_refuses_to_overwrite(place):
    assert "pwned" in place.said("export", place.run, "--out", place.recipe, expect=2)


@pytest.mark.slow
def test_export(place):
    pytest.importorskip("onnxruntime")
    assert "pwned" in place.said("export", place.run, "--root", place.root)


def test_grid(place):
    out = place.folder / f"grid{EVIL_FILE}.png"
    said = place.said("grid", place.run, place.other, "--root", place.root, "--out", out)
    assert "pwned" in said
    assert "pwned" in place.said(
        *("grid", place.run, "--root", place.root, "--pick", EVIL_FILE * 2), expect=3
    )


def test_features(place):
    pytest.importorskip("sklearn")
    assert "pwned" in place.said("features", place.run, "--root", place.root)


@pytest.mark.parametrize("form", ["table", "csv", "md", "latex"])
def test_table(place, form):
    place.said("eval", place.other, "--root", place.root)
    words = [place.run, place.other, "--baseline", place.other, "--format", form]
    assert "pwned" in place.said("table", *words)


def test_sweep(place):
    options = [*place.options(), "--dry-run", "--out", place.folder / f"swept{EVIL_FILE}"]
    recipe = ["toyland/dacs", "optimizer.momentum=0.5,0.6", "--target", place.target]
    assert "pwned" in place.said("sweep", *recipe, *options)


def test_import(place):
    path = place.folder / f"old{EVIL_FILE}.pth"
    torch.save({EVIL_FILE: torch.zeros(2), "layer5.conv2d_list.0.weight": torch.zeros(2)}, path)
    assert "pwned" in place.said("import", path, expect=3)


def test_info_and_verify(place):
    assert "pwned" in place.said("info", place.run)
    assert "pwned" in place.said("verify", place.run)


@pytest.mark.parametrize("name", ["command.txt", "recipe.yaml", "status.json", "metrics.jsonl"])
def test_files_of_a_run_that_hold_something_else(place, tmp_path, name):
    run = shutil.copytree(place.run, tmp_path / f"run{EVIL_FILE}")
    (run / name).write_text(EVIL_FILE)
    for command in ("info", "verify", "report"):
        code, sent = on_terminal(command, run, cwd=tmp_path)
        assert code in (0, 2, 3), sent
        assert forbidden(sent) == []


def test_demo_refuses_a_folder(place, tmp_path):
    files.put(tmp_path / EVIL_FILE / "x", b"")
    assert "pwned" in place.said("demo", "--out", tmp_path / EVIL_FILE, expect=2)


@pytest.mark.slow
def test_init(place):
    out = place.folder / f"new{EVIL_FILE}.yaml"
    assert "pwned" in place.said("init", "city", place.target, "-o", out)


def test_several_seeds(place):
    options = [*place.options(), "--target", place.target, "--seeds", "0,1"]
    out = place.folder / f"seeds{EVIL_FILE}"
    assert "pwned" in place.said("adapt", "toyland/dacs", "--out", out, *options)


def test_every_command_is_driven():
    named = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert named == COMMANDS
    assert {group.name for group in app.registered_groups} == GROUPS.keys()


@pytest.mark.parametrize(
    "command", [*sorted(COMMANDS), *GROUPS, "recipes cat", "recipes cp", "datasets ls"]
)
def test_words_that_are_no_files_or_options(tmp_path, command):
    words = command.split()
    for more in (["--help"], [f"--{EVIL_FILE}"], [EVIL_FILE], [EVIL_FILE] * 2):
        code, sent = on_terminal(*words, *more, cwd=tmp_path)
        assert code in ((0,) if more == ["--help"] else (2, 3)), sent
        assert forbidden(sent) == []


@pytest.mark.parametrize("words", [["ls"], ["schema"], ["schema", "--markdown"]], ids=str)
def test_recipes(tmp_path, words):
    code, sent = on_terminal("recipes", *words, cwd=tmp_path)
    assert code == 0
    assert forbidden(sent) == []


def test_no_command(tmp_path):
    code, sent = on_terminal(EVIL_FILE, cwd=tmp_path)
    assert code == 2
    assert forbidden(sent) == []


@pytest.mark.parametrize(
    "sent", ["\x1b[45;5m", "\x1b]0;x\x07", "\x1b]8;;x\x1b\\", "\x9b", "\u202e", "\x08", "a\rb"]
)
def test_the_test_notices(sent):
    assert forbidden(f"x{sent}y")


def test_our_own_colours_and_bars_are_known():
    assert forbidden("\x1b[1;31mx\x1b[0m\r\n\r\x1b[2K\x1b[1A\x1b[?25l\x1b[38;5;237m") == []
