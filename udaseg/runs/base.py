"""The base weights of a run with adapters: the file that its checkpoints name and leave out."""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from udaseg.errors import CheckpointError, UsageError
from udaseg.files import file_stamp, sha256_of

_given: ContextVar[Path | None] = ContextVar("base_weights", default=None)


@dataclass(frozen=True)
class BaseWeights:
    """A weights file as a checkpoint names it.

    Attributes:
        path: Where it was, absolute.
        size: Its bytes.
        sha256: Digest of its content.
    """

    path: str
    size: int
    sha256: str

    @property
    def advice(self) -> str:
        """How to give the file where it is not found."""
        return f"give the file of {self.size} bytes with SHA-256 {self.sha256} by --base FILE"

    def same_as(self, other: "BaseWeights | None") -> bool:
        """Return whether the content is the same."""
        return other is not None and self.sha256 == other.sha256


@contextlib.contextmanager
def base_weights(file: str | os.PathLike[str]) -> Iterator[None]:
    """Take the base weights of runs with adapters from `file` in this context.

    It is for files that are no longer where they were in training; it must have the same content.

    Raises:
        UsageError: There is no such file.

    Example:
        with udaseg.base_weights("vit_small_patch14_dinov2.safetensors"):
            model = udaseg.load("runs/city-adapters")
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"{path}: no such file of base weights")
    token = _given.set(path.absolute())
    try:
        yield
    finally:
        _given.reset(token)


def given_base() -> Path | None:
    """Return the file of `base_weights` in this context, if any."""
    return _given.get()


def read_base(path: Path) -> BaseWeights:
    """Return what a checkpoint says of a weights file.

    Raises:
        CheckpointError: There is no such file.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file, which is the base of the adapters; give a copy with "
            "--base FILE"
        )
    path = path.absolute()
    return BaseWeights(str(path), path.stat().st_size, _digest(path, file_stamp(path)))


def find_base(base: BaseWeights, origin: Path) -> Path:
    """Return the file of base weights: that of `base_weights`, or the one that is named.

    Args:
        base: The weights that a checkpoint names.
        origin: The checkpoint, for messages.

    Raises:
        CheckpointError: The file is missing or has another content.
    """
    paths = [path for path in (given_base(), Path(base.path)) if path is not None]
    for path in paths:
        if path.is_file() and path.stat().st_size == base.size and read_base(path).same_as(base):
            return path
    problem = "has another content" if paths[0].is_file() else "is not there"
    raise CheckpointError(
        f"{origin}: holds adapters without their base weights, and {paths[0]} {problem}; "
        f"{base.advice}"
    )


@functools.lru_cache(maxsize=8)
def _digest(path: Path, _stamp: str) -> str:
    """Return the digest of a file, which is read again when its stamp changes."""
    return sha256_of(path)
