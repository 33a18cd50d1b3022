"""A model is a torch module that predicts images as `udaseg predict` does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.make_fixtures import unpack_run
from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.small import shipped, small_segmenter
from udaseg.data.files.orientation import to_upright
from udaseg.errors import CheckpointError, DataError, RecipeError, UsageError
from udaseg.inference.trained_model import Model, load
from udaseg.runs import checkpoint
from udaseg.runs.calibration_file import write_calibration
from udaseg.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the finished run of the fixtures."""
    return unpack_run("rccr", tmp_path_factory.mktemp("finished") / "rccr")


@pytest.fixture(scope="module")
def model(run):
    return load(run, device="cpu")


def photo(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def small_model(segmenter, **facts):
    recipe = shipped("toyland/rccr", ["validation.resize=null"])
    return Model(segmenter, COLORS, recipe, 7, Path("nowhere/step-000007.pt"), **facts)


def test_a_run_a_path_and_text_load_the_same_network(run):
    (file,) = Run(run).checkpoints[-1:]
    models = [load(given, device="cpu") for given in (Run(run), run, str(run), file)]
    assert {model.checkpoint for model in models} == {file}
    assert {model.sha256 for model in models} == {checkpoint.find_checkpoint(run).sha256}
    for model in models:
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
        assert all(
            torch.equal(one, other)
            for one, other in zip(models[0].parameters(), model.parameters(), strict=True)
        )


def test_student_and_teacher_are_told_apart_and_nothing_else_is_accepted(run):
    student, teacher = (load(run, weights=word, device="cpu") for word in ("student", "teacher"))
    assert (student.weights, teacher.weights) == ("student", "teacher")
    assert not torch.equal(student(torch.ones(1, 3, 32, 32)), teacher(torch.ones(1, 3, 32, 32)))
    with pytest.raises(UsageError, match="student or teacher, got 'techer'"):
        load(run, weights="techer")


def test_what_holds_no_network_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_a_run_that_needs_a_package_names_it(run, monkeypatch):
    """Recipe loading says which package is missing; loading a run passes it on."""

    def refuse(values, origin="recipe"):
        raise RecipeError("model.backbone: 'other' is in no installed package; pip install other")

    monkeypatch.setattr("udaseg.inference.trained_model.from_dict", refuse)
    with pytest.raises(RecipeError, match="pip install other"):
        load(run, device="cpu")


def test_logits_have_the_size_of_the_images_and_a_gradient(model):
    images = torch.rand(2, 3, 50, 70, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, len(model.classes), 50, 70)
    logits.sum().backward()
    assert images.grad is not None


def test_logits_of_a_network_at_full_size_are_left_as_they_are():
    images = torch.rand(1, 3, 6, 8)
    assert torch.equal(loaded_colors()(images), 10 * images)


def test_wrapping_a_network_changes_nothing_of_it():
    network = small_segmenter(classes=3, batch_norm="frozen")
    network.to(memory_format=torch.channels_last)
    network.train()
    network.head.requires_grad_(False)

    def state():
        modes = [part.training for part in network.modules()]
        weights = [(w.data_ptr(), w.stride(), w.requires_grad) for w in network.parameters()]
        return modes, weights

    before = state()
    model = small_model(network, device=torch.device("cpu"))
    assert state() == before
    assert model.training
    model.predict(photo())  # in evaluation mode, which it leaves again
    assert state() == before
    assert list(network.state_dict()) == [
        name.removeprefix("segmenter.") for name in model.state_dict()
    ]


def test_each_part_keeps_its_own_mode():
    model = small_model(small_segmenter(classes=3, projector=False))
    model.train()
    frozen = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for part in frozen:
        part.eval()
    before = [part.training for part in model.modules()]
    model.predict(photo())
    assert [part.training for part in model.modules()] == before


def test_a_prediction_keeps_the_image_of_an_array_that_is_used_again():
    image = photo()
    prediction = small_model(small_segmenter(classes=3, projector=False)).predict(image)
    image[:] = 0
    assert np.array_equal(prediction.image, photo())


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in (0, -1, float("nan"))),
        *({"abstain": value} for value in (0, 1, 2, float("nan"))),
        *({"window": value} for value in ((0, 0), (-1, 5), (64,))),
    ],
)
def test_options_that_the_command_refuses_are_refused(model, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        model.predict(photo(), **wrong)


def test_predicting_in_training_mode_moves_no_statistic():
    network = small_segmenter(classes=3).train()
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    model = small_model(network)
    trained = model.predict(photo()).ids
    assert all(torch.equal(statistics[name], buffer) for name, buffer in network.named_buffers())
    assert (model.eval().predict(photo()).ids == trained).all()


def test_the_device_is_where_the_weights_are():
    model = small_model(small_segmenter(classes=3))
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == torch.device("meta")
    assert (
        small_model(small_segmenter(classes=3), device=torch.device("meta")).device.type == "meta"
    )
    assert loaded_colors().device == torch.device("cpu")  # has no weights


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_model_moves_to_a_gpu_and_predicts_there():
    model = small_model(small_segmenter(classes=3).eval())
    on_cpu = model.predict(photo()).ids
    assert (model.to("cuda").predict(photo()).ids == on_cpu).mean() > 0.99
    assert model.device.type == "cuda"


def test_every_form_of_an_image_gives_the_same_prediction(model, tmp_path):
    pixels = photo()
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = model.predict(pixels)
    assert expected.path is None
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        picture,
        picture.convert("RGBA"),
        tensor,
        tensor.contiguous(),
        tensor.float() / 255,
        tensor.double() / 255,
        pixels[:, ::-1][:, ::-1],
        Image.open(tmp_path / "a.png"),
    ]
    for form in forms:
        prediction = model.predict(form)
        assert (prediction.ids == expected.ids).all()
        assert (prediction.confidence == expected.confidence).all()
        assert (prediction.image == pixels).all()
    assert model.predict(tmp_path / "a.png").path == tmp_path / "a.png"


def test_grey_and_palette_pictures_are_seen_as_their_files_are(tmp_path):
    model = small_model(small_segmenter(classes=3).eval())
    grey = Image.fromarray(photo()[..., 0])
    deep = Image.fromarray(photo()[..., 0].astype(np.uint16) * 257)
    palette = Image.fromarray(photo()).quantize(8)
    palette.info["transparency"] = 0
    for index, picture in enumerate((grey, deep, palette, grey.convert("LA"))):
        picture.save(tmp_path / f"{index}.png")
        assert (
            model.predict(picture).image == model.predict(tmp_path / f"{index}.png").image
        ).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_photo_is_seen_upright_and_labelled_as_stored(orientation, tmp_path):
    model = small_model(small_segmenter(classes=3).eval())
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif"):
        Image.fromarray(photo()).save(tmp_path / name, exif=exif)
        of_file = model.predict(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            of_picture = model.predict(opened)
            assert of_picture.ids.shape == np.asarray(opened).shape[:2]
        assert of_file.ids.shape == (40, 60)
        if name == "a.png":  # Pillow turns a TIFF upright by itself
            assert (of_picture.ids == of_file.ids).all()
            assert of_picture.orientation == of_file.orientation == orientation
        upright = model.predict(to_upright(photo(), orientation))
        assert (to_upright(of_file.ids, orientation) == upright.ids).all()
        assert (to_upright(of_picture.ids, of_picture.orientation) == upright.ids).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.zeros((4, 4), np.uint8), ValueError, "must be \\(H, W, 3\\) uint8 RGB"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "float32"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "must be"),
        (torch.zeros(4, 4, 3), ValueError, "must be \\(3, H, W\\)"),
        (torch.zeros(1, 3, 4, 4), ValueError, "must be \\(3, H, W\\)"),
        (torch.full((3, 4, 4), -1.0), ValueError, "without normalisation"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "in \\[0, 1\\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "int64"),
        (Image.new("F", (4, 4)), ValueError, "convert it to RGB"),
        ([[1]], TypeError, "got list"),
        ("nowhere.png", DataError, "no such file"),
    ],
)
def test_what_is_no_image_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        loaded_colors().predict(wrong)


def test_confidence_uses_the_runs_temperature_unless_one_is_given(tmp_path):
    file = tmp_path / "checkpoints" / "step-000007.pt"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    image = (painted(random_labels(16, 24)) * 0.2).astype(np.uint8)
    model = loaded_colors()
    model.checkpoint = file

    def sure(temperature):
        raised = np.exp(10 * (51 / 255) / temperature)
        return np.full(image.shape[:2], raised / (raised + 2))

    np.testing.assert_allclose(model.predict(image).confidence, sure(1), rtol=1e-5)
    write_calibration(file, "student", {"temperature": 2.5})
    assert json.loads((tmp_path / "calibration.json").read_text())["student"]
    np.testing.assert_allclose(model.predict(image).confidence, sure(2.5), rtol=1e-5)
    np.testing.assert_allclose(model.predict(image, temperature=4).confidence, sure(4), rtol=1e-5)
    abstained = model.predict(image, abstain=float(sure(2.5).mean()) + 0.01)
    assert (abstained.ids == 255).all()
    file.write_bytes(b"other weights")
    with pytest.raises(DataError, match="was fitted to"):
        model.predict(image)
    np.testing.assert_allclose(model.predict(image, temperature=1).confidence, sure(1), rtol=1e-5)
