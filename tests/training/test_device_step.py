"""What a training step asks of a GPU, counted on tensors without storage, against BENCHMARKS.md."""

import contextlib
import re

import pytest
import torch
from torch import nn

from tests.support import fake_cuda, step_counts
from tests.support.fake_backward import Backward
from tests.support.small import REPOSITORY, small_segmenter
from udaseg.models import upsampling

COUNTED_WITH = "2.14."
"""The torch of the table; another may split operators differently, by far less than this room."""

ROOM = 0 if torch.__version__.startswith(COUNTED_WITH) else 0.1

FAST = {"rccr", "spcl/contrast"}
FAST_OVER_RANKS = {"source_only"}


def cases(fast):
    return [
        pytest.param(case, id=case.name, marks=[] if case.name in fast else pytest.mark.slow)
        for case in step_counts.all_cases()
    ]


def tabled():
    """Return what BENCHMARKS.md has of each method: operators outside the network, sums."""
    text = (REPOSITORY / "BENCHMARKS.md").read_text(encoding="utf-8")
    section = text.partition("## One training step on a GPU\n")[2].partition("\n## ")[0]
    table = re.split(r"^\| method \|.*\n\|.*\n", section, flags=re.MULTILINE)[-1]
    rows = [line.split("|")[1:] for line in table.splitlines() if line.startswith("|")]
    return {row[0].strip(): (int(row[1].replace(",", "")), int(row[5])) for row in rows}


@pytest.mark.parametrize("case", cases(FAST))
def test_a_step_waits_once_and_launches_no_more_than_the_table_says(case):
    gpu = step_counts.count_step(case)
    asked = [event for event in gpu.events if event.kind != "operator"]
    assert [event.kind for event in asked] == ["read"], asked
    assert gpu.total("read") == 1, asked
    assert gpu.total("operator", network=False) <= tabled()[case.name][0] * (1 + ROOM)


@pytest.mark.parametrize("case", cases(FAST_OVER_RANKS))
def test_over_ranks_a_step_reduces_as_the_table_says_and_its_norms_do_not_wait(case):
    gpu = step_counts.count_step(case, ranks=2)
    assert [event for event in gpu.events if event.kind in ("pageable copy", "values decide")] == []
    reduced = [event for event in gpu.events if event.kind == "scalars" and not event.network]
    assert gpu.total("scalars", network=False) == tabled()[case.name][1], reduced
    assert gpu.total("read") == 1


def test_the_table_has_every_method():
    assert set(tabled()) == {case.name for case in step_counts.all_cases()}


def test_the_backward_pass_in_python_is_that_of_torch():
    images = torch.rand(2, 3, 16, 32)
    found = []
    for run in (torch.autograd.backward, Backward(lambda _: contextlib.nullcontext()).run):
        network = small_segmenter()
        loss = torch.zeros(())
        for part in images.split(1):
            output = network(part, embed=True)
            first, second = output.embeddings.chunk(2, 1)
            loss = loss + nn.functional.cross_entropy(output.logits, output.logits.argmax(1))
            loss = loss + _Doubled.apply(first, second)[0].sum()
        run([loss], [None])
        found.append([parameter.grad for parameter in network.parameters()])
    assert all(grad is not None and grad.any() for grad in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


class _Doubled(torch.autograd.Function):
    """Has two outputs, of which the test uses one, and a tensor that needs no gradient."""

    @staticmethod
    def forward(ctx, first, second):
        ctx.save_for_backward(second)
        return 2 * first * second, first + 0

    @staticmethod
    def backward(ctx, grad, other):
        return 2 * grad * ctx.saved_tensors[0] + other, None


WAITS = {
    "item": ("read", lambda value: value.sum().item()),
    "list": ("read", lambda value: value.tolist()),
    "truth": ("read", lambda value: bool(value.isfinite().all())),
    "to the host": ("read", lambda value: value.cpu()),
    "into the host": ("read", lambda value: torch.zeros(4).copy_(value)),
    "number as index": ("read", lambda value: value[value.argmax() : 2]),
    "nonzero": ("values decide", lambda value: value.nonzero()),
    "mask": ("values decide", lambda value: value[value > 0]),
    "mask assigned": ("values decide", lambda value: value.index_put_((value > 0,), value)),
    "masked_select": ("values decide", lambda value: value.masked_select(value > 0)),
    "unique": ("values decide", lambda value: value.unique()),
    "bincount": ("values decide", lambda value: value.long().bincount()),
    "list to the device": ("pageable copy", lambda value: torch.tensor([1.0], device="cuda:0")),
    "unpinned": ("pageable copy", lambda value: torch.zeros(4).to("cuda:0", non_blocking=True)),
    "blocking": ("pageable copy", lambda value: torch.zeros(4).pin_memory().to("cuda:0")),
    "copied in": ("pageable copy", lambda value: value.copy_(torch.zeros(4))),
    "indices of the host": ("pageable copy", lambda value: value[torch.tensor([0, 2])]),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_seen(name):
    kind, act = WAITS[name]
    with fake_cuda.FakeCuda() as gpu:
        value = torch.empty(4, device="cuda:0")
        # the size of some results cannot be known without values
        with contextlib.suppress(RuntimeError):
            act(value)
    assert {event.kind for event in gpu.events} - {"operator"} == {kind}


def test_work_without_a_wait_is_not_reported():
    with fake_cuda.FakeCuda() as gpu:
        value = torch.zeros(4).pin_memory().to("cuda:0", non_blocking=True)
        value = torch.where(value > 0, value, 0.0) + torch.tensor(1.0)
        assert (value[1:3] * 2).device == fake_cuda.CUDA
        with pytest.raises(RuntimeError, match="device"):
            value + torch.zeros(4)
    assert {event.kind for event in gpu.events} == {"operator"}


def test_what_is_made_once_and_kept_on_a_gpu_is_not_counted():
    with fake_cuda.FakeCuda() as gpu:
        weights = upsampling.row_weights(4, 8, fake_cuda.CUDA)
        assert not gpu.events
        assert (weights + 1).device == fake_cuda.CUDA
        assert gpu.total("operator") == 1


def test_the_stand_in_leaves_nothing_behind():
    before = (torch.cuda._lazy_init, torch.autograd.backward, torch.Tensor.pin_memory)
    with fake_cuda.FakeCuda():
        assert torch.autograd.backward is not before[1]
    assert (torch.cuda._lazy_init, torch.autograd.backward, torch.Tensor.pin_memory) == before
    assert "pin_memory" not in vars(torch.Tensor)
    assert not torch._C._only_lift_cpu_tensors()
    value = torch.ones(3, requires_grad=True)
    value.sum().backward()
    assert value.grad.tolist() == [1, 1, 1]
