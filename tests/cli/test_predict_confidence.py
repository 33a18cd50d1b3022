"""`udaseg predict`: logits, temperature, abstaining; and batches and multi-page files."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from tests.support.predicting import ids_of, predict
from udaseg.errors import DataError, PartialError, UsageError
from udaseg.inference.labels import labels_from_logits
from udaseg.runs.calibration_file import write_calibration

CHECKPOINT = Path("runs/colors/checkpoints/step-000007.pt")


class Grey(torch.nn.Module):
    """Always correct, and more confident the brighter the pixel is."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        return SimpleNamespace(logits=4 * images)


@pytest.fixture(autouse=True)
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    CHECKPOINT.parent.mkdir(parents=True)
    CHECKPOINT.write_bytes(b"weights")
    state = {"run": loaded_colors(network=Grey())}
    replace_load(monkeypatch, lambda path, **_: state["run"])
    return state


def write_image(path, labels, brightness=None, **how):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shown = painted(labels)
    if brightness is not None:
        shown = (shown * brightness[..., None]).astype(np.uint8)
    Image.fromarray(shown).save(path, **how)
    return labels


def sure(brightness, temperature=1.0):
    """Return the softmax of (4 b, 0, 0) / temperature at the correct class."""
    raised = np.exp(4 * np.floor(brightness * 255) / 255 / temperature)
    return raised / (raised + 2)


def half_dark():
    brightness = np.ones((16, 24))
    brightness[:, :12] = 0.2
    return brightness


def test_pixels_below_the_confidence_become_ignore_in_ids_colours_and_overlay(capsys):
    labels = write_image("in/a.png", random_labels(16, 24), half_dark())
    predict("in", save=("ids", "color", "overlay"), abstain=0.6)
    dark = half_dark() < 1
    assert sure(0.2) < 0.6 < sure(1.0)
    assert (ids_of("masks/ids/a.png") == np.where(dark, 255, labels)).all()
    with Image.open("masks/color/a.png") as color:
        assert (np.asarray(color) == np.where(dark, 255, labels)).all()
        shown = np.asarray(color.convert("RGB"))
    assert (shown[dark] == 0).all()
    assert (shown[~dark] == np.array(COLORS.colors)[labels][~dark]).all()
    assert (ids_of("masks/overlay/a.png")[dark] == ids_of("in/a.png")[dark]).all()
    assert "abstained 50.00 %" in capsys.readouterr().out
    assert json.loads(Path("masks/prediction.json").read_text())["abstain"] == 0.6


def test_the_runs_temperature_is_taken_and_told_and_can_be_left_out(caplog):
    caplog.set_level("INFO")
    brightness = np.linspace(0.1, 1, 24)[None].repeat(16, 0)
    write_image("in/a.png", np.zeros((16, 24), np.uint8), brightness)
    write_calibration(CHECKPOINT, "student", {"temperature": 2.5})
    predict("in", save=("confidence", "ids"))
    np.testing.assert_allclose(
        ids_of("masks/confidence/a.png"), 255 * sure(brightness, 2.5), atol=0.51
    )
    assert "temperature 2.500" in caplog.text
    assert json.loads(Path("masks/prediction.json").read_text())["temperature"] == 2.5
    predict("in", save=("confidence", "ids"), calibrated=False, out=Path("raw"))
    np.testing.assert_allclose(ids_of("raw/confidence/a.png"), 255 * sure(brightness), atol=0.51)
    assert "confidence is not calibrated: --uncalibrated" in caplog.text
    assert (ids_of("masks/ids/a.png") == ids_of("raw/ids/a.png")).all()
    # masks of two temperatures must not be mixed
    with pytest.raises(UsageError, match="a different temperature"):
        predict("in", save=("confidence", "ids"), out=Path("raw"), resume=True)


def test_without_a_calibration_it_says_so(caplog):
    caplog.set_level("INFO")
    write_image("in/a.png", random_labels(8, 8))
    predict("in", save=("confidence",))
    assert "`udaseg calibrate` was not run for this checkpoint" in caplog.text


def test_a_calibration_of_another_checkpoint_is_refused_where_confidence_is_asked_for():
    write_image("in/a.png", random_labels(8, 8))
    write_calibration(CHECKPOINT, "student", {"temperature": 2.5})
    CHECKPOINT.write_bytes(b"other weights")
    with pytest.raises(DataError, match=r"differs from the current step-000007\.pt"):
        predict("in", save=("confidence",))
    with pytest.raises(DataError, match="--uncalibrated"):
        predict("in", abstain=0.5)
    assert not Path("masks").exists()
    predict("in", save=("confidence",), calibrated=False, out=Path("raw"))
    predict("in")


@pytest.mark.parametrize("harm", ["{", "[]", '{"student": 3}', '{"student": {"temperature": -1}}'])
def test_a_damaged_calibration_is_refused(harm):
    write_image("in/a.png", random_labels(8, 8))
    Path("runs/colors/calibration.json").write_text(harm)
    with pytest.raises(DataError, match=r"calibration\.json: .*udaseg calibrate"):
        predict("in", save=("confidence",))


def test_each_of_student_and_teacher_has_its_temperature(run):
    write_calibration(CHECKPOINT, "student", {"temperature": 2.0})
    write_calibration(CHECKPOINT, "teacher", {"temperature": 3.0})
    write_image("in/a.png", random_labels(8, 8))
    for weights, temperature in (("student", 2.0), ("teacher", 3.0)):
        run["run"] = loaded_colors(network=Grey(), weights=weights)
        predict("in", save=("confidence",), weights=weights, out=Path(weights))
        facts = json.loads(Path(weights, "prediction.json").read_text())
        assert facts["temperature"] == temperature


def test_logits_are_kept_as_the_network_gave_them():
    labels = write_image("in/a.png", random_labels(16, 24))
    predict("in", save=("logits", "ids"))
    logits = np.load("masks/logits/a.npy")
    assert logits.dtype == np.float32
    assert (logits == 4.0 * (painted(labels).transpose(2, 0, 1) > 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_logits_lie_as_the_ids_do(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_image("in/a.png", random_labels(12, 20), exif=exif)
    predict("in", save=("logits", "ids"))
    (path,) = Path("masks/logits").iterdir()
    predicted, _ = labels_from_logits(torch.from_numpy(np.load(path)), (12, 20))
    assert (predicted == ids_of("masks/ids/a.png")).all()


def test_resume_keeps_whole_logits_and_makes_cut_ones_anew(run):
    for name in "abc":
        write_image(f"in/{name}.png", random_labels(8, 12))
    predict("in", save=("logits",))
    paths = sorted(Path("masks/logits").iterdir())
    whole = [path.read_bytes() for path in paths]
    paths[1].write_bytes(whole[1][:-30])
    predict("in", save=("logits",), resume=True)
    assert run["run"].segmenter.batches == [1] * 4
    assert [path.read_bytes() for path in paths] == whole


def test_an_image_too_large_for_logits_is_named_and_stops_no_other():
    write_image("in/large.png", np.zeros((2049, 2049), np.uint8), compress_level=1)
    write_image("in/small.png", random_labels(8, 8))
    with pytest.raises(PartialError):
        predict("in", save=("logits",))
    assert "leave logits out of --save" in Path("masks/failures.csv").read_text()


def test_images_of_one_size_are_looked_at_together_and_labelled_the_same(run):
    for index, size in enumerate([(8, 12), (8, 12), (8, 12), (12, 8), (12, 8), (8, 12)]):
        write_image(f"in/{index}.png", random_labels(*size, seed=index))
    predict("in", batch=2, save=("ids", "confidence"))
    assert run["run"].segmenter.batches == [2, 1, 2, 1]
    predict("in", save=("ids", "confidence"), out=Path("single"))
    for path in sorted(Path("masks").rglob("*.png")):
        assert path.read_bytes() == (Path("single") / path.relative_to("masks")).read_bytes()


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
def test_of_several_pages_the_first_is_predicted_and_it_says_so(name, caplog):
    first, second = random_labels(8, 12), random_labels(8, 12, seed=1)
    how = {"lossless": True} if name == "a.webp" else {}
    pages = [Image.fromarray(painted(second))]
    write_image(Path("in", name), first, save_all=True, append_images=pages, **how)
    write_image(Path("in/plain.png"), first)
    predict("in")
    assert (ids_of("masks/ids/a.png") == first).all()
    records = [record for record in caplog.records if "has 2 pages" in record.getMessage()]
    assert len(records) == 1
    assert name in records[0].getMessage()
