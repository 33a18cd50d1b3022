"""Archives: unpacked whole or not at all, and never outside their folder."""

import io
import os
import signal
import stat
import tarfile
import zipfile
from multiprocessing import get_context

import numpy as np
import pytest

from tests import files
from udaseg.data import prepare_dataset
from udaseg.data.archives import unpack
from udaseg.errors import DataError, EnvironmentFault

BAD_NAMES = ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil", "a\0b", "..", "a/..", "C:x"]


def _zip(path, members, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as opened:
        for name, data in members.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # the constructor would clean it
            entry.compress_type = how
            opened.writestr(entry, data)
    return path


def _tar(path, members, kind="w"):
    with tarfile.open(path, kind) as opened:
        for name, data in members.items():
            entry = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = b"" if isinstance(data, tarfile.TarInfo) else data
            entry.size = len(body)
            opened.addfile(entry, io.BytesIO(body))
    return path


def _link(kind, target):
    entry = tarfile.TarInfo("a")
    entry.type, entry.linkname = kind, target
    return entry


def _refused(archive, folder):
    folder.mkdir(parents=True, exist_ok=True)
    before = sorted(path for path in folder.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpack(archive, folder / "out")
    assert sorted(path for path in folder.parent.rglob("*")) == before
    assert str(archive) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if "\0" not in name])
@pytest.mark.parametrize("make", [_zip, _tar], ids=["zip", "tar"])
def test_a_member_that_would_land_outside_is_refused(tmp_path, make, name):
    archive = make(tmp_path / f"x.{make.__name__[1:]}", {"good": b"1", name: b"2"})
    assert "would land outside" in _refused(archive, tmp_path / "in/deep")


def test_a_zero_byte_in_a_name_is_refused(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"a_b": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"a_b", b"a\0b"))
    assert "would land outside" in _refused(archive, tmp_path / "in")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = _tar(tmp_path / "x.tar", {"good": b"1", "a": _link(kind, "/etc"), "a/evil": b"2"})
    assert "is a link or a device" in _refused(archive, tmp_path / "in")


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        entry = zipfile.ZipInfo("a")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, "/etc")
    assert "is no plain file" in _refused(tmp_path / "x.zip", tmp_path / "in")


def test_a_member_with_special_rights_loses_them(tmp_path):
    entry = tarfile.TarInfo("a")
    entry.mode = 0o4777
    _tar(tmp_path / "x.tar", {"a": entry})
    unpack(tmp_path / "x.tar", tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) & 0o7022 == 0


def test_a_member_that_grows_too_much_is_refused_before_it_is_written(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"a": bytes(40_000_000)})
    assert archive.stat().st_size < 100_000
    assert "grows more than 200 times" in _refused(archive, tmp_path / "in")


def test_a_member_whose_size_is_a_lie_is_refused(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"a": bytes(5000)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    assert "damaged" in _refused(archive, tmp_path / "in")


def test_more_than_the_disk_holds_is_refused_with_both_sizes(tmp_path, monkeypatch):
    archive = _tar(tmp_path / "x.tar", {"a": b"12"})
    usage = type("Usage", (), {"free": 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(EnvironmentFault, match=r"needs 0.0 GB, but .* has 0.0 GB free"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a/x.png", "A/X.png", "a/X.PNG"])
def test_two_members_of_one_name_are_both_named(tmp_path, second):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a/x.png", b"1")
        opened.writestr(second, b"2")
    said = _refused(tmp_path / "x.zip", tmp_path / "in")
    assert "'a/x.png'" in said
    assert f"{second!r} are the same file" in said


def test_names_that_differ_in_the_coding_of_an_accent_are_the_same(tmp_path):
    archive = _tar(tmp_path / "x.tar", {"\u00e9.png": b"1", "e\u0301.png": b"2"})
    assert "are the same file" in _refused(archive, tmp_path / "in")


_MEMBERS = {f"images/{n}.png": np.random.default_rng(n).bytes(300 + 100 * n) for n in range(6)}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        _zip(path, _MEMBERS)
    else:
        _tar(path, _MEMBERS, "w" if suffix == "tar" else f"w:{suffix[4:]}")
    data = path.read_bytes()
    unpack(path, tmp_path / "whole")
    assert len(list((tmp_path / "whole/images").iterdir())) == 6
    used = len(data.rstrip(b"\0")) if suffix == "tar" else len(data)
    cuts = set(np.linspace(0, used - 1, 30).astype(int).tolist())
    if suffix == "tar":
        cuts |= set(range(0, used, 1024))  # between members too
    for length in cuts:
        path.write_bytes(data[:length])
        with pytest.raises(DataError):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_flipped_bit_never_unpacks_to_something_else(tmp_path):
    path = _zip(tmp_path / "x.zip", _MEMBERS)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number, position in enumerate(rng.choice(8 * len(data), 80, replace=False)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        out = tmp_path / f"out{number}"
        try:
            unpack(path, out)
        except DataError:
            refused += 1
            assert not out.exists()
            continue
        found = {p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert found <= set(_MEMBERS.values())
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.rar", b"Rar!", "unpack it yourself"),
        ("x.7z", b"7z", "unpack it yourself"),
        ("x.zip", b"", "damaged or unreadable"),
        ("x.zip", b"hello", "damaged or unreadable"),
        ("x.tar", b"hello", "damaged or unreadable"),
        ("x.tar.gz", b"\x1f\x8b\x08", "damaged or unreadable"),
        ("x.iso", b"x", "not an archive that can be unpacked"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_with_the_next_step(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    assert said in _refused(tmp_path / name, tmp_path / "in")


def test_an_empty_archive_and_a_locked_one_are_refused(tmp_path):
    assert "is empty" in _refused(_zip(tmp_path / "x.zip", {}), tmp_path / "in")
    archive = _zip(tmp_path / "y.zip", {"a": b"1"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag for a password
    data[6] |= 1
    archive.write_bytes(bytes(data))
    assert "password" in _refused(archive, tmp_path / "in")


# archives below the root


def _gta5(root, parts=2):
    for part in range(1, parts + 1):
        name = f"{part:05d}.png"
        image, label = files.image_png(4, 5, part), files.palette_png(np.full((4, 5), 7))
        _zip(root / f"{part:02d}_images.zip", {f"images/{name}": image, "read.txt": b"x"})
        _zip(root / f"{part:02d}_labels.zip", {f"labels/{name}": label, "read.txt": b"y"})


def test_the_parts_of_a_set_are_unpacked_together_and_only_once(tmp_path):
    _gta5(tmp_path)
    report = prepare_dataset("gta5", root=tmp_path)
    assert [s.pixels[0] for s in report.dataset.splits["train"]] == [20, 20]
    assert report.dataset.image_root == tmp_path / "unpacked/gta5"
    assert prepare_dataset("gta5", root=tmp_path).unchanged
    assert sorted(path.name for path in (tmp_path / "unpacked").iterdir()) == ["gta5"]


def test_archives_that_are_not_unpacked_yet_are_not_looked_into(tmp_path):
    _gta5(tmp_path)
    with pytest.raises(DataError, match="only archives are there"):
        prepare_dataset("gta5", root=tmp_path, check_only=True)
    assert not (tmp_path / "unpacked").exists()


def test_a_damaged_part_leaves_nothing_behind(tmp_path):
    _gta5(tmp_path)
    path = tmp_path / "02_labels.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"02_labels\.zip"):
        prepare_dataset("gta5", root=tmp_path)
    assert not list((tmp_path / "unpacked").iterdir())


def test_an_archive_of_another_set_is_refused(tmp_path):
    _zip(tmp_path / "01_images.zip", {"photos/x.png": files.image_png()})
    with pytest.raises(DataError, match="of another dataset"):
        prepare_dataset("gta5", root=tmp_path)
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_folder_around_the_set_does_no_harm(tmp_path):
    members = {
        "CamVid-master/CamVid/val/x.png": files.image_png(4, 5),
        "CamVid-master/CamVid/valannot/x.png": files.gray_png(np.ones((4, 5), int)),
    }
    _zip(tmp_path / "CamVid.zip", members)
    report = prepare_dataset("camvid", root=tmp_path)
    assert report.dataset.splits["val"][0].pixels[1] == 20
    assert prepare_dataset("camvid", root=tmp_path).unchanged


def test_a_rar_says_to_unpack_it(tmp_path):
    (tmp_path / "SYNTHIA_RAND_CITYSCAPES.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="unpack it yourself"):
        prepare_dataset("synthia", root=tmp_path)


def _prepare_gta5(root, started):
    started.set()
    prepare_dataset("gta5", root=root)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_what_the_next_run_completes(tmp_path):
    rng = np.random.default_rng(0)
    calm, root = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, root):
        folder.mkdir()
        _gta5(folder, parts=30)
    whole = prepare_dataset("gta5", root=calm).dataset
    context = get_context("fork")
    for _ in range(12):
        started = context.Event()
        process = context.Process(target=_prepare_gta5, args=(root, started))
        process.start()
        started.wait(20)
        process.join(rng.uniform(0, 0.25))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    done = prepare_dataset("gta5", root=root).dataset
    assert done.splits == whole.splits
    assert {p.name for p in root.glob("unpacked/*")} == {"gta5"}
