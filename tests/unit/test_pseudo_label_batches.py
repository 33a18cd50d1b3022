"""Target crops that bring pseudo-labels along, and parts of a run."""

import numpy as np
import pytest

from tests.toy import toy_pair, toy_root
from udaseg.data import (
    Crops,
    TrainingBatches,
    pseudo_label_path,
    pseudo_labels_digest,
    read_image,
    write_pseudo_label,
)
from udaseg.errors import DataError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return toy_pair(toy_root(tmp_path_factory.mktemp("data")))


@pytest.fixture
def labelled(pair, tmp_path):
    """Write as pseudo-label each target image's own brightness, so that both can be compared."""
    _, target = pair
    for sample in target.split("train"):
        write_pseudo_label(tmp_path, sample, read_image(target.image_path(sample))[..., 0])
    return tmp_path


def _batches(source, target, **changes):
    settings = {"batch_source": 2, "batch_target": 2, "steps": 10, "seed": 3}
    return TrainingBatches(source, target, **{**settings, **changes})


@pytest.mark.parametrize("flip", [False, True])
def test_a_pseudo_label_is_cut_and_mirrored_like_its_image(pair, labelled, flip):
    crops = Crops(pair[1], "train", None, (32, 48), flip, False, pseudo_labels=labelled)
    for step in range(6):
        batch = _batches(None, crops)[step]
        assert batch.pseudo_labels.shape == (2, 32, 48)
        assert np.array_equal(batch.pseudo_labels.numpy(), batch.target_images[:, 0].numpy())
        assert batch.source_images.shape == (0, 3, 1, 1)


def test_a_pseudo_label_follows_resize_and_scale_and_pads_with_void(pair, labelled):
    small = Crops(
        pair[1], "train", (32, 64), (64, 96), False, False, pseudo_labels=labelled, scale=(0.5, 0.8)
    )
    batch = _batches(None, small)[0]
    outside = (batch.target_images == 0).all(1)
    assert outside[:, -10:, -10:].all()
    assert (batch.pseudo_labels[outside] == 255).all()
    large = Crops(
        pair[1], "train", None, (64, 96), False, False, pseudo_labels=labelled, scale=(1.5, 2.0)
    )
    batch = _batches(None, large)[0]
    gap = batch.pseudo_labels.float() - batch.target_images[:, 0].float()
    assert gap.abs().median() <= 8  # nearest against bilinear, at the same place


def test_a_missing_pseudo_label_is_named_with_what_to_do(pair, labelled):
    sample = pair[1].split("train")[0]
    before = pseudo_labels_digest(labelled, pair[1].split("train"))
    assert before is not None
    pseudo_label_path(labelled, sample).unlink()
    assert pseudo_labels_digest(labelled, pair[1].split("train")) is None
    crops = Crops(pair[1], "train", None, (32, 48), False, False, pseudo_labels=labelled)
    with pytest.raises(DataError, match="--resume"):
        for step in range(10):
            _batches(None, crops)[step]


def test_the_beginning_of_a_part_changes_only_the_progress(pair):
    crops = Crops(pair[0], "train", None, (32, 48), True, True)
    whole, part = _batches(crops, None)[7], _batches(crops, None, begin=5)[7]
    assert (whole.progress, part.progress) == (0.7, 0.4)
    assert whole.seed == part.seed
    assert np.array_equal(whole.source_images.numpy(), part.source_images.numpy())


def test_class_balanced_batches_are_a_function_of_the_step(pair):
    crops = Crops(pair[0], "train", None, (32, 48), True, True, sampling="class_balanced")
    ahead, alone = _batches(crops, None), _batches(crops, None)
    found = [ahead[step].source_images for step in (1, 2, 3)]
    assert np.array_equal(found[2].numpy(), alone[3].source_images.numpy())
    assert len(alone.names(3)) == 2
    plain = Crops(pair[0], "train", None, (32, 48), True, True)
    names = [ahead.names(step) for step in range(10)]
    assert names != [_batches(plain, None).names(step) for step in range(10)]
