"""`udaseg eval` and the official Cityscapes script agree to the last digit on the same files."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.colors import loaded_colors
from tests.support.loading import replace_load
from udaseg.cli.main import main
from udaseg.data.labels.tables import builtin_label_table
from udaseg.evaluation.protocols import CITYSCAPES

TABLE = builtin_label_table("cityscapes19")
IDS = np.array([entry[0] for entry in TABLE.ids], np.uint8)
VOID = [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
FRAMES = ["frankfurt_000000_000294", "lindau_000001_000019", "munster_000002_000019"]


class Reads(nn.Module):
    """Predicts the class whose number is the red value of a pixel."""

    def forward(self, images):
        numbers = torch.arange(19)[:, None, None]
        return SimpleNamespace(logits=-(images[:, :1] * 255 - numbers).abs())


@pytest.fixture
def official(monkeypatch):
    """Return the official script as a function of two lists of files, with its defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of another package
        script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    if not hasattr(np, "in1d"):  # its version 2.3.0 calls this function, which numpy 2.4 removed
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(script.args, "quiet", True)
    monkeypatch.setattr(script.args, "JSONOutput", False)
    return lambda predicted, true: script.evaluateImgLists(predicted, true, script.args)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_layout(root, predicted):
    """Write images whose red value is the predicted id, and labels of every class and void."""
    rng = np.random.default_rng(0)
    for frame, classes in zip(FRAMES, predicted, strict=True):
        folder = f"val/{frame.split('_')[0]}/{frame}"
        picture = np.stack([classes, classes * 0, classes * 0], 2).astype(np.uint8)
        save(root / f"leftImg8bit/{folder}_leftImg8bit.png", picture)
        near = np.where(
            rng.random(classes.shape) < 0.7, classes, rng.integers(0, 19, classes.shape)
        )
        ids = np.where(rng.random(classes.shape) < 0.2, rng.choice(VOID, classes.shape), IDS[near])
        instances = np.where(rng.random(classes.shape) < 0.3, 26001, ids).astype(np.uint16)
        save(root / f"gtFine/{folder}_gtFine_labelIds.png", ids.astype(np.uint8))
        save(root / f"gtFine/{folder}_gtFine_instanceIds.png", instances)


def declared(root, home=None):
    text = f"""
name: city
root: {home or root}
images: {{val: leftImg8bit/**/*_leftImg8bit.png}}
labels: {{val: gtFine/**/*_gtFine_labelIds.png}}
match: {{strip: [_leftImg8bit, _gtFine_labelIds]}}
label_format: ids
classes: cityscapes19
"""
    (root / "city.yaml").write_text(text)
    return str(root / "city.yaml")


def evaluated(*words):
    """Return the JSON that `udaseg eval` writes."""
    with pytest.raises(SystemExit) as stop:
        main(["eval", *map(str, words), "--out", "scores", "-q"])
    assert not stop.value.code
    return json.loads(Path("scores/scores.json").read_text())


def pairs(root, predictions):
    true = sorted((root / "gtFine").rglob("*_gtFine_labelIds.png"))
    predicted = [next(predictions.rglob(f"{path.name[:-20]}*.png")) for path in true]
    return [str(path) for path in predicted], [str(path) for path in true]


def assert_equal_to_the_digit(ours, theirs):
    for row in ours["classes"]:
        other = theirs["classScores"][row["name"]]
        assert row["iou"] == (None if math.isnan(other) else other)
    assert ours["means"]["mIoU-19"] == theirs["averageScoreClasses"]
    pixels = np.array(theirs["confMatrix"])[np.ix_(IDS, IDS)]
    assert (np.array(ours["confusion"]) == pixels).all()


def test_a_network_and_the_files_that_it_wrote_score_as_the_official_script_says(
    tmp_path, monkeypatch, official
):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    write_layout(tmp_path, rng.integers(0, 19, (3, 32, 64)))
    run = loaded_colors(network=Reads(), classes=TABLE.classes)
    replace_load(monkeypatch, lambda path, **_: run)
    data = declared(tmp_path)
    network = evaluated("run", "--data", data, "--save", "saved", "--ids", "label")
    theirs = official(*pairs(tmp_path, tmp_path / "saved"))
    assert_equal_to_the_digit(network, theirs)
    files = evaluated("--predictions", "saved", "--data", data, "--ids", "label")
    assert_equal_to_the_digit(files, theirs)
    assert 0.3 < files["means"]["mIoU-19"] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_predictions_of_ignored_ids_are_errors_in_both(tmp_path, monkeypatch, official, seed):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 19, (3, 32, 64))
    write_layout(tmp_path, predicted)
    for frame, classes in zip(FRAMES, predicted, strict=True):
        odd = np.where(
            rng.random(classes.shape) < 0.3, rng.choice(VOID, classes.shape), IDS[classes]
        )
        save(tmp_path / f"theirs/{frame}_pred.png", odd.astype(np.uint8))
    theirs = official(*pairs(tmp_path, tmp_path / "theirs"))
    ours = evaluated("--predictions", "theirs", "--data", declared(tmp_path), "--ids", "label")
    assert_equal_to_the_digit(ours, theirs)


def test_on_genuine_files_of_full_size_too_and_the_official_mean_is_told(
    tmp_path, monkeypatch, official, sample_data
):
    monkeypatch.chdir(tmp_path)
    home = sample_data / "layouts/real/cityscapes"
    for path in sorted((home / "gtFine/train").rglob("*_gtFine_labelIds.png"))[:2]:
        for other in (path, Path(str(path).replace("labelIds", "instanceIds"))):
            (tmp_path / "gtFine").mkdir(exist_ok=True)
            (tmp_path / "gtFine" / other.name).symlink_to(other)
        true = np.asarray(Image.open(path))
        shifted = np.roll(true, 9, 1)
        shifted[:40] = IDS[16]  # predict a train where there is none
        save(tmp_path / "theirs" / path.name, shifted)
        image = path.name.replace("gtFine_labelIds", "leftImg8bit")
        save(tmp_path / "leftImg8bit" / image, np.zeros((*true.shape, 3), np.uint8))
    theirs = official(*pairs(tmp_path, tmp_path / "theirs"))
    ours = evaluated("--predictions", "theirs", "--data", declared(tmp_path), "--ids", "label")
    scored = {row["name"]: row["iou"] for row in ours["classes"]}
    false = []
    for name in CITYSCAPES:
        other = theirs["classScores"][name]
        if scored[name] is None:  # not in the truth: the script scores 0 if it was predicted
            false += [name] if other == 0 else []
            assert other == 0 or math.isnan(other)
        else:
            assert scored[name] == other
    assert "train" in false
    (note,) = [note for note in ours["notes"] if "official script" in note]
    assert note.endswith(f"its mean would be {100 * theirs['averageScoreClasses']:.2f}")
