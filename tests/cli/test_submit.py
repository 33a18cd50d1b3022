"""`eval --submit` writes a package for a test server, checks it, and refuses other data sets."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image

import udaseg
from tests.support.colors import COLORS, ColorNetwork, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from udaseg.cli.commands.eval import TestServer as OfferedServer
from udaseg.cli.main import main
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import DataError, UsageError
from udaseg.evaluation.servers import SERVERS, check_package, member_names
from udaseg.inference import run_data

NAMES = {
    "cityscapes": "berlin/berlin_{:06d}_000019_leftImg8bit.png",
    "acdc": "fog/test/GOPR0475/GOPR0475_frame_{:06d}_rgb_anon.png",
    "dark-zurich": "test/night/GP010376/GP010376_frame_{:06d}_rgb_anon.png",
}
LABEL_IDS, TRAIN_IDS = np.array([7, 23, 26], np.uint8), np.array([0, 10, 13], np.uint8)
SMALL = (32, 64)


class HalfSure(ColorNetwork):
    """The colour network with lower confidence."""

    def forward(self, images):
        prediction = super().forward(images)
        prediction.logits = prediction.logits / 10
        return prediction


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Make the command load this network; each server expects two small images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    state = {"run": loaded_colors(network=HalfSure())}
    replace_load(monkeypatch, lambda path, **_: state["run"])
    monkeypatch.setattr(run_data, "open_dataset", lambda data, *, root: state["city"])
    # tiny images keep the tests fast; the real sizes have their own test
    for name, server in SERVERS.items():
        monkeypatch.setitem(SERVERS, name, replace(server, size=SMALL, images=2))
    return state


def write_set(server, size=SMALL, name=None):
    samples = []
    for number in range(2):
        image = (name or NAMES[server]).format(number)
        path = Path("city") / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted(random_labels(*size, seed=number))).save(path)
        samples.append(Sample(image, None, *size))
    return PreparedDataset("city", Path("city"), Path("city"), None, {"test": tuple(samples)})


def submit(server, *words):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "run", "--data", "city", "--submit", server, *map(str, words)])
    return stop.value.code


def package(server, more=""):
    return Path(f"run/submissions/{server}-city-test-step-000007{more}.zip")


def pictures(path):
    with zipfile.ZipFile(path) as opened:
        return {
            name: cv2.imdecode(np.frombuffer(opened.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            for name in opened.namelist()
        }


@pytest.mark.parametrize(
    ("server", "folder", "table"),
    [
        ("cityscapes", "", LABEL_IDS),
        ("acdc", "labelTrainIds/", TRAIN_IDS),
        ("dark-zurich", "labelTrainIds/", TRAIN_IDS),
        ("dark-zurich", "labelTrainIds_invalid/", TRAIN_IDS),
    ],
)
def test_a_package_holds_the_ids_that_the_server_wants(given, capsys, server, folder, table):
    given["city"] = write_set(server)
    assert submit(server) == 0
    images = pictures(package(server))
    assert len(images) == 2 * len(SERVERS[server].folders)
    for number in range(2):
        name = folder + Path(NAMES[server].format(number)).name
        assert images[name].dtype == np.uint8
        assert (images[name] == table[random_labels(*SMALL, seed=number)]).all()
    output = " ".join(capsys.readouterr().out.split())
    assert f"{package(server)}: " in output
    assert "checked: 2 images" in output
    assert f"all of 64x32, {SERVERS[server].ids} ids" in output
    assert "but the test set" not in output


def test_dark_zurich_gets_the_confidence_in_sixteen_bits(given):
    given["city"] = write_set("dark-zurich")
    assert submit("dark-zurich") == 0
    sure = pictures(package("dark-zurich"))["confidence/GP010376_frame_000000_rgb_anon.png"]
    assert sure.dtype == np.uint16
    expected = np.exp(1) / (np.exp(1) + 2)
    np.testing.assert_allclose(sure / 65535, expected, atol=1e-4)


def test_a_network_with_other_classes_in_another_order_is_translated_by_name(given):
    given["city"] = write_set("acdc")
    order = ClassSpace(("car", "train", "road"), COLORS.colors)
    given["run"] = loaded_colors(network=HalfSure(), classes=order)
    assert submit("acdc") == 0
    pixels = pictures(package("acdc"))["labelTrainIds/GOPR0475_frame_000000_rgb_anon.png"]
    assert (pixels == np.array([13, 16, 0])[random_labels(*SMALL)]).all()


def test_the_same_predictions_are_the_same_bytes_and_nothing_is_overwritten(given, capsys):
    given["city"] = write_set("cityscapes")
    assert submit("cityscapes") == 0
    first = package("cityscapes").read_bytes()
    assert submit("cityscapes") == 2
    assert "exists" in capsys.readouterr().err
    assert submit("cityscapes", "--out", "elsewhere") == 0
    assert (Path("elsewhere") / package("cityscapes").name).read_bytes() == first
    assert submit("cityscapes", "--flip", "--weights", "teacher") == 0
    assert package("cityscapes", "+teacher+flip").is_file()


def test_sets_of_another_layout_are_refused_before_the_network_looks(given, capsys, monkeypatch):
    monkeypatch.setattr(HalfSure, "forward", lambda *_: pytest.fail("the network looked"))
    for city, message in (
        (write_set("acdc"), "is not named like an image of cityscapes"),
        (write_set("cityscapes", size=(16, 32)), "is 32x16, but the server's images are 64x32"),
        (
            write_set("cityscapes", name="{}/berlin_000000_000019_left.png"),
            "the same image to the server",
        ),
    ):
        given["city"] = city
        assert submit("cityscapes") == 2
        assert message in capsys.readouterr().err
        assert not Path("run/submissions").exists()
    given["city"] = write_set("cityscapes")
    ships = ClassSpace(("road", "sky", "ship"), COLORS.colors)
    given["run"] = loaded_colors(network=HalfSure(), classes=ships)
    assert submit("cityscapes") == 2
    assert "no class ship" in capsys.readouterr().err


def test_another_number_of_images_is_told(given, capsys, monkeypatch):
    monkeypatch.setitem(SERVERS, "cityscapes", replace(SERVERS["cityscapes"], images=1525))
    given["city"] = write_set("cityscapes")
    assert submit("cityscapes") == 0
    output = capsys.readouterr()
    assert "but the test set of cityscapes has 1525 images" in output.out
    assert "has 2: the server will refuse it" in " ".join(output.err.split())


def test_the_split_is_named_where_several_could_be_meant(given, capsys):
    city = write_set("cityscapes")
    given["city"] = replace(city, splits={"train": city.splits["test"], "val": ()})
    assert submit("cityscapes") == 2
    assert "no split 'test', but train, val" in capsys.readouterr().err
    assert submit("cityscapes", "--split", "train") == 0


def test_an_image_that_cannot_be_read_leaves_no_package(given, capsys):
    given["city"] = write_set("cityscapes")
    Path("city", NAMES["cityscapes"].format(1)).write_bytes(b"")
    assert submit("cityscapes") == 3
    assert list(Path("run/submissions").iterdir()) == []


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(np.full(SMALL, 7, np.uint8))}, "1 files missing: b.png"),
        ({"a.png": None, "b.png": None, "c.txt": b"x"}, "1 files not expected: c.txt"),
        ({"a.png": None, "b.png": png(np.full((8, 8), 7, np.uint8))}, "b.png: is 8x8"),
        (
            {"a.png": None, "b.png": png(np.full(SMALL, 0, np.uint8))},
            "b.png: contains 0, which are not label",
        ),
        ({"a.png": None, "b.png": png(np.full((*SMALL, 3), 7, np.uint8))}, "not one channel"),
        ({"a.png": None, "b.png": png(np.full(SMALL, 7, np.uint16))}, "not one channel of 8"),
        ({"a.png": None, "b.png": b"no image"}, "b.png: is not an image"),
        ({"a.png": None, "b.png": None}, None),
    ],
)
def test_the_check_finds_what_a_server_would_stumble_over(given, tmp_path, members, message):
    good = png(np.full(SMALL, 33, np.uint8))
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, good if data is None else data)
    expected = {"a.png": "", "b.png": ""}
    if message is None:
        check_package(path, SERVERS["cityscapes"], expected)
        return
    with pytest.raises(DataError, match=message):
        check_package(path, SERVERS["cityscapes"], expected)


def test_a_package_that_was_damaged_or_cut_is_refused(given, tmp_path):
    given["city"] = write_set("cityscapes")
    assert submit("cityscapes") == 0
    data = package("cityscapes").read_bytes()
    expected = {Path(NAMES["cityscapes"].format(number)).name: "" for number in range(2)}
    path = tmp_path / "package.zip"
    changed = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    for damaged in (data[:-30], changed, b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is not a valid package"):
            check_package(path, SERVERS["cityscapes"], expected)
    path.write_bytes(data)
    check_package(path, SERVERS["cityscapes"], expected)


def test_the_servers_take_full_size_images_only():
    sizes = {name: (server.size, server.images) for name, server in SERVERS.items()}
    assert sizes == {
        "cityscapes": ((1024, 2048), 1525),
        "acdc": ((1080, 1920), 2000),
        "dark-zurich": ((1080, 1920), 151),
    }
    sample = Sample(NAMES["acdc"].format(3), None, 1080, 1920)
    city = PreparedDataset("acdc", Path(), Path(), None, {"test": (sample,)})
    names = member_names(SERVERS["acdc"], city, [sample])
    assert names == {sample.image: {"labelTrainIds": "labelTrainIds/" + Path(sample.image).name}}


def test_the_command_line_offers_every_server():
    assert list(get_args(OfferedServer)) == list(SERVERS)


def test_python_gets_the_checked_package(given, capsys):
    given["city"] = write_set("acdc")
    submission = udaseg.submit("run", "acdc", data="city")
    assert Path(submission) == submission.path == package("acdc")
    assert (submission.images, submission.server) == (2, SERVERS["acdc"])
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="no test server 'kitti'; there are cityscapes, acdc"):
        udaseg.submit("run", "kitti")
