"""Predictions as PNG files: written by `eval --save`, scored by `eval --predictions`."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import udaseg
from tests.cli.test_eval import evaluate, given, scores_of, write_city
from tests.support.colors import COLORS, loaded_colors, random_labels
from udaseg.cli.commands.eval import LabelIds
from udaseg.cli.main import main
from udaseg.data.datasets.index import Sample
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.labels.tables import Ids
from udaseg.errors import DataError
from udaseg.evaluation import score_predictions
from udaseg.evaluation.prediction_files import (
    match_predictions,
    name_key,
    prediction_names,
    read_prediction,
)

__all__ = ["given"]  # a fixture

LABEL_IDS = {0: 7, 1: 23, 2: 26}  # road, sky, car


@pytest.fixture
def city(given, tmp_path, monkeypatch):
    """A data set of three images, one of them partly mispredicted; both commands open it."""
    truths = [random_labels(16, 24, seed) for seed in range(3)]
    shown = [truths[0], truths[1], (truths[2] + (np.arange(24) < 9)) % 3]
    given["city"] = write_city(tmp_path / "city", truths, images=shown)
    monkeypatch.setattr(score_predictions, "open_dataset", lambda data, *, root: given["city"])
    return given["city"]


def compare(*words):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--data", "city", "--out", "compared", *map(str, words)])
    return stop.value.code


def put(folder, name, pixels, mode=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette(list(range(30)))
    image.save(path)


@pytest.mark.parametrize("ids", ["train", "label"])
def test_files_score_as_the_network_that_they_are_of(city, ids):
    assert evaluate("--save", "saved", "--ids", ids) == 0
    assert compare("--predictions", "saved", "--ids", ids) == 0
    network, files = scores_of(), scores_of("compared")
    ious = {row["name"]: row["iou"] for row in files["classes"]}
    assert all(ious[row["name"]] == row["iou"] for row in network["classes"])
    assert files["pixel_accuracy"] == network["pixel_accuracy"]
    assert next(iter(files["means"].values())) == network["means"]["mIoU"] < 1
    if ids == "train":
        assert files["confusion"] == network["confusion"]
    assert files["protocol"]["predictions"] == f"saved ({ids} ids)"
    assert files["protocol"]["protocol"] == "full size"
    stored = np.asarray(Image.open("saved/0.png"))
    truth = np.asarray(Image.open(city.folder / "labels/0.png"))
    meaning = LABEL_IDS if ids == "label" else {0: 0, 1: 1, 2: 2}
    assert (stored == np.vectorize(meaning.get)(truth)).all()


def test_files_of_another_class_order_keep_their_meaning_by_prediction_json(city, given):
    order = ClassSpace(("car", "road", "sky"), COLORS.colors)
    given["run"] = loaded_colors(classes=order)
    assert evaluate("--save", "saved") == 0
    assert compare("--predictions", "saved") == 0
    assert scores_of("compared")["confusion"] == scores_of()["confusion"]
    Path("saved/prediction.json").write_text("{}")
    assert compare("--predictions", "saved") == 3


@pytest.mark.parametrize("kind", ["ids", "label-ids"])
def test_masks_of_predict_are_scored_too(city, kind):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(city.image_root), "--checkpoint", "run", "--save", kind])
    assert not stop.value.code
    ids = "label" if kind == "label-ids" else "train"
    assert compare("--predictions", f"masks/{kind}", "--ids", ids) == 0
    assert evaluate() == 0
    scored = {row["name"]: row["iou"] for row in scores_of("compared")["classes"]}
    assert all(scored[row["name"]] == row["iou"] for row in scores_of()["classes"])


def test_predict_refuses_label_ids_of_classes_that_have_none(city, given, capsys):
    given["run"] = loaded_colors(classes=ClassSpace(("a", "b", "c"), COLORS.colors))
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(city.image_root), "--checkpoint", "run", "--save", "label-ids"])
    assert stop.value.code == 2
    assert "no class a, b, c" in capsys.readouterr().err
    assert not Path("masks").exists()


def test_without_prediction_json_train_ids_are_the_data_sets_own(city):
    for number in range(3):
        truth = np.asarray(Image.open(city.folder / f"labels/{number}.png"))
        put(Path("theirs"), f"deep/{number}.png", truth, mode="P" if number else None)
    assert compare("--predictions", "theirs", "--format", "json") == 0
    assert scores_of("compared")["means"]["mIoU"] == 1


def test_ids_that_do_not_exist_are_refused_with_their_files(city, capsys):
    assert evaluate("--save", "saved", "--ids", "label") == 0
    Path("saved/prediction.json").unlink()
    capsys.readouterr()
    assert compare("--predictions", "saved", "--ids", "train") == 3
    stderr = capsys.readouterr().err
    assert "3 of 3 predictions hold ids that are not train ids; if they are label ids" in stderr
    assert "saved/1.png: " in stderr
    assert not Path("compared").exists()


def test_ids_of_no_class_are_errors_and_named(city, capsys):
    assert evaluate("--save", "saved") == 0
    for path in Path("saved").glob("*.png"):
        put(Path("saved"), path.name, np.full((16, 24), 255, np.uint8))
    capsys.readouterr()
    assert compare("--predictions", "saved") == 0
    assert "100.00 % of the labelled pixels hold an id without a class" in " ".join(
        capsys.readouterr().out.split()
    )
    assert scores_of("compared")["means"]["mIoU"] == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda saved: (saved / "1.png").unlink(), "no prediction for 1 of 3 images: 1.png"),
        (lambda saved: put(saved, "more/1.png", np.zeros((16, 24), np.uint8)), "several"),
        (
            lambda saved: put(saved, "1.png", np.zeros((8, 12), np.uint8)),
            "12x8, but the truth has 24x16",
        ),
        (lambda saved: (saved / "1.png").write_bytes(b"no png"), "1.png"),
        (
            lambda saved: put(saved, "1.png", np.eye(3, dtype=np.uint8)[[[0] * 24] * 16]),
            "needs one channel",
        ),
    ],
)
def test_files_that_cannot_be_scored_are_named(city, capsys, spoil, message):
    assert evaluate("--save", "saved") == 0
    spoil(Path("saved"))
    assert compare("--predictions", "saved") == 3
    assert message in capsys.readouterr().err
    assert not Path("compared").exists()


def test_a_gate_holds_for_files_too(city):
    assert evaluate("--save", "saved") == 0
    assert compare("--predictions", "saved", "--fail-under", 100) == 7
    assert compare("--predictions", "saved", "--fail-under", 10) == 0
    assert compare("--predictions", "nowhere") == 3


def test_predictions_are_not_written_among_other_files(city, capsys):
    assert evaluate("--save", "saved") == 0
    assert evaluate("--save", "saved") == 2
    assert "needs a new or empty folder" in capsys.readouterr().err


def test_classes_that_cityscapes_lacks_have_no_label_ids(city, given, capsys):
    ships = ClassSpace(("road", "sky", "ship"), COLORS.colors)
    given["run"] = loaded_colors(classes=ships)
    assert evaluate("--save", "saved", "--ids", "label") == 2
    assert "Cityscapes, which has no class ship" in capsys.readouterr().err
    assert not Path("saved").exists()


def test_files_at_the_size_of_the_releases_are_scored_at_it(given, tmp_path, monkeypatch):
    truth = random_labels(1024, 2048)
    given["city"] = write_city(tmp_path / "city", [truth])
    monkeypatch.setattr(score_predictions, "open_dataset", lambda data, *, root: given["city"])
    put(Path("theirs"), "0.png", truth[1::2, 1::2].copy())
    assert compare("--predictions", "theirs", "--release") == 0
    assert scores_of("compared")["means"]["mIoU"] == 1
    assert scores_of("compared")["protocol"]["protocol"] == "release of DACS and RCCR"
    assert compare("--predictions", "theirs") == 3


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("aachen_000001_000019_leftImg8bit", "aachen_000001_000019"),
        ("aachen_000001_000019", "aachen_000001_000019"),
        ("GOPR0364_frame_000001_rgb_anon", "GOPR0364_frame_000001"),
        ("GP010376_frame_000159_gt_labelTrainIds", "GP010376_frame_000159"),
        ("0001TP_006690", "0001TP_006690"),
        ("aachen_0000012_000019_leftImg8bit", "aachen_0000012_000019_leftImg8bit"),
    ],
)
def test_names_of_the_known_layouts_belong_to_an_image_whatever_follows(stem, key):
    assert name_key(stem) == key


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    samples = [Sample(f"drive{n}/cam/0.jpg", None, 4, 4) for n in (1, 2)]
    for sample in samples:
        put(tmp_path, str(Path(sample.image).with_suffix(".png")), np.zeros((4, 4), np.uint8))
    files = match_predictions(tmp_path, samples)
    assert [path.parent.parent.name for path in files] == ["drive1", "drive2"]
    with pytest.raises(DataError, match="several predictions for 1 of 1"):
        put(tmp_path, "cam/0.png", np.zeros((4, 4), np.uint8))
        match_predictions(tmp_path, samples[:1])


def test_names_that_we_write_for_images_of_one_stem_are_found_again(tmp_path):
    images = ["x/a.jpg", "x/a.png", "y/a.png", "x/b.png", "x/c.jpg", "y/c.png"]
    samples = [Sample(name, None, 4, 4) for name in images]
    names = prediction_names(samples)
    assert names["x/a.jpg"] == "x/a.jpg.png"
    for name in names.values():
        put(tmp_path, name, np.zeros((4, 4), np.uint8))
    matched = [
        path.relative_to(tmp_path).as_posix() for path in match_predictions(tmp_path, samples)
    ]
    assert matched == [names[name] for name in images]


def test_ids_of_sixteen_bits_are_read_when_a_byte_holds_them(tmp_path):
    wide = np.array([[0, 18], [33, 255]], np.uint16)
    put(tmp_path, "a.png", wide)
    assert (read_prediction(tmp_path / "a.png") == wide).all()
    put(tmp_path, "a.png", wide * 2)
    with pytest.raises(DataError, match="above 255"):
        read_prediction(tmp_path / "a.png")


def test_saved_scores_are_json_with_the_whole_matrix(city):
    assert evaluate("--save", "saved") == 0
    facts = json.loads(Path("saved/prediction.json").read_text())
    assert facts == {"ids": "train", "classes": {"names": ["road", "sky", "car"]}}


def test_python_scores_files_and_writes_only_where_asked(city, capsys):
    assert evaluate("--save", "saved") == 0
    capsys.readouterr()
    scores = udaseg.score_predictions("saved", "city")
    assert scores.to_json()["confusion"] == scores_of()["confusion"]
    options = udaseg.ScoringOptions(out=Path("compared"))
    assert udaseg.score_predictions("saved", "city", scoring=options) == scores
    assert scores_of("compared") == scores.to_json()
    assert capsys.readouterr().out == ""


def test_the_command_line_offers_every_kind_of_ids():
    assert get_args(LabelIds) == get_args(Ids)
