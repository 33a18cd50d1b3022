"""Archives are unpacked completely or not at all, and never outside their folder."""

import errno
import hashlib
import logging
import random
import shutil
import tarfile

import numpy as np
import pytest

from tests.support import files, hostile
from tests.support.hostile import packed, tree
from udaseg.data.archives import members as members_module
from udaseg.data.archives import unpack as unpack_module
from udaseg.data.archives.unpack import unpack
from udaseg.errors import DataError, EnvironmentFault

KINDS = ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"]
MEMBERS = {f"images/{n}.png": np.random.default_rng(n).bytes(300 + 100 * n) for n in range(6)}


def refused(archive, folder):
    """Assert that unpacking fails and leaves no files, and return the error message."""
    deep = folder / "in/deep"
    deep.mkdir(parents=True, exist_ok=True)
    before = tree(folder.parent)
    with pytest.raises(DataError) as caught:
        unpack([archive], deep / "out")
    assert tree(folder.parent) == before
    assert str(archive) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def outside(tmp_path):
    """Create the folder that hostile archives try to write to."""
    folder = tmp_path / "outside"
    files.put(folder / "secret", b"secret")
    return folder


def test_a_member_that_would_land_outside_is_refused(tmp_path, outside):
    archives = hostile.named(tmp_path, outside)
    assert len(archives) == 26
    for archive in archives:
        assert "would be written outside the target folder" in refused(archive, tmp_path / "sand")


def test_links_devices_and_what_writes_through_them_are_refused(tmp_path, outside):
    for archive in hostile.linked(tmp_path, outside):
        assert "not a regular file" in refused(archive, tmp_path / "sand")


def test_bombs_and_lies_about_sizes_are_refused_before_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "MAX_MEMBERS", 1000)
    written, copy = [], unpack_module._copy
    monkeypatch.setattr(unpack_module, "_copy", lambda *how: (written.append(1), copy(*how)))
    archives = hostile.bombs(tmp_path / "made", members=1001)
    assert len(archives) > 12
    for archive in archives:
        message = refused(archive, tmp_path / "sand/box")
        lie = archive.name in ("less.zip", "more.zip")
        assert not lie or "member 'a': " in message
        assert len(written) == lie  # detected only while unpacking
        long = archive.name == "name.tar.gz"
        assert not long or "header has 4,194,304 bytes" in message  # the header was not read
        written.clear()


def test_too_many_members_are_refused_in_any_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "MAX_MEMBERS", 1000)
    for archive in (
        hostile.many_members_zip(tmp_path / "a.zip", 1001, told=1001),
        hostile.many_members_zip(tmp_path / "b.zip", 1001, told=1),
        hostile.many_members_tar(tmp_path / "c.tar.gz", 2000),
    ):
        assert "more than 1,000 members" in refused(archive, tmp_path / "sand")


def test_members_that_are_one_file_somewhere_are_both_named(tmp_path):
    for archive in hostile.clashing(tmp_path):
        message = refused(archive, tmp_path / "sand")
        assert "name the same file" in message or "is inside it" in message
        assert message.lower().count(".png'") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("locked.zip", "password; unpack it yourself"),
        ("deflate64.zip", "unpack it yourself"),
        ("parts.zip", "unpack it yourself"),
        (
            "x.rar",
            "rar archives are not supported; unpack it yourself (unrar x) and leave the folder "
            "next to the archive",
        ),
        ("renamed.zip", "rar archives are not supported"),
        ("x.7z", "unpack it yourself (7z x)"),
        ("seven.zip", "7z archives are not supported"),
        ("login.zip", "is a web page, not an archive; log in"),
        ("empty.zip", "is empty; download it again"),
        ("nothing.zip", "cut off, or not a zip; download it again"),
        ("zeros.tar", "is empty"),
        ("text.tar", "download it again"),
        ("start.tar.gz", "download it again"),
        ("x.iso", "not a supported archive"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_with_the_next_step(tmp_path, name, said):
    archives = {path.name: path for path in hostile.useless(tmp_path)}
    assert said in refused(archives[name], tmp_path / "sand")


def test_a_zip_in_a_zip_stays_a_file(tmp_path):
    inner = packed(tmp_path / "inner.zip", MEMBERS).read_bytes()
    unpack([packed(tmp_path / "x.zip", {"a/inner.zip": inner})], tmp_path / "out")
    assert {n: f[0] for n, f in tree(tmp_path / "out").items() if f} == {"a/inner.zip": inner}


def test_a_member_with_special_rights_loses_them(tmp_path):
    entry = tarfile.TarInfo("a")
    entry.mode = 0o6777
    unpack([hostile.tar_of(tmp_path / "x.tar", [entry])], tmp_path / "out")
    assert (tmp_path / "out/a").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_as_they_went_in_with_their_times(tmp_path, kind):
    members = {**MEMBERS, "./top.txt": b"", ".hidden": b"1", "images/._0.png": b"2"}
    unpack([packed(tmp_path / f"x.{kind}", members)], tmp_path / "out")
    unpacked = {name: file for name, file in tree(tmp_path / "out").items() if file}
    assert {name: data for name, (data, _) in unpacked.items()} == {**MEMBERS, "top.txt": b""}
    when = {seconds for _, seconds in unpacked.values()}
    assert when == {1_577_934_246_000_000_000 if kind == "zip" else 0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", f"x.{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path, kind):
    path = packed(tmp_path / f"x.{kind}", MEMBERS)
    data = path.read_bytes()
    used = len(data.rstrip(b"\0")) if kind == "tar" else len(data)
    cuts = set(np.linspace(0, used - 1, 20).astype(int).tolist())
    if kind == "tar":
        cuts |= set(range(0, used, 512))  # also between members
    for length in cuts:
        path.write_bytes(data[:length])
        with pytest.raises(DataError):
            unpack([path], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_download_that_left_zeros_is_refused(tmp_path):
    path = packed(tmp_path / "x.tar", MEMBERS)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"images/3.png")] + bytes(5_000_000))
    assert "zero bytes at its end: the download is cut off" in refused(path, tmp_path / "sand")


def test_a_second_archive_behind_the_first_is_refused(tmp_path):
    path = packed(tmp_path / "x.tar", MEMBERS)
    path.write_bytes(path.read_bytes() * 2)
    assert "there is data after its end" in refused(path, tmp_path / "sand")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_flipped_bit_never_unpacks_to_something_else(tmp_path, kind):
    path = packed(tmp_path / f"x.{kind}", MEMBERS)
    data = path.read_bytes()
    rng = random.Random(0)
    harmless = 0
    for _ in range(40):
        bit = rng.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            unpack([path], tmp_path / "out")
        except DataError:
            assert not (tmp_path / "out").exists()
            continue
        harmless += 1  # for example in the time of a file
        contents = {p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        assert contents <= set(MEMBERS.values())
        shutil.rmtree(tmp_path / "out")
    assert harmless < 20


def test_any_damage_is_a_data_error(tmp_path):
    """Any exception of the archive readers becomes a DataError that names the archive."""
    rng = random.Random(1)
    whole = [packed(tmp_path / f"x.{kind}", MEMBERS).read_bytes() for kind in KINDS]
    for _ in range(200):
        number = rng.randrange(len(KINDS))
        data = bytearray(whole[number])
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(5))
        path = tmp_path / f"y.{KINDS[number]}"
        path.write_bytes(bytes(data))
        try:
            unpack([path], tmp_path / "out")
        except DataError as error:
            assert str(path) in str(error)


# disk space, checksums, several archives, resuming


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_more_than_the_disk_holds_is_refused_with_both_sizes(tmp_path, monkeypatch, kind):
    usage = type("Usage", (), {"free": 1234})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(EnvironmentFault, match=r"about 3.3 kB are still to be .*, 1.2 kB are free"):
        unpack([packed(tmp_path / f"x.{kind}", MEMBERS)], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_full_disk_only_the_rest_is_written(tmp_path, monkeypatch, kind):
    path = packed(tmp_path / f"x.{kind}", MEMBERS)
    written, copy = [], unpack_module._copy

    def once_full(content, part):
        if len(written) == 3:
            part.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "no space", str(part))
        written.append(content.member.name)
        copy(content, part)

    monkeypatch.setattr(unpack_module, "_copy", once_full)
    with pytest.raises(EnvironmentFault, match=r"about 2.1 kB are still to be written"):
        unpack([path], tmp_path / "out")
    kept = tree(tmp_path / "out")
    assert len(written) == 3
    (tmp_path / "out/images/0.png").write_bytes(bytes(300))  # as after a power failure
    monkeypatch.setattr(unpack_module, "_copy", lambda *how: (written.append(0), copy(*how)))
    unpack([path], tmp_path / "out")
    assert written[3:] == [0, 0, 0, 0]
    unpacked = tree(tmp_path / "out")
    assert {n.partition("/")[2]: f[0] for n, f in unpacked.items() if f} == {
        name.partition("/")[2]: data for name, data in MEMBERS.items()
    }
    assert {name: unpacked[name] for name in kept} == kept
    assert not (tmp_path / "out.part").exists()


def test_what_archives_do_not_hold_is_gone_after_going_on(tmp_path):
    files.put(tmp_path / "out/images/old.png", b"of another archive")
    unpack([packed(tmp_path / "x.zip", MEMBERS)], tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6


def test_two_archives_with_another_image_of_one_name_are_both_named(tmp_path):
    one = packed(tmp_path / "1.zip", {"i/a.png": b"1", "read.txt": b"1"})
    two = packed(tmp_path / "2.tar", {"i/a.png": b"22", "read.txt": b"22"})
    named = r"1\.zip and .*2\.tar contain different files named 'i/a\.png'"
    with pytest.raises(DataError, match=named):
        unpack([one, two], tmp_path / "out")
    two = packed(tmp_path / "2.tar", {"i/b.png": b"22", "read.txt": b"22"})
    unpack([one, two], tmp_path / "out")
    assert (tmp_path / "out/read.txt").read_bytes() == b"22"


@pytest.mark.parametrize("kind", ["sha256", "sha1", "md5"])
def test_a_checksum_beside_an_archive_is_compared(tmp_path, kind):
    path = packed(tmp_path / "x.zip", MEMBERS)
    digest = hashlib.new(kind, path.read_bytes()).hexdigest()
    beside = path.with_name(f"x.zip.{kind}")
    for text in (digest, f"{digest}  x.zip\n", f"{digest.upper()} *data/x.zip"):
        beside.write_text(text)
        unpack([path], tmp_path / "out")
    wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    beside.write_text(f"{wrong}  x.zip\n")
    message = refused(path, tmp_path / "sand")
    assert digest in message
    assert wrong in message
    beside.unlink()
    name = {"sha256": "SHA256SUMS", "md5": "MD5SUMS", "sha1": "SHA256SUMS"}[kind]
    (tmp_path / name).write_text(f"{digest}  y.zip\n{wrong}  x.zip\n")
    assert f"{name} lists {wrong}" in refused(path, tmp_path / "sand")


def test_a_tar_without_any_checksum_is_told_with_its_own(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        unpack(
            [packed(tmp_path / "x.zip", MEMBERS), packed(tmp_path / "x.tar.gz", MEMBERS)],
            tmp_path / "out",
        )
        assert caplog.text == ""
        path = packed(tmp_path / "x.tar", MEMBERS)
        unpack([path], tmp_path / "out")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"its sha256 is {digest}" in caplog.text
