"""Runs that train adapters: what their checkpoints hold, and everything that reads them."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import udaseg
from tests.cli.running import udaseg as command
from tests.cli.test_fit import assert_same, tensors
from tests.support.toy import SMALL, toy_pair
from udaseg.errors import CheckpointError, RecipeError
from udaseg.files import sha256_of
from udaseg.models import compiling
from udaseg.models.backbones.build import build_backbone
from udaseg.models.segmenter import build_segmenter
from udaseg.recipe.load import dump
from udaseg.runs.checkpoint import load_checkpoint
from udaseg.training.footprint import estimate_footprint
from udaseg.training.setup import build_setup
from udaseg.training.train import TrainOptions

TINY = {
    **SMALL,
    "model.backbone": "timm:test_vit",
    "model.output_stride": 16,
    "model.head": "deeplab_v2",
    "model.train": "adapters",
    "model.adapters": {"rank": 2},
    "optimizer.lr": 0.01,
}
SIZES = ("memory", "saved")


def adapt(recipe="dacs", *, out, root, init=None, resume=None, **changes):
    if resume is not None:
        return udaseg.adapt(options=TrainOptions(root=root, resume=resume))
    return udaseg.adapt(
        recipe,
        source="toyland",
        target="toyland-target",
        overrides={"steps": 2, **TINY, **changes},
        out=out,
        options=TrainOptions(root=root, init=init),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return a weights file that lacks one tensor of the network."""
    torch.manual_seed(7)
    body = build_backbone("timm:test_vit", output_stride=16, weights="random")
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    state = dict(body.network.state_dict())
    del state["cls_token"]
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def run(root, file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dacs"
    return adapt(out=out, root=root, **{"model.weights": str(file)})


def test_a_checkpoint_holds_adapters_norms_and_head_and_names_the_base(run, file):
    checkpoint = load_checkpoint(run.checkpoints[-1])
    assert vars(checkpoint.base) == {
        "path": str(file),
        "size": file.stat().st_size,
        "sha256": sha256_of(file),
    }
    in_file = {f"backbone.network.{name}" for name in load_file(file)}
    for network in ("student.", "teacher.network."):
        saved = {n.removeprefix(network) for n in checkpoint.objective if n.startswith(network)}
        left_out = in_file - saved
        assert left_out == {name for name in in_file if "norm" not in name}
        assert "backbone.network.cls_token" in saved  # the file lacks it
        assert {"head.branches.0.weight", "head.branches.0.bias"} <= saved


@pytest.mark.slow
def test_the_file_is_not_changed_and_neither_is_the_base(run, file):
    """Merged weights are those of the file plus alpha / rank times B A."""
    path = udaseg.export_state_dict(run, out=run.path / "whole.safetensors")
    whole, base = load_file(path), load_file(file)
    saved = load_checkpoint(run.checkpoints[-1]).objective
    changed = 0
    for name, value in base.items():
        ours = whole[f"backbone.network.{name}"]
        stem = f"student.backbone.network.{name.removesuffix('weight')}"
        if f"{stem}lora_a" in saved:
            update = 16 / 2 * saved[f"{stem}lora_b"] @ saved[f"{stem}lora_a"]
            torch.testing.assert_close(ours, value + update)
            changed += int(not torch.equal(ours, value))
        elif f"student.backbone.network.{name}" not in saved:
            assert torch.equal(ours, value), name
    assert changed > 0


@pytest.mark.slow
def test_the_exported_whole_is_a_plain_network_that_others_load(run, root, tmp_path):
    path = udaseg.export_state_dict(run, out=tmp_path / "whole.safetensors")
    plain = replace(run.recipe.model, train="all", adapters=None, weights="random")
    network = build_segmenter(plain, 13).eval()
    network.load_state_dict(load_file(path), strict=True)
    images = torch.rand(1, 3, 64, 96)
    ours = udaseg.load(run, device="cpu").segmenter(images).logits
    torch.testing.assert_close(network(images).logits, ours)


@pytest.mark.slow
def test_the_score_of_the_run_is_that_of_an_evaluation(run, root, tmp_path):
    """In evaluation mode adapters compute what the merged weights do, to the bit."""
    given = run.scores["toyland-target-val"].miou
    options = udaseg.EvaluationOptions(root=root, device="cpu")
    assert udaseg.evaluate(run, options=options).miou == given


def test_a_run_resumes_to_the_bit(run, root, tmp_path):
    out = tmp_path / "run"
    adapt(run.recipe, out=out, root=root, **{"model.weights": run.recipe.model.weights})
    assert_same(tensors(out), tensors(run.path))
    for kind in ("pt", "json"):
        (out / f"checkpoints/step-000002.{kind}").unlink()
    adapt(out=None, root=root, resume=out)
    assert_same(tensors(out), tensors(run.path))


def test_a_moved_base_is_asked_for_and_taken_from_base(run, root, file, tmp_path):
    moved, out = tmp_path / "moved.safetensors", tmp_path / "run"
    moved.write_bytes(file.read_bytes())
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(file.read_bytes())
    copy = adapt(out=out, root=root, **{"steps": 1, "model.weights": str(weights)})
    weights.unlink()
    wanted = (
        rf"step-000001\.pt: holds adapters without their base weights, and {weights} is not there; "
        rf"give the file of {file.stat().st_size} bytes with SHA-256 {sha256_of(file)} by --base"
    )
    with pytest.raises(CheckpointError, match=wanted):
        udaseg.load(copy)
    with udaseg.base_weights(moved):
        udaseg.load(copy, weights="teacher")
    output = command("export", out, "--format", "state-dict", cwd=tmp_path, expect=3)
    assert "by --base FILE" in output.stderr
    command("export", out, "--format", "state-dict", "--base", moved, cwd=tmp_path)
    output = command("adapt", "--resume", out, "--root", root, cwd=tmp_path, expect=3)
    assert re.search(wanted, output.stderr)
    command("adapt", "--resume", out, "--root", root, "--base", moved, cwd=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "plain"),
        ("export", "plain/checkpoints/step-000001.pt"),
        ("adapt", "--resume", "plain"),
        ("adapt", "toyland/dacs"),
        ("sweep", "toyland/dacs", "steps=1,2"),
    ],
    ids=" ".join,
)
def test_a_base_is_refused_where_nothing_has_adapters(tmp_path, file, words):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/recipe.yaml").write_text(dump(udaseg.load_recipe("toyland/dacs")))
    said = command(*words, "--base", file, cwd=tmp_path, expect=2).stderr
    assert "only runs with adapters (model.adapters) have base weights" in said
    assert f"--base {file}: " in said


@pytest.mark.slow
def test_a_sweep_and_a_comparison_take_a_base_if_one_of_their_runs_has_adapters(
    run, root, file, tmp_path
):
    words = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    words = ["sweep", "toyland/dacs", *words, "steps=1,2", f"model.weights={file}", "--dry-run"]
    command(*words, "--base", file, "--root", root, cwd=tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/recipe.yaml").write_text(dump(udaseg.load_recipe("toyland/dacs")))
    both = ["report", tmp_path / "plain", run.path, "--images", 0, "--out", tmp_path / "page.html"]
    command(*both, "--base", file, "--root", root, cwd=tmp_path)


@pytest.mark.slow
def test_another_file_is_refused(run, root, file, tmp_path):
    other = tmp_path / "other.safetensors"
    given = load_file(file)
    save_file({**given, "pos_embed": torch.zeros_like(given["pos_embed"])}, other)
    assert other.stat().st_size == file.stat().st_size
    weights, out = tmp_path / "w.safetensors", tmp_path / "run"
    weights.write_bytes(file.read_bytes())
    copy = adapt(out=out, root=root, **{"steps": 1, "model.weights": str(weights)})
    weights.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match=f"and {weights} has another content; give the file"):
        udaseg.load(copy)
    with udaseg.base_weights(file):
        udaseg.load(copy)
    output = command("adapt", "--resume", out, "--root", root, cwd=tmp_path, expect=3)
    assert f"and {weights} has another content; give the file" in output.stderr


@pytest.mark.slow
def test_with_random_weights_a_checkpoint_holds_all(root, tmp_path):
    run = adapt(out=tmp_path / "run", root=root, **{"steps": 1, "model.weights": "random"})
    checkpoint = load_checkpoint(run.checkpoints[-1])
    assert checkpoint.base is None
    whole = build_segmenter(run.recipe.model, 13).state_dict().keys()
    assert {f"student.{name}" for name in whole} <= checkpoint.objective.keys()
    udaseg.load(run, weights="teacher")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "has_base", "goes_on"),
    [
        ({}, True, True),
        ({"model.weights": "random"}, True, True),
        ({"model.adapters": {"rank": 3}}, False, False),
        ({"model.train": "all", "model.adapters": None}, False, False),
    ],
    ids=["same", "base of the first", "other adapters", "no adapters"],
)
def test_a_run_starts_from_adapters(run, root, file, tmp_path, changes, has_base, goes_on):
    """Its first outputs are those of the run it starts from, up to the rounding of the merge."""
    changes = {"model.weights": str(file), "optimizer.lr": 1e-30, "steps": 1, **changes}
    second = adapt("source_only", out=tmp_path / "run", root=root, init=run.path, **changes)
    checkpoint = load_checkpoint(second.checkpoints[-1])
    assert (checkpoint.base is not None) == has_base
    images = torch.rand(1, 3, 64, 96)
    given, wanted = (udaseg.load(each).segmenter(images).logits for each in (second, run))
    torch.testing.assert_close(given, wanted)
    first = load_checkpoint(run.checkpoints[-1])
    name = next(name for name in first.objective if name.endswith("lora_a"))
    kept = checkpoint.objective.get(name)
    assert (kept is not None and torch.equal(kept, first.objective[name])) == goes_on
    adapt(out=None, root=root, resume=second.path)


@pytest.mark.slow
def test_adapters_start_on_a_fully_trained_run(root, file, tmp_path):
    changes = {"model.train": "all", "model.adapters": None, "model.weights": str(file)}
    full = adapt("source_only", out=tmp_path / "full", root=root, **{"steps": 1, **changes})
    run = adapt(
        "source_only",
        out=tmp_path / "run",
        root=root,
        init=full.path,
        **{"model.weights": str(file), "optimizer.lr": 1e-30},
    )
    assert load_checkpoint(run.checkpoints[-1]).base is None  # no file has its base
    images = torch.rand(1, 3, 64, 96)
    given, wanted = (udaseg.load(each).segmenter(images).logits for each in (run, full))
    assert torch.equal(given, wanted)
    whole = tensors(run.path)
    for kind in ("pt", "json"):
        (run.path / f"checkpoints/step-000002.{kind}").unlink()
    adapt(out=None, root=root, resume=run.path)
    assert_same(tensors(run.path), whole)


def test_settings_that_contradict_each_other_are_refused(root, tmp_path):
    with pytest.raises(RecipeError, match=r"model\.adapters: must be given with model\.train=adap"):
        adapt(out=tmp_path / "run", root=root, **{"model.adapters": None})
    with pytest.raises(RecipeError, match=r"model\.adapters: must be left out \(null\) with .*all"):
        adapt(out=tmp_path / "run", root=root, **{"model.train": "all"})


def test_info_says_which_base_a_checkpoint_needs(run, file):
    info = udaseg.info(run)
    assert info.checkpoint.base.path == str(file)
    size = file.stat().st_size / 1e6
    shown = info.to_json()["weights"]
    assert f"base: {file} ({size:.1f} MB, SHA-256 {sha256_of(file)})" in shown


@pytest.mark.slow
def test_pretrained_weights_of_timm_are_a_file_that_checkpoints_name(
    root, file, tmp_path, monkeypatch
):
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    run = adapt("source_only", out=tmp_path / "run", root=root, **{"model.weights": "pretrained"})
    assert set(asked) == {("timm/test_vit.r160_in1k", "model.safetensors")}
    assert run.recipe.model.weights == "pretrained"
    checkpoint = load_checkpoint(run.checkpoints[-1])
    assert checkpoint.base.path == str(file)
    del asked[:]
    udaseg.load(run)
    assert asked == []  # the checkpoint names the file
    adapt(out=None, root=root, resume=run.path)


@pytest.mark.slow
def test_recomputed_activations_change_no_bit(run, root, file, tmp_path):
    changes = {"model.weights": str(file), "machine.activation_checkpointing": True}
    again = adapt(out=tmp_path / "run", root=root, **changes)
    assert_same(tensors(again.path), tensors(run.path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_networks_learn_the_same(run, root, file, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    changes = {"model.weights": str(file), "machine.compile": True, "optimizer.lr": 1e-4}
    compiled = adapt(out=tmp_path / "run", root=root, **changes)
    plain = adapt(out=tmp_path / "plain", root=root, **{**changes, "machine.compile": False})
    ours, theirs = (load_checkpoint(each.checkpoints[-1]).objective for each in (compiled, plain))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_in_bf16_student_and_teacher_learn_in_float32(root, file, tmp_path):
    changes = {"model.weights": str(file), "machine.precision": "bf16"}
    run = adapt(out=tmp_path / "run", root=root, **changes)
    saved = load_checkpoint(run.checkpoints[-1]).objective
    for network in ("student.", "teacher.network."):
        lora = {n: v for n, v in saved.items() if n.startswith(network) and n.endswith("lora_b")}
        assert len(lora) == 6 * 4  # attention and mlp have two layers in each of six blocks
        assert all(value.dtype == torch.float32 and value.any() for value in lora.values())


@pytest.mark.slow
def test_the_onnx_file_agrees_with_torch(run, root, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    comparison = udaseg.export(run, out=tmp_path / "model.onnx", root=root, images=1).comparison
    assert comparison.on_real_images
    assert comparison.relative < 1e-4


@pytest.mark.slow
def test_the_stages_of_a_run_share_the_base(root, file, tmp_path):
    changes = {"model.weights": str(file), "steps": 6}
    run = adapt("spcl", out=tmp_path / "run", root=root, **changes)
    whole, paths = tensors(run.path), sorted(run.path.glob("**/step-*.pt"))
    assert len(paths) > 2
    for path in paths:
        checkpoint = load_checkpoint(path)
        assert checkpoint.base.path == str(file)
        assert "student.backbone.network.pos_embed" not in checkpoint.objective
    for path in run.checkpoints:
        if path.stem == "step-000006":
            path.unlink()
            path.with_suffix(".json").unlink()
    adapt(out=None, root=root, resume=run.path)
    assert_same(tensors(run.path), whole)


@pytest.mark.slow
def test_other_commands_read_such_runs(run, root, tmp_path):
    options = udaseg.SelectOptions(images=1, root=root, device="cpu")
    assert udaseg.select([run], options=options)
    assert udaseg.calibrate(run, images=1, root=root, device="cpu").temperature > 0
    assert udaseg.report(run, root=root, device="cpu", images=1, out=tmp_path / "report.html")
    assert udaseg.verify(run)


@pytest.mark.slow
def test_a_dry_run_needs_no_pretrained_weights_and_estimates_as_if_it_had_them(
    root, file, tmp_path, monkeypatch, capfd
):
    """A run that has them downloads them to a file, which its checkpoints leave out."""
    whole = load_file(file) | {"cls_token": torch.zeros(1, 1, 64)}
    save_file(whole, tmp_path / "whole.safetensors")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asks for weights"))
    lines = []
    for weights in (str(tmp_path / "whole.safetensors"), "pretrained"):
        udaseg.adapt(
            "dacs",
            source="toyland",
            target="toyland-target",
            overrides={**TINY, "model.weights": weights},
            options=TrainOptions(root=root, dry_run=True),
        )
        plan = capfd.readouterr().err
        assert f"weights {weights}" in plan
        lines.append([line for line in plan.splitlines() if line.lstrip().startswith(SIZES)])
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2
    assert "base weights" in lines[0][0]


@pytest.mark.slow
def test_the_memory_plan_counts_the_base_once_and_not_in_checkpoints(run, root, file):
    needs = estimate_footprint(build_setup(run.recipe, *toy_pair(root)))
    checkpoint = load_checkpoint(run.checkpoints[-1])
    left_out = {
        name: value
        for name, value in load_file(file).items()
        if f"student.backbone.network.{name}" not in checkpoint.objective
    }
    assert needs.base == sum(value.nbytes for value in left_out.values())
    names = [name for name in checkpoint.objective if name.startswith("teacher.")]
    shared = checkpoint.objective["teacher.network.backbone.network.cls_token"].nbytes
    own = sum(checkpoint.objective[name].nbytes for name in names)
    assert needs.teacher == own - shared  # the file lacks this token, but nobody trains it
    assert needs.total() - needs.checkpoint_size() >= needs.base


@pytest.mark.slow
def test_adapters_have_the_rate_of_their_block(root, file, tmp_path):
    changes = {"optimizer.kind": "adamw", "optimizer.layer_decay": 0.5, "steps": 1}
    run = adapt(
        "source_only", out=tmp_path / "run", root=root, **{**changes, "model.weights": str(file)}
    )
    groups = load_checkpoint(run.checkpoints[-1]).optimizer["param_groups"]
    rates = {name: group["base_lr"] for group in groups for name in group["param_names"]}
    spec = run.recipe.optimizer
    for block in range(6):
        name = f"backbone.network.blocks.{block}.attn.qkv.lora_b"
        expected = spec.lr * spec.backbone_lr_mult * 0.5 ** (5 - block)
        assert rates[name] == pytest.approx(expected)
