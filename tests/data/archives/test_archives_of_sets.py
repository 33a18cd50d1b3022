"""Archives of published datasets: discovery, unpacking together, check of the right set."""

import logging
import zipfile

import numpy as np
import pytest

from tests.support import files
from tests.support.hostile import packed
from udaseg.data.archives import unpack
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError


def _gta5(root, parts=2):
    for part in range(1, parts + 1):
        name = f"{part:05d}.png"
        image, label = files.image_png(4, 5, part), files.palette_png(np.full((4, 5), 7))
        packed(root / f"{part:02d}_images.zip", {f"images/{name}": image, "read.txt": b"x"})
        packed(root / f"{part:02d}_labels.zip", {f"labels/{name}": label, "read.txt": b"y"})


def test_the_parts_of_a_set_are_unpacked_together_and_only_once(tmp_path):
    _gta5(tmp_path)
    report = prepare_dataset("gta5", root=tmp_path)
    assert [s.class_pixels[0] for s in report.dataset.splits["train"]] == [20, 20]
    assert report.dataset.image_root == tmp_path / "unpacked/gta5"
    assert prepare_dataset("gta5", root=tmp_path).unchanged
    assert sorted(p.name for p in (tmp_path / "unpacked").iterdir()) == [".gta5.archives", "gta5"]


def test_archives_that_are_not_unpacked_yet_are_not_looked_into(tmp_path):
    _gta5(tmp_path)
    with pytest.raises(DataError, match="found only archives"):
        prepare_dataset("gta5", root=tmp_path, options=PrepareOptions(check_only=True))
    assert not (tmp_path / "unpacked").exists()


def test_a_damaged_part_leaves_nothing_behind(tmp_path):
    _gta5(tmp_path)
    path = tmp_path / "02_labels.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"02_labels\.zip"):
        prepare_dataset("gta5", root=tmp_path)
    assert not (tmp_path / "unpacked").exists()


def test_unpacking_tells_how_far_it_is_in_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("udaseg.data.archives.unpack._MB", 10)
    _gta5(tmp_path)
    progress = []
    prepare_dataset("gta5", root=tmp_path, on_unpack=lambda *at: progress.append(at))
    sizes = []
    for archive in tmp_path.glob("*.zip"):
        with zipfile.ZipFile(archive) as opened:
            sizes += [entry.file_size for entry in opened.infolist()]
    total = sum(sizes) // 10
    assert progress[0] == (0, total)
    assert progress[-1] == (total, total)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert len(progress) == len(sizes) + 1
    progress.clear()  # unpacked files are not unpacked again
    prepare_dataset("gta5", root=tmp_path, on_unpack=lambda *at: progress.append(at))
    assert progress == []


def test_an_archive_of_another_set_is_refused(tmp_path):
    packed(tmp_path / "01_images.zip", {"photos/x.png": files.image_png()})
    with pytest.raises(
        DataError, match=r"is this another dataset\?(.|\n)*then +udaseg prepare gta5"
    ):
        prepare_dataset("gta5", root=tmp_path)
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_folder_around_the_set_does_no_harm(tmp_path):
    members = {
        "CamVid-master/CamVid/val/x.png": files.image_png(4, 5),
        "CamVid-master/CamVid/valannot/x.png": files.gray_png(np.ones((4, 5), int)),
    }
    packed(tmp_path / "CamVid.zip", members)
    report = prepare_dataset("camvid", root=tmp_path)
    assert report.dataset.splits["val"][0].class_pixels[1] == 20
    assert prepare_dataset("camvid", root=tmp_path).unchanged


def test_a_rar_says_to_unpack_it(tmp_path):
    (tmp_path / "SYNTHIA_RAND_CITYSCAPES.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="unpack it yourself"):
        prepare_dataset("synthia", root=tmp_path)


def test_a_set_inside_another_archive_is_named(tmp_path):
    packed(tmp_path / "01_images.zip", {"photos/x.png": b"1", "parts/images.tar.gz": b"2"})
    with pytest.raises(DataError, match=r"it contains images\.tar\.gz: unpack it yourself"):
        prepare_dataset("gta5", root=tmp_path)


def test_fewer_images_than_were_published_are_told_after_unpacking(tmp_path, caplog):
    _gta5(tmp_path)
    with caplog.at_level(logging.WARNING):
        prepare_dataset("gta5", root=tmp_path)
    message = "gta5: train has 2 images, but the published set has 24966; is an archive missing?"
    assert message in caplog.text


def test_an_archive_that_came_later_is_told(tmp_path, caplog):
    _gta5(tmp_path, parts=1)
    prepare_dataset("gta5", root=tmp_path)
    _gta5(tmp_path, parts=2)
    with caplog.at_level(logging.WARNING):
        assert prepare_dataset("gta5", root=tmp_path).unchanged
    assert "unpacked without 02_images.zip, 02_labels.zip; delete that folder" in caplog.text


def test_an_interrupt_while_unpacking_is_gone_on_from(tmp_path, monkeypatch):
    _gta5(tmp_path, parts=3)
    written, copy = [], unpack._copy

    def stopped(content, part):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(content.member.name)
        copy(content, part)

    monkeypatch.setattr(unpack, "_copy", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("gta5", root=tmp_path)
    assert not (tmp_path / "unpacked/gta5").exists()

    def noted(content, part):
        written.append(content.member.name)
        copy(content, part)

    monkeypatch.setattr(unpack, "_copy", noted)
    assert len(prepare_dataset("gta5", root=tmp_path).dataset.splits["train"]) == 3
    assert len(written) - written.count("read.txt") == 6
    assert not (tmp_path / "unpacked/.gta5.tmp").exists()
