"""Scores with different class lists: both SYNTHIA conventions, known answers, and notes."""

import json
import math
from fractions import Fraction
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
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.tables import builtin_label_table
from udaseg.errors import UsageError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import confusion_matrix
from udaseg.evaluation.protocols import CITYSCAPES, NOT_IN_16, SUBSETS, applicable_conventions
from udaseg.evaluation.scores import ScoringOptions, check_protocol, summarise
from udaseg.inference import run_data
from udaseg.inference.pipeline import InferenceOptions

NINETEEN = builtin_label_table("cityscapes19").classes
SIXTEEN = builtin_label_table("synthia16").classes
MISSING = [CITYSCAPES.index(name) for name in NOT_IN_16]


class Reads(nn.Module):
    """Predict the class number stored in the red channel of a pixel, below `classes`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.numbers = torch.arange(classes)[:, None, None]

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=-(images[:, :1] * 255 - self.numbers).abs())


def space(names):
    return ClassSpace(tuple(names), tuple((i, i, i) for i in range(len(names))))


def written(tmp_path, truth_classes, prediction, truth):
    """Write an image that encodes the prediction, and its label; return the data set."""
    for part, pixels in (("i", np.stack([prediction] * 3, 2)), ("l", truth)):
        (tmp_path / part).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / "0.png")
    sample = Sample("0.png", "l/0.png", *truth.shape)
    return PreparedDataset("city", tmp_path, tmp_path / "i", truth_classes, {"val": (sample,)})


def scored(tmp_path, classes, truth_classes, prediction, truth, **how):
    """Return the scores of a network that predicts `prediction`, computed as in `udaseg eval`."""
    city = written(tmp_path, truth_classes, prediction, truth)
    options, device = InferenceOptions(), torch.device("cpu")
    matrix = confusion_matrix(Reads(len(classes)), classes, city, "val", options, device=device)
    return summarise(matrix, classes, city, "val", {}, ScoringOptions(**how))


def by_hand(prediction, truth, names, ignored):
    """Compute exact IoUs of maps of class names, pixel by pixel; None without truth."""
    ious = {}
    pairs = [pair for pair in zip(prediction, truth, strict=True) if pair[1] not in ignored]
    for name in names:
        both = sum(p == name == t for p, t in pairs)
        either = sum(name in (p, t) for p, t in pairs)
        ious[name] = Fraction(both, either) if any(t == name for _, t in pairs) else None
    return ious


def mean(ious, names):
    measured = [ious[name] for name in names if ious[name] is not None]
    return float(sum(measured) / len(measured)) if measured else math.nan


def drawn(seed, outputs):
    """Return a random prediction of `outputs` classes, and a truth of 19 classes with void."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 19, (24, 30))
    near = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 19, truth.shape))
    truth = np.where(rng.random(truth.shape) < 0.1, IGNORE, truth)
    return near % outputs, truth


def words(pixels, names):
    return [names[v] if v < len(names) else None for v in pixels.ravel().tolist()]


# both conventions, with either head


@pytest.mark.parametrize("head", [SIXTEEN, NINETEEN], ids=["16 outputs", "19 outputs"])
@pytest.mark.parametrize("convention", [16, 19])
@pytest.mark.parametrize("seed", [0, 1])
def test_either_head_is_scored_exactly_in_either_convention(tmp_path, head, convention, seed):
    prediction, truth = drawn(seed, len(head))
    scores = scored(tmp_path, head, NINETEEN, prediction, truth, convention=convention)
    predicted, true = words(prediction, head.names), words(truth, CITYSCAPES)
    ignored = {None, *(NOT_IN_16 if convention == 16 else ())}
    ious = by_hand(predicted, true, CITYSCAPES, ignored)
    expected = {f"mIoU-{count}": mean(ious, names) for count, names in SUBSETS.items()}
    if convention == 16:
        del expected["mIoU-19"]
    assert scores.means == pytest.approx(expected)
    for name, iou in scores.iou.items():
        assert (None if math.isnan(iou) else iou) == (
            None if ious[name] is None else pytest.approx(float(ious[name]))
        )


def test_without_a_word_each_head_gets_its_published_convention(tmp_path):
    for head, published, listed in ((SIXTEEN, 16, [16, 13]), (NINETEEN, 19, [19, 16, 13])):
        prediction, truth = drawn(3, len(head))
        plain = scored(tmp_path, head, NINETEEN, prediction, truth)
        assert plain == scored(tmp_path, head, NINETEEN, prediction, truth, convention=published)
        assert list(plain.means) == [f"mIoU-{count}" for count in listed]
        assert plain.protocol["convention"].startswith(
            f"{published}-way (truth of terrain, truck, train"
        )


def test_one_run_of_sixteen_outputs_tells_all_three_means_and_both_conventions(tmp_path):
    prediction, truth = drawn(4, 16)
    scores = scored(tmp_path, SIXTEEN, NINETEEN, prediction, truth)
    assert scores.protocol["convention"] == (
        "16-way (truth of terrain, truck, train is ignored; 16-way head)"
    )
    other = scored(tmp_path, SIXTEEN, NINETEEN, prediction, truth, convention=19)
    means = ", ".join(f"{name} {100 * value:.2f}" for name, value in other.means.items())
    (line,) = [note for note in scores.notes if "other convention" in note]
    assert line.endswith(f"19-way (truth of terrain, truck, train counts; 16-way head): {means}")
    assert list(other.means) == ["mIoU-19", "mIoU-16", "mIoU-13"]
    named = next(note for note in other.notes if "terrain, truck, train" in note)
    assert named.startswith("the network does not know terrain, truck, train: IoU 0, and these")
    assert other.class_names[16:] == NOT_IN_16
    assert np.array(other.confusion).shape == (19, 19)
    assert np.array(other.confusion)[16:].sum() == np.isin(truth, MISSING).sum()


def test_the_command_prints_the_convention_and_takes_the_other(tmp_path, monkeypatch, capsys):
    prediction, truth = drawn(8, 16)
    city = written(tmp_path, NINETEEN, prediction, truth)
    loaded = loaded_colors(network=Reads(16), classes=SIXTEEN)
    replace_load(monkeypatch, lambda path, **_: loaded)
    monkeypatch.setattr(run_data, "open_dataset", lambda data, *, root: city)
    monkeypatch.chdir(tmp_path)
    texts = []
    for words in ([], ["--convention", "19", "--protocol", "16"]):
        with pytest.raises(SystemExit) as stop:
            main(["eval", "run", "--data", "city", "--out", "scores", *words])
        assert not stop.value.code
        texts.append(" ".join(capsys.readouterr().out.split()))
        document = json.loads((tmp_path / "scores/scores.json").read_text())
        assert document["protocol"]["convention"] in texts[-1]
    assert "convention 16-way (truth of terrain, truck, train is ignored; 16-way head)" in texts[0]
    assert "convention 19-way (truth of terrain, truck, train counts; 16-way head)" in texts[1]
    assert list(document["means"]) == ["mIoU-16"]
    other = scored(tmp_path, SIXTEEN, NINETEEN, prediction, truth, convention=19).means["mIoU-16"]
    assert document["means"]["mIoU-16"] == other
    assert f"mIoU-16 {100 * other:.2f}" in texts[0]


def test_the_mean_over_nineteen_is_that_over_sixteen_times_sixteen_nineteenths(tmp_path):
    prediction, truth = drawn(5, 16)
    means = scored(tmp_path, SIXTEEN, NINETEEN, prediction, truth, convention=19).means
    assert means["mIoU-16"] == pytest.approx(means["mIoU-19"] * 19 / 16)


def test_nineteen_outputs_that_learnt_three_classes_are_not_offered_the_easier_convention(
    tmp_path,
):
    prediction, truth = drawn(6, 19)
    notes = scored(tmp_path, NINETEEN, NINETEEN, prediction, truth).notes
    assert not any("other convention" in note for note in notes)
    unlearnt = np.where(np.isin(prediction, MISSING), 0, prediction)
    notes = scored(tmp_path, NINETEEN, NINETEEN, unlearnt, truth).notes
    assert any(note.startswith("in the other convention, 16-way") for note in notes)
    assert "never predicted: terrain, truck, train; each counts as 0 in the mean" in notes


def test_a_protocol_shows_its_mean_alone_in_either_convention(tmp_path):
    prediction, truth = drawn(7, 16)
    for convention in (16, 19):
        how = {"protocol": 13, "convention": convention}
        assert list(scored(tmp_path, SIXTEEN, NINETEEN, prediction, truth, **how).means) == [
            "mIoU-13"
        ]


@pytest.mark.parametrize(
    ("names", "protocol", "convention", "said"),
    [
        (SIXTEEN.names, 19, None, "--convention 19 counts them as 0"),
        (SIXTEEN.names, 19, 16, "--protocol 19 needs --convention 19"),
        (("road", "sky"), 16, None, "the network lacks some of these classes; it has road, sky"),
        (("road", "sky"), None, 16, "--convention 16: the network lacks some of the 16 classes"),
        (NINETEEN.names, 19, 16, "--protocol 19 needs --convention 19"),
    ],
)
def test_means_that_cannot_be_are_refused(names, protocol, convention, said):
    with pytest.raises(UsageError, match=said):
        check_protocol(names, ScoringOptions(protocol=protocol, convention=convention))


def test_conventions_matter_only_where_the_truth_has_what_sixteen_lack():
    assert applicable_conventions(SIXTEEN.names, SIXTEEN.names) == ()
    assert applicable_conventions(SIXTEEN.names, NINETEEN.names) == (16, 19)
    assert applicable_conventions(NINETEEN.names, NINETEEN.names) == (19, 16)
    assert applicable_conventions((*SIXTEEN.names, "truck"), NINETEEN.names) == ()
    assert applicable_conventions(("road", "sky"), NINETEEN.names) == ()


@pytest.mark.parametrize("seed", range(3))
def test_truth_that_is_taken_out_later_counts_as_if_it_had_been_ignored(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 7, (2, 20, 20)).astype(np.uint8)
    prediction[rng.random(prediction.shape) < 0.2] = 250  # none of the classes
    whole, part = (ConfusionMatrix(5, num_outside=2) for _ in range(2))
    whole.update(prediction, truth)
    part.update(prediction, np.where(np.isin(truth, [1, 3]), IGNORE, truth).astype(np.uint8))
    left = whole.without_truth([1, 3])
    np.testing.assert_array_equal(left.table, part.table)
    left.update(prediction, truth)
    assert whole.table[5:].sum() == part.table[5:].sum() == left.table[5:].sum() / 2


def test_a_convention_that_changes_nothing_says_so(tmp_path):
    prediction, truth = np.zeros((4, 4), int), np.zeros((4, 4), int)
    scores = scored(tmp_path, SIXTEEN, SIXTEEN, prediction, truth, convention=19)
    assert "convention 19 makes no difference for these classes" in scores.notes
    assert "convention" not in scores.protocol


# known answers on 4x4 pixels; letters are classes, a dot is void

CASES = {
    # name: (network, truth's classes, predicted, true, IoUs, mean)
    "all right": ("ab", "ab", "aabb" * 4, "aabb" * 4, {"a": 1, "b": 1}, 1),
    "all wrong": ("ab", "ab", "bbaa" * 4, "aabb" * 4, {"a": 0, "b": 0}, 0),
    "half": ("ab", "ab", "aaaa" * 4, "aabb" * 4, {"a": "1/2", "b": 0}, "1/4"),
    "absent class": ("abc", "abc", "aabb" * 4, "aabb" * 4, {"a": 1, "b": 1, "c": None}, 1),
    "absent but predicted": ("abc", "abc", "aabc" * 4, "aabb" * 4, {"b": "1/2", "c": None}, "3/4"),
    "void is free": ("ab", "ab", "abab" * 4, "a.a." * 4, {"a": 1, "b": None}, 1),
    "all void": ("ab", "ab", "abab" * 4, "...." * 4, {"a": None, "b": None}, None),
    "only the network knows": ("abx", "ab", "aabx" * 4, "aabb" * 4, {"b": "1/2", "x": None}, "3/4"),
    "only the truth knows": ("ab", "aby", "aabb" * 4, "aayb" * 4, {"a": 1, "b": 1}, 1),
    "both": ("abx", "aby", "axbb" * 4, "aayb" * 4, {"a": "1/2", "b": 1, "x": None}, "3/4"),
    "another order": ("ab", "ba", "aabb" * 4, "aabb" * 4, {"a": 1, "b": 1}, 1),
    "thirds": ("ab", "ab", "aaab" * 4, "abab" * 4, {"a": "2/3", "b": "1/2"}, "7/12"),
}


@pytest.mark.parametrize("case", CASES)
def test_known_answers_are_met_as_exact_fractions(tmp_path, case):
    ours, theirs, predicted, true, ious, average = CASES[case]
    prediction = np.array([ours.index(letter) for letter in predicted]).reshape(4, 4)
    truth = [IGNORE if letter == "." else theirs.index(letter) for letter in true]
    truth = np.array(truth).reshape(4, 4)
    scores = scored(tmp_path, space(ours), space(theirs), prediction, truth)
    scored_ious = scores.iou
    for name, expected in ious.items():
        if expected is None:
            assert math.isnan(scored_ious[name])
        else:
            assert scored_ious[name] == float(Fraction(expected))
    if average is None:
        assert math.isnan(scores.means["mIoU"])
    else:
        assert scores.means["mIoU"] == pytest.approx(float(Fraction(average)), abs=1e-15)


def test_every_class_of_one_side_is_named_in_the_scores(tmp_path):
    prediction, truth = np.array([[0, 2], [1, 1]]), np.array([[0, 1], [2, 1]])
    scores = scored(tmp_path, space("abx"), space("abyc"), prediction, truth)
    notes = "\n".join(scores.notes)
    assert "no truth for x, classes that only the network has: shown as -" in notes
    assert "the network does not know y, c: these pixels are not scored" in notes
    scores = scored(tmp_path, space("abx"), space("abx"), prediction * 0, truth * 0)
    assert "no truth for b, x: shown as - and excluded" in "\n".join(scores.notes)


def test_as_many_classes_as_a_byte_holds_can_still_be_scored(tmp_path):
    ours, theirs = [f"a{i}" for i in range(253)], ["a0", *(f"b{i}" for i in range(200))]
    prediction, truth = np.zeros((4, 4), int), np.arange(16).reshape(4, 4)
    scores = scored(tmp_path, space(ours), space(theirs), prediction, truth)
    assert scores.means["mIoU"] == 1
    assert any("does not know b0" in note for note in scores.notes)


def test_a_mean_that_neither_network_nor_labels_have_is_refused():
    """Otherwise `--fail-under` would use the mean over 16 classes, which was not requested."""
    data = PreparedDataset("city", Path(), Path(), SIXTEEN, {"val": ()})
    matrix = ConfusionMatrix(16)
    scoring = ScoringOptions(protocol=19, convention=19)
    check_protocol(SIXTEEN.names, scoring)  # the labels might have them
    with pytest.raises(UsageError, match="no such mean, only mIoU-16, mIoU-13"):
        summarise(matrix, SIXTEEN, data, "val", {}, scoring)
