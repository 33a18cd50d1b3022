"""Copies of the state: exact, independent, and without a wait for a GPU until they are used."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from udaseg.errors import DivergedError
from udaseg.training import snapshot
from udaseg.training.callbacks.checkpoints import Checkpoints
from udaseg.training.memory import OutOfMemory
from udaseg.training.snapshot import Snapshot, state_is_finite

ATEN = torch.ops.aten


def _state(device="cpu"):
    """Return a module and an optimiser with one moment for each weight, and a shared tuple."""
    module = torch.nn.Linear(3, 2, device=device)
    shared = (0.5, 0.9)  # as an Adam's betas
    groups = [{"params": [part], "betas": shared} for part in module.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for part in module.parameters():
        optimizer.state[part]["momentum_buffer"] = torch.ones_like(part)
    return module, optimizer


def _tensors(module, optimizer):
    moments = [value["momentum_buffer"] for value in optimizer.state_dict()["state"].values()]
    return [*module.state_dict().values(), *moments]


def test_a_restored_state_is_exact_and_training_on_does_not_change_the_copy():
    module, optimizer = _state()
    before = [value.clone() for value in _tensors(module, optimizer)]
    copy = Snapshot(1, module, optimizer)
    for _ in range(2):
        for value in _tensors(module, optimizer):
            value.fill_(7)
        copy.restore(module, optimizer)
        assert all(map(torch.equal, _tensors(module, optimizer), before))
    first, second = optimizer.param_groups
    assert first["betas"] is second["betas"]


class Copies(TorchDispatchMode):
    """Record the copies between devices and whether each waits, in order with other events."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is ATEN._to_copy.default and args[0].device != out.device:
            waits = not kwargs.get("non_blocking", False)
            self.events.append((args[0].device.type, out.device.type, waits))
        if func is ATEN.copy_.default and args[0].device != args[1].device:
            self.events.append((args[1].device.type, args[0].device.type, True))
        return out


def test_a_gpu_copies_without_a_wait_and_is_waited_for_once_when_the_copy_is_used(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(device.type))
    with FakeTensorMode():
        module, optimizer = _state("cuda")
        with Copies(events):
            copy = Snapshot(1, module, optimizer)
            # torch makes the result of such a copy page-locked
            assert events == [("cuda", "cpu", False)] * 4
            events.clear()
            copy.restore(module, optimizer)
    assert events == ["cuda", *[("cpu", "cuda", True)] * 4]


@pytest.mark.parametrize(
    ("value", "finite"), [(1.0, True), (3e38, None), (float("nan"), False), (float("inf"), False)]
)
@pytest.mark.parametrize("place", range(4))
def test_any_number_of_the_state_decides(value, finite, place):
    module, optimizer = _state()
    _tensors(module, optimizer)[place].view(-1)[-1] = value
    if finite is None:  # a weight whose square overflows is no good; a moment may be large
        finite = place >= len(module.state_dict())
    assert state_is_finite(module, optimizer) == finite


def test_a_bad_state_of_another_rank_decides_too(monkeypatch):
    monkeypatch.setattr(snapshot, "all_ranks", lambda _: False)
    assert not state_is_finite(*_state())


def test_a_state_that_no_guard_has_checked_is_not_saved_unless_finite(monkeypatch):
    module, optimizer = _state()
    state = SimpleNamespace(step=3, setup=SimpleNamespace(objective=module, optimizer=optimizer))
    saved, callback = [], Checkpoints()
    monkeypatch.setattr(callback, "_save", saved.append)
    callback.end(state, OutOfMemory("full", 3))
    assert saved == [state]
    module.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"step 3: .*nothing was saved"):
        callback.end(state, OutOfMemory("full", 3))
    assert saved == [state]
