"""Preparing a dataset: find it, pair it, check every file, write train-id labels and an index."""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from udaseg.data.archives import unpack
from udaseg.data.catalog_list import builtin, builtin_names
from udaseg.data.declaration import Declaration, LabelTable, read_declaration
from udaseg.data.find import find
from udaseg.data.images import read_image, read_label_ids, write_atomic, write_png
from udaseg.data.index import INDEX_NAME, PreparedDataset, Sample, index_document, read_index
from udaseg.data.labels import IGNORE
from udaseg.data.pairs import Pair, pairs_of
from udaseg.errors import DataError

Mismatch = Literal["exclude", "resize", "fail"]
_SHOWN = 10
_SOURCE_NAME = "source.json"
_LARGEST_ID = 2**16


@dataclass
class PrepareReport:
    """What preparing a dataset found.

    Attributes:
        dataset: The result; with `check_only` it is not on disk.
        bad: Files that cannot be used, with the reason.
        excluded: Pairs left out by a named rule, with the reason.
        unlabelled: Splits without labels.
        expected: Published number of images of each split.
        seconds: Wall time.
        unchanged: It was prepared before and nothing had changed.
    """

    dataset: PreparedDataset
    bad: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unlabelled: tuple[str, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    unchanged: bool = False


@dataclass(frozen=True)
class _Checked:
    """One pair after reading: a sample, or why there is none."""

    sample: Sample | None = None
    bad: str | None = None
    excluded: str | None = None
    unknown: Mapping[int, int] = field(default_factory=dict)


def prepare_dataset(
    name: str,
    *,
    root: Path,
    check_only: bool = False,
    max_bad: int = 0,
    on_mismatch: Mismatch = "exclude",
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Prepare a built-in set or a dataset YAML below `root`/prepared, and report on it.

    The user's own files are read and never written.

    Args:
        name: Name of a built-in set, or path of a dataset YAML.
        root: Where data lie and prepared sets go.
        check_only: Look at everything and write nothing.
        max_bad: Files that may be damaged or unpaired; they are left out.
        on_mismatch: What to do when a label has another size than its image.
        workers: Threads that decode; -1 takes one a core.
        on_progress: Called with the pairs done and the pairs in all.

    Raises:
        DataError: Missing, or with more faults than allowed; lists the first of each kind.
    """
    started = time.monotonic()
    declaration = declared(name)
    folder = _located(declaration, root)
    if check_only and folder is None:
        raise DataError(f"{declaration.name}: only archives are there; unpack them by preparing it")
    if folder is None:
        folder = _unpacked(declaration, root)
    pairs, unpaired = pairs_of(declaration, folder)
    _refuse_too_many(declaration.name, unpaired, max_bad)
    final = root / "prepared" / declaration.name
    stamp = _stamp(declaration, pairs, folder, on_mismatch)
    unlabelled = tuple(split for split, found in pairs.items() if found and found[0].label is None)
    if not check_only and _stamp_of(final) == stamp:
        report = PrepareReport(read_index(final), unlabelled=unlabelled, unchanged=True)
        return _finished(report, declaration, started)
    parent = final.parent
    temporary = parent / f".{declaration.name}.{os.getpid()}.tmp"
    try:
        report = _convert(
            declaration,
            pairs,
            folder,
            None if check_only else temporary,
            on_mismatch,
            workers,
            on_progress,
        )
        report.bad = [*unpaired, *report.bad]
        _refuse_too_many(declaration.name, report.bad, max_bad)
        if not check_only:
            write_atomic(
                temporary / INDEX_NAME, json.dumps(index_document(report.dataset)).encode()
            )
            write_atomic(temporary / _SOURCE_NAME, json.dumps({"stamp": stamp}).encode())
            _swap(temporary, final)
            report.dataset = read_index(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report.unlabelled = unlabelled
    return _finished(report, declaration, started)


def declared(name: str) -> Declaration:
    """Return the declaration that `name` means: a YAML's path or a built-in name.

    Raises:
        DataError: Neither.
    """
    if name.endswith((".yaml", ".yml")):
        return read_declaration(Path(name))
    if name in builtin_names():
        return builtin(name)
    known = ", ".join(builtin_names())
    raise DataError(f"{name}: no dataset of that name; there are {known}, or give a dataset YAML")


def _finished(report: PrepareReport, declaration: Declaration, started: float) -> PrepareReport:
    report.expected = declaration.expected
    report.seconds = time.monotonic() - started
    return report


def _located(declaration: Declaration, root: Path) -> Path | None:
    """Return the folder of the images, None when only archives are there.

    Raises:
        DataError: Nothing is there; says what to get and where to put it.
    """
    if declaration.root is not None:
        if not declaration.root.is_dir():
            raise DataError(f"{declaration.path}: root {declaration.root} is no folder")
        return declaration.root
    tried = []
    for base in (root, root / "unpacked"):
        for wanted in (*declaration.folders, declaration.name):
            folder = _any_case(base, wanted)
            tried.append(folder or base / wanted)
            if folder is not None and any(
                find(folder, pattern) for pattern in declaration.images.values()
            ):
                return folder
    if _archives(declaration, root):
        return None
    raise DataError(_how_to_get(declaration, root))


def _any_case(base: Path, wanted: str) -> Path | None:
    """Return `base`/`wanted`, each part in whatever case it has on disk."""
    folder = base
    for part in wanted.split("/"):
        try:
            names = {
                entry.name.lower(): entry.name for entry in os.scandir(folder) if entry.is_dir()
            }
        except OSError:
            return None
        if part.lower() not in names:
            return None
        folder = folder / names[part.lower()]
    return folder


def _archives(declaration: Declaration, root: Path) -> list[Path]:
    places = [root, *(root / folder for folder in (declaration.name, *declaration.folders))]
    found = [
        path for place in places for glob in declaration.archives for path in find(place, glob)
    ]
    return list(dict.fromkeys(found))


def _unpacked(declaration: Declaration, root: Path) -> Path:
    """Unpack every archive into root/unpacked/NAME and return where the images lie."""
    whole = root / "unpacked" / declaration.name
    for archive in _archives(declaration, root):
        part = whole.parent / ".parts" / f"{declaration.name}-{archive.name}"
        shutil.rmtree(part, ignore_errors=True)
        unpack(archive, part)
        for path in find(part, "**/*"):
            target = whole / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        shutil.rmtree(part, ignore_errors=True)
    for folder in (whole, *sorted(path for path in whole.iterdir() if path.is_dir())):
        if any(find(folder, pattern) for pattern in declaration.images.values()):
            return folder
    raise DataError(
        f"{whole}: unpacked, but no image matches {', '.join(declaration.images.values())}; "
        "these archives are of another dataset"
    )


def _how_to_get(declaration: Declaration, root: Path) -> str:
    about = declaration.about
    put = root / (declaration.folders[0] if declaration.folders else declaration.name)
    lines = [f"{declaration.name}: not found below {root.resolve()}"]
    if "home" in about:
        lines += [
            f"  what     {about.get('title', declaration.name)}, {about.get('size', '')}",
            f"  page     {about['home']}",
            f"  licence  {about.get('licence', 'see the page')}",
            f"  files    {', '.join(map(str, about.get('download', [])))}",
        ]
    globs = dict.fromkeys((*declaration.images.values(), *declaration.labels.values()))
    lines.append(f"  put      the archives into {root}/, or the unpacked folders so that there are")
    lines += [f"             {put}/{glob}" for glob in globs]
    lines.append(
        f"  then     udaseg prepare {declaration.name}   (--root DIR if they lie elsewhere)"
    )
    return "\n".join(lines)


def _stamp(
    declaration: Declaration, pairs: Mapping[str, list[Pair]], folder: Path, on_mismatch: str
) -> str:
    """Return a digest that changes when any file, the declaration or a rule changes."""
    digest = hashlib.sha256()
    facts = [str(folder.resolve()), on_mismatch, repr(declaration.table), declaration.label_format]
    digest.update("\n".join(facts).encode())
    for split, found in pairs.items():
        for pair in found:
            for path in (pair.image, pair.label):
                if path is not None:
                    state = path.stat()
                    line = f"{split} {path} {state.st_size} {state.st_mtime_ns}\n"
                    digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stamp_of(folder: Path) -> str | None:
    try:
        document = json.loads((folder / _SOURCE_NAME).read_text(encoding="utf-8"))
        return str(document["stamp"]) if (folder / INDEX_NAME).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _swap(temporary: Path, final: Path) -> None:
    """Put `temporary` in the place of `final`; a kill leaves one of them whole."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _convert(
    declaration: Declaration,
    pairs: Mapping[str, list[Pair]],
    folder: Path,
    into: Path | None,
    on_mismatch: Mismatch,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> PrepareReport:
    """Read every pair, write labels into `into`, and return the report."""
    total = sum(map(len, pairs.values()))
    bad: list[str] = []
    excluded: list[str] = []
    unknown: Counter[int] = Counter()
    first_unknown: dict[int, Path] = {}
    splits: dict[str, tuple[Sample, ...]] = {}
    done = 0

    def check(split: str, pair: Pair) -> _Checked:
        return _check(pair, split, declaration, folder, into, on_mismatch)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(workers if workers > 0 else os.cpu_count()) as pool:
            for split, found in pairs.items():
                samples = []
                for pair, checked in zip(
                    found, pool.map(check, [split] * len(found), found), strict=True
                ):
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
                    bad += [checked.bad] if checked.bad else []
                    excluded += [checked.excluded] if checked.excluded else []
                    samples += [checked.sample] if checked.sample else []
                    for number in checked.unknown:
                        first_unknown.setdefault(number, pair.label or pair.image)
                    unknown.update(checked.unknown)
                splits[split] = tuple(samples)
    finally:
        cv2.setNumThreads(threads)
    if unknown:
        raise DataError(_unknown_ids(declaration, unknown, first_unknown))
    classes = None if declaration.table is None else declaration.table.classes
    place = into or folder
    dataset = PreparedDataset(declaration.name, place, folder.resolve(), classes, splits)
    return PrepareReport(dataset, bad, excluded)


def _check(
    pair: Pair,
    split: str,
    declaration: Declaration,
    folder: Path,
    into: Path | None,
    on_mismatch: Mismatch,
) -> _Checked:
    name = pair.image.relative_to(folder).as_posix()
    try:
        height, width = read_image(pair.image).shape[:2]
        if pair.label is None:
            return _Checked(Sample(name, None, height, width))
        ids = read_label_ids(pair.label, declaration.label_format)
    except DataError as error:
        return _Checked(bad=str(error))
    assert declaration.table is not None
    labels, unknown = train_ids(ids, declaration.table)
    if labels.shape != (height, width):
        what = f"{pair.label}: label {labels.shape[1]}x{labels.shape[0]}, image {width}x{height}"
        if on_mismatch == "fail":
            return _Checked(bad=what)
        if on_mismatch == "exclude":
            return _Checked(excluded=what, unknown=unknown)
        labels = np.asarray(
            cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
    target = f"labels/{split}/{pair.key}.png"
    if into is not None:
        write_png(into / target, labels)
    counts = np.bincount(labels.ravel(), minlength=256)[: len(declaration.table.classes)]
    sample = Sample(name, target, height, width, tuple(counts.tolist()))
    return _Checked(sample, unknown=unknown)


def train_ids(
    ids: "np.ndarray[tuple[int, ...], np.dtype[np.int32]]", table: LabelTable
) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", dict[int, int]]:
    """Return raw ids as train ids, and how often each id occurs that the table does not know.

    Args:
        ids: (H, W) int32.
        table: What they mean.
    """
    size = max(_LARGEST_ID, int(ids.max(initial=0)) + 1) if ids.size else _LARGEST_ID
    known = np.zeros(size, bool)
    lookup = np.full(size, IGNORE, np.uint8)
    for train_id, own in enumerate(table.ids):
        for number in own:
            if number < size:
                known[number], lookup[number] = True, train_id
    for number in table.ignore:
        if number < size:
            known[number] = True
    if ids.size and int(ids.min()) < 0:
        values, counts = np.unique(ids[ids < 0], return_counts=True)
        return np.full(ids.shape, IGNORE, np.uint8), dict(
            zip(values.tolist(), counts.tolist(), strict=True)
        )
    if known.all():
        return lookup[ids], {}
    strange = ~known[ids]
    if not strange.any():
        return lookup[ids], {}
    values, counts = np.unique(ids[strange], return_counts=True)
    return lookup[ids], dict(zip(values.tolist(), counts.tolist(), strict=True))


def _unknown_ids(
    declaration: Declaration, unknown: Mapping[int, int], first: Mapping[int, Path]
) -> str:
    colored = declaration.label_format == "rgb"

    def shown(number: int) -> str:
        if not colored:
            return str(number)
        return str([number >> 16, number >> 8 & 255, number & 255])

    lines = [f"{declaration.name}: labels hold ids that are in no class and not in 'ignore':"]
    for number, count in sorted(unknown.items(), key=lambda item: -item[1])[:_SHOWN]:
        lines.append(f"  {shown(number)}: {count} pixels, first in {first[number]}")
    if len(unknown) > _SHOWN:
        lines.append(f"  and {len(unknown) - _SHOWN} more")
    lines.append("  name them in a class, or list them in 'ignore' of the dataset YAML")
    return "\n".join(lines)


def _refuse_too_many(name: str, bad: list[str], max_bad: int) -> None:
    if len(bad) <= max_bad:
        return
    lines = [f"{name}: {len(bad)} files cannot be used:"]
    lines += [f"  {what}" for what in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more")
    lines.append(f"  mend or remove them, or leave them out with --max-bad {len(bad)}")
    raise DataError("\n".join(lines))
