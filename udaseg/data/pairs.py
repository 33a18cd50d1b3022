"""Which label belongs to which image, and which images belong to which split."""

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from udaseg.data.declaration import Declaration, Rule
from udaseg.data.find import find, static_prefix
from udaseg.data.images import IMAGE_SUFFIXES
from udaseg.data.layouts import laid_out
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


@dataclass(frozen=True)
class Pairs:
    """What lies in a dataset's folder.

    Attributes:
        splits: The pairs of each split, sorted by their key.
        unpaired: Files that are left over, each with the reason.
        alone: Those of them that are images without a label.
        without_files: Declared splits that have no image here.
        without_labels: Globs of labels that match nothing although there are images.
        excluded: Images that a named rule leaves out.
        known: Images that a named rule would leave out, and that are kept.
    """

    splits: dict[str, list[Pair]] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    alone: list[Pair] = field(default_factory=list)
    without_files: list[str] = field(default_factory=list)
    without_labels: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def pairs_of(declaration: Declaration, folder: Path) -> Pairs:
    """Return the pairs of each split and what could not be paired.

    Raises:
        DataError: No image matches, or a split rule names nothing.
    """
    pairs = Pairs()
    declaration = laid_out(declaration, folder)
    if "" in declaration.images:
        _split_by_rule(declaration, folder, pairs)
    else:
        for split, pattern in declaration.images.items():
            label_pattern = declaration.labels.get(split, declaration.labels.get(""))
            found = _paired(declaration, folder, pattern, label_pattern, pairs)
            if found is None:
                pairs.without_files.append(split)
            else:
                pairs.splits[split] = found
    if not pairs.splits:
        globs = ", ".join(declaration.images.values())
        raise DataError(f"{declaration.path}: no image below {folder} matches {globs}")
    _apply_rules(declaration, pairs)
    return pairs


def _apply_rules(declaration: Declaration, pairs: Pairs) -> None:
    """Leave out the files of the rules that are asked for, and note those of the others."""
    if not declaration.rules:
        return
    for split, found in pairs.splits.items():
        kept = []
        for pair in found:
            stem = PurePosixPath(pair.key).name
            named = [name for name, rule in sorted(declaration.rules.items()) if stem in rule.stems]
            asked = [name for name in named if name in declaration.exclude]
            for name in asked[:1] or named[:1]:
                line = f"{pair.image}: rule {name}: {declaration.rules[name].why}"
                (pairs.excluded if asked else pairs.known).append(line)
            if not asked:
                kept.append(pair)
        pairs.splits[split] = kept


def _split_by_rule(declaration: Declaration, folder: Path, pairs: Pairs) -> None:
    by_split = {split: glob for split, glob in declaration.labels.items() if split}
    found: list[Pair] | None
    if by_split:
        keyed = _keyed(declaration, folder, declaration.images[""], pairs)
        found = [Pair(key, path, None) for key, path in keyed.items()]
    else:
        shared = declaration.labels.get("")
        found = _paired(declaration, folder, declaration.images[""], shared, pairs)
    if not found and not pairs.unpaired:
        return
    for split, rule in _with_starts(declaration.splits):
        pairs.splits[split] = _chosen(declaration, found or [], rule, split, folder, pairs)
    for split, pattern in by_split.items():
        if split not in pairs.splits:
            raise DataError(
                f"{declaration.path}: labels.{split}: there is no such split; "
                f"splits has {', '.join(pairs.splits)}"
            )
        images = {pair.key: pair.image for pair in pairs.splits[split]}
        labels = _keyed(declaration, folder, pattern, pairs)
        # labels of other splits may lie in the same folder, so a label too many is no fault here
        pairs.splits[split] = _matched(images, labels, pattern, None, pairs)


def _paired(
    declaration: Declaration,
    folder: Path,
    pattern: str,
    label_pattern: str | None,
    pairs: Pairs,
) -> list[Pair] | None:
    """Return the pairs of a glob of images with a glob of labels; None without any image."""
    if label_pattern is None:
        start = folder / static_prefix(pattern)
        paths = _images(folder, pattern)
        return [Pair(path.relative_to(start).as_posix(), path, None) for path in paths] or None
    images = _keyed(declaration, folder, pattern, pairs)
    if not images:
        return None
    labels = _keyed(declaration, folder, label_pattern, pairs)
    return _matched(images, labels, label_pattern, pattern, pairs)


def _matched(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    label_pattern: str,
    pattern: str | None,
    pairs: Pairs,
) -> list[Pair]:
    """Return what has the same key; what is left over goes to `pairs`."""
    if images and not labels:
        pairs.without_labels.append(label_pattern)
    if not set(images) & set(labels):
        # images and labels nested differently can still have unique names
        images, labels = _flat(images), _flat(labels)
    for key, path in images.items():
        if key not in labels:
            pairs.unpaired.append(f"{path}: has no label ({label_pattern})")
            pairs.alone.append(Pair(key, path, None))
    if pattern is not None:
        for key, path in labels.items():
            if key not in images:
                pairs.unpaired.append(f"{path}: label without an image ({pattern})")
    return [Pair(key, path, labels[key]) for key, path in images.items() if key in labels]


def _keyed(declaration: Declaration, folder: Path, pattern: str, pairs: Pairs) -> dict[str, Path]:
    """Return files by key: the path below the pattern's fixed folders, without suffix and endings.

    Files with the same key are left over: nothing says which one is meant.
    """
    start = folder / static_prefix(pattern)
    groups: dict[str, list[Path]] = {}
    for path in _images(folder, pattern):
        stem = path.stem
        for ending in declaration.strip:
            stem = stem.removesuffix(ending)
        key = (path.relative_to(start).parent / stem).as_posix()
        groups.setdefault(key, []).append(path)
    for paths in groups.values():
        for path in paths[1:]:
            pairs.unpaired.append(f"{path}: has the same name as {paths[0].name}")
    return {key: paths[0] for key, paths in groups.items()}


def _images(folder: Path, pattern: str) -> list[Path]:
    return [path for path in find(folder, pattern) if path.suffix.lower() in IMAGE_SUFFIXES]


def _flat(keyed: Mapping[str, Path]) -> dict[str, Path]:
    names = Counter(Path(key).name for key in keyed)
    return {
        (name if names[name] == 1 else key): path
        for key, path in keyed.items()
        for name in [Path(key).name]
    }


@dataclass(frozen=True)
class _Share:
    """A range of all images, as shares from 0 to 1."""

    start: float
    stop: float


def _with_starts(
    rules: Mapping[str, Rule],
) -> list[tuple[str, str | tuple[str, ...] | _Share]]:
    """Return each rule, a fraction as the range of shares that it takes."""
    start = 0.0
    ranged: list[tuple[str, str | tuple[str, ...] | _Share]] = []
    for split, rule in rules.items():
        if isinstance(rule, str | tuple):
            ranged.append((split, rule))
        else:
            ranged.append((split, _Share(start, start + rule)))
            start += rule
    return ranged


def _chosen(
    declaration: Declaration,
    pairs: list[Pair],
    rule: str | tuple[str, ...] | _Share,
    split: str,
    folder: Path,
    state: Pairs,
) -> list[Pair]:
    if isinstance(rule, _Share):
        found = _by_share(pairs, rule)
        missing = f"that share of {len(pairs)} images is none"
    elif isinstance(rule, tuple):
        found = [pair for pair in pairs if _named_like(pair, rule)]
        missing = f"no image has a name like {', '.join(rule)}"
    elif rule.endswith(".txt"):
        found = _listed(declaration, pairs, rule, folder, state)
        missing = f"{rule} lists no image"
    else:
        found = [pair for pair in pairs if rule in pair.image.relative_to(folder).parts[:-1]]
        missing = f"no image lies in a folder '{rule}'"
    if not found and not state.unpaired:  # else what is left over says why
        raise DataError(f"{declaration.path}: splits.{split}: {missing}")
    return found


def _named_like(pair: Pair, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern fits the name of the image, without its suffix and endings."""
    name = PurePosixPath(pair.key).name
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _by_share(pairs: list[Pair], share: _Share) -> list[Pair]:
    """Return a range of the pairs in an order that the names alone decide."""
    order = sorted(pairs, key=lambda pair: hashlib.sha256(_bytes(pair.key)).digest())
    first, last = (round(part * len(order)) for part in (share.start, share.stop))
    return sorted(order[first:last], key=lambda pair: pair.key)


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # names need not be UTF-8


def _listed(
    declaration: Declaration, pairs: list[Pair], rule: str, folder: Path, state: Pairs
) -> list[Pair]:
    path = declaration.path.parent / rule
    if not path.is_file():
        path = folder / rule
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{declaration.path}: split list {path} cannot be read: {error}") from error
    by_name = _by_words(pairs, folder)
    alone = _by_words(state.alone, folder)  # that they have no label is said already
    wanted = [line.strip() for line in lines]
    wanted = [line for line in wanted if line and not line.startswith("#")]
    state.unpaired.extend(
        f"{path}: lists {word}, which is no image here, or more than one"
        for word in wanted
        if word not in by_name and word not in alone
    )
    return list(dict.fromkeys(by_name[word] for word in wanted if word in by_name))


def _by_words(pairs: list[Pair], folder: Path) -> dict[str, Pair]:
    """Return pairs by every word that a list may call them; a short name only where it is one."""
    short: dict[str, list[Pair]] = {}
    for pair in pairs:
        for word in {pair.image.name, pair.image.stem, Path(pair.key).name}:
            short.setdefault(word, []).append(pair)
    words = {word: found[0] for word, found in short.items() if len(found) == 1}
    for pair in pairs:
        path = pair.image.relative_to(folder)
        words |= dict.fromkeys((pair.key, path.as_posix(), path.with_suffix("").as_posix()), pair)
    return words
