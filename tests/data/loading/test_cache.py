"""Image cache: same crops as without it, never incomplete, not used after files changed."""

import logging
import os
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.running import udaseg
from tests.support import files
from tests.support.small import shipped
from tests.support.toy import TINY, toy_pair
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.files.images import read_image, write_png
from udaseg.data.loading import cache_write
from udaseg.data.loading.batches import BatchOptions, TrainingBatches
from udaseg.data.loading.cache import cache_folder, open_cache
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.packed import import_zstd, pack, unpack
from udaseg.data.loading.rare_class import RareClassSettings
from udaseg.data.loading.workers import iterate_batches
from udaseg.data.open import open_dataset, open_image_folder
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError, EnvironmentFault
from udaseg.training.setup import build_batches

SIZE = (48, 80)
BOTH = ("png", "raw")


@pytest.fixture(autouse=True)
def with_zstd(request):
    if "raw" in request.node.name:
        pytest.importorskip("backports.zstd" if not _standard() else "compression.zstd")


def _standard():
    try:
        return import_zstd().__name__.startswith("compression")
    except EnvironmentFault:
        return False


def _pairs(root, size=SIZE, **changes):
    source, target = toy_pair(root)
    return TrainingBatches(
        CropSource(
            source,
            "train",
            size,
            (32, 40),
            True,
            True,
            rare=RareClassSettings(0.1, 200, 30),
            **changes,
        ),
        CropSource(target, "train", size, (32, 40), True, False),
        BatchOptions(batch_source=2, batch_target=2, steps=12, seed=1),
    )


def _cached(batches):
    for crops in (batches.source, batches.target):
        cache = open_cache(crops.dataset, "train", crops.resize, labelled=crops.labelled)
        assert cache is not None
        object.__setattr__(crops, "cache", cache)
    return batches


def _write(root, form):
    return [write_cache(dataset, SIZE, form, workers=1) for dataset in toy_pair(root)]


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("sampling", ["uniform", "rare_class"])
def test_crops_from_the_cache_are_those_from_the_files(root, form, sampling):
    _write(root, form)
    plain = _pairs(root, sampling=sampling)
    cached = _cached(_pairs(root, sampling=sampling))
    (root / "prepared/toyland/labels").rename(root / "away")  # the label files are not opened
    first = [cached[step] for step in range(12)]
    (root / "away").rename(root / "prepared/toyland/labels")
    for step, other in enumerate(first):
        one = plain[step]
        assert torch.equal(one.source_images, other.source_images)
        assert torch.equal(one.source_labels, other.source_labels)
        assert torch.equal(one.target_images, other.target_images)


@pytest.mark.parametrize("form", BOTH)
def test_the_cache_lies_beside_the_index_and_holds_no_label_of_a_target(root, form):
    before = _listing(root.parent, without=root)
    reports = _write(root, form)
    for report, name, count in zip(reports, ("toyland", "toyland-target"), (6, 5), strict=True):
        folder = root / "prepared" / name / "cache-80x48"
        assert report.cache.folder == folder
        assert (report.images, report.written) == (count, count)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) == count * (2 if name == "toyland" else 1) + 1
        on_disk = sum(path.stat().st_size for path in files if path.name != "cache.json")
        assert report.size_bytes == on_disk
    assert _listing(root.parent, without=root) == before


def _listing(folder, without):
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if not path.is_relative_to(without) and path.is_file()
    }


def test_a_second_time_nothing_is_made(root):
    first, _ = _write(root, "png")
    stamps = _listing(first.cache.folder, without=root / "none")
    again, _ = _write(root, "png")
    assert (again.written, again.images, again.size_bytes) == (0, 6, first.size_bytes)
    assert _listing(first.cache.folder, without=root / "none") == stamps


def test_a_run_that_was_killed_goes_on_and_its_rest_is_not_used(root, monkeypatch):
    source, _ = toy_pair(root)
    written = []
    real = cache_write._Writer.write_sample

    def dying(writer, sample):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(sample.image)
        return real(writer, sample)

    monkeypatch.setattr(cache_write._Writer, "write_sample", dying)
    with pytest.raises(KeyboardInterrupt):
        write_cache(source, SIZE, workers=1)
    folder = cache_folder(source, SIZE)
    assert not (folder / "cache.json").exists()
    assert open_cache(source, "train", SIZE, labelled=True) is None
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('["torn')
    (folder / "images" / ".x.tmp").write_bytes(b"half")
    broken = folder / "images" / f"{written[0]}.png"
    broken.write_bytes(broken.read_bytes()[:-1])
    monkeypatch.setattr(cache_write._Writer, "write_sample", real)
    report = write_cache(source, SIZE, workers=1)
    assert report.written == 6 - 4 + 1, "one of the four is cut off"
    names = {path.name for path in folder.rglob("*")}
    assert not {".x.tmp", "journal.jsonl"} & names
    batches, plain = _pairs(root), _pairs(root)
    object.__setattr__(batches.source, "cache", open_cache(source, "train", SIZE, labelled=True))
    assert torch.equal(batches[0].source_images, plain[0].source_images)


def _changed(root, source):
    """Return the dataset with copied images, one changed after caching, and that image's path."""
    shutil.copytree(source.image_root, root / "own")
    dataset = PreparedDataset(
        source.name, source.folder, root / "own", source.classes, source.splits
    )
    write_cache(dataset, SIZE, workers=1)
    path = dataset.image_path(dataset.splits["train"][2])
    write_png(path, np.full((64, 128, 3), 7, np.uint8))
    return dataset, path


def test_a_cache_of_other_files_is_not_used_and_made_anew_where_it_must(root, caplog):
    dataset, path = _changed(root, toy_pair(root)[0])
    assert open_cache(dataset, "train", SIZE, labelled=True) is None
    assert "1 images are new or changed" in caplog.text
    assert path.name in caplog.text
    assert "udaseg prepare toyland --cache 80x48" in caplog.text
    assert write_cache(dataset, SIZE, workers=1).written == 1
    cache = open_cache(dataset, "train", SIZE, labelled=True)
    assert (cache.load_image(dataset.splits["train"][2]) == 7).all()


def test_a_changed_label_counts_for_a_source_only(root, caplog):
    source, _ = toy_pair(root)
    write_cache(source, SIZE, workers=1)
    label = source.label_path(source.splits["train"][0])
    os.utime(label, ns=(1, 1))
    assert open_cache(source, "train", SIZE, labelled=False) is not None
    assert open_cache(source, "train", SIZE, labelled=True) is None
    assert write_cache(source, SIZE, workers=1).written == 1
    assert open_cache(source, "train", SIZE, labelled=True) is not None


def test_what_is_missing_or_of_a_split_that_was_not_asked_for_is_noticed(root):
    source, _ = toy_pair(root)
    write_cache(source, SIZE, workers=1)
    assert open_cache(source, "val", SIZE, labelled=True) is None
    assert open_cache(source, "train", (48, 81), labelled=True) is None
    assert open_cache(source, "train", None, labelled=True) is None
    cache = open_cache(source, "train", SIZE, labelled=True)
    cache.image_path(source.splits["train"][0]).unlink()
    assert open_cache(source, "train", SIZE, labelled=True) is None


def test_images_that_the_set_no_longer_has_leave_the_cache(root):
    source, _ = toy_pair(root)
    report = write_cache(source, SIZE, workers=1)
    fewer = replace(source, splits={"train": source.splits["train"][1:]})
    again = write_cache(fewer, SIZE, workers=1)
    assert (again.written, again.images) == (0, 5)
    assert 0 < again.size_bytes < report.size_bytes
    gone = source.splits["train"][0]
    assert not report.cache.image_path(gone).exists()
    assert not report.cache.label_path(gone).exists()
    assert len(list(again.cache.folder.rglob("*.png"))) == 10


def test_the_raw_form_takes_the_place_of_the_other(root):
    source, _ = toy_pair(root)
    png = write_cache(source, SIZE, "png", workers=1)
    raw = write_cache(source, SIZE, "raw", workers=1)
    assert raw.written == 6
    assert not list(png.cache.folder.rglob("*.png"))
    assert open_cache(source, "train", SIZE, labelled=True).format == "raw"


@pytest.mark.parametrize("form", BOTH)
def test_a_damaged_cached_file_is_named_with_what_to_do(root, form):
    source, _ = toy_pair(root)
    write_cache(source, SIZE, form, workers=1)
    cache = open_cache(source, "train", SIZE, labelled=True)
    sample = source.splits["train"][0]
    path = cache.image_path(sample)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"run `udaseg prepare --cache` again") as caught:
        cache.load_image(sample)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("change", ["damaged", "another", "gone"])
def test_a_cached_file_that_changed_since_it_was_opened_is_not_read(root, form, change):
    _write(root, form)
    plain, cached = _pairs(root), _cached(_pairs(root))
    cache, samples = cached.source.cache, cached.source.samples
    for path_of, sample in ((cache.image_path, samples[0]), (cache.label_path, samples[1])):
        path = path_of(sample)
        data = {"damaged": path.read_bytes()[:40], "another": path_of(samples[2]).read_bytes()}
        path.unlink()
        if change != "gone":
            path.write_bytes(data[change])
    for step in range(12):
        assert torch.equal(cached[step].source_images, plain[step].source_images)
        assert torch.equal(cached[step].source_labels, plain[step].source_labels)


def test_an_image_that_viewers_turn_is_cached_upright(root):
    source, _ = toy_pair(root)
    shutil.copytree(source.image_root, root / "own")
    sample = source.splits["train"][1]
    path = root / "own" / sample.image
    photo = Image.open(path).copy()
    exif = photo.getexif()
    exif[274] = 3
    photo.save(path, format="PNG", exif=exif)
    sample = replace(sample, orientation=3)
    dataset = PreparedDataset(
        source.name, source.folder, root / "own", source.classes, {"train": (sample,)}
    )
    assert write_cache(dataset, SIZE, workers=1).images == 1
    assert write_cache(dataset, SIZE, workers=1).written == 0
    for labelled in (True, False):
        plain = CropSource(dataset, "train", SIZE, SIZE, False, labelled)
        cache = open_cache(dataset, "train", SIZE, labelled=labelled)
        cached = CropSource(dataset, "train", SIZE, SIZE, False, labelled, cache=cache)
        for one, other in zip(plain.read(sample), cached.read(sample), strict=True):
            assert np.array_equal(one, other)


def test_a_folder_of_the_users_own_is_never_a_cache(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "cache-8x8").mkdir()
    assert open_cache(open_image_folder(tmp_path), "train", (8, 8), labelled=False) is None


def test_a_cache_of_another_size_than_resize_is_refused(root):
    source, _ = toy_pair(root)
    cache = write_cache(source, SIZE, workers=1).cache
    with pytest.raises(ValueError, match="the cache has size"):
        CropSource(source, "train", (64, 64), (8, 8), False, True, cache=cache)


def test_too_little_room_is_told_before_the_disk_is_full(root, monkeypatch):
    source, _ = toy_pair(root)
    monkeypatch.setattr(cache_write, "_SAMPLES_FOR_ESTIMATE", 2)
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(cache_write.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(
        EnvironmentFault, match="are free; free some space and run the same command again"
    ):
        write_cache(source, SIZE, workers=1)


def test_training_takes_the_cache_by_itself_and_says_so(root, caplog):
    source, target = toy_pair(root)
    words = [word.replace("source.resize=null", "source.resize=[48, 80]") for word in TINY]
    recipe = shipped("toyland/dacs", words)
    plain = build_batches(recipe, source, target)
    assert plain.source.cache is None
    write_cache(source, SIZE, workers=1)
    batches = build_batches(recipe, source, target)
    assert batches.source.cache is not None
    assert batches.target.cache is None
    with caplog.at_level(logging.INFO):
        batch = next(iterate_batches(batches, 0, workers=0, pin=False))
    assert f"source images of 80x48 are read from {batches.source.cache.folder}" in caplog.text
    assert torch.equal(batch.source_images, plain[0].source_images)


@pytest.mark.parametrize("form", BOTH)
def test_the_command_makes_it_and_prints_its_size(root, toys, form):
    shutil.copytree(toys / "toyland", root / "toyland")
    words = ("prepare", "toyland", "--root", root, "--cache", "80x48", "--cache-format", form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr("udaseg.data.prepare.prepare.make_toyland", lambda *_, **__: None)
        output = udaseg(*words, cwd=root).stdout
        size = sum(
            path.stat().st_size
            for path in (root / "prepared/toyland/cache-80x48").rglob(f"*.{form}")
        )
        assert f"6 images of 80x48 with their labels as {form}, {size / 1e6:.1f} MB" in output
        assert "resize [48, 80]" in output
        again = udaseg(*words, cwd=root).stdout
        fast = r"unchanged, read \d+\.\d times as fast as the original files; used by training"
        assert re.search(fast, again)
        for wrong in ("80x", "0", "0x48", "80x48x3"):
            output = udaseg("prepare", "toyland", "--cache", wrong, cwd=root, expect=2)
            assert "WIDTHxHEIGHT" in output.stderr
        udaseg("prepare", "toyland", "--check-only", "--cache", "8x8", cwd=root, expect=2)


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 7), (1, 9), (9, 1), (4, 6, 3), (1, 1, 3), (31, 2, 3)]
)
def test_raw_bytes_come_back_as_they_were(shape, tmp_path):
    for seed in range(20):
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        data = pack(pixels)
        assert np.array_equal(unpack(tmp_path, data), pixels)
        turned = pixels[::-1, ::-1]
        assert np.array_equal(unpack(tmp_path, pack(turned)), turned)


def test_every_damage_of_raw_bytes_is_found(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 9, (6, 5, 3), dtype=np.uint8)
    data = pack(pixels)
    for place in range(len(data)):
        for bit in range(8):
            hurt = bytearray(data)
            hurt[place] ^= 1 << bit
            try:
                back = unpack(tmp_path, bytes(hurt))
            except DataError:
                continue
            assert np.array_equal(back, pixels), (place, bit)
    for length in range(len(data)):
        with pytest.raises(DataError):
            unpack(tmp_path, data[:length])


def test_raw_bytes_never_become_more_than_they_say(tmp_path):
    bomb = pack(np.zeros((3000, 3000), np.uint8))
    lying = bomb[:8] + pack(np.zeros((1, 1), np.uint8))[8:20] + bomb[20:]
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path, lying)


def test_without_zstd_the_raw_form_is_refused_by_name(root, monkeypatch):
    for name in ("backports", "compression"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'udaseg\[cache\]'"):
        write_cache(toy_pair(root)[0], SIZE, "raw")


def test_a_set_prepared_anew_has_no_old_cache(root, toys):
    shutil.copytree(toys / "toyland", root / "toyland")
    source, _ = toy_pair(root)
    write_cache(source, SIZE, workers=1)
    image = next((root / "toyland").rglob("*.png"))
    write_png(image, read_image(image)[::-1])
    assert not prepare_dataset("toyland", root=root).unchanged
    assert open_cache(open_dataset("toyland", root=root), "train", SIZE, labelled=True) is None


def test_a_cache_of_16_bit_images_belongs_to_the_bits_they_were_read_by(tmp_path, caplog):
    for number in range(2):
        deep = files.noise(24, 32, number).astype(np.uint16) << 4
        files.put(tmp_path / f"i/{number}.png", files.deep_png(deep))
    yaml = files.dataset_yaml(tmp_path, "name: deep\nimages: i/*.png\n")
    dataset = prepare_dataset(str(yaml), root=tmp_path).dataset
    write_cache(dataset, (24, 32), workers=1)
    cache = open_cache(dataset, "train", (24, 32), labelled=False)
    assert cache is not None
    for sample in dataset.split("train"):
        np.testing.assert_array_equal(cache.load_image(sample), dataset.read_image(sample))
    other = replace(dataset, bits=16)
    assert open_cache(other, "train", (24, 32), labelled=False) is None
    assert "the cache is stale" in caplog.text
    assert write_cache(other, (24, 32), workers=1).written == 2
