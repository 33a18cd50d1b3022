"""Files written whole or not at all, their digests, JSON, CSV, locks, and disk space."""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from udaseg.errors import EnvironmentFault, UsageError
from udaseg.text import file_size, shortened

log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

TEMPORARY_NAME = re.compile(r"\.[a-z0-9_]{8}\.tmp")
"""Names of the files of `open_atomic` before they are complete."""


def one_or_more(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return one path, or each of several, as text.

    Raises:
        UsageError: There is none, or something else.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    several = list(given) if isinstance(given, Iterable) else []
    if not several or not all(isinstance(path, str | os.PathLike) for path in several):
        raise UsageError(f"give a path, or a list of one or more, got {shortened(repr(paths))}")
    return [os.fspath(path) for path in several]


def refuse_output(path: Path, suffix: str, what: str, *, overwrite: bool = True) -> None:
    """Refuse an output file whose name belongs to another kind of file, or that exists.

    Args:
        path: The file to write.
        suffix: The suffix of its name, such as `.png`.
        what: What has this suffix, for the message.
        overwrite: Whether an existing file may be replaced.

    Raises:
        UsageError: The path has another suffix, is a folder, or exists.
    """
    if path.suffix.lower() != suffix or path.is_dir():
        raise UsageError(f"{path}: {what}; give a file named *{suffix}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; use --overwrite or another --out FILE")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON, or is nested too deeply, or a number in it is not finite or too
            large for 64 bits, or a text in it is half a character, so that using it would fail
            somewhere else.
    """
    try:
        value = json.loads(  # noqa: TID251  # the reader
            text, parse_int=_whole_number, parse_float=_number, parse_constant=_number
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_characters(value)
    return value


def _refuse_half_characters(value: object) -> None:
    """Refuse surrogates that no path can hold; those of names that are not UTF-8 are kept."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise ValueError(f"a text has half a character, {half}") from error


def _whole_number(text: str) -> int:
    value = int(text)
    if abs(value) >= 2**63:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def read_json(path: Path, form: object = None) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it cannot be read or has not the form.

    `form` is a type for `mismatch`; None accepts every object.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or (form is not None and mismatch(document, form)):
        return {}
    return document


def mismatch(value: object, form: object) -> str:
    """Return where and why a value is not of a type, such as a `TypedDict`; empty if it is.

    Nothing is converted: text is no number, and true is none.
    """
    from pydantic import ValidationError

    try:
        _adapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the value'}: {first['msg']}"
    return ""


@functools.cache
def _adapter(form: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(form)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as JSON, atomically; non-finite numbers become null."""
    write_text(path, json.dumps(plain_json(document), indent=2, allow_nan=False) + "\n")


def plain_json(value: Any) -> Any:
    """Return `value` with non-finite numbers as None, for JSON that every reader accepts."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV, the same on every system."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomic(path, text.encode())


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` atomically; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path`; rename it when complete, delete it on an error.

    Raises:
        OSError: It cannot be written; the error names `path`, not the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == name:
            error.filename = str(path)
        raise


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file of any size in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> str:
    """Return size and modification time of a file, to detect changes."""
    try:
        info = path.stat()
    except OSError:
        return "unreadable"
    return f"{info.st_size} {info.st_mtime_ns}"


def remove_other_files(folder: Path, names_to_keep: Collection[str]) -> None:
    """Remove all files below `folder` but these (relative paths), and folders without any."""
    for top, folders, file_names in os.walk(folder, topdown=False):
        for name in file_names:
            path = Path(top, name)
            if path.relative_to(folder).as_posix() not in names_to_keep:
                path.unlink()
        for name in folders:
            with contextlib.suppress(OSError):  # it is not empty
                Path(top, name).rmdir()


def sync_to_disk() -> None:
    """Sync all written data to disk.

    One call covers any number of files; an fsync would take milliseconds per file.
    """
    if hasattr(os, "sync"):  # Windows has none
        os.sync()


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file or folder whose content is already on disk, and sync the rename as well."""
    source.rename(target)
    # Windows and some file systems cannot sync a folder
    with contextlib.suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it.

    The lock is released at the latest when the process ends.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # no soft lock where the file system has no locks: after a kill on another host it would stay
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("another process is preparing %s; waiting for it", path.stem.lstrip("."))
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks; do not prepare twice at once", path.parent)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def try_file_lock(path: Path) -> Iterator[bool | None]:
    """Hold the lock file `path` if no other process does.

    Yields whether it is held; None if the file system has no locks. Unlike a process id in a file,
    the lock ends with its process, and a copy of the file is not locked.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, fallback_to_soft=False)
    held: bool | None = True
    try:
        lock.acquire(blocking=False)
    except Timeout:
        held = False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        held = None
    try:
        yield held
    finally:
        lock.release()


@contextmanager
def shared_folder(folder: Path, sweep: Callable[[], None]) -> Iterator[None]:
    """Hold a shared lock on `folder`, which exists; call `sweep` first if nobody else holds one.

    `sweep` removes temporary files that a killed command left behind.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; leftover files are not removed
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep()
        except BlockingIOError:
            log.info("another command also writes to %s", folder)
        except OSError as error:
            log.debug("%s: this file system does not support locks: %s", folder, error)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def disk_space(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Raise an error that names the missing amount if the disk becomes full in this context.

    Args:
        folder: A folder on that disk.
        needed: Returns an estimate of the bytes that are still to be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise disk_full(folder, needed()) from error


def disk_full(folder: Path, needed: int) -> EnvironmentFault:
    """Return the error for `needed` more bytes that do not fit on the disk of `folder`."""
    return EnvironmentFault(
        f"{folder}: the disk is full: about {file_size(needed)} are still to be written, "
        f"{file_size(free_disk_space(folder))} are free; free some space and run the same command "
        "again, finished work is kept"
    )


def free_disk_space(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
