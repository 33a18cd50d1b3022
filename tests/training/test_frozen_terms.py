"""Runs with a frozen backbone beside the student: what is saved, resumed, shared and estimated."""

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_fit import assert_same, tensors
from tests.support.toy import toy_pair
from tests.training.test_adapter_runs import adapt
from tests.training.test_footprint import real_peak
from udaseg.errors import CheckpointError
from udaseg.methods.start import segmenter_as_given
from udaseg.models import compiling
from udaseg.models.backbones.build import build_backbone
from udaseg.runs.checkpoint import load_checkpoint
from udaseg.training.footprint import estimate_footprint, peak_step_memory
from udaseg.training.setup import build_setup

pytestmark = pytest.mark.slow

ALL = {"model.train": "all", "model.adapters": None}
TERMS = {
    "method.feature_distance": {"kind": "cosine", "weight": 0.1},
    "method.prototypes": {
        "weight": 0.1,
        "temperature": 0.1,
        "momentum": 0,
        "absent": "keep",
        "normalise": True,
        "anchor": "frozen",
        "anchor_images": 3,
    },
}
MEANS = "regularizers.prototypes.prototypes.means"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(7)
    body = build_backbone("timm:test_vit", output_stride=16, weights="random")
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(dict(body.network.state_dict()), path)
    return path


@pytest.fixture(scope="module", params=[ALL, {}], ids=["all", "adapters"])
def changes(request, file):
    return {**TERMS, **request.param, "model.weights": str(file)}


@pytest.fixture(scope="module")
def run(root, changes, tmp_path_factory):
    return adapt(out=tmp_path_factory.mktemp("runs") / "run", root=root, **changes)


def without_steps(folder, first):
    for path in folder.glob("checkpoints/step-*"):
        if int(path.stem.removeprefix("step-")) >= first:
            path.unlink()


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumes_to_the_bit(run, root, changes, tmp_path, first):
    again = adapt(out=tmp_path / "run", root=root, **changes)
    whole = tensors(again.path)
    assert_same(whole, tensors(run.path))
    without_steps(again.path, first)
    adapt(out=None, root=root, resume=again.path)
    assert_same(tensors(again.path), whole)


def test_checkpoints_hold_the_anchors_and_nothing_else_that_is_frozen(run):
    states = [load_checkpoint(path).objective for path in run.checkpoints]
    assert all(torch.equal(state[MEANS], states[0][MEANS]) for state in states)
    assert states[0][MEANS].any()
    distance = {name for name in states[0] if name.startswith("regularizers.feature_distance.")}
    layers = {name for name in distance if ".translate." in name}
    assert distance - layers == {"regularizers.feature_distance.frozen.digest"}
    for name in layers:
        assert not torch.equal(states[0][name], states[1][name]), name


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_from_another_is_compared_with_the_weights_file_still(
    run, root, changes, file, tmp_path, first
):
    """The student starts as another network, which has its own base; the frozen one does not."""
    other = tmp_path / "other.safetensors"
    torch.manual_seed(8)
    body = build_backbone("timm:test_vit", output_stride=16, weights="random")
    save_file(dict(body.network.state_dict()), other)
    start = {**ALL, "model.weights": str(other), "steps": 1}
    start = adapt("source_only", out=tmp_path / "start", root=root, **start)
    second = adapt(out=tmp_path / "second", root=root, init=start.path, **changes)
    assert torch.equal(tensors(second.path)[MEANS], tensors(run.path)[MEANS])
    recipe = second.recipe
    setup = build_setup(recipe, *toy_pair(root), init=load_checkpoint(start.checkpoints[-1]))
    term = setup.objective.regularizers["feature_distance"]
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(term.frozen(images), segmenter_as_given(recipe)(images).features)
    whole = tensors(second.path)
    without_steps(second.path, first)
    adapt(out=None, root=root, resume=second.path)
    assert_same(tensors(second.path), whole)


def test_another_weights_file_is_refused_at_a_resume(root, changes, file, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(file.read_bytes())
    run = adapt(out=tmp_path / "run", root=root, **{**changes, "model.weights": str(weights)})
    without_steps(run.path, 2)
    torch.manual_seed(8)
    body = build_backbone("timm:test_vit", output_stride=16, weights="random")
    save_file(dict(body.network.state_dict()), weights)
    with pytest.raises(CheckpointError, match=r"frozen backbone has other weights|base weights"):
        adapt(out=None, root=root, resume=run.path)


def test_the_estimate_of_memory_is_what_is_used(run, root):
    setup = build_setup(run.recipe, *toy_pair(root))
    assert peak_step_memory(setup) == pytest.approx(real_peak(setup), rel=0.01)
    frozen = setup.objective.regularizers["feature_distance"].frozen
    students = {id(part) for part in setup.objective.student.parameters()}
    own = [part for part in frozen.parameters() if id(part) not in students]
    shared = [part for part in frozen.parameters() if id(part) in students]
    assert bool(shared) == (run.recipe.model.train == "adapters")
    assert estimate_footprint(setup).base == sum(part.nbytes for part in (*own, *shared))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    ("backbone", "machine"),
    [
        ("timm:test_vit", {"compile": True}),
        ("mobilenet_v2", {"compile": True}),
        ("mobilenet_v2", {"micro_batches": 2}),
        ("timm:convnext_atto", {"activation_checkpointing": True}),
        ("timm:convnext_atto", {"precision": "bf16"}),
    ],
)
def test_ways_to_save_time_and_memory_train_too(root, tmp_path, monkeypatch, backbone, machine):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    changes = {**TERMS, **ALL, "model.backbone": backbone, "optimizer.lr": 1e-5, "steps": 1}
    changes["method.feature_distance"] = {
        "kind": "thing_class",
        "weight": 0.1,
        "classes": ["road", "car"],
    }
    changes |= {f"machine.{name}": value for name, value in machine.items()}
    run = adapt(out=tmp_path / "run", root=root, **changes)
    assert load_checkpoint(run.checkpoints[-1]).objective[MEANS].any()
