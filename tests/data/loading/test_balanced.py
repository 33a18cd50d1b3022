"""Class-balanced image order, compared with a plain-Python reference."""

import math

import numpy as np
import pytest

from udaseg.data.loading.sampling import balanced_order


def _present(images=60, classes=5):
    present = np.zeros((images, classes), bool)
    present[:, :3] = True  # three classes occur in every image
    present[::20, 3] = True  # one class is rare, one never occurs
    return present


def _naive(present, seed, lap, length):
    rng = np.random.default_rng([seed, lap])
    classes = [k for k in range(present.shape[1]) if any(row[k] for row in present.tolist())]
    files = {k: rng.permutation([n for n in range(len(present)) if present[n, k]]) for k in classes}
    taken, counts, order = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0), []
    for _ in range(length):
        total = max(1, sum(counts.values()))
        weights = [1 / math.log(1.01 + counts[k] / total) for k in classes]
        mark, chosen = rng.random() * sum(weights), classes[-1]
        for k, weight in zip(classes, weights, strict=True):
            if mark <= weight:
                chosen = k
                break
            mark -= weight
        image = int(files[chosen][taken[chosen] % len(files[chosen])])
        taken[chosen] += 1
        for k in classes:
            counts[k] += bool(present[image, k])
        order.append(image)
    return order


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_the_stated_procedures(seed):
    present = _present()
    assert balanced_order(present, seed=seed, sub_epoch=2, length=200).tolist() == _naive(
        present, seed, 2, 200
    )


def test_images_of_a_rare_class_come_far_more_often():
    present = _present()
    order = balanced_order(present, seed=0, sub_epoch=0, length=3000)
    share = present[order, 3].mean()
    assert share > 5 * present[:, 3].mean()


def test_the_order_hangs_on_seed_and_lap_alone():
    present = _present()
    first = balanced_order(present, seed=1, sub_epoch=0, length=50)
    assert np.array_equal(first, balanced_order(present, seed=1, sub_epoch=0, length=50))
    assert not np.array_equal(first, balanced_order(present, seed=1, sub_epoch=1, length=50))
    assert not np.array_equal(first, balanced_order(present, seed=2, sub_epoch=0, length=50))


def test_without_any_class_there_is_no_order():
    with pytest.raises(ValueError, match="no image"):
        balanced_order(np.zeros((3, 2), bool), seed=0, sub_epoch=0)
