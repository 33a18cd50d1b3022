"""`udaseg grid` puts images, the masks of runs and the truth beside each other, in one PNG."""

import numpy as np
import pytest
from PIL import Image
from torch import nn

import udaseg
from tests.cli.running import udaseg as command
from tests.cli.test_report import Mirrored, write_city
from tests.support.colors import COLORS, ColorNetwork, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from udaseg.data.labels.classes import ClassSpace
from udaseg.inference import run_data

GAP, TITLE = 6, 24  # of the sheet
HEIGHT, WIDTH = 16, 24  # of the images, which are shown at their own size


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Provide two runs, of which the first predicts mirrored images, and six labelled images."""
    networks: dict[str, nn.Module] = {"plain": Mirrored(), "adapted": ColorNetwork()}
    state = {"city": write_city(tmp_path / "city"), "classes": COLORS}
    for name in networks:
        (tmp_path / name).mkdir()

    def load(path, **_):
        overrides = ["validation.resize=null", "validation.data=city"]
        return loaded_colors(overrides, networks[str(path)], classes=state["classes"])

    replace_load(monkeypatch, load)
    monkeypatch.setattr(run_data, "open_dataset", lambda data, *, root: state["city"])
    return tmp_path, state


def cell(sheet, row, column):
    top, left = TITLE + row * (HEIGHT + GAP), column * (WIDTH + GAP)
    return sheet[top : top + HEIGHT, left : left + WIDTH]


def test_each_picture_stands_in_its_place_pixel_by_pixel(home):
    folder, _ = home
    words = ("grid", "plain", "adapted", "--images", 3, "--width", WIDTH, "--out", "a/b.png")
    out = command(*words, cwd=folder).stdout
    assert out.startswith("a/b.png: ")
    sheet = np.asarray(Image.open(folder / "a/b.png"))
    colors = np.array(COLORS.colors, np.uint8)
    for row, number in enumerate((0, 2, 4)):  # 3 of 6 images, evenly spaced
        truth = random_labels(HEIGHT, WIDTH, number)
        if number == 4:
            truth[:] = 0  # as the data set has it
        expected = [painted(truth), colors[truth[:, ::-1]], colors[truth], colors[truth]]
        for column, picture in enumerate(expected):
            assert np.array_equal(cell(sheet, row, column), picture), (row, column)
    assert sheet.shape[1] == 4 * WIDTH + 3 * GAP


def test_images_can_be_named_and_runs_titled(home):
    folder, _ = home
    command("grid", "adapted", "--pick", "5.p,1.p", "--width", WIDTH, cwd=folder)
    sheet = np.asarray(Image.open(folder / "grid.png"))
    assert np.array_equal(cell(sheet, 0, 0), painted(random_labels(HEIGHT, WIDTH, 5)))
    assert np.array_equal(cell(sheet, 1, 0), painted(random_labels(HEIGHT, WIDTH, 1)))
    told = command("grid", "adapted", "--pick", "none", cwd=folder, expect=3).stderr
    assert "no image of split 'val' has 'none' in its name" in told
    told = command("grid", "adapted", "--titles", "a,b", cwd=folder, expect=2).stderr
    assert "1 runs need as many titles, got 2" in told
    command("grid", "adapted", "--titles", "ours", "--out", "titled.png", cwd=folder)
    titled = np.asarray(Image.open(folder / "titled.png"))
    command("grid", "adapted", "--out", "named.png", cwd=folder)
    assert not np.array_equal(titled, np.asarray(Image.open(folder / "named.png")))


def test_a_picture_with_another_name_than_of_a_png_is_refused(home):
    (home[0] / "folder.png").mkdir()
    for name in ("a.jpg", "a", "folder.png"):
        told = command("grid", "adapted", "--out", name, cwd=home[0], expect=2).stderr
        is_folder = name == "folder.png"
        said = "is a folder; name a file" if is_folder else "the picture is a PNG; give a file"
        assert f"{name}: {said}" in told


def test_without_labels_there_is_no_truth(home):
    folder, state = home
    state["city"] = write_city(folder / "bare", labelled=False)
    path = udaseg.grid("adapted", out=folder / "x.png", options=udaseg.GridOptions(width=WIDTH))
    assert np.asarray(Image.open(path)).shape[1] == 2 * WIDTH + GAP


def test_a_class_has_one_colour_in_all_columns_whatever_its_place_in_a_list(home):
    folder, state = home
    state["classes"] = ClassSpace(("road", "sky", "car"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    options = udaseg.GridOptions(width=WIDTH, images=1)
    path = udaseg.grid("adapted", out=folder / "x.png", options=options)
    sheet = np.asarray(Image.open(path))
    assert np.array_equal(cell(sheet, 0, 1), cell(sheet, 0, 2))  # the mask and the truth
    assert set(map(tuple, cell(sheet, 0, 2).reshape(-1, 3))) <= {(1, 2, 3), (4, 5, 6), (7, 8, 9)}


def test_small_images_are_enlarged_to_the_width_and_no_class_is_made_up(home):
    folder, _ = home
    command("grid", "adapted", "--images", 1, "--width", 100, cwd=folder)
    sheet = np.asarray(Image.open(folder / "grid.png"))
    mask = sheet[TITLE : TITLE + 67, 106:206]
    assert set(map(tuple, mask.reshape(-1, 3))) <= set(COLORS.colors)
