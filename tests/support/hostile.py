"""Write malicious archives by hand; names and links point to a folder of the test."""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

ACCENT, COMBINED = "\u00e9.png", "e\u0301.png"


def bad_names(outside: Path) -> list[str]:
    """Return member names that are invalid or would be written outside the folder."""
    return [
        *("../evil", "a/../../evil", f"{outside}/evil", "C:/evil", "C:evil", "..\\evil"),
        *("a\0b", "", ".", "..", "a/..", f"/{outside}/evil", "\\\\host\\share\\evil"),
    ]


def zip_of(path: Path, members: list[tuple[str, bytes]], how: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip with any names, including duplicates."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", how) as opened:
        warnings.simplefilter("ignore")
        for name, data in members:
            entry = zipfile.ZipInfo("x", (2020, 1, 2, 3, 4, 6))
            entry.filename = name  # the constructor would sanitise it
            entry.compress_type = how
            opened.writestr(entry, data)
    if any("\0" in name for name, _ in members):  # the writer truncates names there
        raise ValueError("put a zero byte in with `replaced`")
    return path


def packed(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a harmless archive of the kind given by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.name.partition(".")[2]
    if kind == "zip":
        return zip_of(path, list(members.items()))
    return tar_of(path, list(members.items()), "w" if kind == "tar" else f"w:{kind[4:]}")


def tree(folder: Path) -> dict[str, tuple[bytes, int] | str | None]:
    """Return the entries below a folder: link targets, and content and time of files."""
    found: dict[str, tuple[bytes, int] | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = (path.read_bytes(), path.stat().st_mtime_ns)
        else:
            found[name] = None
    return found


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    """Replace bytes of a file with the same number of other bytes."""
    data = path.read_bytes()
    if old not in data or len(old) != len(new):
        raise ValueError("nothing to replace")
    path.write_bytes(data.replace(old, new))
    return path


def tar_of(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], kind: str = "w") -> Path:
    """Write a tar with any member names and kinds."""
    with tarfile.open(path, kind, format=tarfile.PAX_FORMAT) as opened:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                opened.addfile(member)
                continue
            name, data = member
            entry = tarfile.TarInfo("x" if "\0" in name else name)
            if "\0" in name:
                entry.pax_headers = {"path": name}
            entry.size = len(data)
            opened.addfile(entry, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """Return a tar member that is a link, a device or a pipe."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def named(folder: Path, outside: Path) -> list[Path]:
    """Return zips and tars with a member of each bad name."""
    found = []
    for number, name in enumerate(bad_names(outside)):
        path = folder / f"name{number}.zip"
        if "\0" in name:
            found.append(replaced(zip_of(path, [("good", b"1"), ("a_b", b"2")]), b"a_b", b"a\0b"))
        else:
            found.append(zip_of(path, [("good", b"1"), (name, b"evil")]))
        members = [("good", b"1"), (name, b"evil")]
        found.append(tar_of(folder / f"name{number}.tar", members))
    return found


def linked(folder: Path, outside: Path) -> list[Path]:
    """Return archives with links, devices and pipes, and with members that write through them."""
    target = str(outside)
    kinds: dict[str, list[tuple[str, bytes] | tarfile.TarInfo]] = {
        "symlink": [link("a", target), ("b", b"1")],
        "through": [link("a", target), ("a/evil", b"1")],
        "upwards": [link("a", "../../.."), ("a/evil", b"1")],
        "hardlink": [link("a", f"{target}/secret", tarfile.LNKTYPE), ("b", b"1")],
        "hardlink-twice": [("b", b"1"), link("b", "../secret", tarfile.LNKTYPE), ("b", b"2")],
        "device": [link("a", "", tarfile.CHRTYPE), ("b", b"1")],
        "block": [link("a", "", tarfile.BLKTYPE), ("b", b"1")],
        "pipe": [link("a", "", tarfile.FIFOTYPE), ("b", b"1")],
        "odd": [link("a", "", b"Z"), ("b", b"1")],
    }
    found = [tar_of(folder / f"{name}.tar", members) for name, members in kinds.items()]
    found.append(tar_of(folder / "long.tar", _long_way_out()))
    sparse = tarfile.TarInfo("a")
    sparse.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,1"}
    found.append(tar_of(folder / "sparse.tar", [sparse, ("b", b"1")]))
    with zipfile.ZipFile(folder / "symlink.zip", "w") as opened:
        entry = zipfile.ZipInfo("a")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, target)
        opened.writestr("a/evil", b"1")
    return [*found, folder / "symlink.zip"]


def _long_way_out() -> list[tuple[str, bytes] | tarfile.TarInfo]:
    """Return members as in CVE-2025-4517: a path too long to be resolved hides the escape."""
    members: list[tuple[str, bytes] | tarfile.TarInfo] = []
    deep, step = "d" * 247, ""
    for letter in "abcdefghijklmnop":
        folder = tarfile.TarInfo(f"{step}{deep}")
        folder.type = tarfile.DIRTYPE
        members += [folder, link(f"{step}{letter}", deep)]
        step += f"{letter}/"
    members.append(link(f"{step}{'l' * 254}", "../" * 16))
    members += [link("escape", f"{step}{'l' * 254}/../../evil"), ("escape", b"evil")]
    return members


def bombs(folder: Path, members: int = 400_000) -> list[Path]:
    """Return small files that unpack to large data, or claim to."""
    folder.mkdir(parents=True, exist_ok=True)
    zeros = bytes(6 * 2**20)
    found = [
        zip_of(folder / "ratio.zip", [("a", zeros)]),
        zip_of(folder / "many.zip", [(f"a{n}", bytes(2**20)) for n in range(70)]),
        overlapping(folder / "overlap.zip", 64),
        replaced(
            zip_of(folder / "less.zip", [("a", bytes(5000))]),
            struct.pack("<I", 5000),
            struct.pack("<I", 50),
        ),
        replaced(
            zip_of(folder / "more.zip", [("a", bytes(5000))]),
            struct.pack("<I", 5000),
            struct.pack("<I", 90_000),
        ),
        many_members_zip(folder / "members.zip", members, told=members),
        many_members_zip(folder / "lying.zip", members, told=3),
    ]
    kinds = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    for name, packed in kinds.items():
        path = folder / f"tail.tar.{name}"
        path.write_bytes(packed(_header("a", 0) + zeros))
        found.append(path)
    tar = folder / "ratio.tar.gz"
    tar.write_bytes(gzip.compress(_header("a", 80_000_000) + zeros))  # refused for its size
    found.append(tar)
    long_name = folder / "name.tar.gz"
    long_name.write_bytes(gzip.compress(_header("a", 2**22, b"L") + b"a" * 2**22 + _header("b", 0)))
    huge = folder / "huge.tar"
    huge.write_bytes(_header("a", 2**33 - 512) + bytes(2048))
    negative = folder / "negative.tar"
    entry = tarfile.TarInfo("a")
    entry.size = -512
    negative.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    return [*found, long_name, huge, negative]


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def overlapping(path: Path, members: int) -> Path:
    """Write a zip whose members share one body, like D. Fifield's zip bomb."""
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = body.compress(bytes(2**20)) + body.flush()
    crc, size = zlib.crc32(bytes(2**20)), 2**20
    data, heads = b"", []
    # the extra field of each member covers the headers after it
    local = 30 + 6
    for number in range(members):
        extra = (members - 1 - number) * local
        heads.append((number, extra, len(data)))
        data += struct.pack(
            *("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), size, 6),
            extra,
        )
        data += f"m{number:05d}".encode()
    data += packed
    directory = b"".join(
        struct.pack(
            *("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), size, 6),
            *(0, 0, 0, 0, 0, offset),
        )
        + f"m{number:05d}".encode()
        for number, _, offset in heads
    )
    path.write_bytes(data + directory + _end(members, len(directory), len(data)))
    return path


def many_members_zip(path: Path, members: int, told: int) -> Path:
    """Write a zip with a long directory of empty members; its end record says `told` members."""
    body = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = struct.pack(
        *("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
    )
    directory = (entry + b"a") * members
    large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, told, told, 0, len(body))
    large = large[:40] + struct.pack("<QQ", len(directory), len(body))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(body) + len(directory), 1)
    end = _end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    path.write_bytes(body + directory + large + locator + end)
    return path


def many_members_tar(path: Path, members: int) -> Path:
    """Write a gzipped tar of empty members."""
    with gzip.open(path, "wb", 1) as file:
        piece = b"".join(_header(f"f{number}", 0) for number in range(1000))
        for _ in range(members // 1000):
            file.write(piece)
        file.write(bytes(10240))
    return path


def _end(members: int, size: int, offset: int) -> bytes:
    return struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, members, members, size, offset, 0)


def clashing(folder: Path) -> list[Path]:
    """Return archives with members that are the same file on some systems."""
    pairs = {
        "twice": ("a/x.png", "a/x.png"),
        "case": ("a/x.png", "A/X.PNG"),
        "accent": (ACCENT, COMBINED),
        "dot": ("a/x.png", "a/./x.png"),
        "inside": ("a/x.png", "a/x.png/y.png"),
    }
    found = []
    for name, (first, second) in pairs.items():
        members = [(first, b"1"), (second, b"2")]
        found.append(zip_of(folder / f"{name}.zip", members))
        found.append(tar_of(folder / f"{name}.tar", list(members)))
    return found


def useless(folder: Path) -> list[Path]:
    """Return archives that cannot be unpacked."""
    locked = zip_of(folder / "locked.zip", [("a", b"1")])
    data = bytearray(locked.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the encryption flag
    data[6] |= 1
    locked.write_bytes(bytes(data))
    other = zip_of(folder / "deflate64.zip", [("a", b"1")])
    data = bytearray(other.read_bytes())
    data[data.index(b"PK\1\2") + 10] = 9
    other.write_bytes(bytes(data))
    parts = zip_of(folder / "parts.zip", [("a", b"1")])
    data = bytearray(parts.read_bytes())
    data[data.index(b"PK\5\6") + 4] = 1
    parts.write_bytes(bytes(data))
    raw = {
        "x.rar": b"Rar!\x1a\x07\x01\x00",
        "renamed.zip": b"Rar!\x1a\x07\x01\x00",
        "x.7z": b"7z\xbc\xaf\x27\x1c",
        "seven.zip": b"7z\xbc\xaf\x27\x1c",
        "login.zip": b"<!DOCTYPE html><html>",
        "nothing.zip": b"",
        "text.tar": b"hello",
        "zeros.tar": bytes(10240),
        "start.tar.gz": b"\x1f\x8b\x08",
        "x.iso": b"x",
    }
    for name, content in raw.items():
        (folder / name).write_bytes(content)
    empty = zip_of(folder / "empty.zip", [])
    return [locked, other, parts, empty, *(folder / name for name in raw)]


def all_hostile(folder: Path, outside: Path) -> list[Path]:
    """Return one archive of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *named(folder, outside),
        *linked(folder, outside),
        *bombs(folder),
        *clashing(folder),
        *useless(folder),
    ]
