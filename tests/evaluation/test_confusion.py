"""The confusion matrix against fractions worked out by hand and against naive loops."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.protocols import SUBSETS, class_positions_by_protocol

IGNORE = 255


def counted(prediction, truth, classes):
    matrix = ConfusionMatrix(classes)
    matrix.update(np.array(prediction, np.uint8), np.array(truth, np.uint8))
    return matrix


def random_pair(seed, classes=5, shape=(9, 7), abstain=False):
    rng = np.random.default_rng(seed)
    values = [*range(classes), IGNORE]
    truth = rng.choice(values, shape).astype(np.uint8)
    prediction = rng.choice(values if abstain else values[:-1], shape).astype(np.uint8)
    return prediction, truth


def naive_iou(prediction, truth, classes):
    shares = []
    for number in range(classes):
        inside = union = present = 0
        for guess, true in zip(prediction.ravel(), truth.ravel(), strict=True):
            if true == IGNORE:
                continue
            present += true == number
            inside += true == number and guess == number
            union += true == number or guess == number
        shares.append(inside / union if present else np.nan)
    return shares


def test_a_3x3_example_worked_out_by_hand():
    matrix = counted(
        [[0, 0, 1], [0, 1, 1], [2, 2, 2]],
        [[0, 0, 0], [1, 1, 1], [2, 2, IGNORE]],
        classes=3,
    )
    assert matrix.counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 2]]
    # class 0: 2 right of 3 true and 3 predicted; class 2: the ignored pixel is in no union
    assert matrix.iou().tolist() == [2 / 4, 2 / 4, 1.0]
    assert matrix.accuracy().tolist() == [float(Fraction(2, 3)), float(Fraction(2, 3)), 1.0]
    assert matrix.truth_share().tolist() == [3 / 8, 3 / 8, 2 / 8]
    assert matrix.mean_iou() == pytest.approx(2 / 3)
    assert matrix.pixel_accuracy() == 6 / 8


def test_a_4x4_example_worked_out_by_hand():
    matrix = counted(
        [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]],
        [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]],
        classes=2,
    )
    assert matrix.iou().tolist() == [4 / 11, 5 / 12]
    assert matrix.mean_iou() == pytest.approx(float((Fraction(4, 11) + Fraction(5, 12)) / 2))


def test_a_class_without_truth_is_unmeasured_even_when_it_is_predicted():
    matrix = counted([[0, 2], [1, 1]], [[0, 0], [1, 1]], classes=3)
    assert np.isnan(matrix.iou()[2])
    assert np.isnan(matrix.accuracy()[2])
    assert matrix.truth_share()[2] == 0
    assert matrix.mean_iou() == pytest.approx((0.5 + 1) / 2)


def test_a_class_that_is_never_found_is_zero_and_counts_in_the_mean():
    matrix = counted([[0, 0]], [[0, 1]], classes=2)
    assert matrix.iou().tolist() == [0.5, 0.0]
    assert matrix.mean_iou() == 0.25


def test_an_abstention_is_a_miss_and_in_the_union():
    matrix = counted([[0, IGNORE, 1, 7]], [[0, 0, 1, 1]], classes=2)
    assert matrix.iou().tolist() == [0.5, 0.5]
    assert matrix.pixel_accuracy() == 0.5
    assert matrix.truth.tolist() == [2, 2]


def test_an_abstention_counts_where_the_truth_is_outside_too():
    prediction = np.array([[0, 1, IGNORE, 0, IGNORE, IGNORE, 1]], np.uint8)
    truth = np.array([[0, 1, 1, 2, 2, 3, 3]], np.uint8)
    both = ConfusionMatrix(2, num_outside=2)
    for columns in (slice(0, 4), slice(4, None)):
        both.update(prediction[:, columns], truth[:, columns])
    for matrix in (both, both.all_reduce_sum(torch.device("cpu"))):
        assert matrix.table[2:].sum(1).tolist() == [2, 2]
        assert matrix.table[:, -1].tolist() == [0, 1, 1, 1]
        whole = matrix.with_outside([0, 1])
        assert whole.truth.tolist() == [1, 2, 2, 2]
        assert whole.iou().tolist() == [0.5, 1 / 3, 0, 0]
        assert whole.pixel_accuracy() == 2 / 7
        some = matrix.without_truth([1]).with_outside([1])
        assert some.truth.tolist() == [1, 0, 2]
        assert some.table[:, -1].tolist() == [0, 0, 1]


def test_with_all_pixels_ignored_nothing_is_measured():
    matrix = counted([[0, 1]], [[IGNORE, IGNORE]], classes=2)
    assert matrix.counts.sum() == 0
    assert np.isnan(matrix.iou()).all()
    assert np.isnan(matrix.mean_iou())
    assert np.isnan(matrix.pixel_accuracy())
    assert matrix.truth_share().tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_iou_equals_naive_loops(seed):
    prediction, truth = random_pair(seed, abstain=seed % 2 == 1)
    matrix = counted(prediction, truth, classes=5)
    np.testing.assert_allclose(matrix.iou(), naive_iou(prediction, truth, 5))
    assert matrix.truth.sum() == (truth != IGNORE).sum()


@pytest.mark.parametrize("seed", range(5))
def test_images_counted_apart_are_images_counted_together(seed):
    pairs = [random_pair(10 * seed + index, abstain=True) for index in range(3)]
    together = ConfusionMatrix(5)
    for pair in pairs:
        together.update(*pair)
    whole = counted(*(np.concatenate(side) for side in zip(*pairs, strict=True)), classes=5)
    assert (whole.table == together.table).all()


@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_classes_permutes_the_scores(seed):
    prediction, truth = random_pair(seed)
    order = np.random.default_rng(seed).permutation(5)
    table = np.full(256, IGNORE, np.uint8)
    table[:5] = order
    permuted = counted(table[prediction], table[truth], classes=5)
    plain = counted(prediction, truth, classes=5)
    np.testing.assert_allclose(permuted.iou()[order], plain.iou())
    assert permuted.mean_iou() == pytest.approx(plain.mean_iou())


@pytest.mark.parametrize("seed", range(5))
def test_a_truth_map_counts_as_if_the_truth_had_been_renumbered(seed):
    prediction, truth = random_pair(seed)
    table = np.full(256, IGNORE, np.uint8)
    table[:5] = [3, 0, IGNORE, 0, 1]  # two classes are merged, one is ignored
    mapped, renumbered = ConfusionMatrix(4), ConfusionMatrix(4)
    mapped.update(prediction, truth, table.tobytes())
    renumbered.update(prediction, table[truth])
    assert (mapped.table == renumbered.table).all()


def test_an_unknown_truth_is_refused_and_leaves_the_counts_alone():
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match="1 pixels of the truth are of unknown classes"):
        matrix.update(np.zeros((2, 2), np.uint8), np.array([[0, 1], [2, IGNORE]], np.uint8))
    assert matrix.counts.sum() == 0


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="prediction"):
        ConfusionMatrix(2).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_views_that_are_not_contiguous_are_counted_alike():
    prediction, truth = random_pair(3)
    strided = counted(prediction[:, ::-1], truth[:, ::-1], classes=5)
    assert (strided.counts == counted(prediction, truth, classes=5).counts).all()


def test_counts_stay_exact_above_the_range_of_float32():
    # one bin of more than 2^24 pixels, odd, which float32 cannot hold
    truth = np.zeros((4097, 4097), np.uint8)
    matrix = ConfusionMatrix(1)
    matrix.update(truth, truth)
    assert matrix.counts[0, 0] == 4097**2


def test_the_protocols_are_the_published_ones():
    # train ids of the 16 and 13 classes that SYNTHIA shares with Cityscapes
    subsets = class_positions_by_protocol(SUBSETS[19])
    assert subsets[16] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
    assert subsets[13] == (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)


def test_a_class_list_allows_only_the_means_it_covers():
    assert set(class_positions_by_protocol(SUBSETS[16])) == {16, 13}
    assert class_positions_by_protocol(("sky", "road")) == {}


def test_means_over_16_13_and_19_classes_take_their_own_classes():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 19, (40, 40)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, (truth + 1) % 19).astype(np.uint8)
    matrix = counted(prediction, truth, classes=19)
    for classes in class_positions_by_protocol(SUBSETS[19]).values():
        assert matrix.mean_iou(classes) == pytest.approx(
            np.mean([matrix.iou()[number] for number in classes])
        )
