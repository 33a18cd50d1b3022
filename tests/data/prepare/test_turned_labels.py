"""Labels of turned images, stored or upright: prepared ones are always upright."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support import files, turned
from tests.support.turned import as_stored, tagged
from udaseg.cli.main import main
from udaseg.data.doctor.doctor import doctor
from udaseg.data.loading.cache import open_cache
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.crops import CropSource
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError
from udaseg.files import sha256

YAML = "name: own\nimages: images/*\nlabels: labels/*\nclasses: [dark, bright]\n"
HOW = ["stored", "upright"]


def _cells(height, width, seed=0):
    cells = np.random.default_rng(seed).integers(0, 2, (height // 8, width // 8))
    return np.kron(cells, np.ones((8, 8), int)).astype(np.uint8)


def _write(folder, ids, orientation, *, labels, container="jpeg", declared=True):
    """Write an image whose upright pixels show `ids`, and its label."""
    picture = np.repeat(as_stored(ids, orientation)[..., None] * 255, 3, 2).astype(np.uint8)
    files.put(folder / "images/a.jpg", tagged(picture, container, orientation))
    drawn = as_stored(ids, orientation) if labels == "stored" else ids
    files.put(folder / "labels/a.png", files.gray_png(drawn))
    return str(files.dataset_yaml(folder, YAML + (f"orientation: {labels}\n" if declared else "")))


def _assert_aligned(dataset):
    (sample,) = dataset.split("train")
    size = (sample.height, sample.width)
    write_cache(dataset, size, workers=1)
    cache = open_cache(dataset, "train", size, labelled=True)
    assert cache is not None
    for how in (None, cache):
        fixed = None if how is None else size
        crops = CropSource(dataset, "train", fixed, (24, 32), flip=True, labelled=True, cache=how)
        for seed in range(6):
            rng = np.random.default_rng(seed)
            image, labels = crops.crop_image(sample, *crops.read(sample), rng)
            np.testing.assert_array_equal(image[..., 0] > 127, labels == 1)


@pytest.mark.parametrize("labels", HOW)
@pytest.mark.parametrize("size", [(48, 48), (48, 80)], ids=["square", "wide"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_label_are_upright_pixel_by_pixel(tmp_path, orientation, size, labels):
    ids = _cells(*size, seed=orientation)
    yaml = _write(tmp_path, ids, orientation, labels=labels)
    report = prepare_dataset(yaml, root=tmp_path)
    (sample,) = report.dataset.split("train")
    assert (sample.height, sample.width) == size
    assert sample.orientation == orientation
    named = [f"images/a.jpg: EXIF orientation {orientation}"]
    assert report.turned == ([] if orientation == 1 else named)
    crops = CropSource(report.dataset, "train", None, size, flip=False, labelled=True)
    np.testing.assert_array_equal(crops.read(sample)[1], ids)
    _assert_aligned(report.dataset)
    codes = [finding.code for finding in doctor(yaml, root=tmp_path).findings]
    assert ("exif-orientation" in codes) == (orientation != 1)
    assert "turned-label" not in codes


@pytest.mark.parametrize("labels", HOW)
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_size_says_how_a_label_of_a_quarter_turn_lies(tmp_path, orientation, labels):
    yaml = _write(tmp_path, _cells(48, 80), orientation, labels=labels, declared=False)
    _assert_aligned(prepare_dataset(yaml, root=tmp_path).dataset)
    assert "turned-label" not in [finding.code for finding in doctor(yaml, root=tmp_path).findings]


@pytest.mark.parametrize(
    ("orientation", "size"), [(2, (48, 80)), (3, (48, 80)), (4, (48, 80)), (6, (48, 48))]
)
def test_prepare_asks_where_a_label_could_lie_either_way(tmp_path, capsys, orientation, size):
    yaml = _write(tmp_path, _cells(*size), orientation, labels="stored", declared=False)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", yaml, "--root", str(tmp_path)])
    assert stop.value.code == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"images/a.jpg: EXIF orientation {orientation}" in said
    assert "write `orientation: stored` into the dataset YAML" in said
    assert not (tmp_path / "prepared/own").exists()
    (finding,) = doctor(yaml, root=tmp_path).errors
    assert finding.code == "turned-label"


def test_another_word_for_the_orientation_is_refused(tmp_path):
    path = files.dataset_yaml(tmp_path, YAML + "orientation: sideways\n")
    with pytest.raises(DataError, match=r"orientation: .*`stored` or `upright`.*sideways"):
        prepare_dataset(str(path), root=tmp_path)


@pytest.mark.parametrize("labels", HOW)
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_label_of_half_the_size_is_turned_and_never_squashed(tmp_path, orientation, labels):
    ids = _cells(48, 80)
    yaml = _write(tmp_path, ids, orientation, labels=labels)
    half = ids[::2, ::2]
    drawn = as_stored(half, orientation) if labels == "stored" else half
    files.put(tmp_path / "labels/a.png", files.gray_png(drawn))
    with pytest.raises(DataError, match=rf"label 40x24, image 80x48, both turned .*{orientation}"):
        prepare_dataset(yaml, root=tmp_path, options=PrepareOptions(on_mismatch="fail"))
    options = PrepareOptions(on_mismatch="resize")
    _assert_aligned(prepare_dataset(yaml, root=tmp_path, options=options).dataset)


@pytest.mark.parametrize("container", ["png", "tiff"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_label_with_a_tag_of_its_own_is_turned_by_it(tmp_path, orientation, container):
    ids = _cells(48, 80)
    yaml = _write(tmp_path, ids, orientation, labels="stored", declared=False)
    (tmp_path / "labels/a.png").unlink()
    suffix, _ = turned.CONTAINERS[container]
    stored = tagged(as_stored(ids, 8), container, 8)
    files.put(tmp_path / f"labels/a{suffix}", stored)
    dataset = prepare_dataset(yaml, root=tmp_path).dataset
    _assert_aligned(dataset)


def test_no_input_is_written_and_other_ways_to_lie_are_prepared_again(tmp_path):
    ids = _cells(48, 80)
    yaml = _write(tmp_path, ids, 3, labels="upright")
    before = (tmp_path / "images/a.jpg").read_bytes()
    folder = prepare_dataset(yaml, root=tmp_path).dataset.folder
    path = folder / "labels/train/a.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), ids)
    files.dataset_yaml(tmp_path, f"{YAML}orientation: stored\n")
    assert not prepare_dataset(yaml, root=tmp_path).unchanged
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.rot90(ids, 2))
    assert (tmp_path / "images/a.jpg").read_bytes() == before


def _as_before_orientations(folder, ids, orientation):
    """Make a prepared set what the version before orientations wrote: images and labels stored."""
    stored = files.gray_png(as_stored(ids, orientation))
    label = folder / "labels/train/a.png"
    label.write_bytes(stored)
    index = json.loads((folder / "index.json").read_text())
    index["format"] = 1
    (row,) = index["splits"]["train"]
    index["splits"]["train"] = [[*row[:2], *as_stored(ids, orientation).shape, row[4]]]
    (folder / "index.json").write_text(json.dumps(index))
    head, row, _ = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    head["format"] = 1
    head["files"]["index.json"] = sha256((folder / "index.json").read_bytes())
    row.pop("orientation", None)
    row["size"] = as_stored(ids, orientation).shape
    status = label.stat()
    row["prepared"] = [row["prepared"][0], len(stored), status.st_mtime_ns, sha256(stored)]
    body = f"{json.dumps(head)}\n{json.dumps(row)}\n"
    end = json.dumps({"sha256": sha256(body.encode())})
    (folder / "manifest.jsonl").write_text(f"{body}{end}\n")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_set_of_an_earlier_version_is_prepared_again_if_images_are_turned(tmp_path, orientation):
    ids = _cells(48, 80)
    yaml = _write(tmp_path, ids, orientation, labels="stored")
    folder = prepare_dataset(yaml, root=tmp_path).dataset.folder
    _as_before_orientations(folder, ids, orientation)
    dataset = open_dataset("own", root=tmp_path)
    (sample,) = dataset.split("train")
    crops = CropSource(dataset, "train", None, (24, 32), flip=True, labelled=True)
    if orientation == 1:
        crops.read(sample)
        assert prepare_dataset(yaml, root=tmp_path).unchanged
        return
    with pytest.raises(DataError, match=f"orientation {orientation}.*`udaseg prepare` again"):
        crops.read(sample)
    codes = [finding.code for finding in doctor("own", root=tmp_path).errors]
    assert "stale-index" in codes
    report = prepare_dataset(yaml, root=tmp_path)
    assert (report.unchanged, report.read) == (False, 1)
    _assert_aligned(report.dataset)
