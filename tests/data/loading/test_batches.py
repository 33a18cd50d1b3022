"""Training batches: depend on the step only, full epochs, aligned labels, no target labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import write_png
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.loading.batches import BatchOptions, TrainingBatches
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.transforms import (
    crop,
    random_corner,
    random_mirror,
    resize_image,
    resize_labels,
)
from udaseg.errors import DataError

CLASSES = ClassSpace(("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


def _dataset(folder, count, name="set", labelled=True, size=(20, 30)):
    """Write images whose red, green and blue channels are row, column and file number."""
    samples = []
    for number in range(count):
        rows, columns = np.mgrid[: size[0], : size[1]]
        image = np.stack([rows, columns, np.full_like(rows, number)], 2).astype(np.uint8)
        write_png(folder / f"{name}{number}.png", image)
        write_png(folder / f"{name}{number}_label.png", (rows % 3).astype(np.uint8))
        label = f"{name}{number}_label.png" if labelled else None
        samples.append(Sample(f"{name}{number}.png", label, *size))
    return PreparedDataset(name, folder, folder, CLASSES, {"train": tuple(samples)})


def _batches(
    source, target, *, steps=12, batch=2, seed=0, rank=0, world=1, crop=(8, 8), flip=False
):
    return TrainingBatches(
        CropSource(source, "train", None, crop, flip, labelled=True),
        None if target is None else CropSource(target, "train", None, crop, flip, labelled=False),
        BatchOptions(
            batch_source=batch,
            batch_target=batch,
            steps=steps,
            seed=seed,
            rank=rank,
            world_size=world,
        ),
    )


def _files(batches, part):
    return [
        int(image[2, 0, 0])
        for step in range(len(batches))
        for image in getattr(batches[step], part)
    ]


@pytest.fixture
def pair(tmp_path):
    return _dataset(tmp_path, 5), _dataset(tmp_path, 3, "other", labelled=False)


def test_a_batch_is_a_function_of_seed_and_step(pair):
    first, again, other = (_batches(*pair, seed=seed) for seed in (0, 0, 1))
    for step in (7, 0, 3):
        assert torch.equal(first[step].source_images, again[step].source_images)
        assert torch.equal(first[step].target_images, again[step].target_images)
        assert first[step].seed == again[step].seed
    assert any(
        not torch.equal(first[step].source_images, other[step].source_images) for step in range(3)
    )
    assert len({first[step].seed for step in range(12)}) == 12


def test_every_epoch_visits_each_file_once_and_short_sets_repeat(pair):
    batches = _batches(*pair, steps=15)
    source, target = _files(batches, "source_images"), _files(batches, "target_images")
    for start in range(0, 30, 5):
        assert sorted(source[start : start + 5]) == [0, 1, 2, 3, 4]
    for start in range(0, 30, 3):
        assert sorted(target[start : start + 3]) == [0, 1, 2]
    orders = {tuple(source[start : start + 5]) for start in range(0, 30, 5)}
    assert len(orders) > 1, "every epoch had the same order"


def test_ranks_share_an_epoch_without_overlap(pair):
    source, target = pair
    whole = _files(_batches(source, target, steps=5, batch=4), "source_images")
    shares = [
        _files(_batches(source, target, steps=5, batch=2, rank=rank, world=2), "source_images")
        for rank in (0, 1)
    ]
    together = [file for step in range(5) for share in shares for file in share[2 * step :][:2]]
    assert together == whole


@pytest.mark.parametrize("flip", [False, True])
def test_image_and_label_move_alike(pair, flip):
    batches = _batches(*pair, flip=flip)
    for step in range(6):
        batch = batches[step]
        assert torch.equal(batch.source_labels, batch.source_images[:, 0] % 3)
        assert batch.source_images.dtype == batch.source_labels.dtype == torch.uint8


def test_mirroring_happens_half_of_the_time(pair):
    batches = _batches(*pair, steps=100, flip=True)
    mirrored = [
        bool(image[1, 0, 0] > image[1, 0, 1])
        for step in range(100)
        for image in batches[step].source_images
    ]
    assert 70 < sum(mirrored) < 130


def test_a_crop_larger_than_the_image_is_padded_with_ignore(pair):
    batch = _batches(*pair, crop=(24, 40))[0]
    assert batch.source_images.shape[-2:] == (24, 40)
    assert (batch.source_labels[:, 20:] == IGNORE).all()
    assert (batch.source_labels[:, :, 30:] == IGNORE).all()
    assert (batch.source_labels[:, :20, :30] != IGNORE).all()


def test_a_target_smaller_than_the_crop_is_enlarged_and_never_padded(pair):
    source, target = pair
    batches = _batches(source, target, crop=(24, 24))
    for step in range(3):
        images = batches[step].target_images
        assert images.shape[-2:] == (24, 24)
        assert (images[:, 0, -1] > 0).all(), "black rows below the image"


def test_photos_without_labels_are_turned_as_a_viewer_shows_them(tmp_path, pair):
    rows = np.arange(20, dtype=np.uint8)[:, None].repeat(30, 1)
    photo = Image.fromarray(np.stack([rows * 10] * 3, 2))
    exif = photo.getexif()
    exif[274] = 6  # rotated camera: rows of the file are columns of the scene
    photo.save(tmp_path / "turned.png", exif=exif)
    samples = (Sample("turned.png", None, 30, 20, orientation=6),)
    target = PreparedDataset("phone", tmp_path, tmp_path, None, {"train": samples})
    image = _batches(pair[0], target, crop=(8, 8))[0].target_images[0, 0]
    assert torch.equal(image[0], image[-1]), "still lies on its side"
    assert image[0, 0] > image[0, -1]


def test_digests_change_with_the_files(pair):
    source, target = pair
    fewer = replace(source, splits={"train": source.splits["train"][:2]})
    digests = _batches(source, target).digests()
    assert digests == _batches(source, target, seed=3, batch=1).digests()
    assert digests["target"] == _batches(fewer, target).digests()["target"]
    assert digests["source"] != _batches(fewer, target).digests()["source"]


def test_labels_of_the_target_are_never_read(pair, tmp_path):
    source, target = pair
    clean = [_batches(source, target)[step] for step in range(4)]
    poisoned = replace(
        target,
        splits={
            "train": tuple(
                replace(sample, label="does/not/exist.png") for sample in target.splits["train"]
            )
        },
    )
    for step, batch in enumerate(clean):
        again = _batches(source, poisoned)[step]
        assert torch.equal(batch.target_images, again.target_images)
        assert torch.equal(batch.source_labels, again.source_labels)


def test_an_empty_split_is_refused(pair):
    source, target = pair
    empty = replace(target, splits={"train": ()})
    with pytest.raises(DataError, match="no images"):
        _batches(source, empty)


def test_names_lists_the_files_of_a_step(pair):
    batches = _batches(*pair)
    names = batches.image_paths(3)
    assert len(names) == 4
    numbers = [int(image[2, 0, 0]) for image in batches[3].source_images]
    assert [f"set{number}.png" for number in numbers] == [name.split("/")[-1] for name in names[:2]]


def test_image_and_label_of_different_sizes_are_named(pair, tmp_path):
    source, target = pair
    write_png(tmp_path / "set0_label.png", np.zeros((3, 3), np.uint8))
    batches = _batches(source, target)
    with pytest.raises(DataError, match=r"set0\.png: image 30x20, label 3x3"):
        [batches[step] for step in range(5)]


def test_resizing_labels_invents_no_class():
    labels = np.kron(np.array([[0, 9], [IGNORE, 4]], np.uint8), np.ones((5, 5), np.uint8))
    assert set(np.unique(resize_labels(labels, (7, 13)))) == {0, 4, 9, IGNORE}
    assert resize_labels(labels, labels.shape) is labels
    image = np.zeros((4, 6, 3), np.uint8)
    assert resize_image(image, (2, 3)).shape == (2, 3, 3)


def test_crop_and_mirror_without_labels():
    rng = np.random.default_rng(0)
    image = np.zeros((5, 5, 3), np.uint8)
    assert crop(image, None, (3, 3), (1, 2))[1] is None
    assert random_mirror(image, None, rng)[1] is None


def test_crops_cover_the_whole_image():
    corners = {random_corner((6, 6), (4, 4), np.random.default_rng(seed)) for seed in range(300)}
    assert corners == {(row, column) for row in range(3) for column in range(3)}
