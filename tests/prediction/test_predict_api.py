"""`udaseg.predict` in Python: lazily without `out`, and the same ids as the command's masks."""

import inspect
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import udaseg
from tests.make_fixtures import unpack_run
from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.films import write_film
from tests.support.loading import replace_load
from tests.support.small import shipped, small_segmenter
from udaseg.cli.commands.predict import VideoFormat
from udaseg.cli.commands.predict import predict as predict_command
from udaseg.cli.main import main
from udaseg.data.files.video import VideoReader
from udaseg.errors import DataError, UsageError
from udaseg.inference.options import MASK_KINDS
from udaseg.prediction.options import LABEL_FILES, VIDEO_FORMATS
from udaseg.runs.calibration_file import write_calibration


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the finished run of the fixtures."""
    return unpack_run("rccr", tmp_path_factory.mktemp("finished") / "rccr")


def small_model(*overrides):
    """Return an untrained network whose labels depend on size and surroundings."""
    network = small_segmenter(classes=3, projector=False).eval().requires_grad_(False)
    recipe = shipped("toyland/rccr", list(overrides) or ["validation.resize=null"])
    return udaseg.Model(network, COLORS, recipe, 7, Path("runs/small/checkpoints/step-000007.pt"))


def write_image(path, size, seed=0, **how):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((size[1], size[0]))
    picture.save(path, **how)


def write_inputs(folder="in"):
    """Write images of several sizes, formats and orientations."""
    write_image(f"{folder}/same.png", (64, 128))
    write_image(f"{folder}/tall.jpg", (90, 31), seed=1)
    write_image(f"{folder}/deep/same.png", (64, 128), seed=2)
    write_image(f"{folder}/tiny.bmp", (1, 2), seed=3)
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        write_image(f"{folder}/turned{orientation}.jpg", (48, 80), seed=orientation, exif=exif)
    Image.open(f"{folder}/same.png").convert("L").save(f"{folder}/grey.png")


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, words), "-q"])
    assert not stop.value.code


def mask(path, out="masks", kind="ids"):
    file = Path(out, kind, path.relative_to(Path("in").absolute())).with_suffix(".png")
    with Image.open(file) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--flip"], {"flip": True}),
        (["--window", "[64, 96]"], {"window": (64, 96)}),
        (["--weights", "teacher"], {"weights": "teacher"}),
        (["--abstain", "0.4"], {"abstain": 0.4}),
    ],
)
@pytest.mark.slow
def test_ids_and_confidence_are_those_of_the_masks_bit_for_bit(run, words, options):
    write_inputs()
    command("in", "--checkpoint", run, "--save", "ids,confidence", *words)
    model = udaseg.load(run, weights=options.pop("weights", "student"))
    paths = []
    for prediction in udaseg.predict("in", model, options=udaseg.PredictOptions(**options)):
        paths.append(prediction.path)
        single = model.predict(prediction.path, **options)
        for each in (prediction, single):
            assert (each.ids == mask(prediction.path)).all()
            each.save("again.png", kind="confidence")
            with Image.open("again.png") as again:
                assert (np.asarray(again) == mask(prediction.path, kind="confidence")).all()
        assert (prediction.confidence == single.confidence).all()
    assert paths == sorted(path.absolute() for path in Path("in").rglob("*.*"))


def test_saved_predictions_are_the_files_of_the_command(run):
    write_inputs()
    kinds = ("color", "ids", "label-ids", "overlay", "confidence")
    command("in", "--checkpoint", run, "--save", ",".join(kinds))
    for prediction in udaseg.predict("in", run):
        for kind in kinds:
            prediction.save("again.png", kind)
            name = prediction.path.relative_to(Path("in").absolute()).with_suffix(".png")
            assert Path("again.png").read_bytes() == Path("masks", kind, name).read_bytes()


@pytest.mark.parametrize("resize", ["null", "[512, 1024]"])
def test_a_large_image_is_the_same_in_tiles(resize):
    model = small_model(f"validation.resize={resize}")
    write_image("in/large.png", (2100, 2100), compress_level=1)
    udaseg.predict("in", model, out="masks", options=udaseg.PredictOptions(save="ids"))
    (prediction,) = udaseg.predict("in", model)
    assert (prediction.ids == mask(prediction.path)).all()
    assert (model.predict("in/large.png").ids == prediction.ids).all()


def test_frames_of_a_video_are_those_that_are_written():
    write_film(Path("in/film.avi"), 5)
    model = small_model()
    udaseg.predict("in", model, out="masks", options=udaseg.PredictOptions(save=["ids"]))
    for options in (None, udaseg.PredictOptions(batch=2)):
        predictions = list(udaseg.predict("in", model, options=options))
        assert [prediction.frame for prediction in predictions] == list(range(5))
        with VideoReader(Path("in/film.avi")) as video:
            for prediction, frame in zip(predictions, video, strict=True):
                assert prediction.path == Path("in/film.avi").absolute()
                assert (prediction.image == frame).all()
                written = Path(f"masks/ids/film.avi.frames/{prediction.frame:06d}.png")
                with Image.open(written) as ids:
                    assert (prediction.ids == np.asarray(ids)).all()
                assert (prediction.ids == model.predict(frame).ids).all()


def test_predictions_are_lazy_in_the_order_of_the_inputs_and_write_nothing():
    class Counting(torch.nn.Module):
        images = 0

        def forward(self, images):
            self.images += len(images)
            return type("Seen", (), {"logits": images})

    for name in ("b/2.png", "b/1.png", "a.png", "c.png"):
        write_image(name, (16, 24))
    write_film(Path("film.mp4"), 2)
    before = sorted(Path().rglob("*"))
    model = loaded_colors(network=Counting())
    given = ["c.png", Path("film.mp4"), "b", "a.png", "c.png"]
    predictions = udaseg.predict(given, model)
    assert model.segmenter.images == 0
    names = [next(predictions).path.name]
    assert model.segmenter.images == 1
    names += [prediction.path.name for prediction in predictions]
    assert names == ["c.png", "film.mp4", "film.mp4", "1.png", "2.png", "a.png"]
    assert sorted(Path().rglob("*")) == before
    started = udaseg.predict(given, model)
    next(started)
    started.close()  # ends the threads that read ahead


def test_images_of_one_size_are_predicted_together():
    class Batches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = []

        def forward(self, images):
            self.sizes.append(len(images))
            return type("Seen", (), {"logits": images})

    for name, size in {"a": (8, 8), "b": (8, 8), "c": (8, 8), "d": (8, 9), "e": (8, 9)}.items():
        write_image(f"in/{name}.png", size)
    model = loaded_colors(network=Batches())
    assert len(list(udaseg.predict("in", model, options=udaseg.PredictOptions(batch=2)))) == 5
    assert model.segmenter.sizes == [2, 1, 2]


def test_bad_inputs_are_skipped_with_a_warning(caplog):
    labels = random_labels(8, 12)
    Path("in").mkdir()
    Image.fromarray(painted(labels)).save("in/good.png")
    Path("in/bad.png").write_bytes(b"no image")
    Path("in/bad.mp4").write_bytes(b"no film")
    Path("pages.pdf").write_bytes(b"no image")
    (prediction,) = udaseg.predict(["in", "pages.pdf"], loaded_colors())
    assert (prediction.ids == labels).all()
    for name in ("bad.png", "bad.mp4", "pages.pdf"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1


def test_without_one_readable_input_it_is_an_error():
    Path("in").mkdir()
    Path("in/bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 inputs"):
        list(udaseg.predict("in", loaded_colors()))
    with pytest.raises(DataError, match="does not exist"):
        udaseg.predict("nowhere.png", loaded_colors())


def test_confidence_uses_the_temperature_of_the_run_unless_told_not_to():
    model = loaded_colors()
    model.checkpoint.parent.mkdir(parents=True)
    model.checkpoint.write_bytes(b"weights")
    write_calibration(model.checkpoint, "student", {"temperature": 4.0})
    write_image("a.png", (8, 8))
    (calibrated,) = udaseg.predict("a.png", model)
    (plain,) = udaseg.predict("a.png", model, options=udaseg.PredictOptions(calibrated=False))
    assert (calibrated.ids == plain.ids).all()
    assert (calibrated.confidence < plain.confidence).all()
    assert (model.predict("a.png").confidence == calibrated.confidence).all()


def test_with_out_it_returns_what_was_written_and_prints_nothing(capsys):
    labels = {name: random_labels(8, 12, seed=index) for index, name in enumerate("abc")}
    Path("in").mkdir()
    for name, each in labels.items():
        Image.fromarray(painted(each)).save(f"in/{name}.png")
    Path("in/bad.png").write_bytes(b"no image")
    write_film(Path("in/film.mp4"), 3, (32, 48))
    model = loaded_colors()
    summary = udaseg.predict("in", model, out="masks")
    assert summary.folders == {"color": Path("masks/color"), "ids": Path("masks/ids")}
    assert (summary.image_inputs, summary.video_inputs) == (4, 1)
    assert (summary.images, summary.videos, summary.frames, summary.kept) == (3, 1, 3, 0)
    assert list(summary.failures) == [Path("in/bad.png").absolute()]
    assert summary.failures_file.read_text().count("bad.png") >= 1
    assert sum(summary.pixels.values()) == 3 * 8 * 12 + 3 * 32 * 48
    assert list(summary.pixels) == list(COLORS.names)
    assert sum(summary.shares().values()) == pytest.approx(1)
    resumed = udaseg.predict("in", model, out="masks", options=udaseg.PredictOptions(resume=True))
    assert (resumed.images, resumed.videos, resumed.kept) == (0, 0, 4)
    assert set(resumed.shares().values()) == {0}
    output = capsys.readouterr()
    assert output.out == ""


def test_all_inputs_bad_is_an_error_with_out_too():
    Path("bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images could be predicted"):
        udaseg.predict("bad.png", loaded_colors(), out="masks")


def test_a_run_is_loaded_with_the_options_and_a_model_is_taken_as_it_is(monkeypatch):
    asked = []

    def load(run, **options):
        asked.append((run, options))
        return loaded_colors()

    replace_load(monkeypatch, load)
    write_image("a.png", (8, 8))
    options = udaseg.PredictOptions(weights="teacher", device="cpu")
    list(udaseg.predict("a.png", "runs/colors", options=options))
    list(udaseg.predict("a.png", loaded_colors(), options=options))
    assert asked == [(Path("runs/colors"), {"weights": "teacher", "device": "cpu"})]


def test_a_signal_while_iterating_is_pythons_own():
    handler = signal.getsignal(signal.SIGINT)
    write_image("a.png", (8, 8))
    for _ in udaseg.predict("a.png", loaded_colors()):
        assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"save": ("ids", "colour")},
            "--save must be any of .*, got 'colour'; did you mean 'color'",
        ),
        ({"save": "ids;color"}, "got 'ids;color'"),
        ({"video": "gif"}, "--video must be any of mp4, webm, avi, frames, got gif"),
        ({"overwrite": True, "resume": True}, "give only one"),
        ({"abstain": 1.0}, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(UsageError, match=message):
        udaseg.PredictOptions(**options)


def test_kinds_are_names_or_one_text():
    assert udaseg.PredictOptions(save="ids,color,ids").kinds == ("ids", "color")
    assert udaseg.PredictOptions(save=["ids", "color"]).kinds == ("ids", "color")
    assert udaseg.PredictOptions().kinds == ("color", "ids")
    options = udaseg.PredictOptions(save="cvat,color,coco,cvat")
    assert (options.kinds, options.label_files) == (("color", "ids"), ("cvat", "coco"))


def test_the_command_offers_exactly_the_kinds_and_containers_that_there_are():
    (save,) = inspect.signature(predict_command).parameters["save"].annotation.__metadata__
    masks, tools = ", ".join(MASK_KINDS), ", ".join(LABEL_FILES)
    assert save.help == (f"Outputs, comma-separated: {masks}, and files of tools: {tools}.")
    assert get_args(VideoFormat) == VIDEO_FORMATS


def test_options_import_nothing_heavy():
    code = (
        "import sys, udaseg; udaseg.PredictOptions(); "
        "print([m for m in ('torch', 'cv2', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
