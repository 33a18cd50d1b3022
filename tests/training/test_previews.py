"""Previews show the predictions, change no state, and never end a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.small import shipped, small_segmenter
from tests.support.toy import TINY, toy_pair, toy_root
from udaseg.data.datasets.index import evenly_spaced_indices
from udaseg.data.loading.transforms import resize_labels
from udaseg.inference.labels import labels_from_logits
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.models.pixels import image_batch
from udaseg.training.callbacks.previews import Previews
from udaseg.training.setup import build_setup


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return toy_pair(toy_root(tmp_path_factory.mktemp("data")))


def setup_for(pair, method, *words):
    recipe = shipped(f"toyland/{method}", [*TINY, "steps=40", *words])
    source, target = pair
    setup = build_setup(recipe, source, None if method == "source_only" else target)
    return recipe, setup, source.classes


def sheet_of(pair, folder, method, *words):
    recipe, setup, classes = setup_for(pair, method, *words)
    sheet = Previews(recipe, classes, folder).draw(setup, 7)
    shown = np.asarray(Image.open(folder / "previews" / "step-000007.png"))
    assert np.array_equal(shown, sheet)
    return setup, classes, sheet


def columns(sheet, count):
    """Return the pictures of the first row, without their titles."""
    high = round(320 * 64 / 128)
    return [sheet[24 : 24 + high, n * 326 : n * 326 + 320] for n in range(count)]


def test_a_picture_has_image_pseudo_label_confidence_prediction_and_a_legend(pair, tmp_path):
    _, classes, sheet = sheet_of(pair, tmp_path, "rccr")
    image, label, grey, prediction = columns(sheet, 4)
    assert image.std() > 10
    assert (grey[..., 0] == grey[..., 2]).all()
    known = {tuple(color) for color in classes.colors}
    for mask in (label, prediction):
        assert {tuple(color) for color in mask.reshape(-1, 3).tolist()} <= known
    legend = sheet[24 + 2 * (160 + 6) :]
    for color in classes.colors:
        assert (legend == color).all(-1).sum() >= 14 * 14


def test_the_prediction_is_the_students_and_the_label_the_teachers(pair, tmp_path):
    recipe, setup, classes = setup_for(pair, "dacs")
    assert isinstance(setup.objective, SelfTraining)
    with torch.no_grad():
        setup.objective.teacher.network.head.classify.bias[4] += 1e6  # the teacher predicts fence
    sheet = Previews(recipe, classes, tmp_path).draw(setup, 1)
    _, label, grey, prediction = columns(sheet, 4)
    assert (label == classes.colors[4]).all()
    assert (grey == 255).all()
    crops = setup.batches.target
    image, none = crops.read(crops.samples[evenly_spaced_indices(len(crops.samples), 2)[0]])
    assert none is None
    setup.objective.student.eval()
    with torch.no_grad():
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        logits = setup.objective.student(tensor).logits[0]
    colors = np.asarray(classes.colors)[labels_from_logits(logits, image.shape[:2])[0]]
    rows = np.floor((np.arange(160) + 0.5) * 64 / 160).astype(int)
    cells = np.floor((np.arange(320) + 0.5) * 128 / 320).astype(int)
    assert (prediction == colors[rows][:, cells]).all(-1).mean() > 0.99


def test_the_label_is_that_of_training_with_its_scale_and_mirror_images(pair, tmp_path):
    words = ["method.teacher.scale=2", "method.teacher.mirror=true"]
    recipe, setup, classes = setup_for(pair, "dacs", *words)
    plain = setup_for(pair, "dacs")[1]
    sheet, without = (Previews(recipe, classes, tmp_path).draw(each, 1) for each in (setup, plain))
    crops = setup.batches.target
    image, _ = crops.read(crops.samples[evenly_spaced_indices(len(crops.samples), 2)[0]])
    labels, _ = setup.objective.label(image_batch([image], torch.device("cpu")))
    shown = resize_labels(labels[0].numpy(), (160, 320))
    assert (columns(sheet, 4)[1] == np.asarray(classes.colors)[shown]).all(-1).mean() > 0.99
    assert (columns(sheet, 4)[1] != columns(without, 4)[1]).any()


def test_drawing_changes_no_tensor_and_no_mode(pair, tmp_path):
    recipe, setup, classes = setup_for(pair, "rccr", "method.teacher.batch_statistics=true")
    before = {name: part.clone() for name, part in setup.objective.state_dict().items()}
    modes = [part.training for part in setup.objective.modules()]
    drawn = torch.get_rng_state()
    assert Previews(recipe, classes, tmp_path).draw(setup, 3) is not None
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [part.training for part in setup.objective.modules()] == modes
    after = setup.objective.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(("method", "count"), [("source_only", 4), ("minent", 3)])
def test_without_a_teacher_there_is_the_sources_truth_or_no_label(pair, tmp_path, method, count):
    setup, classes, sheet = sheet_of(pair, tmp_path, method)
    assert sheet.shape[1] == count * 326 - 6
    if method == "source_only":
        crops = setup.batches.source
        _, truth = crops.read(crops.samples[0])
        shown = columns(sheet, 4)[1]
        assert (shown == classes.colors[0]).all(-1).mean() == pytest.approx(
            (truth == 0).mean(), abs=0.02
        )


def test_there_are_at_most_twenty_pictures_however_long_a_run_is(tmp_path):
    for steps, requested, count in (
        (100_000, 10, 20),
        (100_010, 1, 20),
        (500, 1000, 1),
        (70, 20, 4),
    ):
        words = [*TINY, f"steps={steps}", f"machine.preview_every={requested}"]
        previews = Previews(shipped("toyland/dacs", words), None, tmp_path)
        due = [step for step in range(1, steps + 1) if previews.is_due(step)]
        assert len(due) == count
        assert due[-1] == steps
    off = Previews(shipped("toyland/dacs", ["machine.preview_every=0"]), None, tmp_path)
    assert not any(map(off.is_due, range(1, 501)))


def test_a_picture_that_fails_is_told_once_and_ends_nothing(pair, tmp_path, caplog):
    recipe, setup, classes = setup_for(pair, "dacs", "machine.preview_every=5")
    (tmp_path / "previews").write_text("in the way")
    previews = Previews(recipe, classes, tmp_path)
    assert previews.is_due(5)
    assert previews.draw(setup, 5) is None
    assert "no more previews" in caplog.text
    assert not previews.is_due(10)
    assert setup.objective.student.training


def test_an_image_larger_than_a_training_step_is_made_smaller(pair, tmp_path):
    recipe, setup, classes = setup_for(pair, "dacs")
    seen = []
    real = small_segmenter(classes=len(classes))

    class Watched(torch.nn.Module):
        align_corners = False

        def forward(self, images):
            seen.append(images.shape)
            return real(images)

    batches = setup.batches
    crops = batches.target
    object.__setattr__(crops, "resize", (320, 640))
    objective = SimpleNamespace(student=Watched())
    watched = SimpleNamespace(objective=objective, batches=batches, device=torch.device("cpu"))
    try:
        assert Previews(recipe, classes, tmp_path).draw(watched, 1) is not None
    finally:
        object.__setattr__(crops, "resize", None)
    most = (batches.options.batch_source + batches.options.batch_target) * 64 * 64
    assert all(0.9 * most < shape[-1] * shape[-2] <= most for shape in seen)
