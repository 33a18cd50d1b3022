"""Counts of single images: what they pool to, their file, and their order over processes."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.test_scores_class_spaces import NINETEEN, SIXTEEN, Reads, space
from tests.support.ranks import found_by_each, joined
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.evaluation import confusion
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import confusion_matrix, empty_matrix, write_scores
from udaseg.evaluation.scores import ScoringOptions, summarise
from udaseg.inference.pipeline import InferenceOptions
from udaseg.runs.image_counts import read_image_counts

SIZE = (4, 40)


def city(images, tmp_path):
    samples = tuple(Sample(f"b/{n},x.png", f"l/{n}.png", *SIZE) for n in reversed(range(images)))
    return PreparedDataset("city", tmp_path, tmp_path, NINETEEN, {"val": samples})


def scored(classes, tmp_path, images=4, **how):
    """Return scores of random predictions, and the pairs of prediction and truth."""
    rng = np.random.default_rng(5)
    data = city(images, tmp_path)
    matrix, truth_map = empty_matrix(classes, data, "val")
    pairs = []
    for number in range(images):
        truth = rng.integers(0, 16 + number, SIZE, dtype=np.uint8)  # later images have more classes
        truth[rng.random(SIZE) < 0.1] = 255
        prediction = rng.integers(0, len(classes), SIZE, dtype=np.uint8)
        matrix.update(prediction, truth, truth_map)
        pairs.append((prediction, truth))
    return summarise(matrix, classes, data, "val", {}, ScoringOptions(**how)), pairs


@pytest.mark.parametrize(
    ("classes", "how"),
    [
        (NINETEEN, {}),
        (SIXTEEN, {}),
        (SIXTEEN, {"convention": 19}),
        (NINETEEN, {"convention": 16}),
        (NINETEEN, {"protocol": 13}),
    ],
)
def test_all_images_once_give_the_scores_of_every_convention(classes, how, tmp_path):
    scores, _ = scored(classes, tmp_path, **how)
    assert scores.images.classes == scores.class_names
    (iou,) = scores.images.iou(np.ones((1, 4)))
    assert iou.tolist() == pytest.approx(list(scores.iou.values()), nan_ok=True)


def test_the_counts_of_an_image_are_those_of_its_pixels(tmp_path):
    scores, pairs = scored(NINETEEN, tmp_path)
    counts = scores.images
    assert counts.images == ("b/3,x.png", "b/2,x.png", "b/1,x.png", "b/0,x.png")
    for row, (prediction, truth) in enumerate(pairs):
        guess, true = prediction[truth != 255], truth[truth != 255]
        for number in range(19):
            both = ((guess == number) & (true == number)).sum()
            either = ((guess == number) | (true == number)).sum()
            assert counts.intersection[row, number] == both
            assert counts.union[row, number] == either
            assert counts.truth[row, number] == (true == number).sum()


def test_the_file_holds_all_of_it(tmp_path):
    scores, _ = scored(SIXTEEN, tmp_path)
    write_scores(tmp_path / "eval", scores)
    path = tmp_path / "eval" / "images.csv"
    read = read_image_counts(path, scores.class_names)
    assert (read.images, read.classes) == (scores.images.images, scores.images.classes)
    for name in ("intersection", "union", "truth"):
        assert np.array_equal(getattr(read, name), getattr(scores.images, name))
    assert read_image_counts(path, ("road",)) is None
    path.write_text(path.read_text().replace("road,", "road,x", 1))
    assert read_image_counts(path, scores.class_names) is None
    assert read_image_counts(tmp_path / "none.csv", scores.class_names) is None


def test_counts_of_an_earlier_evaluation_do_not_stay_beside_scores_without_any(tmp_path):
    scores, _ = scored(SIXTEEN, tmp_path)
    write_scores(tmp_path, scores)
    bare = type(scores)(**{**vars(scores), "images": None})
    write_scores(tmp_path, bare)
    assert not (tmp_path / "images.csv").exists()
    assert bare == scores  # the counts are no part of what scores are compared by


def test_images_of_several_processes_stand_in_the_order_of_the_split(monkeypatch):
    truths = [np.full((1, number + 1), number, np.uint8) for number in range(5)]
    ranks = [ConfusionMatrix(5) for _ in range(2)]
    for number, truth in enumerate(truths):
        ranks[number % 2].update(truth, truth)
    monkeypatch.setattr(confusion, "all_gather_object", lambda _: [rank.counted for rank in ranks])
    monkeypatch.setattr(
        confusion, "all_reduce_sum", lambda _: torch.from_numpy(ranks[0].table + ranks[1].table)
    )
    together = ranks[0].all_reduce_sum(torch.device("cpu"))
    assert [np.diag(image.counts).tolist() for image in together.images()] == [
        [number + 1 if place == number else 0 for place in range(5)] for number in range(5)
    ]
    assert sum(image.table for image in together.images()).tolist() == together.table.tolist()
    assert len(ranks[0].counted) == 3


def _images(folder):
    """Return a data set of five images whose red channel is the prediction."""
    rng = np.random.default_rng(2)
    (folder / "l").mkdir(exist_ok=True)
    for number in range(5):
        prediction, truth = rng.integers(0, 4, (2, 8, 8), dtype=np.uint8)
        Image.fromarray(np.stack([prediction] * 3, 2)).save(folder / f"{number}.png")
        Image.fromarray(truth).save(folder / f"l/{number}.png")
    samples = tuple(Sample(f"{n}.png", f"l/{n}.png", 8, 8) for n in range(5))
    return PreparedDataset("city", folder, folder, space("abcd"), {"val": samples})


def _evaluate(folder):
    data, options = _images(folder), InferenceOptions()
    classes, device = space("abcd"), torch.device("cpu")
    matrix = confusion_matrix(Reads(4), classes, data, "val", options, device=device)
    return summarise(matrix, classes, data, "val", {}).images


def _on_rank(number, folder):
    with joined(number, folder, 2):
        (folder / str(number)).mkdir()
        counts = _evaluate(folder / str(number))
        torch.save(torch.from_numpy(counts.union), folder / f"{number}.pt")


@pytest.mark.slow
def test_two_processes_know_the_counts_of_all_images(tmp_path):
    (tmp_path / "alone").mkdir()
    alone = _evaluate(tmp_path / "alone")
    assert len({tuple(row) for row in alone.union.tolist()}) == 5
    for union in found_by_each(_on_rank, tmp_path, 2):
        assert union.tolist() == alone.union.tolist()
