"""bf16: losses, comparisons and stored values stay in float32, and results stay close."""

import functools
import math
from dataclasses import replace

import pytest
import torch

from tests.methods.test_self_training import _regional
from tests.support.injections import everything, rich_objective, tiny_fit
from tests.support.injections import trained as train
from tests.training.test_ranks import LARGER, OBJECTIVES, _global_batch, _mean_teaching
from udaseg.training.step import compute_gradients


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


SMALLEST = 0.01 * math.exp(-5)
"""Weight of RCCR's term at the first step."""

ENOUGH_STEPS = 10
COSINE = 0.99


def _smallest_regional():
    return _mean_teaching(regularizers={"regional": _regional(weight=SMALLEST)})


def _cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


def _gradient(run, batch, precision, *, without=None):
    """Return the gradient of a step, without one term."""
    machine = replace(run.recipe.machine, precision=precision)
    run = replace(run, recipe=replace(run.recipe, machine=machine))
    real = run.objective.passes

    def less(report):
        return replace(report, total=report.total - report.parts[without])

    def passes(*args):
        return (less(each) if without in each.parts else each for each in real(*args))

    run.objective.passes = passes
    torch.manual_seed(0)
    report = compute_gradients(run, batch)
    del run.objective.passes
    return report, _flat_gradient(run)


def _flat_gradient(run):
    trained_parts = [part for part in run.objective.parameters() if part.requires_grad]
    return torch.cat(
        [
            (torch.zeros_like(part) if part.grad is None else part.grad).double().flatten()
            for part in trained_parts
        ]
    )


@functools.cache
def _learnt(name):
    objective = {**OBJECTIVES, "rccr": _smallest_regional}[name]()
    run = tiny_fit(objective=objective, steps=ENOUGH_STEPS, kind="sgd", lr=0.02, make=_global_batch)
    train(run)
    if (teacher := getattr(run.objective, "teacher", None)) is not None:
        # the same pseudo-labels in both: one that flips would be another task
        teacher.forward = torch.autocast("cpu", enabled=False)(teacher.forward)
    return run


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in LARGER])
def test_each_terms_part_of_a_bf16_gradient_points_where_it_does_in_fp32(name):
    """At the smallest weight that a ramp gives, beside the other terms."""
    run, batch = _learnt(name), _global_batch(ENOUGH_STEPS - 1, 0)
    report, _ = _gradient(run, batch, "fp32")
    for term in report.parts:
        shares = [
            _gradient(run, batch, precision)[1] - _gradient(run, batch, precision, without=term)[1]
            for precision in ("fp32", "bf16")
        ]
        assert _cosine(*shares) > COSINE, term


def test_a_small_term_is_lost_where_gradients_meet_in_bf16():
    """One graph for all views and one cast of each weight: what a step did without passes."""
    run, batch = _learnt("rccr"), _global_batch(ENOUGH_STEPS - 1, 0)
    shares = []
    for precision in ("fp32", "bf16"):
        gradients = []
        for terms in (("source", "mixed", "regional"), ("source", "mixed")):
            run.optimizer.zero_grad()
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                parts = run.objective(batch).parts
            sum(parts[term] for term in terms).backward()
            gradients.append(_flat_gradient(run))
        shares.append(gradients[0] - gradients[1])
    assert _cosine(*shares) < 0.9
