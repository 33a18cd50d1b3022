"""Compiled networks: the same losses up to rounding, and the same names in checkpoints."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import tensors
from tests.support.injections import rich_objective, tiny_fit
from tests.support.injections import trained as train
from tests.support.small import REPOSITORY, shipped, small_segmenter
from tests.support.toy import TINY, toy_pair, toy_root
from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.methods.build import apply_machine_options
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.target_statistics import adapt_batch_norms
from udaseg.models import compiling
from udaseg.models.projector import Projector
from udaseg.models.segmenter import evaluation_mode
from udaseg.recipe.schema import Machine
from udaseg.recipe.stages import adapts, stages_of
from udaseg.runs.checkpoint import load_checkpoint, save_checkpoint
from udaseg.training.callbacks.previews import Previews
from udaseg.training.setup import build_crop_source, build_setup
from udaseg.training.step import compute_gradients

RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes" / "toyland").glob("*.yaml"))
CASES = [
    pytest.param(
        name,
        stage.index,
        # the releases differ from our recipes in nothing that is compiled
        marks=pytest.mark.slow if name.endswith("_release") else (),
        id=f"{name} {stage.name}".strip(),
    )
    for name in RECIPES
    for stage in stages_of(shipped(f"toyland/{name}"))
]

# torch's tracer reads `.grad` of non-leaf tensors, and suppresses this warning itself
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@pytest.fixture
def backend(monkeypatch):
    """Trace and differentiate as usual but generate no code, so no compiler is needed."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _losses(compiled, steps=4):
    run, losses = tiny_fit(objective=rich_objective(), steps=steps, lr=1e-5), []
    apply_machine_options(run.objective, Machine(compile=compiled))
    train(run, on_step=lambda _, report: losses.append(report.total.item()))
    return run, losses


def test_losses_are_the_same_up_to_rounding_and_names_stay(backend):
    plain, expected = _losses(False)
    run, losses = _losses(True)
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert run.objective.state_dict().keys() == plain.objective.state_dict().keys()
    assert not [name for name in run.objective.state_dict() if "_orig_mod" in name]
    assert not [name for name, _ in run.objective.named_parameters() if "_orig_mod" in name]


def test_a_checkpoint_of_a_compiled_run_is_like_any_other(backend, tmp_path):
    run, _ = _losses(True, steps=1)
    classes = {"names": ["a"], "colors": [[0, 0, 0]]}
    facts = {"recipe": {}, "classes": classes, "files": {}, "keep": 2}
    path = save_checkpoint(
        tmp_path, step=1, objective=run.objective, optimizer=run.optimizer, **facts
    )
    other = rich_objective()
    other.load_state_dict(load_checkpoint(path).objective, strict=True)


def test_evaluation_is_not_compiled(backend):
    network = small_segmenter(projector=False)
    network.enable_compile("training")
    torch._dynamo.utils.counters.clear()
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 24, 40))
    assert not torch._dynamo.utils.counters["stats"]


def test_a_copy_is_not_compiled_and_has_weights_of_its_own(backend):
    network = small_segmenter(projector=False)
    network.enable_compile("always")
    duplicate = copy.deepcopy(network)
    with torch.no_grad():
        network.backbone.low[0].weight.zero_()
        assert not torch.equal(
            network.eval()(torch.ones(1, 3, 16, 16)).features,
            duplicate.eval()(torch.ones(1, 3, 16, 16)).features,
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return toy_pair(toy_root(tmp_path_factory.mktemp("data")))


def _small_setup(pair, name, index, monkeypatch):
    """Return the setup of a stage of a recipe with a network of two layers, compiled."""

    def build_small(_spec, num_classes, *, projector=None):
        network = small_segmenter(classes=num_classes, projector=False)
        if projector is not None:
            network.projector = Projector.from_spec(projector, network.feature_channels)
        return network

    monkeypatch.setattr("udaseg.methods.build.build_segmenter", build_small)
    recipe = shipped(f"toyland/{name}", [*TINY, "machine.compile=true", "machine.precision=bf16"])
    stage = stages_of(recipe)[index]
    return build_setup(recipe, pair[0], pair[1] if adapts(recipe) else None, stage=stage)


def _look_at_other_sizes(setup, pair, folder):
    """Draw a preview, score an image, and take the statistics of the target."""
    objective = setup.objective
    student, networks = objective.student, [objective.student]
    assert Previews(setup.recipe, pair[0].classes, folder).draw(setup, 1) is not None
    with evaluation_mode(student), torch.no_grad():
        student(torch.rand(1, 3, 40, 24))
    if isinstance(objective, SelfTraining):
        networks.append(objective.teacher.network)
    target = build_crop_source(setup.recipe.target, pair[1], labelled=False)
    ways = {"batch_size": 2, "device": setup.device, "on_progress": lambda *_: None}
    adapt_batch_norms(networks, target, target.samples[:2], **ways)
    objective.train()


@pytest.mark.parametrize(("name", "index"), CASES)
def test_each_part_is_compiled_once_for_the_step_and_for_nothing_else(
    name, index, pair, tmp_path, backend, monkeypatch
):
    """Images in another memory layout than the first would compile a part again."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.utils.counters.clear()
    setup = _small_setup(pair, name, index, monkeypatch)
    objective, graphs = setup.objective.train(), []
    for step in range(3):
        # at the end of a run, when every loss term is active
        batch = replace(setup.batches[step], step=len(setup.batches) - 3 + step, progress=0.9)
        if setup.stage.pseudo_labels is not None:
            labels = torch.zeros_like(batch.target_images[:, 0])
            batch = replace(batch, pseudo_labels=labels)
        report = compute_gradients(setup, batch)
        setup.optimizer.step()
        objective.after_step(batch.step, report)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        if step == 1:
            _look_at_other_sizes(setup, pair, tmp_path)
    networks = [objective.student]
    if isinstance(objective, SelfTraining):
        networks.append(objective.teacher.network)
    parts = [part for each in networks for part in (each.backbone, each.head, each.projector)]
    assert graphs == [sum(part is not None for part in parts)] * 3
    assert not torch._dynamo.utils.counters["graph_break"]


def test_no_compiler_is_said_before_the_run(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(EnvironmentFault, match="C\\+\\+ compiler"):
        small_segmenter().enable_compile("training")


def test_compile_and_checkpointing_are_refused_together():
    both = ["machine.compile=true", "machine.activation_checkpointing=true"]
    with pytest.raises(RecipeError, match="enable only one of them"):
        shipped("toyland/rccr", both)
    for word in both:
        assert shipped("toyland/rccr", [word]).machine != Machine()


@pytest.mark.slow
def test_a_compiled_run_is_scored_and_resumed_without_it(backend, tmp_path):
    root = toy_root(tmp_path / "data")
    words = ["train", "toyland/source_only", "--root", root, "--steps", 2, *TINY]
    out, plain = tmp_path / "run", tmp_path / "plain"
    udaseg(*words, "--out", plain, "machine.checkpoint_every=1", cwd=tmp_path)
    output = udaseg(*words, "--out", out, "--compile", "machine.checkpoint_every=1", cwd=tmp_path)
    assert "mIoU" in output.stdout
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert tensors(out).keys() == tensors(plain).keys()
    for kind in ("pt", "json"):
        (out / "checkpoints" / f"step-000002.{kind}").unlink()
    udaseg("train", "--resume", out, "--no-compile", "--root", root, cwd=tmp_path)
    udaseg("verify", out, cwd=tmp_path)
