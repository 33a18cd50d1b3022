"""`udaseg doctor`: its output, its JSON, its exit codes, and that it changes nothing."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.cli import running
from tests.cli.running import udaseg
from tests.support import sick
from tests.support.sick import FAULTS, Patient
from tests.support.terminal import on_terminal, plain
from udaseg.text import printable

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("UDASEG_DATA", raising=False)


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """Return a folder with a data set that has every fault."""
    home = tmp_path_factory.mktemp("ill")
    sick.clean(home / "set")
    patient = Patient(home / "set", home / "outside")
    for function in FAULTS.values():
        function(patient)
    return home


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    home = tmp_path_factory.mktemp("well")
    sick.clean(home / "set", train=12)
    return home


def _refuse_constant(word):
    raise AssertionError(f"{word} is no JSON")


def _document(output):
    return json.loads(output.stdout, parse_constant=_refuse_constant)


def _tree(folder):
    """Return a digest of every name, mode, time, link and byte below a folder."""
    digest = hashlib.sha256()
    for top, folders, names in sorted(os.walk(folder)):
        for path in (Path(top, name) for name in sorted([*folders, *names])):
            facts = path.lstat()
            link = str(path.readlink()) if path.is_symlink() else ""
            data = path.read_bytes() if path.is_file() and not link else b""
            digest.update(repr((path, facts.st_mode, facts.st_mtime_ns, link, data)).encode())
    return digest.hexdigest()


def test_a_clean_set_is_said_to_be_so(well):
    output = udaseg("doctor", "set/own.yaml", cwd=well)
    assert "no errors, no warnings, no notes; checked 24 images" in output.stdout
    for part in ("small (own files)", "train 12, labelled", "64x48 (24)", "mean RGB", "road"):
        assert part in output.stdout
    assert "doctor 24/24 images" in output.stderr
    assert list(well.iterdir()) == [well / "set"]


def test_a_terminal_of_80_columns_gets_no_longer_lines(ill):
    code, sent = on_terminal("doctor", "set/own.yaml", cwd=ill, width=80)
    assert code == 3
    result = plain(sent).partition("error: small")[0].partition("┌")[2]
    assert 60 < max(map(len, result.splitlines())) <= 80


def test_all_that_is_wrong_is_shown_whole_and_the_exit_code_is_3(ill):
    before = _tree(ill)
    output = udaseg("doctor", "set/own.yaml", cwd=ill, expect=3)
    assert _tree(ill) == before
    lines = output.stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert output.stdout == printable(output.stdout)
    assert "a\\x1b[2Jb.png: control or invisible characters" in output.stdout
    assert "ids 300 (7 px), 40 (6 px)" in output.stdout
    assert "train/labels/015.png: label 65x48, image 64x48" in output.stdout
    shown = [
        line.split()[1].rstrip(":") for line in lines if line[:1] in "ewi" and line[1:2].strip()
    ]
    assert {"damaged", "leaked-image", "odd-name", "near-duplicate"} <= set(shown)
    assert output.stderr.splitlines()[-1].startswith(
        "error: small: 15 kinds of error: broken-link, "
    )


def test_json_is_one_valid_document_and_alone_on_stdout(ill, well):
    output = udaseg("doctor", "set/own.yaml", "--json", cwd=ill, expect=3)
    document = _document(output)
    assert document["ok"] is False
    assert document["counts"] == {"error": 15, "warning": 15, "info": 5}
    finding = next(entry for entry in document["findings"] if entry["code"] == "size-mismatch")
    assert finding["severity"] == "error"
    assert finding["count"] == 2
    assert finding["examples"][0] == {
        "path": str(ill / "set/train/labels/015.png"),
        "note": "label 65x48, image 64x48",
    }
    document = _document(udaseg("doctor", "set/own.yaml", "--json", "-q", cwd=well))
    assert document["ok"] is True
    assert document["findings"] == []
    assert document["sets"][0]["splits"]["train"]["sizes"] == {"64x48": 12}


def test_a_set_of_which_nothing_can_be_read_is_valid_json_too(tmp_path):
    sick.clean(tmp_path / "set", train=12)
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(b"")
    output = udaseg("doctor", "set/own.yaml", "--json", cwd=tmp_path, expect=3)
    document = _document(output)
    assert document["sets"][0]["color_mean"] is None
    assert {entry["code"]: entry["count"] for entry in document["findings"]} == {"empty-file": 48}
    udaseg("doctor", "set/own.yaml", "--target", "set/train/images", cwd=tmp_path, expect=3)


def test_a_pair_is_shown_side_by_side(well):
    output = udaseg("doctor", "set/own.yaml", "--target", "set/val/images", cwd=well, expect=3)
    assert "folder of images" in output.stdout
    # the target folder is also the validation split of the source
    assert "leaked-image in pair: 12" in output.stdout
    assert "and 7 more" in output.stdout
    assert "error: small and images: 1 kind of error: leaked-image" in output.stderr


def test_a_split_can_be_chosen(ill):
    output = udaseg("doctor", "set/own.yaml", "--split", "test", "--json", cwd=ill, expect=3)
    assert list(_document(output)["sets"][0]["splits"]) == ["test"]
    output = udaseg("doctor", "set/own.yaml", "--split", "tset", cwd=ill, expect=3)
    assert "no split 'tset'" in output.stderr
    assert output.stdout == ""


def test_what_is_not_there_ends_it_with_one_message(tmp_path):
    for name in ("gta5", "nothing", "gone.yaml"):
        output = udaseg("doctor", name, "--json", cwd=tmp_path, expect=3)
        assert output.stdout == ""
        assert output.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_it_works_without_torch(well):
    printed = running.without_torch(["doctor", "set/own.yaml", "--json"], well)
    assert json.loads(printed)["ok"] is True
