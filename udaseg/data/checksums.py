"""Checksums that lie beside an archive, as `sha256sum` and `md5sum` write them."""

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
    """Compare an archive with the checksums beside it: `NAME.sha256`, `NAME.md5`, `SHA256SUMS`.

    Returns:
        Whether there is one.

    Raises:
        DataError: It has another checksum.
    """
    wanted = list(dict.fromkeys(_beside(archive)))
    for path, digest in wanted:
        kind = _KINDS[len(digest)]
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != digest:
            raise DataError(
                f"{archive}: its {kind} is {found}, but {path.name} says {digest}; "
                "download it again"
            )
    return bool(wanted)


def _beside(archive: Path) -> Iterator[tuple[Path, str]]:
    """Yield each checksum of `archive` that lies beside it, with the file that says it."""
    own = [archive.with_name(f"{archive.name}.{kind}") for kind in _KINDS.values()]
    for path in (*own, *(archive.with_name(name) for name in _LISTS)):
        if not path.is_file() or path.stat().st_size > _LONGEST:
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            found = _LINE.fullmatch(line.strip())
            name = found[2] if found else None
            alone = name is None and path in own
            if found and (alone or (name is not None and Path(name).name == archive.name)):
                yield path, found[1].lower()
