"""A run folder that is moved, deleted or replaced under its run."""

import json
import shutil

import pytest

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, assert_same, tensors
from udaseg.training import loop

WORDS = ["machine.checkpoint_every=2", "machine.log_every=3", "machine.preview_every=1"]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    adapt(root, out, *WORDS, steps=6)
    return out


@pytest.fixture
def at_step(monkeypatch):
    """Return a function that sets what happens before the fifth step."""

    def set_action(action):
        real = loop.iterate_batches

        def iterate_batches(*words, **options):
            for batch in real(*words, **options):
                if batch.step == 4:
                    action()
                yield batch

        monkeypatch.setattr(loop, "iterate_batches", iterate_batches)

    return set_action


@pytest.mark.slow
def test_a_moved_folder_ends_the_run_and_goes_on_at_its_new_place(
    root, whole, tmp_path, at_step, monkeypatch
):
    out, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context():
        at_step(lambda: out.rename(moved))
        output = adapt(root, out, *WORDS, steps=6, expect=5)
    assert f"{out}: was moved or deleted while the run was writing to it" in output.stderr
    assert "Errno" not in output.stderr
    assert not out.exists()
    assert json.loads((moved / "status.json").read_text())["state"] == "running"
    monkeypatch.undo()
    udaseg("adapt", "--resume", moved, "--root", root, cwd=tmp_path)
    assert_same(tensors(moved), tensors(whole))


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["machine.keep_best=entropy"], ["machine.workers=1"]])
def test_a_deleted_folder_ends_the_run_and_stays_deleted(root, tmp_path, at_step, words):
    out = tmp_path / "run"
    at_step(lambda: shutil.rmtree(out))
    output = adapt(root, out, *WORDS, *words, steps=6, expect=5)
    assert f"{out}: was moved or deleted" in output.stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_folder_that_took_the_place_is_not_written_to(root, whole, tmp_path, at_step):
    out = tmp_path / "run"

    def replace():
        out.rename(tmp_path / "moved")
        shutil.copytree(whole, out)

    at_step(replace)
    adapt(root, out, *WORDS, steps=6, expect=5)
    for path in whole.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert len(list(out.rglob("*"))) == len(list(whole.rglob("*")))


@pytest.mark.slow
def test_a_folder_that_goes_while_the_run_is_scored_stays_away(root, tmp_path, monkeypatch):
    from udaseg.training.callbacks import scores

    out, real = tmp_path / "run", scores.confusion_matrix

    def confusion_matrix(*words, **options):
        shutil.rmtree(out)
        return real(*words, **options)

    monkeypatch.setattr(scores, "confusion_matrix", confusion_matrix)
    output = adapt(root, out, steps=1, expect=5)
    assert f"{out}: was moved or deleted" in output.stderr
    assert not out.exists()
