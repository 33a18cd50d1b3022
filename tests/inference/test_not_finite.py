"""A network with NaN or infinite numbers is refused by every command that would use it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import udaseg as package
from tests.cli.running import udaseg
from tests.make_fixtures import unpack_run
from udaseg.errors import NotFiniteError
from udaseg.files import sha256_of
from udaseg.inference import trained_model
from udaseg.inference.labels import labels_from_logits

WEIGHTS = "its weights are NaN or infinite"
OUTPUTS = "outputs are NaN or infinite"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return unpack_run("rccr", tmp_path_factory.mktemp("intact") / "rccr")


@pytest.fixture
def spoil(intact, tmp_path):
    """Return a function that copies the run with other weights of its networks."""

    def spoiled(value, owner=""):
        run = shutil.copytree(intact, tmp_path / "run")
        (path,) = run.glob("checkpoints/*.pt")
        payload = torch.load(path, weights_only=True)
        for name, tensor in payload["objective"].items():
            if name.startswith(owner) and name.endswith("weight"):
                tensor.fill_(value)
        torch.save(payload, path)
        facts = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        path.with_suffix(".json").write_text(json.dumps(facts))
        return path

    return spoiled


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def commands(path, root, photo):
    of_data = ("--root", root, "--device", "cpu")
    return [
        ("predict", photo, "--checkpoint", path, "--device", "cpu", "--out", "masks"),
        ("eval", path, *of_data),
        ("export", path, "--images", 0, "--out", "model.onnx"),
        ("calibrate", path, *of_data),
        ("select", path, *of_data),
        ("adapt", "toyland/dacs", "--init", path, "--root", root, "machine.device=cpu"),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_in_one_sentence(
    spoil, root, photo, tmp_path, value
):
    path = spoil(value)
    for words in commands(path, root, photo):
        output = udaseg(*words, cwd=tmp_path, expect=3)
        (line,) = (line for line in output.stderr.splitlines() if line.startswith("error: "))
        assert line.startswith(f"error: {path}: {WEIGHTS}"), words
        assert "use an earlier checkpoint" in line
    assert not (tmp_path / "masks").exists()
    assert not (tmp_path / "model.onnx").exists()


def test_finite_weights_whose_outputs_are_not_finite_are_refused(spoil, root, photo, tmp_path):
    path = spoil(3e38)  # the largest float is 3.4e38
    assert trained_model.load(path, device="cpu").step == 4
    for words in commands(path, root, photo)[:-1]:
        output = udaseg(*words, cwd=tmp_path, expect=3)
        assert output.stderr.count(OUTPUTS) >= 1, words
    assert [path.name for path in tmp_path.glob("masks/**/*.png")] == ["legend.png"]
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(NotFiniteError, match=OUTPUTS):
        package.load(path, device="cpu").predict(photo)


def test_only_the_network_that_is_used_counts(spoil, photo):
    path = spoil(float("nan"), owner="teacher.")
    assert package.load(path, device="cpu").predict(photo).ids.shape == (40, 60)
    with pytest.raises(NotFiniteError, match=WEIGHTS):
        package.load(path, device="cpu", weights="teacher")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("align_corners", [False, True])
def test_one_logit_that_is_not_finite_gives_no_labels(value, align_corners):
    logits = torch.zeros(3, 4, 5)
    logits[1, 2, 3] = value
    with pytest.raises(NotFiniteError, match=OUTPUTS):
        labels_from_logits(logits, (8, 10), align_corners=align_corners)


def test_a_report_has_no_pictures_of_it(spoil, root, tmp_path):
    path = spoil(3e38)
    output = udaseg("report", path.parents[1], "--root", root, "--device", "cpu", cwd=tmp_path)
    assert OUTPUTS in output.stderr
    assert OUTPUTS in (tmp_path / "run" / "report.html").read_text()
