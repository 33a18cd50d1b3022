"""Checkpoints: order of writes, verification, fallback, and strict restoring."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from udaseg.errors import CheckpointError, EnvironmentFault
from udaseg.runs import checkpoint as module
from udaseg.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from udaseg.training.optimizer import make_optimizer, parameter_group
from udaseg.training.resume import restore


def _trained(width=3):
    torch.manual_seed(0)
    network = nn.Linear(width, 2)
    trainer = make_optimizer(
        "sgd",
        [parameter_group("all", 0.1, network.named_parameters())],
        momentum=0.9,
        weight_decay=0.0,
    )
    network(torch.ones(1, width)).sum().backward()
    trainer.step()
    return network, trainer


def _save(folder, step, *, keep=2, network=None, trainer=None):
    if network is None:
        network, trainer = _trained()
    return save_checkpoint(
        folder,
        step=step,
        objective=network,
        optimizer=trainer,
        recipe={"name": "r"},
        classes={"names": ["a", "b"], "colors": [[0, 0, 0], [1, 1, 1]]},
        files={"source": "digest"},
        keep=keep,
    )


def test_a_checkpoint_comes_back_whole(tmp_path):
    network, trainer = _trained()
    path = _save(tmp_path, 7, network=network, trainer=trainer)
    loaded = load_checkpoint(path)
    other, its_trainer = _trained()
    with torch.no_grad():
        other.weight.zero_()
    its_trainer.state.clear()
    assert restore(loaded, other, its_trainer) == 7
    assert torch.equal(other.weight, network.weight)
    buffers = [state["momentum_buffer"] for state in its_trainer.state.values()]
    expected = [state["momentum_buffer"] for state in trainer.state.values()]
    assert all(torch.equal(*pair) for pair in zip(buffers, expected, strict=True))
    assert loaded.recipe == {"name": "r"}
    assert loaded.classes["names"] == ["a", "b"]


def test_files_are_synced_before_they_are_named_and_the_manifest_comes_last(tmp_path, monkeypatch):
    events = []
    real_sync, real_replace = os.fsync, type(tmp_path).replace

    def sync(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append(("sync", name))
        real_sync(descriptor)

    def rename(self, target):
        events.append(("rename", target.name))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(type(tmp_path), "replace", rename)
    _save(tmp_path, 1)
    assert events == [
        ("sync", "step-000001.pt.tmp"),
        ("rename", "step-000001.pt"),
        ("sync", tmp_path.name),
        ("sync", "step-000001.json.tmp"),
        ("rename", "step-000001.json"),
        ("sync", tmp_path.name),
    ]


def test_only_the_newest_are_kept_and_leftovers_are_swept(tmp_path):
    (tmp_path / "step-000000.pt.tmp").write_bytes(b"killed while writing")
    for step in (1, 2, 9, 10):
        _save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("step-000009.json", "step-000009.pt"),
        *("step-000010.json", "step-000010.pt"),
    ]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_of_later_steps_push_out_none_that_is_made_again(tmp_path, keep):
    for step in (8, 9):
        path = _save(tmp_path, step, keep=9)
        path.write_bytes(path.read_bytes()[:-1])
    for step in range(1, 8):
        _save(tmp_path, step, keep=keep)
        assert newest_checkpoint(tmp_path).step == step
        whole = sorted(int(path.stem[5:]) for path in tmp_path.glob("*.pt"))
        assert whole == [*range(max(1, step - keep + 1), step + 1), 8, 9]
    for step in (8, 9):
        _save(tmp_path, step, keep=keep)
    assert len(list(tmp_path.glob("*.pt"))) == len(list(tmp_path.glob("*.json"))) == keep
    assert load_checkpoint(tmp_path / "step-000009.pt").step == 9


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_truncation_is_refused_and_the_one_before_is_used(tmp_path, cut, caplog):
    _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * cut // 100])
    with pytest.raises(CheckpointError, match=r"step-000002\.pt.*damaged.*expected"):
        load_checkpoint(path)
    loaded = newest_checkpoint(tmp_path)
    assert loaded.step == 1
    assert "step-000002" in caplog.text


@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_is_refused(tmp_path, seed):
    path = _save(tmp_path, 1)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(path)


def test_a_checkpoint_without_manifest_was_never_finished(tmp_path):
    path = _save(tmp_path, 1)
    path.with_suffix(".json").unlink()
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"size": "x"}', '{"size": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    path = _save(tmp_path, 1)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(CheckpointError, match="manifest"):
        load_checkpoint(path)


def test_a_pickle_that_runs_code_is_never_run(tmp_path, monkeypatch):
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "step-000001.pt"
    torch.save({"format": 1, "x": Payload()}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert not marker.exists()


def test_other_files_are_no_checkpoints(tmp_path):
    path = tmp_path / "step-000001.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a udaseg checkpoint"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_newer_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 99)
    path = _save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)


def test_another_network_is_refused_with_the_differences(tmp_path):
    loaded = load_checkpoint(_save(tmp_path, 1))
    network, trainer = _trained(width=4)
    with pytest.raises(CheckpointError, match=r"weight: \(2, 3\), here \(2, 4\)"):
        restore(loaded, network, trainer)
    network, _ = _trained()
    reordered = make_optimizer(
        "sgd",
        [parameter_group("all", 0.1, reversed(list(network.named_parameters())))],
        momentum=0.9,
        weight_decay=0.0,
    )
    with pytest.raises(CheckpointError, match="another order"):
        restore(loaded, network, reordered)


@pytest.mark.parametrize("value", [np.float64(0.5), np.zeros(2), {1, 2}, object()])
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    network, trainer = _trained()
    with pytest.raises(TypeError, match=r"checkpoint\.recipe\.best"):
        save_checkpoint(
            tmp_path,
            step=1,
            objective=network,
            optimizer=trainer,
            recipe={"best": value},
            classes={},
            files={},
            keep=2,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    _save(tmp_path, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        _save(tmp_path, 2)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path).step == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_what_the_disk_said_is_told_and_not_what_the_writer_made_of_it(tmp_path):
    """The disk fills up while torch writes."""

    class Full:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self._file, name)

    real = torch.save
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "save", lambda payload, file: real(payload, Full(file)))
        with pytest.raises(EnvironmentFault, match=r"\(No space left on device\); free some"):
            _save(tmp_path, 2)
    assert not list(tmp_path.glob("*.tmp"))


def test_the_manifest_is_plain_json(tmp_path):
    manifest = json.loads(_save(tmp_path, 3).with_suffix(".json").read_text())
    assert manifest["step"] == 3
    assert manifest["file"] == "step-000003.pt"
