"""Checkpoint faults: a few trials of each campaign of `make faults`."""

import math
import re

import pytest
import torch

from tests.cli.running import udaseg
from tests.support import crashes, files, mutations
from udaseg.errors import CheckpointError
from udaseg.models.weights import read_state_dict
from udaseg.runs.checkpoint import load_checkpoint


def test_a_kill_while_saving_loses_nothing_that_was_told(tmp_path):
    result = crashes.killed_while_saving(tmp_path, 6, seed=0)
    assert result.kills == 6
    assert result.lost == []


def test_a_kill_before_any_change_on_the_disk_loses_nothing(tmp_path):
    result = crashes.killed_at_every_change(tmp_path, 8)
    assert result.kills == 8
    assert result.lost == []


def test_cuts_and_flips_are_refused_and_the_one_before_is_taken(tmp_path, caplog):
    trials, wrong = crashes.unnoticed_damage(tmp_path, 15, 25, seed=0)
    assert (trials, wrong) == (40, [])


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    kinds = list(crashes.of_another_kind(tmp_path))
    assert len(kinds) > 35
    for what, act in kinds:
        try:
            act()
        except CheckpointError as error:
            assert "step-000001.pt" in str(error), what
        else:
            pytest.fail(f"{what}: was taken")


WRONG = [None, True, "x", -1, math.nan, 10**400, [], {"x": {}}, torch.zeros(2)]


@pytest.mark.slow
def test_a_value_of_another_type_is_refused_in_every_place(tmp_path):
    taken = [
        (place, before, value)
        for place, before, value in crashes.of_wrong_types(tmp_path, WRONG)
        if not place.startswith("recipe")  # read by the reader of recipes
    ]
    for place, before, value in taken:
        # an objective without this memory, text for text, a moment that is not there yet
        assert type(value) is type(before) or value is None, place
    assert {place for place, _, value in taken if isinstance(value, list | dict)} <= {
        "optimizer.state"
    }


@pytest.mark.parametrize("words", [("predict", "photo.png", "--checkpoint"), ("info",)])
@pytest.mark.parametrize(
    ("key", "value"), [("step", "7"), ("processes", "x"), ("classes", {}), ("optimizer", [])]
)
def test_commands_refuse_checkpoints_of_wrong_types(tmp_path, words, key, value):
    files.put(tmp_path / "photo.png", files.image_png())
    path = crashes.saved(tmp_path, 1)
    torch.save({**torch.load(path, weights_only=True), key: value}, path)
    path.with_suffix(".json").unlink()
    output = udaseg(*words, path, cwd=tmp_path, expect=3)
    assert f"error: {path}: not a checkpoint as udaseg writes it: {key}" in output.stderr


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "complex", "on the meta device", "a quantized tensor"])
def test_a_tensor_that_holds_no_plain_numbers_is_refused(tmp_path, kind):
    path = crashes.saved(tmp_path, 1)
    payload = torch.load(path, weights_only=True)
    name = next(iter(payload["objective"]))
    payload["objective"][name] = dict(mutations._TENSORS)[kind](payload["objective"][name])
    torch.save(payload, path)
    path.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"objective.{name}") + ".*plain numbers"):
        load_checkpoint(path)


class Hostile:
    def __reduce__(self):
        return print, ("opened",)


def test_a_pickle_is_refused_in_one_sentence_of_ours(tmp_path, capsys):
    path = tmp_path / "step-000001.pt"
    torch.save(Hostile(), path)
    output = udaseg("info", path, cwd=tmp_path, expect=3)
    told = "it holds other things than tensors and plain values, which are not opened"
    assert output.stderr.splitlines()[-1] == f"error: {path}: not a readable checkpoint: {told}"
    with pytest.raises(CheckpointError) as refused:
        read_state_dict(path)
    assert str(refused.value) == f"{path}: not readable as weights: {told}"
    assert "opened" not in capsys.readouterr().out
