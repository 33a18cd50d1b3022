"""Killing `udaseg predict` leaves no partial mask, and the next run completes; a few trials."""

import pytest

from tests.support import killed_predictions as kills

pytestmark = pytest.mark.usefixtures("colors")


def test_a_kill_before_some_changes_on_the_disk_leaves_no_partial_mask(tmp_path):
    kills.write_inputs(tmp_path, images=2, films=1)
    result = kills.at_every_change(tmp_path, every=23)
    assert result.kills >= 5
    assert (result.partial, result.wrong) == ([], [])


def test_what_lies_under_a_temporary_name_is_removed_but_nothing_else_hidden(tmp_path):
    kills.write_inputs(tmp_path, images=2, films=0)
    kills.masks(tmp_path)
    ids = tmp_path / "masks/ids/0"
    (ids / ".abcd_123.tmp").write_bytes(b"half")
    (ids / ".mine.tmp").write_bytes(b"mine")
    (ids / ".abcdefgh.tmp.txt").write_bytes(b"mine")
    (tmp_path / "masks/.video-abcd1234").mkdir()
    kills.masks(tmp_path, resume=True)
    assert sorted(path.name for path in ids.glob(".*")) == [".abcdefgh.tmp.txt", ".mine.tmp"]
    assert not (tmp_path / "masks/.video-abcd1234").exists()
