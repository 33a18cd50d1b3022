"""The memory estimate: a step on tensors without storage against a real step, byte by byte."""

from dataclasses import replace

import pytest
import torch

from tests.cli.running import udaseg
from tests.support.small import shipped
from tests.support.toy import TINY, toy_pair
from udaseg.recipe.stages import adapts
from udaseg.training.footprint import StorageTracker, estimate_footprint, peak_step_memory
from udaseg.training.setup import build_setup
from udaseg.training.step import compute_gradients


def dry_run(root, name, *words):
    given = {word.partition("=")[0] for word in words}
    tiny = [word for word in TINY if word.partition("=")[0] not in given]
    recipe = shipped(name, [*tiny, *words])
    source, target = toy_pair(root)
    return build_setup(recipe, source, target if adapts(recipe) else None)


def real_peak(run):
    """Return the peak bytes of a real step, measured by the same tracker, with gradients."""
    batch = replace(run.batches[0], step=len(run.batches) - 1, progress=1.0)
    with StorageTracker() as ledger:
        compute_gradients(run, batch)
    return ledger.peak


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toyland/rccr_spcl", []),
        pytest.param(
            *("toyland/sepico", ["machine.activation_checkpointing=true"]), marks=pytest.mark.slow
        ),
        ("toyland/advent", ["machine.micro_batches=2"]),
        pytest.param(
            "toyland/dacs",
            [
                *("method.warm_up=0.5", "method.masking={kind: block, size: 16}"),
                *("method.teacher.mirror=true", "method.mixing.share_over=class"),
                "method.teacher.scale=1.5",
                "method.teacher.prior={exponent: 0.25, towards: source}",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("toyland/rccr", ["machine.precision=bf16", "optimizer.kind=sgd"]),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(part),
)
def test_the_estimated_peak_is_that_of_a_real_step(root, name, words):
    run = dry_run(root, name, *words)
    before = {key: value.clone() for key, value in run.objective.state_dict().items()}
    estimated = peak_step_memory(run)
    after = run.objective.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert all(part.grad is None for part in run.objective.parameters())
    assert estimated == pytest.approx(real_peak(run), rel=0.01)


def test_the_parts_are_those_of_the_tensors(root):
    run = dry_run(root, "toyland/rccr")
    needs = estimate_footprint(run)
    state = run.objective.state_dict()

    def size(prefix):
        return sum(v.numel() * v.element_size() for k, v in state.items() if k.startswith(prefix))

    assert needs.student == size("student.")
    assert needs.teacher == size("teacher.")
    assert needs.memories == size("regularizers.")
    compute_gradients(run, run.batches[0])
    grads = [part.grad for part in run.objective.parameters() if part.grad is not None]
    assert needs.gradients == sum(grad.numel() * grad.element_size() for grad in grads)
    run.optimizer.step()
    moments = run.optimizer.state_dict()["state"].values()
    held = sum(v.numel() * v.element_size() for part in moments for v in part.values() if v.dim())
    assert needs.moments == held
    assert needs.total() > needs.checkpoint_size() > needs.student


@pytest.mark.slow
def test_each_way_of_saving_memory_saves_it(root):
    words = {
        "plain": [],
        "checkpointing": ["machine.activation_checkpointing=true"],
        "parts": ["machine.micro_batches=2"],
    }
    needs = {
        name: estimate_footprint(dry_run(root, "toyland/dacs", *extra))
        for name, extra in words.items()
    }
    for name in ("checkpointing", "parts"):
        assert needs[name].activations < 0.85 * needs["plain"].activations, name
        assert needs[name].student == needs["plain"].student


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_of_memory_of_each_stage(root, tmp_path):
    words = ["adapt", "toyland/spcl", "--root", root, "--dry-run", *TINY]
    output = udaseg(*words, cwd=tmp_path).stderr
    lines = [line for line in output.splitlines() if line.strip().startswith("memory")]
    assert [line.split()[2] for line in lines] == ["warm_up:", "contrast:", "self_distillation:"]
    assert all("activations" in line and "optimiser" in line for line in lines)
    assert "excludes" in output.split("estimated from tensor sizes")[1]
    assert "checkpoint size" in output
    assert not list(tmp_path.iterdir())
