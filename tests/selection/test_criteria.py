"""Criteria without target labels: known answers, naive loops, and collapsed networks."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.small import shipped
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.selection import measure
from udaseg.selection.candidates import Candidate
from udaseg.selection.criteria import (
    CRITERIA,
    mean_entropy,
    mean_iou_of_labellings,
    mean_ranks,
    mutual_information,
    prior_drift,
    rank_correlation,
    ranks,
    sample_pixels,
)


def certain(*labels, classes=4):
    return torch.eye(classes)[list(labels)]


def random_rows(count, classes=5, seed=0, sharp=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(count, classes, generator=generator)).softmax(1)


def test_entropy_of_a_uniform_guess_is_one_and_of_certainty_zero():
    assert mean_entropy(torch.full((3, 7), 1 / 7)) == pytest.approx(1)
    assert mean_entropy(certain(0, 1, 2)) == 0
    half = torch.tensor([[0.5, 0.5, 0, 0]])
    assert mean_entropy(half) == pytest.approx(math.log(2) / math.log(4))


def test_entropy_equals_the_sum_over_classes():
    rows = random_rows(20)
    naive = [-sum(p * math.log(p) for p in row if p > 0) / math.log(5) for row in rows.tolist()]
    assert mean_entropy(rows) == pytest.approx(sum(naive) / 20, rel=1e-5)


def test_information_is_largest_for_sure_and_even_predictions():
    assert mutual_information(certain(0, 1, 2, 3)) == pytest.approx(1)
    assert mutual_information(certain(0, 0, 1, 1)) == pytest.approx(0.5)


def test_a_collapsed_network_has_the_best_entropy_and_no_information():
    collapsed, honest = certain(0, 0, 0, 0), random_rows(200, 4)
    assert mean_entropy(collapsed) < mean_entropy(honest)
    assert mutual_information(collapsed) == 0 < mutual_information(honest)


def joint_counts(first, second, classes):
    matrix = ConfusionMatrix(classes)
    matrix.update(second.numpy().astype(np.uint8), first.numpy().astype(np.uint8))
    return torch.from_numpy(matrix.counts)


def test_agreement_is_a_symmetric_mean_over_the_classes_that_occur():
    first = torch.tensor([0, 0, 0, 1])
    second = torch.tensor([0, 0, 1, 1])
    counts = joint_counts(first, second, 3)
    assert mean_iou_of_labellings(counts) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert mean_iou_of_labellings(counts.T) == mean_iou_of_labellings(counts)
    assert mean_iou_of_labellings(joint_counts(first, first, 3)) == 1
    assert math.isnan(mean_iou_of_labellings(torch.zeros(3, 3)))


def test_drift_is_zero_for_equal_shares_and_one_bit_for_strangers():
    prior = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert prior_drift(10 * prior, prior) == 0
    assert prior_drift(torch.tensor([0, 0, 0, 5]), prior) == pytest.approx(1)
    mid = prior_drift(torch.tensor([1, 0, 0, 0]), torch.tensor([1, 1, 0, 0]))
    naive = (1 * math.log2(1 / 0.75) + 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(2)) / 2
    assert mid == pytest.approx(naive)


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # without ties: 1 - 6 sum(d^2) / (n (n^2 - 1))
    rng = random.Random(0)
    for count in (2, 3, 8, 32):
        first, second = ([*range(1, count + 1)] for _ in range(2))
        rng.shuffle(second)
        apart = sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
        expected = 1 - 6 * apart / (count * (count**2 - 1))
        assert rank_correlation(first, second) == pytest.approx(expected)
    assert rank_correlation([1.5, 1.5, 3], [1, 2, 3]) == pytest.approx(3**0.5 / 2)
    assert math.isnan(rank_correlation([2, 2, 2], [1, 2, 3]))


def test_ranks_share_ties_and_put_nan_last():
    assert ranks([3, 1, 2], "lower") == [3, 1, 2]
    assert ranks([3, 1, 2], "higher") == [1, 3, 2]
    assert ranks([1, 1, 5], "lower") == [1.5, 1.5, 3]
    assert ranks([math.nan, 0.2, 0.1], "higher") == [3, 1, 2]


def test_a_criterion_with_a_gap_has_no_vote():
    columns = {"entropy": [0.1, 0.2], "teacher": [None, 0.9], "source": [0.5, 0.7]}
    mean, voted = mean_ranks(columns)
    assert voted == ["entropy", "source"]
    assert mean == [1.5, 1.5]
    assert mean_ranks({"teacher": [None, None]}) == ([], [])


@pytest.mark.parametrize(("share", "step", "asked"), [(0.5, 5, 0), (0.5, 6, 1), (0.0, 5, 1)])
def test_a_teacher_that_is_the_student_says_nothing(share, step, asked, monkeypatch):
    loaded = []
    monkeypatch.setattr(measure.trained_model, "load", lambda path, **_: loaded.append(path))
    recipe = shipped("toyland/dacs", [f"method.warm_up={share}", "steps=10"])
    candidate = Candidate(Path("run"), Path("checkpoint"), step)
    measure._load_teacher(candidate, SimpleNamespace(recipe=recipe, step=step), "cpu")
    assert len(loaded) == asked


def test_the_best_of_most_criteria_wins_the_vote():
    columns = {"entropy": [0.1, 0.2, 0.3], "flip": [5.0, 6.0, 4.0], "source": [0.4, 0.6, 0.5]}
    mean, _ = mean_ranks(columns)
    assert min(range(3), key=mean.__getitem__) == 1


def test_sampled_pixels_are_rows_of_the_map_and_repeat():
    maps = torch.arange(24.0).view(2, 3, 4)
    rows = sample_pixels(maps, 5, seed=1)
    assert rows.shape == (5, 2)
    assert torch.equal(rows[:, 1] - rows[:, 0], torch.full((5,), 12.0))
    assert len(set(rows[:, 0].tolist())) == 5
    assert torch.equal(rows, sample_pixels(maps, 5, seed=1))
    assert not torch.equal(rows, sample_pixels(maps, 5, seed=2))
    assert sample_pixels(maps, 100, seed=1).shape == (12, 2)


def test_every_criterion_is_named_once():
    assert len({criterion.name for criterion in CRITERIA}) == len(CRITERIA) == 6
