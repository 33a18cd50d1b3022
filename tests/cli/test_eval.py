"""`udaseg eval` scores at the labels' resolution, by class name, and stores the result."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import udaseg
from tests.support.colors import COLORS, ColorNetwork, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from udaseg.cli.main import main
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import DataError, UsageError
from udaseg.evaluation.evaluate import confusion_matrix
from udaseg.inference import run_data, trained_model
from udaseg.runs.scores import find_score_files

CPU = torch.device("cpu")
WHOLE = udaseg.InferenceOptions()


def write_city(folder, truths, names=COLORS.names, images=None, size=None):
    """Write a prepared data set whose images show the classes in `images` (default: the truth)."""
    samples = []
    for index, truth in enumerate(truths):
        shown = truth if images is None else images[index]
        picture = Image.fromarray(painted(shown))
        if size is not None:
            picture = picture.resize(size, Image.Resampling.NEAREST)
        for part, stored in (("images", picture), ("labels", Image.fromarray(truth))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            stored.save(folder / part / f"{index}.png")
        samples.append(Sample(f"{index}.png", f"labels/{index}.png", *truth.shape))
    colors = tuple((20 * index, 0, 0) for index in range(len(names)))
    classes = ClassSpace(tuple(names), colors)
    return PreparedDataset("city", folder, folder / "images", classes, {"val": tuple(samples)})


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Make the command load this colour network and the data set that a test stores as "city"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    state = {"run": loaded_colors(), "city": None}
    replace_load(monkeypatch, lambda path, **_: state["run"])
    monkeypatch.setattr(run_data, "open_dataset", lambda data, *, root: state["city"])
    return state


def evaluate(*words):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "run", "--data", "city", *map(str, words)])
    return stop.value.code


def scores_of(folder="run/eval/city-val"):
    return json.loads((Path(folder) / "scores.json").read_text())


def test_a_network_that_is_right_scores_one(given, tmp_path, capsys):
    given["city"] = write_city(tmp_path / "city", [random_labels(16, 24, seed) for seed in (1, 2)])
    assert evaluate() == 0
    output = capsys.readouterr()
    assert "100.00" in output.out
    assert "data city" in output.out
    assert "student at step 7" in " ".join(output.out.split())
    document = scores_of()
    assert [row["iou"] for row in document["classes"]] == [1, 1, 1]
    assert np.sum(document["confusion"]) == 2 * 16 * 24
    with Path("run/eval/city-val/scores.csv").open(newline="") as file:
        assert list(csv.reader(file))[1][:2] == ["road", "100.00"]


def test_scores_are_taken_at_the_size_of_the_labels(tmp_path):
    truth = random_labels(32, 48)
    city = write_city(tmp_path, [truth], size=(24, 16))  # images of half the size
    matrix = confusion_matrix(ColorNetwork(), COLORS, city, "val", WHOLE, device=CPU)
    assert matrix.counts.sum() == truth.size
    assert matrix.pixel_accuracy() > 0.8


def test_ignored_pixels_enter_no_score(tmp_path):
    truth = random_labels(8, 8)
    void = truth.copy()
    void[:4] = 255
    shown = truth.copy()
    shown[:4] = (shown[:4] + 1) % 3
    city = write_city(tmp_path, [void], images=[shown])
    matrix = confusion_matrix(ColorNetwork(), COLORS, city, "val", WHOLE, device=CPU)
    assert matrix.counts.sum() == 32
    assert matrix.pixel_accuracy() == 1


def test_classes_are_matched_by_name_and_strangers_are_named(given, tmp_path, capsys):
    # the data set has its classes in another order, lacks `sky`, and has a `tram`
    names = ("car", "tram", "road")
    truth = random_labels(16, 16)
    shown = np.array([2, 1, 0], np.uint8)[truth]  # its car is blue here, its road red
    given["city"] = write_city(tmp_path / "city", [truth], names=names, images=[shown])
    assert evaluate() == 0
    document = scores_of()
    scored = {row["name"]: row["iou"] for row in document["classes"]}
    assert scored == {"road": 1, "sky": None, "car": 1}
    assert document["means"] == {"mIoU": 1}
    assert np.sum(document["confusion"]) == np.isin(truth, (0, 2)).sum()
    output = " ".join(capsys.readouterr().out.split())
    assert "no truth for sky" in output
    assert "does not know tram" in output


def test_predicting_a_class_that_the_truth_lacks_is_a_miss(tmp_path):
    truth = np.zeros((4, 4), np.uint8)
    shown = truth.copy()
    shown[:2] = 1
    city = write_city(tmp_path, [truth], names=("road", "car"), images=[shown])
    matrix = confusion_matrix(ColorNetwork(), COLORS, city, "val", WHOLE, device=CPU)
    assert matrix.iou()[0] == 0.5


@pytest.mark.parametrize("kind", ["json", "csv", "md", "table"])
def test_stdout_has_the_scores_in_the_format_asked_for(given, tmp_path, capsys, kind):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 8)])
    assert evaluate("--format", kind) == 0
    out = capsys.readouterr().out
    folder = Path("run/eval/city-val")
    match kind:
        case "json":
            assert json.loads(out) == scores_of()
        case "csv":
            assert out.strip() == (folder / "scores.csv").read_text().strip()
        case "md":
            assert "| road | 100.00 | 100.00 |" in out
        case _:
            assert "IoU %" in out


def test_a_gate_that_is_not_met_fails_after_the_scores_are_written(given, tmp_path, capsys):
    truth = random_labels(8, 8)
    shown = truth.copy()
    shown[0] = (shown[0] + 1) % 3
    given["city"] = write_city(tmp_path / "city", [truth], images=[shown])
    assert evaluate("--fail-under", 100) == 7
    output = capsys.readouterr()
    assert "below --fail-under 100" in output.err
    assert "mIoU" in output.out
    assert scores_of()["means"]["mIoU"] < 1
    assert evaluate("--fail-under", 10) == 0


def test_nothing_measured_does_not_pass_a_gate(given, tmp_path):
    void = np.full((4, 4), 255, np.uint8)
    shown = np.zeros((4, 4), np.uint8)
    given["city"] = write_city(tmp_path / "city", [void], images=[shown])
    assert evaluate("--fail-under", 0) == 7
    assert scores_of()["means"] == {"mIoU": None}


def test_a_protocol_that_the_classes_do_not_allow_is_refused(given, tmp_path, capsys):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 8)])
    assert evaluate("--protocol", 19) == 2
    assert "lacks some of these classes" in capsys.readouterr().err
    assert not Path("run/eval").exists()


def test_scores_go_where_they_are_asked_to(given, tmp_path):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 8)])
    assert evaluate("--out", "elsewhere") == 0
    assert scores_of("elsewhere")["pixel_accuracy"] == 1
    assert not Path("run/eval").exists()


def test_windows_flips_and_scales_are_in_the_protocol_line(given, tmp_path):
    given["city"] = write_city(tmp_path / "city", [random_labels(16, 16)])
    assert evaluate("--flip", "--scales", "1.0,0.5", "--window", "[8, 12]") == 0
    protocol = scores_of("run/eval/city-val+flip+scales1.0,0.5+window12x8")["protocol"]
    assert protocol["flip"] == "yes"
    assert protocol["scales"] == "1.0 0.5"
    assert protocol["window"] == "12x8"


def test_results_of_other_protocols_lie_beside_the_plain_one(given, tmp_path):
    truth = random_labels(16, 32)
    given["city"] = write_city(tmp_path / "city", [truth])
    assert evaluate() == 0
    plain = Path("run/eval/city-val/scores.json").read_bytes()
    checkpoint = Path("run/checkpoints/step-000007.pt")
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for words, name in (
        (["--flip"], "city-val+flip"),
        (["--release"], "city-val+release"),
        (["--weights", "teacher"], "city-val+teacher"),
        (["--scales", "0.5"], "city-val+scales0.5"),
    ):
        assert evaluate(*words) == 0
        assert (Path("run/eval") / name / "scores.csv").is_file()
    best = Path("run/checkpoints/best-infomax")
    best.mkdir()
    for one in (checkpoint, best):
        with pytest.raises(SystemExit):
            main(["eval", str(one), "--data", "city"])
        scores = Path("run/eval/city-val+step-000007/scores.json")
        assert scores.is_file()
        scores.unlink()
    assert len(list(Path("run/eval").iterdir())) == 6
    assert Path("run/eval/city-val/scores.json").read_bytes() == plain
    assert next(iter(find_score_files(Path("run")))) == "city-val"  # the one that reports show


@pytest.mark.parametrize("kind", ["json", "csv", "md", "table"])
def test_every_output_says_which_protocol_was_used(given, tmp_path, capsys, kind):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 16)])
    for words, protocol in (([], "full size"), (["--release"], "release of DACS and RCCR")):
        assert evaluate("--format", kind, *words) == 0
        output = " ".join(capsys.readouterr().out.split())
        expected = f'"protocol": "{protocol}"' if kind == "json" else f"protocol {protocol}"
        assert expected in output


def test_the_release_protocol_halves_truth_and_input(given, tmp_path):
    rng = np.random.default_rng(0)
    shown = random_labels(1024, 2048)
    truth = np.where(rng.random(shown.shape) < 0.3, 255, shown).astype(np.uint8)
    given["city"] = write_city(tmp_path / "city", [truth], images=[shown])
    assert evaluate("--release") == 0
    document = scores_of("run/eval/city-val+release")
    # the releases halve the truth with Pillow, called by SciPy
    half = np.asarray(Image.fromarray(truth).resize((1024, 512), Image.Resampling.NEAREST))
    assert np.diag(document["confusion"]).tolist() == np.bincount(half.ravel())[:3].tolist()
    assert document["means"]["mIoU"] == 1  # blocks of 4 pixels survive halving
    assert document["protocol"]["input"] == "1024x512"
    assert document["protocol"]["scored at"] == "1024x512, truth by nearest neighbour"


def test_the_release_protocol_is_refused_for_images_that_it_would_squash(given, tmp_path, capsys):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 12)])
    assert evaluate("--release") == 2
    assert "city has 12x8" in capsys.readouterr().err


def test_the_network_sees_other_data_unsquashed(tmp_path):
    seen = []

    class Watching(ColorNetwork):
        def forward(self, images):
            seen.append(tuple(images.shape[-2:]))
            return super().forward(images)

    city = write_city(tmp_path, [random_labels(20, 80)])
    for keep_shape in (False, True):
        options = udaseg.InferenceOptions(resize=(20, 20), keep_shape=keep_shape)
        confusion_matrix(Watching(), COLORS, city, "val", options, device=CPU)
    assert seen == [(20, 20), (10, 40)]


def test_data_that_cannot_be_scored_are_refused(tmp_path):
    city = write_city(tmp_path, [random_labels(8, 8)], names=("ship", "sea", "quay"))
    unlabelled = PreparedDataset("city", tmp_path, tmp_path / "images", None, {"val": ()})
    empty = PreparedDataset("city", tmp_path, tmp_path / "images", COLORS, {"val": ()})
    for dataset, split, reason in (
        (city, "val", "share no name"),
        (empty, "test", "no split 'test'"),
        (unlabelled, "val", "no labels"),
        (empty, "val", "no images"),
    ):
        with pytest.raises(DataError, match=reason):
            confusion_matrix(ColorNetwork(), COLORS, dataset, split, WHOLE, device=CPU)


def test_a_damaged_image_stops_the_scoring_and_is_named(given, tmp_path, capsys):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 8) for _ in range(3)])
    path = tmp_path / "city/images/1.png"
    path.write_bytes(path.read_bytes()[:-20])
    assert evaluate() == 3
    assert str(path) in capsys.readouterr().err
    assert not Path("run/eval").exists()


def test_python_gets_the_scores_as_an_object_and_nothing_on_stdout(given, tmp_path, capsys):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 8)])
    scores = udaseg.evaluate("run", data=Path("city"), split="val")
    assert (scores.miou, scores.iou["road"]) == (1, 1)
    assert scores.to_json() == scores_of()
    assert scores.to_csv() == Path("run/eval/city-val/scores.csv").read_text()
    options = udaseg.EvaluationOptions(scoring=udaseg.ScoringOptions(out="elsewhere"))
    assert udaseg.evaluate("run", options=options).to_json() == scores_of("elsewhere")
    assert capsys.readouterr().out == ""


def test_a_loaded_model_is_scored_and_nothing_is_written_into_its_run(given, tmp_path, monkeypatch):
    given["city"] = write_city(tmp_path / "city", [random_labels(8, 8)])
    monkeypatch.setattr(trained_model, "load", lambda *_, **__: pytest.fail("loaded again"))
    model = given["run"]
    model.weights = "teacher"
    model.segmenter.train()
    assert udaseg.evaluate(model, data="city").miou == 1
    assert model.segmenter.training
    assert not Path("runs/colors/eval").exists(), "its weights may not be those of the run"
    scoring = udaseg.ScoringOptions(out="scores")
    options = udaseg.EvaluationOptions(scoring=scoring)
    assert udaseg.evaluate(model, data="city", options=options).miou == 1
    assert scores_of("scores")["protocol"]["weights"] == "teacher at step 7"


@pytest.mark.parametrize("wrong", [{"protocol": 12}, {"convention": 13}])
def test_protocols_and_conventions_that_nobody_published_are_refused(wrong):
    with pytest.raises(UsageError, match="must be 19"):
        udaseg.ScoringOptions(**wrong)
