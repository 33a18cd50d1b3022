"""Doctor on a source and a target: leaks, classes, colours, sizes and near-duplicates."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.support import files, sick
from tests.support.toy import toy_root
from udaseg.data.doctor.doctor import doctor
from udaseg.data.doctor.duplicates import MAX_BIT_DIFFERENCE, near_pairs
from udaseg.data.doctor.images import fingerprint
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError

TARGET = sick.YAML.replace("name: small", "name: goal").replace("train: train/labels/*, ", "")


@pytest.fixture
def pair(tmp_path):
    """Return the folders of a clean source and of a target with labels for validation only."""
    sick.clean(tmp_path / "source", seed=0, train=12)
    sick.clean(tmp_path / "target", seed=1, train=12, text=TARGET)
    shutil.rmtree(tmp_path / "target/train/labels")
    return tmp_path / "source", tmp_path / "target"


def _examined(pair, **how):
    source, target = (str(folder / "own.yaml") for folder in pair)
    return doctor(source, target=target, root=pair[0].parent, workers=2, **how)


def _told(report):
    return sorted(
        (finding.code, finding.role, [shown.path for shown in finding.examples if shown.path])
        for finding in report.findings
    )


def test_a_clean_pair_has_no_finding(pair):
    report = _examined(pair)
    assert report.findings == ()
    assert [facts.role for facts in report.sets] == ["source", "target"]


SPLITS = ["source/train", "source/val", "target/train", "target/val"]


@pytest.mark.parametrize("into", SPLITS)
@pytest.mark.parametrize("out_of", SPLITS)
@pytest.mark.parametrize("recoded", [False, True])
def test_the_same_image_in_two_splits_of_a_pair_is_judged_by_what_they_are_for(
    pair, tmp_path, out_of, into, recoded
):
    first = sorted((tmp_path / out_of / "images").iterdir())[2]
    second = sorted((tmp_path / into / "images").iterdir())[5]
    if recoded:
        second.unlink()
        second = second.with_suffix(".jpg")
        files.put(second, files.coded(Image.open(first), "JPEG", quality=95))
    else:
        shutil.copy(first, second)
    roles, trained = zip(
        *((name.split("/")[0], name.endswith("train")) for name in (out_of, into)), strict=True
    )
    role = roles[0] if roles[0] == roles[1] else "pair"
    named = second
    if trained[0] != trained[1]:  # the held-out image is reported
        code = "near-leak" if recoded else "leaked-image"
        named = first if trained[1] else second
    else:  # the image listed later is reported
        code = "near-duplicate" if recoded else "duplicate-image"
        if not recoded and roles[0] != roles[1]:
            code = "shared-image"
        if SPLITS.index(out_of) > SPLITS.index(into):
            named = first
    assert _told(_examined(pair)) == [(code, role, [named])]


def test_classes_of_one_side_are_named(pair):
    yaml = pair[0] / "own.yaml"
    yaml.write_text(yaml.read_text().replace("car, tree]", "truck, tree]"))
    findings = {finding.code: finding for finding in _examined(pair).findings}
    assert set(findings) == {"class-only-in-source", "class-only-in-target"}
    assert list(findings["class-only-in-source"].amounts) == ["truck"]
    assert list(findings["class-only-in-target"].amounts) == ["car"]


def test_no_class_in_common_is_an_error(pair):
    yaml = pair[0] / "own.yaml"
    yaml.write_text(yaml.read_text().replace("[road, sky, car, tree]", "[a, b, c, d]"))
    report = _examined(pair)
    assert [(f.code, f.severity) for f in report.findings] == [("no-shared-class", "error")]


def test_what_the_source_never_teaches_and_the_target_never_shows_is_named(pair):
    def without(folder, number, other):
        for path in folder.glob("*/labels/*.png"):
            ids = np.asarray(Image.open(path)).copy()
            ids[ids == number] = other
            path.write_bytes(files.gray_png(ids))

    source, target = pair
    without(source, 2, 0)
    without(target, 3, 0)
    findings = {finding.code: finding for finding in _examined(pair).findings}
    assert set(findings) == {"class-never-seen", "class-not-taught", "class-not-in-target"}
    cars = sum(
        int((np.asarray(Image.open(path)) == 2).sum()) for path in target.glob("val/labels/*.png")
    )
    assert findings["class-not-taught"].amounts == {"car": cars}
    assert list(findings["class-not-in-target"].amounts) == ["tree"]


def test_a_target_is_not_judged_by_training_labels_that_are_never_read(pair, tmp_path):
    other = tmp_path / "labelled"
    text = sick.YAML.replace("car, tree]", "car, tree, {name: ghost, ids: [7]}]")
    sick.clean(other, seed=2, train=12, text=text)
    report = _examined((pair[0], other))
    assert [finding.code for finding in report.findings] == ["class-only-in-target"]
    report = doctor(str(other / "own.yaml"), root=tmp_path)
    assert [finding.code for finding in report.findings] == ["class-never-seen"]


def test_a_source_without_labels_is_an_error_and_a_folder_can_be_a_target(pair, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(tmp_path / "target/train/images", photos / "a/b")
    (photos / "holiday.CR2").write_bytes(b"1")
    report = doctor(str(tmp_path / "source/own.yaml"), target=str(photos), root=tmp_path)
    assert _told(report) == [("other-file", "target", [photos / "holiday.CR2"])]
    report = doctor(str(tmp_path / "target/own.yaml"), target=str(photos), root=tmp_path)
    errors = [finding.code for finding in report.with_severity("error")]
    assert errors == ["source-unlabelled"]


def test_colours_and_sizes_of_both_sides_are_compared_and_right(pair):
    _, target = pair
    for path in target.glob("*/images/*.png"):
        image = cv2.resize(np.asarray(Image.open(path)) // 2, (160, 96))
        path.write_bytes(sick.rgb_png(image))
        label = target / path.parts[-3] / "labels" / path.name
        if label.exists():
            small = np.asarray(Image.open(label))
            label.write_bytes(files.gray_png(cv2.resize(small, (160, 96), interpolation=0)))
    report = _examined(pair)
    assert {finding.code for finding in report.findings} == {
        *("color-shift", "aspect-shift", "scale-shift")
    }
    assert not report.with_severity("error")
    for facts, folder in zip(report.sets, pair, strict=True):
        pixels = [np.asarray(Image.open(path), float) for path in folder.glob("*/images/*.png")]
        every = np.concatenate([image.reshape(-1, 3) for image in pixels])
        np.testing.assert_allclose(facts.mean, every.mean(0), atol=0.01)
        np.testing.assert_allclose(facts.spread, every.std(0), atol=0.01)


def test_pixels_of_classes_are_counted_as_a_loop_would(pair):
    (facts, _) = _examined(pair).sets
    for split in ("train", "val"):
        labels = [np.asarray(Image.open(p)) for p in (pair[0] / split / "labels").glob("*.png")]
        for number in range(4):
            counts = [int((ids == number).sum()) for ids in labels]
            assert facts.splits[split].pixels[number] == sum(counts)
            assert facts.splits[split].labels_with_class[number] == sum(
                count > 0 for count in counts
            )
        void = sum(int((ids == 255).sum()) for ids in labels)
        share = void / sum(ids.size for ids in labels)
        assert facts.splits[split].ignored == pytest.approx(share, abs=1e-6)


# near-duplicates


@pytest.mark.parametrize("seed", range(8))
def test_near_pairs_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (60, 256), dtype=np.uint8)
    for row in range(20, 60):  # variants with distances around the threshold
        bits[row] = bits[rng.integers(20)]
        flips = rng.choice(
            256, rng.integers(MAX_BIT_DIFFERENCE - 4, MAX_BIT_DIFFERENCE + 5), replace=False
        )
        bits[row, flips] ^= 1
    expected = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if int((bits[i] != bits[j]).sum()) <= MAX_BIT_DIFFERENCE
    }
    assert expected
    assert near_pairs(np.packbits(bits, axis=1)) == expected


def test_no_image_has_no_pair():
    assert near_pairs(np.zeros((0, 32), np.uint8)) == set()
    assert near_pairs(np.zeros((1, 32), np.uint8)) == set()


def _differ(one, other):
    both = [np.unpackbits(np.frombuffer(fingerprint(image), np.uint8)) for image in (one, other)]
    return int((both[0] != both[1]).sum())


@pytest.mark.parametrize("seed", range(10))
def test_an_image_stays_like_itself_and_unlike_others(seed):
    image = sick.picture([20, seed], 96, 128)
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert ok
    recoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    brighter = np.clip(image.astype(int) * 0.9 + 12, 0, 255).astype(np.uint8)
    for same in (half, recoded, brighter):
        assert _differ(image, same) <= MAX_BIT_DIFFERENCE
    assert _differ(image, sick.picture([20, seed + 100], 96, 128)) > 3 * MAX_BIT_DIFFERENCE


# real data


def test_toyland_has_no_error_raw_or_prepared(tmp_path):
    toy_root(tmp_path)
    prepared = doctor("toyland", target="toyland-target", root=tmp_path)
    assert [facts.kind for facts in prepared.sets] == ["prepared", "prepared"]
    assert not prepared.with_severity("error")
    shutil.rmtree(tmp_path / "prepared")
    raw = doctor("toyland", target="toyland-target", root=tmp_path)
    assert [facts.kind for facts in raw.sets] == ["declared", "declared"]
    for one, other in zip(raw.findings, prepared.findings, strict=True):
        assert (one.code, one.count, one.amounts) == (other.code, other.count, other.amounts)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("splits", [["val"], pytest.param([], marks=pytest.mark.slow)])
def test_the_real_pair_has_no_error(sample_data, monkeypatch, tmp_path, splits):
    monkeypatch.setenv("UDASEG_SYNSTREET2CAMVID", str(sample_data / "synstreet2camvid"))
    folder = REPOSITORY / "recipes/datasets"
    report = doctor(
        str(folder / "synstreet.yaml"),
        target=str(folder / "camvid-drive.yaml"),
        root=tmp_path,
        splits=splits,
    )
    assert {finding.code for finding in report.findings} == {"near-duplicate"}  # video frames


def test_a_real_size_mismatch_is_found(sample_data, tmp_path):
    (tmp_path / "kitti").symlink_to(sample_data / "layouts/real/kitti_semantics")
    report = doctor("kitti-semantics", root=tmp_path)
    assert {f.code: f.count for f in report.with_severity("error")} == {"size-mismatch": 5}


def test_a_part_of_a_published_set_is_told_from_the_whole(tmp_path):
    for number in ("00001", "15188"):
        seed = int(number)
        files.put(tmp_path / f"gta5/images/{number}.png", sick.rgb_png(sick.picture([30, seed])))
        ids = np.where(sick.ids([30, seed]) == 255, 0, 7)
        files.put(tmp_path / f"gta5/labels/{number}.png", files.palette_png(ids))
    findings = {finding.code: finding for finding in doctor("gta5", root=tmp_path).findings}
    assert {"known-odd", "count-differs"} <= set(findings)
    assert findings["known-odd"].examples[0].path == tmp_path / "gta5/images/15188.png"
    assert findings["count-differs"].examples[0].note == "train: 2 of 24,966"
    prepare_dataset("gta5", root=tmp_path)
    findings = {finding.code: finding for finding in doctor("gta5", root=tmp_path).findings}
    assert findings["count-differs"].examples[0].note == "train: 2 of 24,966"
    for kind, folder in (("images", "CamVid/train"), ("labels", "CamVid/trainannot")):
        shutil.copytree(tmp_path / "gta5" / kind, tmp_path / folder)
    findings = {finding.code: finding for finding in doctor("camvid", root=tmp_path).findings}
    assert findings["missing-split"].count == 2


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match="cityscapes: not found below"):
        doctor("cityscapes", root=tmp_path)
    with pytest.raises(DataError, match="no prepared dataset, dataset YAML or folder"):
        doctor("citiscapes", root=tmp_path)
    assert list(tmp_path.iterdir()) == []
