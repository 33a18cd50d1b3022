"""`udaseg export` writes one ONNX file whose predictions match torch's at any size."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.running import udaseg
from tests.support.colors import loaded_colors
from tests.support.loading import replace_load
from tests.support.small import small_segmenter
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import EnvironmentFault
from udaseg.inference import export
from udaseg.inference.export import ExportModule, OnnxComparison, compare_with_torch
from udaseg.inference.trained_model import Model

CLASSES = ClassSpace(
    ("road", "sky", "car", "tree", "<b>sign</b>"), tuple((30 * k, 9, 200) for k in range(5))
)
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="needs the extra `export`",
)


def loaded():
    given = loaded_colors(["validation.resize=null", "target.data=gta5"])
    network = small_segmenter(classes=5, projector=False).eval().requires_grad_(False)
    return Model(network, CLASSES, given.recipe, 7, given.checkpoint, given.device)


@pytest.fixture
def run(monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    replace_load(monkeypatch, lambda path, **_: loaded())
    return tmp_path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export the small network once; return the file and the command's output."""
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("needs the extra `export`")
    home = tmp_path_factory.mktemp("home")
    (home / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        replace_load(patch, lambda path, **_: loaded())
        output = udaseg("export", "run", cwd=home)
    return home / "run" / "model.onnx", output


@pytest.mark.slow
def test_the_file_agrees_with_torch_at_sizes_it_was_not_traced_at(exported):
    import onnxruntime

    path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    network = loaded().segmenter
    for shape in ((1, 3, 40, 56), (3, 3, 33, 71)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8)
        answer = session.run(None, {"image": image.numpy()})[0]
        with torch.no_grad():
            coarse = network(image.float() / 255).logits
            wide = torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear")
        assert answer.shape == (shape[0], 5, *shape[2:])
        np.testing.assert_allclose(answer, wide.numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_file_says_what_its_classes_are(exported):
    import onnx

    model = onnx.load(exported[0])
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == list(CLASSES.names)
    assert json.loads(facts["colors"]) == [list(color) for color in CLASSES.colors]
    assert facts["step"] == "7"
    assert "uint8" in facts["input"]
    assert [entry.name for entry in model.graph.output] == ["logits"]


@pytest.mark.slow
def test_the_command_says_how_well_it_agrees_and_leaves_one_file(exported):
    path, output = exported
    assert "image (B, 3, H, W) uint8 -> logits (B, 5, H, W)" in output.stdout
    assert "100.000 % of the labels agree with torch" in output.stdout
    assert "checking with noise" in output.stderr  # this root has no data sets
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_another_network_would_be_noticed(exported):
    other = small_segmenter(classes=5, projector=False, seed=1).eval()
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    module = ExportModule(other, uint8=True, argmax=False)
    with torch.no_grad():
        checked = compare_with_torch(module, exported[0], [picture], on_real_images=True)
    with pytest.raises(EnvironmentFault, match="disagrees"):
        export._check_agreement(checked)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("pixels", ["uint8", "float"])
def test_labels_come_out_when_asked_for(run, pixels):
    import onnx

    output = udaseg(
        *("export", "run", "--argmax", "--input", pixels, "--out", "deep/m.onnx"),
        cwd=run,
    )
    assert "labels (B, H, W)" in output.stdout
    assert "100.000 %" in output.stdout
    assert onnx.load(run / "deep/m.onnx").graph.output[0].name == "labels"


@pytest.mark.parametrize(
    "checked",
    [
        OnnxComparison(1, True, float("nan"), float("nan"), 1.0),
        OnnxComparison(1, True, 0.5, 0.1, 1.0),
        OnnxComparison(1, True, None, None, 0.9),
    ],
)
def test_nan_a_large_difference_and_other_labels_are_no_agreement(checked):
    with pytest.raises(EnvironmentFault, match="was discarded"):
        export._check_agreement(checked)


def test_a_file_that_disagrees_is_not_kept(run, monkeypatch):
    monkeypatch.setattr(export, "_is_installed", lambda package: True)
    monkeypatch.setattr(export, "write_onnx", lambda module, path, facts: path.write_bytes(b"x"))
    monkeypatch.setattr(
        export,
        "compare_with_torch",
        lambda *_, on_real_images: OnnxComparison(1, on_real_images, 9.0, 9.0, 0.1),
    )
    udaseg("export", "run", cwd=run, expect=5)
    assert list((run / "run").iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it(run, monkeypatch):
    monkeypatch.setattr(export, "_is_installed", lambda package: package != "onnxscript")
    output = udaseg("export", "run", cwd=run, expect=5)
    assert "export needs onnxscript: pip install 'udaseg[export]'" in output.stderr
    assert not Path(run / "run" / "model.onnx").exists()


def test_without_onnxruntime_the_file_is_written_and_said_to_be_unchecked(run, monkeypatch):
    monkeypatch.setattr(export, "_is_installed", lambda package: package != "onnxruntime")
    monkeypatch.setattr(export, "write_onnx", lambda module, path, facts: path.write_bytes(b"x"))
    assert "not checked against torch" in udaseg("export", "run", cwd=run).stderr
    assert (run / "run" / "model.onnx").read_bytes() == b"x"


def test_a_file_is_not_written_over_unasked(run, monkeypatch):
    monkeypatch.setattr(export, "_is_installed", lambda package: True)
    monkeypatch.setattr(export, "write_onnx", lambda module, path, facts: path.write_bytes(b"x"))
    (run / "run" / "model.onnx").write_bytes(b"old")
    assert "exists" in udaseg("export", "run", "--images", 0, cwd=run, expect=2).stderr
    assert (run / "run" / "model.onnx").read_bytes() == b"old"
    udaseg("export", "run", "--images", 0, "--overwrite", cwd=run)
    assert (run / "run" / "model.onnx").read_bytes() == b"x"


def test_python_gets_the_file_and_the_comparison_and_nothing_is_printed(run, monkeypatch, capsys):
    compared = OnnxComparison(3, True, 1e-5, 1e-6, 1.0)
    monkeypatch.setattr(export, "_is_installed", lambda package: True)
    monkeypatch.setattr(export, "write_onnx", lambda module, path, facts: path.write_bytes(b"x"))
    monkeypatch.setattr(export, "compare_with_torch", lambda *_, on_real_images: compared)
    exported = export.export(str(run / "run"), argmax=True, out=str(run / "m.onnx"))
    assert exported.path.read_bytes() == b"x"
    assert exported.comparison == compared
    assert (exported.input, exported.output) == ("image (B, 3, H, W) uint8", "labels (B, H, W)")
    assert export.export(run / "run", images=0).comparison is None
    assert capsys.readouterr().out == ""


def test_a_checkpoint_is_exported_into_its_run(run, monkeypatch):
    monkeypatch.setattr(export, "_is_installed", lambda package: True)
    monkeypatch.setattr(export, "write_onnx", lambda module, path, facts: path.write_bytes(b"x"))
    checkpoint = run / "run" / "checkpoints" / "step-000007.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"")
    udaseg("export", checkpoint, "--images", 0, cwd=run)
    assert (run / "run" / "model.onnx").is_file()


def test_every_second_size_is_odd():
    picture = np.zeros((40, 60, 3), np.uint8)
    assert [part.shape for part in export._at_two_sizes([picture])] == [(40, 60, 3), (31, 41, 3)]
