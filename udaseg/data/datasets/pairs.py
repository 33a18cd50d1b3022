"""Match labels to images, and images to splits."""

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from udaseg.data.datasets.declaration import Declaration, SplitRule
from udaseg.data.datasets.layouts import match_layout
from udaseg.data.files.find import find_files, static_prefix
from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.errors import DataError


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
        key: The name by which both are matched; also the name of the prepared label.
        image: The image file.
        label: The label file; None in an unlabelled split.
    """

    key: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset: its pairs, and what could not be paired.

    Attributes:
        splits: The pairs of each split, sorted by their key.
        unpaired: Files without a partner, each with the reason.
        images_without_label: The images among them, which have no label.
        splits_without_images: Declared splits without images.
        label_globs_without_match: Label globs that match nothing although there are images.
        excluded: Images that a named rule excludes.
        known: Images that a named rule would exclude, but which are kept.
    """

    splits: dict[str, list[Pair]] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    images_without_label: list[Pair] = field(default_factory=list)
    splits_without_images: list[str] = field(default_factory=list)
    label_globs_without_match: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def find_pairs(declaration: Declaration, folder: Path) -> DatasetFiles:
    """Return the pairs of each split, and the files that could not be paired.

    Raises:
        DataError: No image matches, or a split rule matches nothing.
    """
    pairs = DatasetFiles()
    declaration = match_layout(declaration, folder)
    if "" in declaration.images:
        _split_by_rule(declaration, folder, pairs)
    else:
        for split, pattern in declaration.images.items():
            label_pattern = declaration.labels.get(split, declaration.labels.get(""))
            split_pairs = _pair_globs(declaration, folder, pattern, label_pattern, pairs)
            if split_pairs is None:
                pairs.splits_without_images.append(split)
            else:
                pairs.splits[split] = split_pairs
    if not pairs.splits:
        globs = ", ".join(declaration.images.values())
        raise DataError(f"{declaration.path}: no image below {folder} matches {globs}")
    _apply_rules(declaration, pairs)
    return pairs


def _apply_rules(declaration: Declaration, pairs: DatasetFiles) -> None:
    """Exclude the files of the requested rules, and list those of the other rules."""
    if not declaration.rules:
        return
    for split, split_pairs in pairs.splits.items():
        kept = []
        for pair in split_pairs:
            stem = PurePosixPath(pair.key).name
            matching = [
                name for name, rule in sorted(declaration.rules.items()) if stem in rule.stems
            ]
            requested = [name for name in matching if name in declaration.exclude]
            for name in requested[:1] or matching[:1]:
                line = f"{pair.image}: rule {name}: {declaration.rules[name].reason}"
                (pairs.excluded if requested else pairs.known).append(line)
            if not requested:
                kept.append(pair)
        pairs.splits[split] = kept


def _split_by_rule(declaration: Declaration, folder: Path, pairs: DatasetFiles) -> None:
    label_globs = {split: glob for split, glob in declaration.labels.items() if split}
    candidates: list[Pair] | None
    if label_globs:
        keyed = _images_by_key(declaration, folder, declaration.images[""], pairs)
        candidates = [Pair(key, path, None) for key, path in keyed.items()]
    else:
        label_pattern = declaration.labels.get("")
        candidates = _pair_globs(declaration, folder, declaration.images[""], label_pattern, pairs)
    if not candidates and not pairs.unpaired:
        return
    for split, rule in _resolve_fractions(declaration.splits):
        pairs.splits[split] = _select_split(
            declaration, candidates or [], rule, split, folder, pairs
        )
    for split, pattern in label_globs.items():
        if split not in pairs.splits:
            raise DataError(
                f"{declaration.path}: labels.{split}: there is no such split; "
                f"splits has {', '.join(pairs.splits)}"
            )
        images = {pair.key: pair.image for pair in pairs.splits[split]}
        labels = _labels_by_key(declaration, folder, pattern, pairs)
        # labels of other splits may be in the same folder, so extra labels are not a fault here
        pairs.splits[split] = _match_by_key(images, labels, pattern, None, pairs)


def _pair_globs(
    declaration: Declaration,
    folder: Path,
    pattern: str,
    label_pattern: str | None,
    pairs: DatasetFiles,
) -> list[Pair] | None:
    """Return the pairs of an image glob and a label glob, or None without any image."""
    if label_pattern is None:
        start = folder / static_prefix(pattern)
        paths = _find_images(folder, pattern)
        return [Pair(path.relative_to(start).as_posix(), path, None) for path in paths] or None
    images = _images_by_key(declaration, folder, pattern, pairs)
    if not images:
        return None
    labels = _labels_by_key(declaration, folder, label_pattern, pairs)
    return _match_by_key(images, labels, label_pattern, pattern, pairs)


def _match_by_key(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    label_pattern: str,
    pattern: str | None,
    pairs: DatasetFiles,
) -> list[Pair]:
    """Return the pairs with the same key, and list the other files in `pairs`."""
    if images and not labels:
        pairs.label_globs_without_match.append(label_pattern)
    if not set(images) & set(labels):
        # names can be unique even if images and labels are nested differently
        images, labels = _by_file_name(images), _by_file_name(labels)
    for key, path in images.items():
        if key not in labels:
            pairs.unpaired.append(f"{path}: has no label ({label_pattern})")
            pairs.images_without_label.append(Pair(key, path, None))
    if pattern is not None:
        for key, path in labels.items():
            if key not in images:
                pairs.unpaired.append(f"{path}: label without an image ({pattern})")
    return [Pair(key, path, labels[key]) for key, path in images.items() if key in labels]


def _images_by_key(
    declaration: Declaration, folder: Path, pattern: str, pairs: DatasetFiles
) -> dict[str, Path]:
    return _files_by_key(declaration, folder, pattern, _find_images(folder, pattern), pairs)


def _labels_by_key(
    declaration: Declaration, folder: Path, pattern: str, pairs: DatasetFiles
) -> dict[str, Path]:
    # only a built-in format is certain to be an image
    find = _find_images if declaration.label_package is None else find_files
    return _files_by_key(declaration, folder, pattern, find(folder, pattern), pairs)


def _files_by_key(
    declaration: Declaration,
    folder: Path,
    pattern: str,
    paths: Iterable[Path],
    pairs: DatasetFiles,
) -> dict[str, Path]:
    """Return files by key: the path below the pattern's fixed folders, without suffix and endings.

    Of files with the same key the first is returned, and the others are listed as unpaired, because
    it is unclear which one is meant.
    """
    start = folder / static_prefix(pattern)
    groups: dict[str, list[Path]] = {}
    for path in paths:
        stem = path.stem
        for ending in declaration.stem_endings:
            stem = stem.removesuffix(ending)
        key = (path.relative_to(start).parent / stem).as_posix()
        groups.setdefault(key, []).append(path)
    for first, *others in groups.values():
        for path in others:
            pairs.unpaired.append(f"{path}: has the same name as {first.name}")
    return {key: group[0] for key, group in groups.items()}


def _find_images(folder: Path, pattern: str) -> list[Path]:
    return [path for path in find_files(folder, pattern) if path.suffix.lower() in IMAGE_SUFFIXES]


def _by_file_name(keyed: Mapping[str, Path]) -> dict[str, Path]:
    counts = Counter(Path(key).name for key in keyed)
    return {
        (name if counts[name] == 1 else key): path
        for key, path in keyed.items()
        for name in [Path(key).name]
    }


@dataclass(frozen=True)
class _FractionRange:
    """A range of all images, as fractions from 0 to 1."""

    start: float
    stop: float


def _resolve_fractions(
    rules: Mapping[str, SplitRule],
) -> list[tuple[str, str | tuple[str, ...] | _FractionRange]]:
    """Return the rules, with each fraction as the range of images that it covers."""
    start = 0.0
    ranges: list[tuple[str, str | tuple[str, ...] | _FractionRange]] = []
    for split, rule in rules.items():
        if isinstance(rule, str | tuple):
            ranges.append((split, rule))
        else:
            ranges.append((split, _FractionRange(start, start + rule)))
            start += rule
    return ranges


def _select_split(
    declaration: Declaration,
    pairs: list[Pair],
    rule: str | tuple[str, ...] | _FractionRange,
    split: str,
    folder: Path,
    result: DatasetFiles,
) -> list[Pair]:
    if isinstance(rule, _FractionRange):
        chosen = _select_fraction(pairs, rule)
        message = f"that fraction of {len(pairs)} images is empty"
    elif isinstance(rule, tuple):
        chosen = [pair for pair in pairs if _name_matches(pair, rule)]
        message = f"no image name matches {', '.join(rule)}"
    elif rule.endswith(".txt"):
        chosen = _select_listed(declaration, pairs, rule, folder, result)
        message = f"{rule} lists no image of the dataset"
    else:
        chosen = [pair for pair in pairs if rule in pair.image.relative_to(folder).parts[:-1]]
        message = f"no image is in a folder '{rule}'"
    if not chosen and not result.unpaired:  # otherwise the unpaired files explain it
        raise DataError(f"{declaration.path}: splits.{split}: {message}")
    return chosen


def _name_matches(pair: Pair, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern matches the image's name without suffix and endings."""
    name = PurePosixPath(pair.key).name
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _select_fraction(pairs: list[Pair], share: _FractionRange) -> list[Pair]:
    """Return a range of the pairs, in an order that depends on the names only."""
    order = sorted(pairs, key=lambda pair: hashlib.sha256(_name_bytes(pair.key)).digest())
    first, last = (round(fraction * len(order)) for fraction in (share.start, share.stop))
    return sorted(order[first:last], key=lambda pair: pair.key)


def _name_bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # names need not be UTF-8


def _select_listed(
    declaration: Declaration, pairs: list[Pair], rule: str, folder: Path, result: DatasetFiles
) -> list[Pair]:
    path = declaration.path.parent / rule
    if not path.is_file():
        path = folder / rule
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{declaration.path}: split list {path} cannot be read: {error}") from error
    by_name = _pairs_by_name(pairs, folder)
    unlabelled = _pairs_by_name(
        result.images_without_label, folder
    )  # their missing labels are listed already
    names = [line.strip() for line in lines]
    names = [line for line in names if line and not line.startswith("#")]
    result.unpaired.extend(
        f"{path}: lists {name}, which matches no image or more than one"
        for name in names
        if name not in by_name and name not in unlabelled
    )
    return list(dict.fromkeys(by_name[name] for name in names if name in by_name))


def _pairs_by_name(pairs: list[Pair], folder: Path) -> dict[str, Pair]:
    """Return pairs by every name that a list may use; a short name only if it is unique."""
    short: dict[str, list[Pair]] = {}
    for pair in pairs:
        for name in {pair.image.name, pair.image.stem, Path(pair.key).name}:
            short.setdefault(name, []).append(pair)
    by_name = {name: matches[0] for name, matches in short.items() if len(matches) == 1}
    for pair in pairs:
        path = pair.image.relative_to(folder)
        by_name |= dict.fromkeys((pair.key, path.as_posix(), path.with_suffix("").as_posix()), pair)
    return by_name
