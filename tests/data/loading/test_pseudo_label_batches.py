"""Target crops with pseudo-labels, class-balanced sources and runs in several parts."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_image, write_png
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.batches import BatchOptions, TrainingBatches
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.pseudo_labels import (
    pseudo_label_path,
    pseudo_labels_digest,
    write_pseudo_label,
)
from udaseg.data.loading.sampling import balanced_order
from udaseg.data.loading.transforms import crop, random_corner, random_mirror
from udaseg.errors import DataError

HEIGHT, WIDTH, STRETCH = 20, 30, 6
RARE = 0


@pytest.fixture
def pair(tmp_path):
    """Write a source with class 2 in image 0 only, and a target; red is row, green column."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] * STRETCH
    sets = []
    for name, count in (("source", 12), ("target", 4)):
        samples = []
        for number in range(count):
            image = np.stack([rows, columns, np.full_like(rows, number)], 2).astype(np.uint8)
            write_png(tmp_path / f"{name}{number}.png", image)
            label = None
            if name == "source":
                label = f"{name}{number}_label.png"
                write_png(tmp_path / label, (rows // STRETCH % 3).astype(np.uint8))
            pixels = (5, 5, 5 * (number == RARE)) if label else ()
            samples.append(Sample(f"{name}{number}.png", label, HEIGHT, WIDTH, pixels))
        sets.append(PreparedDataset(name, tmp_path, tmp_path, None, {"train": tuple(samples)}))
    return sets[0], sets[1]


@pytest.fixture(params=[0, 1], ids=["row", "column"])
def axis(request):
    return request.param


def _write(folder, target, axis, size=(HEIGHT, WIDTH)):
    """Write pseudo-labels that hold the row or column, like the red and green channels."""
    places = np.mgrid[: size[0], : size[1]][axis] * STRETCH * HEIGHT // size[0]
    for sample in target.split("train"):
        write_pseudo_label(folder, sample, places.astype(np.uint8))
    return folder


def _source(dataset, **changes):
    return replace(CropSource(dataset, "train", None, (8, 12), True, labelled=True), **changes)


def _target(dataset, **changes):
    return replace(CropSource(dataset, "train", None, (8, 12), False, labelled=False), **changes)


def _batches(source, target, **changes):
    settings = {"batch_source": 2, "batch_target": 2, "steps": 10, "seed": 3}
    return TrainingBatches(source, target, BatchOptions(**{**settings, **changes}))


def _labels(dataset, sample):
    return read_train_ids(dataset.label_path(sample))


def _same(one, other):
    return all(
        torch.equal(getattr(one, part), getattr(other, part))
        for part in ("source_images", "source_labels", "target_images", "pseudo_labels")
    )


@pytest.mark.parametrize("flip", [False, True])
def test_a_pseudo_label_is_cut_and_mirrored_like_its_image(pair, tmp_path, axis, flip):
    folder = _write(tmp_path / "made", pair[1], axis)
    batches = _batches(None, _target(pair[1], flip=flip, pseudo_labels=folder))
    seen = [batches[step] for step in range(6)]
    for batch in seen:
        assert batch.pseudo_labels.dtype == torch.uint8
        assert batch.pseudo_labels.shape == (2, 8, 12)
        assert torch.equal(batch.pseudo_labels, batch.target_images[:, axis])
    mirrored = [
        bool(image[1, 0, 0] > image[1, 0, 1]) for batch in seen for image in batch.target_images
    ]
    assert any(mirrored) == flip
    assert not all(mirrored)


@pytest.mark.parametrize("scale", [(0.7, 0.9), (1.3, 2.0)])
@pytest.mark.parametrize("resize", [None, (24, 36)])
def test_a_pseudo_label_follows_resize_and_scale(pair, tmp_path, axis, scale, resize):
    folder = _write(tmp_path / "made", pair[1], axis)
    crops = _target(pair[1], flip=True, pseudo_labels=folder, scale=scale, resize=resize)
    for step in range(6):
        batch = _batches(None, crops)[step]
        gap = batch.pseudo_labels.float() - batch.target_images[:, axis].float()
        # nearest vs. averaged or blended values differ by less than one pixel of the file
        assert gap.abs().max() <= STRETCH


def test_a_pseudo_label_of_another_size_is_brought_to_the_image(pair, tmp_path, axis):
    folder = _write(tmp_path / "made", pair[1], axis, size=(HEIGHT // 2, WIDTH // 2))
    batch = _batches(None, _target(pair[1], pseudo_labels=folder))[0]
    gap = batch.pseudo_labels.float() - batch.target_images[:, axis].float()
    assert gap.abs().max() <= STRETCH
    assert gap.abs().max() > 0


def test_scales_differ_and_stay_in_their_range(pair, tmp_path):
    folder = _write(tmp_path / "made", pair[1], 1)
    crops = _target(pair[1], crop=(40, 60), pseudo_labels=folder, scale=(0.5, 1.5))
    batches = _batches(None, crops)
    labels = torch.cat([batches[step].pseudo_labels for step in range(10)])
    widths = (labels[:, 0] != IGNORE).sum(1)
    assert widths.min() >= WIDTH * 0.5 - 1
    assert widths.max() <= WIDTH * 1.5 + 1
    assert widths.max() - widths.min() > WIDTH * 0.4


def test_without_a_scale_only_the_window_and_the_mirror_are_drawn(pair):
    crops, sample = _source(pair[0]), pair[0].split("train")[1]
    rng, plain = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(8):
        image, labels = read_image(pair[0].image_path(sample)), _labels(pair[0], sample)
        window = crop(image, labels, (8, 12), random_corner(image.shape, (8, 12), plain))
        expected = random_mirror(*window, plain)
        drawn = crops.crop_image(sample, *crops.read(sample), rng)
        for one, other in zip(drawn, expected, strict=True):
            assert np.array_equal(one, other)
    assert rng.random() == plain.random()


def test_a_source_is_scaled_with_its_labels(pair):
    batches = _batches(_source(pair[0], scale=(2.0, 2.0)), None)
    for step in range(4):
        images, labels = batches[step].source_images, batches[step].source_labels
        rows = images[:, 0].float() / STRETCH
        # the row is known where the doubled image does not lie between two rows of the file
        known = (rows - rows.round()).abs() < 0.3
        wrong = known & (labels.float() != rows.round() % 3)
        assert known.any()
        assert not wrong.any()


def test_an_image_smaller_than_the_crop_is_padded_with_void(pair, tmp_path):
    folder = _write(tmp_path / "made", pair[1], 0)
    batch = _batches(None, _target(pair[1], crop=(24, 40), pseudo_labels=folder))[0]
    assert (batch.pseudo_labels[:, HEIGHT:] == IGNORE).all()
    assert (batch.pseudo_labels[:, :, WIDTH:] == IGNORE).all()
    assert (batch.pseudo_labels[:, :HEIGHT, :WIDTH] != IGNORE).all()


@pytest.mark.parametrize("fault", ["missing", "damaged", "colours"])
def test_an_unreadable_pseudo_label_is_named_with_what_to_do(pair, tmp_path, fault):
    folder = _write(tmp_path / "made", pair[1], 0)
    sample = pair[1].split("train")[2]
    path = pseudo_label_path(folder, sample)
    assert path == folder / "target2.png.png"
    path.unlink()
    if fault == "damaged":
        path.write_bytes(b"no image")
    if fault == "colours":
        write_png(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    batches = _batches(None, _target(pair[1], pseudo_labels=folder))
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*--resume"):
        [batches[step] for step in range(4)]


def test_the_digest_changes_with_names_and_bytes_and_is_none_when_one_is_missing(pair, tmp_path):
    samples = pair[1].split("train")
    folder = _write(tmp_path / "made", pair[1], 0)
    digest = pseudo_labels_digest(folder, samples)
    assert digest is not None
    assert digest == pseudo_labels_digest(_write(tmp_path / "again", pair[1], 0), samples)
    assert digest != pseudo_labels_digest(folder, samples[:3])
    assert digest != pseudo_labels_digest(folder, samples[::-1])
    write_pseudo_label(folder, samples[1], np.full((HEIGHT, WIDTH), 7, np.uint8))
    assert digest != pseudo_labels_digest(folder, samples)
    pseudo_label_path(folder, samples[1]).unlink()
    assert pseudo_labels_digest(folder, samples) is None
    pseudo_label_path(folder, samples[1]).mkdir()
    assert pseudo_labels_digest(folder, samples) is None, "a folder in a file's place"


def test_a_part_may_train_on_the_target_alone(pair, tmp_path):
    both = _batches(_source(pair[0]), _target(pair[1]))
    alone = _batches(None, _target(pair[1]))
    batch = alone[4]
    assert batch.source_images.shape == (0, 3, 1, 1)
    assert batch.source_labels.shape == (0, 1, 1)
    assert batch.source_images.dtype == batch.source_labels.dtype == torch.uint8
    assert batch.pseudo_labels is None
    assert torch.equal(batch.target_images, both[4].target_images)
    assert alone.digests() == {"target": both.digests()["target"]}
    assert alone.image_paths(4) == both.image_paths(4)[2:]


def test_the_beginning_of_a_part_changes_only_the_progress(pair, tmp_path):
    target = _target(pair[1], pseudo_labels=_write(tmp_path / "made", pair[1], 0))
    whole = _batches(_source(pair[0]), target)[7]
    part = _batches(_source(pair[0]), target, first_step=5)[7]
    assert (whole.progress, part.progress) == (0.7, 0.4)
    assert (whole.step, whole.seed) == (part.step, part.seed)
    assert _same(whole, part)


def test_batches_do_not_hang_on_the_order_in_which_they_are_made(pair, tmp_path):
    folder = _write(tmp_path / "made", pair[1], 0)
    source = _source(pair[0], sampling="class_balanced", scale=(0.8, 1.2))
    target = _target(pair[1], flip=True, pseudo_labels=folder, scale=(0.8, 1.2))
    # a lap has 3000 draws, so steps 428 and 857 each draw from two laps
    steps = [0, 428, 429, 857, 2]
    near = _batches(source, target, steps=900, batch_source=7)
    batches = {step: near[step] for step in steps}
    names = {step: near.image_paths(step) for step in steps}
    again = _batches(source, target, steps=900, batch_source=7)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert _same(batches[step], again[step])
        assert names[step] == again.image_paths(step)


def test_every_lap_is_the_balanced_order_of_its_number(pair):
    batches = _batches(_source(pair[0], sampling="class_balanced"), None, batch_source=1500)
    present = np.array([sample.class_pixels for sample in pair[0].split("train")]) > 0
    for lap in range(3):
        names = batches.image_paths(2 * lap) + batches.image_paths(2 * lap + 1)
        order = balanced_order(present, seed=3, sub_epoch=lap, length=3000)
        assert [name.rsplit("/", 1)[1] for name in names] == [f"source{n}.png" for n in order]


def test_class_balanced_batches_visit_rare_files_more(pair):
    def share(**changes):
        batches = _batches(_source(pair[0], **changes), None, steps=300)
        names = [name for step in range(300) for name in batches.image_paths(step)]
        return sum(name.endswith("source0.png") for name in names) / len(names)

    assert share() == pytest.approx(1 / 12)
    assert share(sampling="class_balanced") > 3 / 12


def test_ranks_share_a_class_balanced_lap_without_overlap(pair):
    crops = _source(pair[0], sampling="class_balanced")
    whole = _batches(crops, None, batch_source=4)
    shares = [_batches(crops, None, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(10):
        assert whole.image_paths(step) == [
            name for share in shares for name in share.image_paths(step)
        ]


@pytest.mark.parametrize(
    ("pixels", "words"), [((), "udaseg prepare"), ((0, 0, 0), "contains any class")]
)
def test_class_balanced_sampling_without_counts_is_refused(pair, pixels, words):
    samples = tuple(replace(sample, class_pixels=pixels) for sample in pair[0].split("train"))
    bare = replace(pair[0], splits={"train": samples})
    with pytest.raises(DataError, match=rf"^source: .*{words}"):
        _batches(_source(bare, sampling="class_balanced"), None)


def test_a_target_gives_away_neither_classes_nor_labels(pair, tmp_path):
    with pytest.raises(ValueError, match="uniformly"):
        _batches(None, _target(pair[1], sampling="class_balanced"))
    with pytest.raises(ValueError, match="labels of a target must not be read"):
        _batches(None, _source(pair[0]))
    with pytest.raises(ValueError, match="cannot use pseudo-labels"):
        _source(pair[0], pseudo_labels=tmp_path)


def test_every_tensor_of_a_batch_travels(pair, tmp_path):
    target = _target(pair[1], pseudo_labels=_write(tmp_path / "made", pair[1], 0))
    moved = _batches(_source(pair[0]), target)[0].to(torch.device("meta"))
    for part in ("source_images", "source_labels", "target_images", "pseudo_labels"):
        assert getattr(moved, part).device.type == "meta", part
    assert _batches(_source(pair[0]), None)[0].to(torch.device("meta")).pseudo_labels is None
