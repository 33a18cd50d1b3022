"""Every command of the README, then of the page of all commands, works as written, on tiny data."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.support.toy import TINY, toy_root
from udaseg.data.files.images import write_png

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "commands.md")
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.startswith("udaseg ")
]
YAML = next(block for kind, block in BLOCKS if kind == "yaml")
IDS = [7, 8, 11, 26, 0]


def _images(folder, names, size=(64, 96)):
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def _labels(folder, names, size=(64, 96), palette=None):
    rng = np.random.default_rng(1)
    for name in names:
        cells = rng.choice(np.array(IDS, np.uint8), (size[0] // 8, size[1] // 8))
        write_png(folder / name, np.kron(cells, np.ones((8, 8), np.uint8)), palette=palette)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with everything the README assumes: raw data sets, photos, a YAML file."""
    home = tmp_path_factory.mktemp("reader")
    data = toy_root(home / "data")
    names = [f"{number:05d}.png" for number in range(1, 5)]
    _images(data / "gta5" / "images", names)
    _labels(data / "gta5" / "labels", names, palette=((1, 2, 3),) * 35)
    for split in ("train", "val"):
        stems = [f"town/town_{number:06d}_000019" for number in range(3)]
        _images(data / f"cityscapes/leftImg8bit/{split}", [f"{s}_leftImg8bit.png" for s in stems])
        _labels(data / f"cityscapes/gtFine/{split}", [f"{s}_gtFine_labelIds.png" for s in stems])
    for folder in ("my_photos", "images"):
        _images(home / folder, ["a.png", "deep/er/b.png"])
    cv2.imwrite(str(home / "my_photos" / "c.jpg"), np.zeros((80, 80, 3), np.uint8))
    city = home / "city"
    names = [f"{folder}{number}.png" for folder in ("", "x/") for number in range(5)]
    _images(city / "images", names)
    _labels(city / "labels", names)
    (home / "city" / "my_city.yaml").write_text(YAML.replace("[0, 255]", "[0, 8, 11, 255]"))
    return home


def test_the_readme_has_commands_and_a_yaml():
    assert len(COMMANDS) >= 9
    assert "udaseg prepare gta5 cityscapes" in COMMANDS
    assert "udaseg adapt --method rccr" in COMMANDS
    assert "udaseg predict images/" in COMMANDS


def test_every_command_works_in_the_order_of_the_page(home, monkeypatch):
    monkeypatch.delenv("UDASEG_DATA", raising=False)
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if words[0] in ("train", "adapt"):
            own_target = "--target" in words
            # two steps of a light network instead of the published one
            words += ["--steps", "2", *(w for w in TINY if not (own_target and "valid" in w))]
            words += ["model.head=deeplab_v2", "model.aspp_dilations=[6, 12]", "--overwrite"]
        if words[0] == "predict":
            words += ["--overwrite"]
        words = [word.replace("my_city.yaml", "city/my_city.yaml") for word in words]
        udaseg(*words, cwd=home)
    masks = list((home / "masks").rglob("*.png"))
    assert masks


def test_each_command_has_help(home):
    for name in (
        "prepare",
        "train",
        "adapt",
        "eval",
        "predict",
        "recipes",
        "methods",
        "info",
        "demo",
    ):
        output = udaseg(name, "--help", cwd=home)
        assert "Usage" in output.stdout
