import pytest

from tests.support import crashes
from udaseg.errors import CheckpointError
from udaseg.selection.candidates import find_candidates


def test_a_checkpoint_that_is_gone_is_named(tmp_path, caplog):
    folder = tmp_path / "run/checkpoints"
    first, second = (crashes.saved(folder, step) for step in (1, 2))
    second.unlink()
    second.symlink_to("nowhere")
    found = find_candidates([tmp_path / "run"], all_checkpoints=True)
    assert [candidate.checkpoint for candidate in found] == [first]
    assert f"{second}: it has a manifest, but it is not there" in caplog.text
    first.unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_candidates([tmp_path / "run"], all_checkpoints=True)
