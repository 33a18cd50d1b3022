"""bf16: losses, comparisons and stored values stay in float32, and results stay close."""

import pytest
import torch

from tests.support.injections import everything, rich_objective, tiny_fit
from tests.support.injections import trained as train


def _run(precision, **changes):
    run, reports = tiny_fit(objective=rich_objective(), steps=3, precision=precision, **changes), []
    dtypes, kept = set(), set()
    student = run.objective.student
    student.backbone.register_forward_hook(lambda _, __, maps: dtypes.add(maps[-1].dtype))
    student.head.register_forward_hook(lambda _, __, logits: kept.add(logits.dtype))
    train(run, on_step=lambda _, report: reports.append(report))
    assert kept == {torch.float32}
    return run, reports, dtypes


def test_bf16_is_finite_and_near_and_the_network_runs_in_it():
    _, expected, plain = _run("fp32")
    run, reports, dtypes = _run("bf16")
    assert plain == {torch.float32}
    assert dtypes == {torch.bfloat16}
    for one, other in zip(reports, expected, strict=True):
        assert one.total.dtype == torch.float32
        assert torch.isfinite(one.total)
        assert one.total.item() == pytest.approx(other.total.item(), rel=0.05)
        for name, part in one.parts.items():
            assert part.dtype == torch.float32, name
    assert all(torch.isfinite(value).all() for value in everything(run).values())


def test_all_that_is_kept_stays_in_float32():
    run, reports, _ = _run("bf16")
    kept = everything(run)
    halves = [name for name, value in kept.items() if value.dtype in (torch.bfloat16, torch.half)]
    assert halves == []
    bank = run.objective.regularizers["regional"].bank
    assert len(bank) > 0
    assert bank.embeddings.dtype == torch.float32
    lengths = bank.rows()[0][bank.rows()[1] >= 0].norm(dim=1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3)
    means = run.objective.regularizers["prototypes"].prototypes.means
    assert means.dtype == torch.float32
    assert means.abs().sum() > 0
    # not float32 values that were rounded to bf16 in between
    assert not torch.equal(means, means.bfloat16().float())
    assert all(
        part.grad is None or part.grad.dtype == torch.float32
        for part in run.objective.student.parameters()
    )
    assert reports[-1].views is not None


def test_bf16_with_activations_made_again_is_the_same_as_without():
    plain, _, _ = _run("bf16")
    run = tiny_fit(objective=rich_objective(), steps=3, precision="bf16")
    run.objective.student.recompute = True
    train(run)
    one, other = everything(plain), everything(run)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
