"""Verify checksum files next to an archive, in the format of `sha256sum` and `md5sum`."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from udaseg.errors import DataError

_LISTS = ("SHA256SUMS", "sha256sums.txt", "MD5SUMS", "md5sums.txt")
_KINDS = {64: "sha256", 40: "sha1", 32: "md5"}
_LINE = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{40}|[0-9a-fA-F]{32})(?:\s+\*?(.+))?")
_LONGEST = 2**20


def refuse_other_checksum(archive: Path) -> bool:
    """Verify the checksums next to an archive: `NAME.sha256`, `NAME.md5`, `SHA256SUMS`.

    Returns:
        Whether a checksum exists.

    Raises:
        DataError: A checksum does not match.
    """
    expected = list(dict.fromkeys(_beside(archive)))
    for path, digest in expected:
        kind = _KINDS[len(digest)]
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, kind).hexdigest()
        if actual != digest:
            raise DataError(
                f"{archive}: {kind} is {actual}, but {path.name} lists {digest}; download it again"
            )
    return bool(expected)


def _beside(archive: Path) -> Iterator[tuple[Path, str]]:
    """Yield each checksum listed for `archive`, with the file that lists it."""
    own_lists = [archive.with_name(f"{archive.name}.{kind}") for kind in _KINDS.values()]
    for path in (*own_lists, *(archive.with_name(name) for name in _LISTS)):
        if not path.is_file() or path.stat().st_size > _LONGEST:
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match = _LINE.fullmatch(line.strip())
            name = match[2] if match else None
            nameless = name is None and path in own_lists
            if match and (nameless or (name is not None and Path(name).name == archive.name)):
                yield path, match[1].lower()
