"""`udaseg prepare` summarises the data on one screen and asks for what is missing."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.cli import running
from tests.support import files
from tests.support.hostile import packed
from udaseg.cli.main import main
from udaseg.data.datasets.index import read_index
from udaseg.data.files import images as images_file
from udaseg.data.toyland.writer import write
from udaseg.text import printable

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Use an empty working folder and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("UDASEG_DATA", raising=False)


@pytest.fixture
def run(capsys):
    def prepare(*words):
        with pytest.raises(SystemExit) as stop:
            main(["prepare", *map(str, words)])
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    return prepare


def _own(folder, names=("a", "b", "c")):
    for number, name in enumerate(names):
        files.put(folder / f"images/{name}.png", files.image_png(6, 8, number))
        ids = np.full((6, 8), number % 3)
        files.put(folder / f"labels/{name}.png", files.gray_png(ids))
    text = "name: own\nimages: images/*.png\nlabels: labels/*.png\nclasses: [road, sky, car, bus]\n"
    return files.dataset_yaml(folder, text)


def test_the_screen_names_counts_sizes_shares_places_and_the_next_command(run, tmp_path):
    code, out, err = run(_own(tmp_path / "mine"))
    assert code == 0
    for part in (
        *("own: prepared in", "3 images, labelled, 8x6 (3)", "33.33 %", "never seen", "bus"),
        "3 labels hold a single class; kept",
        *(str(tmp_path / "mine"), "data/prepared/own", "udaseg adapt --source own --target DATA"),
    ):
        assert part in out, (part, out)
    assert len(out.splitlines()) < 24
    assert "prepare own 3/3 images" in err
    assert "own: unchanged in" in run(tmp_path / "mine/own.yaml")[1]


def test_a_second_run_says_how_many_images_it_read(run, tmp_path):
    yaml = _own(tmp_path / "mine")
    assert "others unchanged" not in run(yaml)[1]
    files.put(tmp_path / "mine/images/b.png", files.image_png(6, 8, 99))
    assert ", 1 image read, the others unchanged" in run(yaml)[1]


def test_unpacking_and_reading_are_followed_one_after_the_other(run, tmp_path, monkeypatch):
    monkeypatch.setattr("udaseg.data.archives.unpack._MB", 100)
    packed(tmp_path / "data/01_images.zip", {"images/00001.png": files.image_png(6, 8)})
    labels = {"labels/00001.png": files.palette_png(np.full((6, 8), 7))}
    packed(tmp_path / "data/01_labels.zip", labels)
    code, _, err = run("gta5", "--verbose")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith(("unpack gta5", "prepare gta5"))]
    unpacked, prepared = lines
    assert re.fullmatch(r"unpack gta5 (\d+)/\1 MB  [\d.]+ MB/s  ETA 0:00:00", unpacked)
    assert re.fullmatch(r"prepare gta5 1/1 images  [\d.]+ img/s  ETA 0:00:00", prepared)
    code, _, err = run("gta5", "--verify")
    assert "files/s" in err


def test_a_look_writes_nothing(run, tmp_path):
    code, out, _ = run(_own(tmp_path / "mine"), "--check-only")
    assert code == 0
    assert "own: checked in" in out
    assert not (tmp_path / "data").exists()


def test_the_root_is_an_option_or_a_variable(run, tmp_path, monkeypatch):
    yaml = _own(tmp_path / "mine")
    assert run(yaml, "--root", tmp_path / "one")[0] == 0
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path / "two"))
    assert run(yaml)[0] == 0
    for folder in ("one", "two"):
        assert len(read_index(tmp_path / folder / "prepared/own").splits["train"]) == 3


def test_one_missing_set_stops_none_of_the_others(run, tmp_path):
    code, out, err = run("gta5", _own(tmp_path / "mine"), "cityscapes")
    assert code == 3
    assert "own: prepared in" in out
    for name in ("gta5", "cityscapes"):
        assert f"{name}: not found below data" in err
        assert f"then     udaseg prepare {name}" in err


def test_what_is_left_out_is_named(run, tmp_path):
    yaml = _own(tmp_path / "mine", ("a", "b", "[red]x", "d\x1b[2J"))
    files.put(tmp_path / "mine/labels/[red]x.png", files.gray_png(np.ones((4, 4), int)))
    (tmp_path / "mine/labels/d\x1b[2J.png").unlink()
    code, out, err = run(yaml)
    assert code == 3
    assert "d\\x1b[2J.png: has no label" in err
    code, out, err = run(yaml, "--max-bad", 1)
    assert code == 0
    assert "[red]x.png: label 4x4, image 8x6" in out
    assert "d\\x1b[2J.png: has no label" in out
    assert out == printable(out)
    assert run(yaml, "--max-bad", 1, "--on-mismatch", "fail")[0] == 3
    code, out, _ = run(yaml, "--max-bad", 1, "--on-mismatch", "resize")
    assert code == 0
    assert "3 images" in out


@pytest.mark.parametrize(
    "name",
    [
        *("a b", "ünï", "-x", "[x]", "[red]x", "x\nerror: all is lost", "esc\x1b[31m", "x" * 240),
        *("a.b.c", "\u202egnp"),
    ],
    ids=map(str, range(10)),
)
def test_a_name_is_on_one_line_and_without_control_characters(run, tmp_path, name):
    yaml = _own(tmp_path / "mine", ("a", name))
    image = tmp_path / f"mine/images/{name}.png"
    image.write_bytes(image.read_bytes()[:-9])
    shown = printable(name.replace("\n", "\\n"))
    code, _, err = run(yaml)
    assert code == 3
    lines = [line for line in err.splitlines() if "images/" in line]
    assert [line.partition("images/")[2] for line in lines] == [
        f"{shown}.png: damaged: the PNG is cut off"
    ]
    code, out, _ = run(yaml, "--max-bad", 1)
    assert code == 0
    assert printable(out) == out
    image.write_bytes(files.image_png())
    run(yaml)
    image.unlink()
    code, _, err = run(yaml, "--verify")
    assert code == 3
    assert f"{shown}.png: is missing" in err


def test_toyland_is_made_and_both_its_halves_prepared(run, tmp_path, monkeypatch):
    calls = []

    def small(folder, *, seed, size, workers, on_progress):
        calls.append((seed, size))
        counts = {"source/train": 1, "source/val": 1, "target/train": 1, "target/val": 1}
        write(folder, seed=seed, size=size, counts=counts, on_progress=on_progress)

    monkeypatch.setattr("udaseg.data.toyland.writer.write", small)
    code, out, _ = run("toyland", "--seed", 7, "--size", "[64, 96]")
    assert code == 0
    assert calls == [(7, (64, 96))]
    assert "toyland: prepared in" in out
    assert "toyland-target: prepared in" in out
    assert "1 image, no labels, 96x64 (1)" in out
    assert read_index(tmp_path / "data/prepared/toyland-target").splits["val"][0].height == 64
    code, _, err = run("toyland", "--seed", 8, "--size", "[64, 96]")
    assert code == 3
    assert err.count("other settings") == 1


def test_a_fault_of_the_yaml_is_named_with_its_line(run, tmp_path):
    yaml = _own(tmp_path / "mine")
    yaml.write_text(yaml.read_text().replace("labels:", "label:"))
    code, _, err = run(yaml)
    assert code == 3
    assert f"{yaml}:3:1: label: unknown key; did you mean 'labels'?" in err


def test_a_narrow_window_and_a_pipe_do_no_harm(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, _ = run(_own(tmp_path / "mine"))
    assert code == 0
    assert max(map(len, out.splitlines())) > 40  # what reads a pipe wants whole lines


def test_verify_says_that_all_is_as_it_was_or_what_is_not(run, tmp_path):
    yaml = _own(tmp_path / "mine")
    code, _, err = run(yaml, "--verify")
    assert code == 3
    assert "own.yaml: not prepared below data; run `udaseg prepare " in err
    run(yaml)
    code, out, err = run("own", "--verify")
    assert code == 0
    assert "own: all 11 files unchanged" in out
    assert "verify own 11/11 files" in err
    image = tmp_path / "mine/images/b.png"
    data, facts = image.read_bytes(), image.stat()
    image.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (tmp_path / "data/prepared/own/labels/train/c.png").unlink()
    code, out, err = run(yaml, "--verify")
    assert code == 3
    assert out == ""
    for part in (
        "own: 1 of 11 files changed and 1 are missing:",
        f"{image}: has different content",
        "labels/train/c.png: is missing",
        "restore them; or, to accept all changes, delete data/prepared/own and run",
    ):
        assert part in err, (part, err)


def test_one_set_that_changed_stops_no_other_from_being_verified(run, tmp_path):
    run(_own(tmp_path / "mine"))
    code, out, err = run("gta5", "own", "--verify")
    assert code == 3
    assert "own: all 11 files unchanged" in out
    assert "gta5: not prepared below data" in err


def test_verify_goes_alone(run, tmp_path):
    for more in (["--check-only"], ["--cache", "4x3"]):
        code, _, err = run(_own(tmp_path / "mine"), "--verify", *more)
        assert code == 2
        assert "--verify cannot be combined with" in err


def test_it_works_without_torch(tmp_path):
    _own(tmp_path / "mine")
    words = ["prepare", "mine/own.yaml", "--cache", "4x3"]
    assert "own: prepared in" in running.without_torch(words, tmp_path)


def test_archives_that_cannot_be_unpacked_here_say_what_to_do(run, tmp_path):
    files.put(tmp_path / "data/SYNTHIA_RAND_CITYSCAPES.rar", b"Rar!\x1a\x07")
    code, _, err = run("synthia")
    assert code == 3
    assert "rar archives are not supported; unpack it yourself (unrar x)" in err
    assert "and leave the folder next to the archive" in err


def test_a_full_disk_is_a_fault_of_the_machine_with_the_size_that_is_needed(
    run, tmp_path, monkeypatch
):
    yaml = _own(tmp_path / "mine")
    write = images_file.write_atomic

    def full(path, data):
        if path.name == "b.png":
            raise OSError(errno.ENOSPC, "no space", str(path))
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(images_file, "write_atomic", full)
        code, _, err = run(yaml, "--workers", 1)
    assert code == 5
    assert "the disk is full: about" in err
    assert "run the same command again, finished work is kept" in err
    code, out, _ = run(yaml)
    assert code == 0
    assert "own: prepared in" in out
