"""Which label belongs to which image, and which images belong to which split."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from udaseg.data.declaration import Declaration
from udaseg.data.find import find, static_prefix
from udaseg.errors import DataError


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
        key: What both are matched by; also names the prepared label.
        image: The image file.
        label: The label file; None in an unlabelled split.
    """

    key: str
    image: Path
    label: Path | None


def pairs_of(declaration: Declaration, folder: Path) -> tuple[dict[str, list[Pair]], list[str]]:
    """Return the pairs of each split, sorted, and what could not be paired.

    Raises:
        DataError: No image matches, or a split rule names nothing.
    """
    if "" not in declaration.images:
        pairs: dict[str, list[Pair]] = {}
        unpaired: list[str] = []
        for split, pattern in declaration.images.items():
            label_pattern = declaration.labels.get(split, declaration.labels.get(""))
            found, faults = _paired(declaration, folder, pattern, label_pattern)
            if found or faults:
                pairs[split] = found
            unpaired += faults
        _refuse_none(declaration, folder, pairs)
        return pairs, unpaired
    pattern = declaration.images[""]
    shared = "" in declaration.labels
    found, unpaired = _paired(
        declaration, folder, pattern, declaration.labels[""] if shared else None
    )
    _refuse_none(declaration, folder, {"all": found} if found or unpaired else {})
    splits = {
        split: _chosen(declaration, found, rule, split, folder)
        for split, rule in _with_starts(declaration.splits)
    }
    if not shared and declaration.labels:
        for split, glob in declaration.labels.items():
            labels = _keyed(declaration, folder, glob)
            wanted = [pair for pair in splits.get(split, []) if pair.key in labels]
            missing = [pair for pair in splits.get(split, []) if pair.key not in labels]
            unpaired += [f"{pair.image}: has no label ({glob})" for pair in missing]
            splits[split] = [Pair(pair.key, pair.image, labels[pair.key]) for pair in wanted]
    return splits, unpaired


def _paired(
    declaration: Declaration, folder: Path, pattern: str, label_pattern: str | None
) -> tuple[list[Pair], list[str]]:
    images = _keyed(declaration, folder, pattern)
    if label_pattern is None:
        return [Pair(key, path, None) for key, path in images.items()], []
    labels = _keyed(declaration, folder, label_pattern)
    if not set(images) & set(labels):
        # images and labels nested differently can still have unique names
        images, labels = _flat(images), _flat(labels)
    unpaired = [
        f"{path}: has no label ({label_pattern})"
        for key, path in images.items()
        if key not in labels
    ]
    unpaired += [
        f"{path}: label without an image ({pattern})"
        for key, path in labels.items()
        if key not in images
    ]
    return [Pair(key, path, labels[key]) for key, path in images.items() if key in labels], unpaired


def _keyed(declaration: Declaration, folder: Path, pattern: str) -> dict[str, Path]:
    """Return files by key: the path below the pattern's fixed folders, without suffix and endings.

    Raises:
        DataError: Two files have the same key.
    """
    start = folder / static_prefix(pattern)
    keyed: dict[str, Path] = {}
    for path in find(folder, pattern):
        stem = path.stem
        for ending in declaration.strip:
            stem = stem.removesuffix(ending)
        key = (path.relative_to(start).parent / stem).as_posix()
        if key in keyed:
            raise DataError(f"{path}: has the same name as {keyed[key]}; which one is meant?")
        keyed[key] = path
    return keyed


def _flat(keyed: Mapping[str, Path]) -> dict[str, Path]:
    names = Counter(Path(key).name for key in keyed)
    return {
        (name if names[name] == 1 else key): path
        for key, path in keyed.items()
        for name in [Path(key).name]
    }


def _refuse_none(declaration: Declaration, folder: Path, pairs: Mapping[str, object]) -> None:
    if not pairs:
        globs = ", ".join(declaration.images.values())
        raise DataError(f"{declaration.path}: no image below {folder} matches {globs}")


def _with_starts(rules: Mapping[str, str | float]) -> list[tuple[str, str | tuple[float, float]]]:
    """Return each rule, a fraction as the range of shares that it takes."""
    start = 0.0
    ranged: list[tuple[str, str | tuple[float, float]]] = []
    for split, rule in rules.items():
        if isinstance(rule, str):
            ranged.append((split, rule))
        else:
            ranged.append((split, (start, start + rule)))
            start += rule
    return ranged


def _chosen(
    declaration: Declaration,
    pairs: list[Pair],
    rule: str | tuple[float, float],
    split: str,
    folder: Path,
) -> list[Pair]:
    if isinstance(rule, tuple):
        return _by_share(pairs, rule)
    if rule.endswith(".txt"):
        return _listed(declaration, pairs, rule, folder)
    found = [pair for pair in pairs if rule in pair.image.relative_to(folder).parts[:-1]]
    if not found:
        raise DataError(f"{declaration.path}: splits.{split}: no image lies in a folder '{rule}'")
    return found


def _by_share(pairs: list[Pair], share: tuple[float, float]) -> list[Pair]:
    """Return a range of the pairs in an order that the names alone decide."""
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.key.encode()).digest())
    first, last = (round(part * len(order)) for part in share)
    return sorted(order[first:last], key=lambda pair: pair.key)


def _listed(declaration: Declaration, pairs: list[Pair], rule: str, folder: Path) -> list[Pair]:
    path = declaration.path.parent / rule
    if not path.is_file():
        path = folder / rule
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{declaration.path}: split list {path} cannot be read") from error
    by_name: dict[str, Pair] = {}
    for pair in pairs:
        for word in (pair.key, pair.image.name, pair.image.relative_to(folder).as_posix()):
            by_name[word] = pair
        by_name.setdefault(Path(pair.key).name, pair)
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    missing = [word for word in wanted if word not in by_name]
    if missing:
        raise DataError(
            f"{path}: names {len(missing)} images that are not there, first {missing[0]}"
        )
    return [by_name[word] for word in dict.fromkeys(wanted)]
