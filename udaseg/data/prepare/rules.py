"""What to prepare and how, and digests that tell whether a prepared dataset is out of date."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import INDEX_NAME
from udaseg.data.datasets.pairs import DatasetFiles
from udaseg.data.files.forms import has_form
from udaseg.data.loading.cache import CacheFormat
from udaseg.data.loading.transforms import Resampling
from udaseg.errors import UsageError
from udaseg.files import file_stamp, one_or_more, read_json, sha256
from udaseg.sizes import Resize, ShortSide

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One or several built-in names or dataset YAMLs."""

TOYLAND = ("toyland", "toyland-target")
"""The data sets that can be generated; `prepare toyland` means both."""

SOURCE_NAME = "source.json"

DECLARED_IN = "declared_in"
"""Key of the dataset YAML in the file of the sources; a built-in data set has none."""

Mismatch = Literal["exclude", "resize", "fail"]


class _StoredRules(TypedDict):
    max_bad: int
    on_mismatch: str
    exclude: list[str]


class _Source(TypedDict):
    """The form of `source.json`."""

    stamp: str
    rules: _StoredRules
    bad: list[str]
    excluded: list[str]
    known: list[str]
    blank: list[str]
    missing: list[str]


_STORED_RULES = tuple(_StoredRules.__annotations__)

STORED_LISTS = ("bad", "excluded", "known", "blank", "missing")
"""The lists of a report that are stored, so that a later run can report the same."""

_CONVERSION = 1
"""Number of how labels are converted; with another one, all sets are prepared again."""


@dataclass(frozen=True)
class CacheOptions:
    """The cache of training images that `prepare` writes.

    Attributes:
        size: (height, width) of the cached images, or a `ShortSide`, like the recipe's `resize`.
        format: `png`, or `raw`: faster to read, needs zstd.
        resampling: `area` or `bicubic`, like the recipe's `resampling`.
    """

    size: Resize
    format: CacheFormat = "png"
    resampling: Resampling = "area"

    def __post_init__(self) -> None:
        if self.resampling not in get_args(Resampling):
            raise UsageError(f"a cache is resampled by one of {', '.join(get_args(Resampling))}")
        if self.format not in get_args(CacheFormat):
            raise UsageError(f"a cache is one of {', '.join(get_args(CacheFormat))}")
        size = self.size
        if (size.short_side if isinstance(size, ShortSide) else min(size)) < 1:
            raise UsageError(f"a cache needs a size of at least 1 px, got {size}")


@dataclass(frozen=True)
class PrepareOptions:
    """The options of preparing data sets.

    Attributes:
        max_bad: Maximum number of damaged or unpaired files to leave out.
        on_mismatch: What to do if label and image differ in size: `exclude` the pair, `resize` the
            label, or `fail`.
        exclude: Named rules of the data set whose files are excluded.
        check_only: Check all files without writing.
        seed: Seed of toyland.
        size: (height, width) of toyland's images; None for the usual size.
        workers: Threads that decode; -1 uses one per core.
        cache: Also cache the training images; None for no cache.
    """

    max_bad: int = 0
    on_mismatch: Mismatch = "exclude"
    exclude: tuple[str, ...] = ()
    check_only: bool = False
    seed: int = 0
    size: tuple[int, int] | None = None
    workers: int = -1
    cache: CacheOptions | None = None

    def __post_init__(self) -> None:
        if self.on_mismatch not in get_args(Mismatch):
            raise UsageError(f"on_mismatch must be one of {', '.join(get_args(Mismatch))}")
        if self.max_bad < 0:
            raise UsageError(f"max_bad must be at least 0, got {self.max_bad}")

    def rules(self) -> dict[str, Any]:
        """Return the options that decide which files are left out; they are stored."""
        return {key: getattr(self, key) for key in _STORED_RULES}


def expand_names(names: Names) -> list[str]:
    """Return each name once, with toyland expanded to its two data sets."""
    expanded: list[str] = []
    for name in [] if names in ([], ()) else one_or_more(names):
        expanded += TOYLAND if name == "toyland" else [name]
    return list(dict.fromkeys(expanded))


def conversion_digest(declaration: Declaration, folder: Path, options: PrepareOptions) -> str:
    """Return a digest of all that affects a prepared label besides the files themselves."""
    table = declaration.table
    classes = None if table is None else (table.classes, table.ids, sorted(table.ignore))
    facts = (_CONVERSION, folder.resolve(), options.on_mismatch, classes, declaration.label_format)
    declared = (declaration.bits, declaration.bands, declaration.label_orientation)
    more: list[object] = [part for part in declared if part is not None]
    if table is not None and table.labels:
        more += [table.labels, sorted(table.ignored_labels)]
    return _digest(repr((*facts, *(declaration.label_package or ()), *more)))


def sources_digest(label_digest: str, pairs: DatasetFiles) -> str:
    """Return a digest that changes when any file, the declaration or a rule changes."""
    listed = [list(map(str, files)) for files in (pairs.unpaired, pairs.excluded, pairs.known)]
    lines = [repr((label_digest, *listed))]
    for split, split_pairs in pairs.splits.items():
        for pair in split_pairs:
            for path in (pair.image, pair.label):
                lines.append("" if path is None else f"{split} {path} {file_stamp(path)}")
    return _digest("\n".join(lines))


def _digest(text: str) -> str:
    return sha256(text.encode(errors="surrogateescape"))


def owner_of(final: Path) -> tuple[Path | None, Path | None]:
    """Return the dataset YAML that a prepared folder was made from, and the folder of its images.

    Earlier versions stored no YAML. Without a prepared folder, both are None.
    """
    stored = (
        read_json(final / SOURCE_NAME).get(DECLARED_IN),
        read_json(final / INDEX_NAME).get("image_root"),
    )
    yaml, images = (Path(path) if isinstance(path, str) else None for path in stored)
    return yaml, images


def read_source(final: Path) -> dict[str, Any] | None:
    """Return what the last run stored about the sources, or None if nothing usable is there."""
    document = read_json(final / SOURCE_NAME)
    if not has_form(document, _Source) or not (final / INDEX_NAME).is_file():
        return None
    rules = document["rules"]
    usable = rules["max_bad"] >= 0 and rules["on_mismatch"] in get_args(Mismatch)
    return document if usable and rules.keys() == set(_STORED_RULES) else None
