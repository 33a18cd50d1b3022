"""`udaseg predict` writes correct masks, never changes an input, and names what it cannot read."""

import csv
import json
import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.predicting import digests, ids_of, write_image
from udaseg.cli.main import main
from udaseg.data.files.orientation import to_stored, to_upright
from udaseg.errors import UsageError
from udaseg.runs.folder import newest_finished_run

pytestmark = pytest.mark.usefixtures("run")


def predict(*words, checkpoint="runs/colors"):
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, words), "--checkpoint", checkpoint])
    return stop.value.code


def masks_below(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))


def test_every_kind_of_mask_is_written_in_the_stored_size(capsys):
    labels = write_image(Path("in/a.png"), random_labels(20, 36))
    assert predict("in", "--save", "color,ids,overlay,confidence") == 0
    with Image.open("masks/ids/a.png") as ids:
        assert ids.mode == "L"
        assert (np.asarray(ids) == labels).all()
    with Image.open("masks/color/a.png") as color:
        assert color.mode == "P"
        assert (np.asarray(color) == labels).all()
        assert (np.asarray(color.convert("RGB")) == np.array(COLORS.colors)[labels]).all()
    with Image.open("masks/overlay/a.png") as blend:
        middle = (painted(labels).astype(int) + np.array(COLORS.colors)[labels]) / 2
        assert np.abs(np.asarray(blend) - middle).max() <= 1
    assert (ids_of("masks/confidence/a.png") == 255).all()
    assert "1 image predicted: masks/color, masks/ids" in capsys.readouterr().out
    legend = ids_of("masks/legend.png").reshape(-1, 3)
    assert set(COLORS.colors) <= set(map(tuple, legend.tolist()))
    facts = json.loads(Path("masks/prediction.json").read_text())
    assert facts["classes"]["names"] == list(COLORS.names)
    assert facts["ids"] == {"color": "train", "ids": "train"}


def test_the_default_is_colours_and_ids_in_masks():
    write_image(Path("in/a.png"), random_labels(8, 8))
    assert predict("in/a.png") == 0
    assert masks_below(Path("masks")) == ["color/a.png", "ids/a.png", "legend.png"]


def test_masks_have_the_stored_size_whatever_the_network_sees(run):
    run["run"] = loaded_colors(["validation.resize=[16, 32]"])
    sizes = {"same": (64, 128), "tall": (60, 20), "tiny": (5, 7), "strip": (1, 200)}
    for name, size in sizes.items():
        write_image(Path(f"in/{name}.png"), np.full(size, 2, np.uint8))
    assert predict("in", "--save", "ids,confidence") == 0
    for name, size in sizes.items():
        assert ids_of(f"masks/ids/{name}.png").shape == size
        assert (ids_of(f"masks/ids/{name}.png") == 2).all()
        assert ids_of(f"masks/confidence/{name}.png").shape == size


def test_a_large_image_is_seen_in_tiles_and_labelled_whole():
    labels = write_image(Path("in/large.png"), random_labels(1050, 4100), compress_level=1)
    assert predict("in", "--save", "ids") == 0
    assert (ids_of("masks/ids/large.png") == labels).all()


def test_flips_and_windows_leave_a_per_pixel_network_unchanged():
    labels = write_image(Path("in/a.png"), random_labels(21, 35))
    assert predict("in", "--save", "ids", "--flip", "--window", "[8, 16]") == 0
    assert (ids_of("masks/ids/a.png") == labels).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_network_sees_the_image_upright_and_the_mask_lies_as_stored(run, orientation, suffix):
    class Upper(torch.nn.Module):
        def forward(self, images):
            height = images.shape[-2]
            logits = torch.zeros(1, 3, *images.shape[-2:])
            logits[:, 1, : height // 2] = 9
            logits[:, 2, height // 2 :] = 9
            return type("Seen", (), {"logits": logits})

    run["run"] = loaded_colors(network=Upper())
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_image(Path("in/a").with_suffix(suffix), random_labels(12, 20), exif=exif)
    assert predict("in", "--save", "ids,overlay") == 0
    mask = ids_of("masks/ids/a.png")
    assert mask.shape == (12, 20)
    upright = (20, 12) if orientation >= 5 else (12, 20)
    assert ids_of("masks/overlay/a.png").shape == (*upright, 3)
    turned = Image.fromarray(mask)
    turned.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(turned))
    half = shown.shape[0] // 2
    assert (shown[:half] == 1).all()
    assert (shown[half:] == 2).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_upright_is_what_viewers_do_and_can_be_undone(orientation):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    seen = to_upright(stored, orientation)
    assert (seen == np.asarray(ImageOps.exif_transpose(picture))).all()
    assert (to_stored(seen, orientation) == stored).all()


def test_the_tree_is_mirrored_and_equal_names_stay_apart():
    written = {}
    for index, name in enumerate(["a/x.png", "a/deep/er/x.png", "b/x.png", "b/Y.PNG"]):
        written[name] = write_image(Path(name), random_labels(8, 12, seed=index))
    assert predict("a", "b", "--save", "ids") == 0
    assert masks_below(Path("masks")) == [
        "ids/a/deep/er/x.png",
        "ids/a/x.png",
        "ids/b/Y.png",
        "ids/b/x.png",
    ]
    for name, labels in written.items():
        mask = Path("masks/ids") / Path(name).with_suffix(".png")
        assert (ids_of(mask) == labels).all()


def test_images_that_differ_in_their_suffix_keep_it():
    for index, name in enumerate(["x.png", "x.bmp", "y.bmp"]):
        write_image(Path("in") / name, random_labels(8, 8, seed=index))
    assert predict("in", "--save", "ids") == 0
    assert masks_below(Path("masks")) == ["ids/x.bmp.png", "ids/x.png.png", "ids/y.png"]


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [("X", "x", "y"), ("\u00e9", "e\u0301", "e"), ("Stra\u00dfe", "strasse", "z")],
)
def test_names_that_some_file_systems_hold_for_one_are_all_predicted(first, second, other, capsys):
    names = sorted([first, second, other])
    labels = {name: random_labels(8, 8, seed=number) for number, name in enumerate(names)}
    for name, ids in labels.items():
        write_image(Path("in") / f"{name}.png", ids)
    if len(list(Path("in").iterdir())) < 3:
        pytest.skip("this file system holds them for one")
    assert predict("in", "--save", "ids,color") == 0
    said = capsys.readouterr().err
    assert said.count("1 of the inputs get masks with a digest in the name, such as ") == 1
    plain = {other, min(first, second)}
    found = {path.stem: path for path in Path("masks/ids").iterdir()}
    assert len(found) == 3
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == 3
    for name, ids in labels.items():
        (stem,) = [each for each in found if each in plain and each == name] or [
            each for each in found if each.startswith(f"{name}-")
        ]
        assert (ids_of(found[stem]) == ids).all()
        assert Path(f"masks/color/{stem}.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in found.values()}
    write_image(Path("in/A.png"), random_labels(8, 8))
    assert predict("in", "--save", "ids,color", "--resume") == 0
    assert {path: path.stat().st_mtime_ns for path in found.values()} == before


def test_patterns_folders_and_files_are_found_and_hidden_ones_are_not():
    for name in ["in/1/a.png", "in/2/b.PNG", "in/2/.hidden.png", "in/2/._b.png", "in/3/c.bmp"]:
        write_image(Path("some.png"), random_labels(4, 4))
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path("some.png").rename(name)
    Path("in/notes.txt").write_text("no image")
    assert predict("in/*/?.png", "in/2", "in/3/c.bmp", "--save", "ids") == 0
    assert masks_below(Path("masks")) == ["ids/1/a.png", "ids/2/b.png", "ids/3/c.png"]
    assert predict("in/**/*.png", "--save", "ids", "--out", "deep") == 0
    assert masks_below(Path("deep")) == ["ids/a.png"]


@pytest.mark.parametrize("word", ["dir[1]", "dir[1]/a.png", "dir[1]/*.png"])
def test_a_name_with_brackets_is_taken_as_it_is_written(word):
    labels = write_image(Path("dir[1]/a.png"), random_labels(4, 8))
    write_image(Path("dir1/b.png"), random_labels(4, 8))
    assert predict(word, "--save", "ids") == 0
    assert masks_below(Path("masks")) == ["ids/a.png"]
    assert (ids_of("masks/ids/a.png") == labels).all()


def test_a_link_in_a_circle_is_not_followed():
    write_image(Path("in/a.png"), random_labels(4, 4))
    Path("in/again").symlink_to(".", target_is_directory=True)
    assert predict("in", "--save", "ids") == 0
    assert masks_below(Path("masks")) == ["ids/a.png"]


@pytest.mark.parametrize("words", [["nowhere.png"], ["in/*.jpg"], ["in"], ["in", "nowhere"]])
def test_no_input_is_bad_data(words, capsys):
    Path("in").mkdir()
    assert predict(*words) == 3
    assert "error: " in capsys.readouterr().err
    assert not Path("masks").exists()


@pytest.mark.parametrize("out", ["in", "in/masks", "link", "link/masks", "in/../in"])
def test_an_output_in_an_input_folder_is_refused(out, capsys):
    write_image(Path("in/a.png"), random_labels(8, 8))
    Path("link").symlink_to("in", target_is_directory=True)
    before = digests(Path("in"))
    assert predict("in", "--out", out, "--overwrite") == 2
    assert "lies in the input folder" in capsys.readouterr().err
    assert digests(Path("in")) == before


@pytest.mark.parametrize("how", ["path", "link", "hard link"])
def test_a_mask_that_is_an_input_is_refused(how, capsys):
    mask = Path("out/ids/a.png")
    if how == "path":
        image = mask
        write_image(image, random_labels(8, 8))
    else:
        image = Path("in/a.png")
        write_image(image, random_labels(8, 8))
        mask.parent.mkdir(parents=True)
        if how == "link":
            mask.symlink_to(image.resolve())
        else:
            os.link(image, mask)
    before = digests(Path())
    assert predict(image, "--out", "out", "--save", "ids", "--overwrite") == 2
    assert "is also an input" in capsys.readouterr().err
    assert digests(Path()) == before


def test_masks_that_exist_are_refused_unless_asked_for(capsys):
    labels = write_image(Path("in/a.png"), random_labels(8, 12))
    assert predict("in", "--save", "ids") == 0
    Image.fromarray(np.zeros((8, 12), np.uint8)).save("masks/ids/a.png")
    assert predict("in", "--save", "ids") == 2
    assert "1 of the masks exist" in capsys.readouterr().err
    assert (ids_of("masks/ids/a.png") == 0).all()
    assert predict("in", "--save", "ids", "--overwrite") == 0
    assert (ids_of("masks/ids/a.png") == labels).all()


def test_resume_keeps_whole_masks_and_makes_the_others_anew(capsys):
    images = {
        name: write_image(Path(f"in/{name}.png"), random_labels(16, 24, seed=index))
        for index, name in enumerate(["whole", "cut", "small", "gone"])
    }
    assert predict("in", "--save", "ids") == 0
    mask = {name: Path(f"masks/ids/{name}.png") for name in images}
    mask["cut"].write_bytes(mask["cut"].read_bytes()[:-20])
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(mask["small"])
    mask["gone"].unlink()
    kept = mask["whole"].stat()
    assert predict("in", "--save", "ids", "--resume") == 0
    assert mask["whole"].stat().st_ino == kept.st_ino
    for name, labels in images.items():
        assert (ids_of(mask[name]) == labels).all()
    assert "3 images predicted, 1 kept from an earlier run" in capsys.readouterr().out


def test_resume_does_not_mix_two_networks(run, capsys):
    write_image(Path("in/a.png"), random_labels(8, 8))
    assert predict("in") == 0
    run["run"] = loaded_colors(step=8)
    assert predict("in", "--resume") == 2
    assert "a different step" in capsys.readouterr().err


def png_header(width, height):
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk


def write_bad(folder):
    """Write one unreadable image of each kind; return their names."""
    write_image(folder / "whole.png", random_labels(30, 30))
    write_image(folder / "whole.jpg", random_labels(30, 30))
    png, jpg = (folder / "whole.png").read_bytes(), (folder / "whole.jpg").read_bytes()
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 16
    contents = {
        "empty.png": b"",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpg[: len(jpg) // 2],
        "flipped.png": bytes(flipped),
        "text.png": b"this is no image\n",
        "bomb.png": png_header(40_000, 40_000),
        "wide.png": png_header(1_100_000, 200),
        "zero.png": png_header(0, 10),
        "film.png": b"\x00\x00\x00\x20ftypisom" + bytes(100),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "nothing.png").symlink_to("not there")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "whole.png").unlink()
    (folder / "whole.jpg").unlink()
    return sorted([*contents, "nothing.png", "circle.png", "pipe.png"])


def test_bad_images_are_named_and_stop_no_other(capsys):
    folder = Path("in")
    good = {f"good{index}.png": random_labels(12, 16, seed=index) for index in range(6)}
    for name, labels in good.items():
        write_image(folder / name, labels)
    bad = write_bad(folder)
    assert predict("in", "--save", "ids") == 4
    output = capsys.readouterr()
    assert f"{len(bad)} of {len(bad) + 6} images failed" in output.err
    assert "6 images predicted" in output.out
    with Path("masks/failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["image"]).name for row in rows) == bad
    assert all(row["reason"] for row in rows)
    assert masks_below(Path("masks")) == sorted(f"ids/{name}" for name in good)
    for name, labels in good.items():
        assert (ids_of(Path("masks/ids") / name) == labels).all()
    for name in bad:
        (folder / name).unlink()
    assert predict("in", "--save", "ids", "--resume") == 0
    assert not Path("masks/failures.csv").exists()


def test_without_one_readable_image_it_is_bad_data(capsys):
    Path("in").mkdir()
    write_bad(Path("in"))
    assert predict("in") == 3
    assert "none of" in capsys.readouterr().err
    assert Path("masks/failures.csv").is_file()


@pytest.mark.parametrize(
    "name", ["[red]x.png", "[bold.png", "a\nb.png", "\x1b[31mx.png", "\u202egnp.png", "-x.png"]
)
def test_names_that_could_harm_a_terminal_are_predicted_and_shown_harmless(name, capsys):
    labels = write_image(Path("in") / name, random_labels(8, 8))
    (Path("in") / f"bad {name}").write_bytes(b"no")
    assert predict("in", "--save", "ids") == 4
    output = capsys.readouterr()
    assert "\x1b" not in output.err + output.out
    assert "\u202e" not in output.err + output.out
    assert "bad " in output.err
    assert (ids_of(Path("masks/ids") / name) == labels).all()


def test_a_name_that_is_not_utf8_is_predicted():
    write_image(Path("in/a.png"), random_labels(8, 8))
    try:
        Path("in/a.png").rename("in/\udcff.png")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (Path("in") / "\udcfe.png").write_bytes(b"no")
    assert predict("in", "--save", "ids") == 4
    assert [path.name for path in Path("masks/ids").iterdir()] == ["\udcff.png"]


def test_nothing_is_left_beside_the_masks():
    write_image(Path("in/a.png"), random_labels(8, 8))
    assert predict("in", "--save", "color,ids,overlay,confidence") == 0
    files = sorted(path.name for path in Path("masks").rglob("*") if path.is_file())
    assert files == ["a.png"] * 4 + ["legend.png", "prediction.json"]


def test_two_runs_write_the_same_bytes():
    for index in range(5):
        write_image(Path(f"in/{index}.png"), random_labels(16, 20, seed=index))
    assert predict("in", "--out", "one") == 0
    assert predict(*(f"in/{index}.png" for index in (3, 1, 4, 0, 2)), "--out", "two") == 0
    one, two = (
        {path.relative_to(out).as_posix(): digest for path, digest in digests(Path(out)).items()}
        for out in ("one", "two")
    )
    assert one == two


def status(folder, state, when):
    folder.mkdir(parents=True)
    document = {"state": state, "unix_time": when}
    (folder / "status.json").write_text(json.dumps(document))


def test_the_newest_finished_run_is_the_default(tmp_path):
    runs = tmp_path / "runs"
    status(runs / "old", "done", 100.0)
    status(runs / "demo" / "rccr", "done", 200.0)
    status(runs / "broken", "failed", 300.0)
    status(runs / "going", "running", 400.0)
    (runs / "odd").mkdir()
    (runs / "odd" / "status.json").write_text("{")
    assert newest_finished_run(runs) == runs / "demo" / "rccr"


def test_without_a_finished_run_it_says_how_to_get_one(tmp_path):
    status(tmp_path / "runs" / "going", "running", 1.0)
    with pytest.raises(UsageError, match="--checkpoint"):
        newest_finished_run(tmp_path / "runs")
