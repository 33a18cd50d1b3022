"""Going on from one's own network with another class list: `--init`, and the weights alone."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, tensors
from tests.support import files
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.methods.start import load_student
from udaseg.models.segmenter import build_segmenter
from udaseg.recipe.contrast import Projector
from udaseg.runs.checkpoint import Checkpoint

LAST_LAYER = {"deeplab_v3plus": "head.classify.", "deeplab_v2": "head.branches."}
LAST_LAYER |= dict.fromkeys(("daformer", "upsample", "pyramid", "linear"), "head.classify.")
TOYLAND_ROAD, TOYLAND_SKY = 0, 8


@pytest.fixture(scope="module")
def harbour(root, tmp_path_factory):
    """Write and prepare a labelled set of three classes, of which toyland has two."""
    home = tmp_path_factory.mktemp("harbour")
    for number in range(3):
        files.put(home / f"images/{number}.png", files.image_png(64, 64, number))
        ids = np.random.default_rng(number).integers(0, 3, (64, 64))
        files.put(home / f"labels/{number}.png", files.gray_png(ids))
    text = "images: images/*.png\nlabels: labels/*.png\nclasses: [sky, boat, road]\n"
    return files.dataset_yaml(home, f"name: harbour\n{text}")


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """Return a run on the 13 classes of toyland, with a teacher."""
    out = tmp_path_factory.mktemp("finished") / "run"
    adapt(root, out, "validation.data=null", method="dacs", steps=1)
    return out


def train(harbour, root, out, *words, weights="random", expect=0):
    tiny = [f"model.weights={weights}" if "weights" in word else word for word in TINY]
    return udaseg(
        *("train", "toyland/source_only", "--source", harbour, "--root", root, "--out", out),
        *("--steps", 1, *tiny, "validation.data=null", "optimizer.lr=1e-12", *words),
        cwd=out.parent,
        expect=expect,
    )


@pytest.mark.parametrize("head", LAST_LAYER)
@pytest.mark.parametrize("names", [["c", "a", "b"], ["x", "b", "y"], ["b"], ["x", "a", "y", "c"]])
def test_the_last_layer_keeps_classes_by_name_and_all_else_is_kept(head, names):
    changes = ["model.backbone=mobilenet_v2", "model.weights=random", "model.head_channels=16"]
    spec = shipped("toyland/source_only", [*changes, f"model.head={head}"]).model
    torch.manual_seed(0)
    own, network = build_segmenter(spec, 3), build_segmenter(spec, len(names))
    old = own.state_dict()
    new = {name: value.clone() for name, value in network.state_dict().items()}
    objective = {f"student.{name}": value for name, value in old.items()}
    init = Checkpoint("a.pt", 7, {}, {"names": ["a", "b", "c"]}, {}, objective, {})
    load_student(network, init, spec, names)
    for name, value in network.state_dict().items():
        if not name.startswith(LAST_LAYER[head]):
            assert torch.equal(value, old[name]), name
            continue
        for row, of in enumerate(names):
            expected = old[name]["abc".index(of)] if of in "abc" else new[name][row]
            assert torch.equal(value[row], expected), (name, of)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [("mlp", "mlp", True), (None, "mlp", False), ("linear", "mlp", False), ("mlp", "none", True)],
)
def test_a_projection_head_of_another_kind_begins_anew(before, after, kept, caplog):
    caplog.set_level("INFO")
    spec = shipped("toyland/source_only", ["model.weights=random", "model.head_channels=16"]).model
    heads = [kind and Projector(channels=4, trainable=True, kind=kind) for kind in (before, after)]
    old, network = (build_segmenter(spec, 2, projector=head) for head in heads)
    own = {name: value.clone() for name, value in network.projector.state_dict().items()}
    objective = {f"student.{name}": value for name, value in old.state_dict().items()}
    init = Checkpoint("a.pt", 7, {}, {"names": ["a", "b"]}, {}, objective, {})
    load_student(network, init, spec, ["a", "b"])
    expected = old.projector.state_dict() if kept else own
    for name, value in network.projector.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert ("begins anew" in caplog.text) == (not kept)


@pytest.mark.slow
def test_a_run_starts_from_a_network_of_other_classes(harbour, root, finished, tmp_path):
    checkpoint = sorted((finished / "checkpoints").glob("step-*.pt"))[-1]
    for number, init in enumerate((finished, checkpoint)):
        out = tmp_path / f"run{number}"
        said = train(harbour, root, out, "--init", init).stderr
        assert "the last layer keeps sky, road; begins anew for boat; drops sidewalk, " in said
        assert "All other weights are kept" in said
        before, after = tensors(finished), tensors(out)
        for name in ("weight", "bias"):
            old = before[f"student.head.classify.{name}"][[TOYLAND_SKY, TOYLAND_ROAD]]
            new = after[f"student.head.classify.{name}"]
            assert len(new) == 3
            assert torch.allclose(new[[0, 2]], old, atol=1e-6)
        backbone = "student.backbone.low.0.0.weight"
        assert torch.allclose(after[backbone], before[backbone], atol=1e-6)
    udaseg("verify", out, cwd=tmp_path)


def test_another_network_is_refused_with_a_way_that_works(harbour, root, finished, tmp_path):
    other = "model.head=deeplab_v2"
    said = train(harbour, root, tmp_path / "run", "--init", finished, other, expect=3).stderr
    assert "udaseg export RUN --format state-dict" in said
    path = tmp_path / "own.safetensors"
    words = ("export", finished, "--format", "state-dict", "--out", path)
    assert f"{path}: " in udaseg(*words, cwd=tmp_path).stdout
    out = tmp_path / "run"
    said = train(harbour, root, out, other, weights=path).stderr
    assert f"weights {path}: matched " in said
    assert "missing 0, unexpected 0" in said
    before, after = tensors(finished), tensors(out)
    compared = [name for name in after if name.startswith("student.backbone.")]
    assert len(compared) > 100
    for name in compared:
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(after[name], before[name], atol=1e-6), name


def test_a_checkpoint_or_a_run_as_weights_is_told_how_to_go_on(harbour, root, finished, tmp_path):
    for own in (finished, sorted((finished / "checkpoints").glob("step-*.pt"))[-1]):
        said = train(harbour, root, tmp_path / "run", weights=own, expect=3).stderr
        assert f"`udaseg export {own} --format state-dict`" in said
        assert "--init" in said


def test_the_weights_alone_are_the_network_and_say_what_it_is(finished, tmp_path):
    copy = tmp_path / "w.safetensors"
    udaseg("export", finished, "--format", "state-dict", "--out", copy, cwd=tmp_path)
    before = tensors(finished)
    for name, value in load_file(copy).items():
        assert torch.equal(value, before[f"student.{name}"]), name
    with safe_open(copy, "pt") as file:
        assert '"road", "sidewalk"' in file.metadata()["classes"]
        assert file.metadata()["step"] == "1"
    again = ("export", finished, "--format", "state-dict", "--out", copy)
    assert "exists" in udaseg(*again, cwd=tmp_path, expect=2).stderr
    udaseg(*again, "--overwrite", "--weights", "teacher", cwd=tmp_path)
    name = "head.classify.weight"
    assert torch.equal(load_file(copy)[name], before[f"teacher.network.{name}"])
    words = ("export", finished, "--format", "state-dict", "--out")
    assert "safetensors" in udaseg(*words, "w.pt", cwd=tmp_path, expect=2).stderr
    said = udaseg("info", copy, cwd=tmp_path, expect=3).stderr
    assert f"or start a run from these weights with model.weights={copy}" in said
    refused = udaseg(*words, "x.safetensors", "--argmax", cwd=tmp_path, expect=2).stderr
    assert "leave out --argmax" in refused
