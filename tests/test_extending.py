"""Does what each section of docs/extending.md says, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy import TINY, toy_root

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|diff) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = [word for word in TINY if not word.startswith("model.backbone")]
TRAIN = ["steps=2", "machine.preview_every=0", "machine.log_every=1", *TINY]


def blocks(section):
    """Return (kind, path, content) of each change in a section."""
    body = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return BLOCK.findall(body)


def apply(house, section):
    """Apply the changes of a section to a copy of the package; return the changed files."""
    changes = blocks(section)
    assert changes, section
    for kind, name, content in changes:
        path = house / name
        if kind == "python":
            assert not path.exists(), f"{name} is a new file"
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text(patched(path.read_text(encoding="utf-8"), content), encoding="utf-8")
    return [name for _, name, _ in changes]


def patched(text, diff):
    """Return a text with a diff applied, whose context lines need not be consecutive."""
    lines, at = text.splitlines(), 0
    for line in diff.splitlines():
        mark, rest = line[:1], line[1:]
        if mark == "+":
            lines.insert(at, rest)
            at += 1
            continue
        assert rest in lines[at:], f"the text has no line {rest!r} after line {at}"
        at = lines.index(rest, at)
        if mark == "-":
            del lines[at]
        else:
            at += 1
    return "\n".join(lines) + "\n"


@pytest.fixture
def house(tmp_path):
    for name in ("udaseg", "recipes"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_root(tmp_path_factory.mktemp("data"))


def run(house, *words, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def adapt(house, data, *words, backbone="mobilenet_v2"):
    words = [*words, *TRAIN, f"model.backbone={backbone}"]
    run(house, "-m", "udaseg", "adapt", *words, "--root", data, "--out", "run")
    return (house / "run" / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_regularizer_touches_four_files(house, data):
    assert apply(house, "A regularizer") == [
        "udaseg/recipe/contrast.py",
        "udaseg/recipe/methods.py",
        "udaseg/methods/contrast/spread.py",
        "udaseg/methods/build.py",
    ]
    assert '"spread"' in adapt(house, data, "toyland/dacs", "method.spread.weight=0.1")
    wrong = ["-m", "udaseg", "adapt", "toyland/dacs", "method.spread.weight=-1", "--dry-run"]
    assert "method.spread.weight: must be at least 0" in run(house, *wrong, code=2)


@pytest.mark.slow
def test_mypy_demands_the_line_that_builds_a_regularizer(house):
    changes = blocks("A regularizer")
    for kind, name, content in changes[:3]:
        path = house / name
        old = path.read_text(encoding="utf-8") if kind == "diff" else ""
        text = patched(old, content) if kind == "diff" else content
        path.write_text(text, encoding="utf-8")
    shutil.copy(REPOSITORY / "pyproject.toml", house)
    check = ["-m", "mypy", "--cache-dir", house / "cache", "udaseg/methods/build.py"]
    assert 'Argument 1 to "assert_never"' in run(house, *check, code=1)
    path = house / changes[3][1]
    path.write_text(patched(path.read_text(encoding="utf-8"), changes[3][2]), encoding="utf-8")
    run(house, *check)


@pytest.mark.slow
def test_a_view_touches_one_file(house, data):
    apply(house, "A regularizer")
    assert apply(house, "A view") == ["udaseg/methods/views.py"]
    path = house / "udaseg/methods/contrast/spread.py"
    text = path.read_text(encoding="utf-8").replace("MIXED", "STUDENT_TARGET")
    path.write_text(text, encoding="utf-8")
    assert '"spread"' in adapt(house, data, "toyland/dacs", "method.spread.weight=0.1")


@pytest.mark.slow
def test_a_backbone_is_one_file_and_one_line(house, data):
    _, (_, _, diff) = blocks("A backbone")
    assert diff.count("\n+") == 1
    apply(house, "A backbone")
    adapt(house, data, "toyland/rccr", backbone="plain")


@pytest.mark.slow
def test_a_head_is_one_file_and_one_word(house, data):
    apply(house, "A head")
    adapt(house, data, "toyland/rccr", "model.head=two_layers")


@pytest.mark.slow
def test_a_label_format_is_one_file_and_its_line(house):
    apply(house, "A label format")
    script = (
        "import cv2, numpy as np; from pathlib import Path\n"
        "from udaseg.data.labels.formats import label_reader\n"
        "image = np.zeros((2, 3, 3), np.uint8); image[..., 2] = 7\n"
        "data = cv2.imencode('.png', image)[1].tobytes()\n"
        "print(label_reader('carla')(Path('a.png'), data).tolist())\n"
    )
    assert run(house, "-c", script).strip() == "[[7, 7, 7], [7, 7, 7]]"


@pytest.mark.slow
def test_a_data_set_is_one_file(house, data):
    catalog = house / "udaseg/data/datasets/catalog"
    text = (catalog / "toyland.yaml").read_text(encoding="utf-8")
    (catalog / "mine.yaml").write_text(text.replace("name: toyland", "name: mine"), "utf-8")
    script = "from udaseg.data.datasets.catalog import builtin_names; print(builtin_names())"
    assert "mine" in run(house, "-c", script)


@pytest.mark.slow
def test_a_logger_is_one_file_and_its_line(house, data):
    apply(house, "A logger or another callback")
    adapt(house, data, "toyland/dacs")
    lines = (house / "run" / "losses.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in lines] == ["1", "2"]
