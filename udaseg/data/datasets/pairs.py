"""Match labels to images, and images to splits."""

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.layouts import match_layout
from udaseg.data.datasets.shared_files import SharedFiles
from udaseg.data.files.find import find_files, static_prefix, wildcard_text
from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.data.labels.formats import label_suffixes
from udaseg.errors import DataError


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
        key: The name by which both are matched; also the name of the prepared label.
        image: The image file.
        label: The label file; None in an unlabelled split.
        entry: Position of the image in a label file of several images; None if the label file is
            about this image only.
    """

    key: str
    image: Path
    label: Path | None
    entry: int | None = None


_LINES = {
    "image-without-label": "has no label ({})",
    "label-without-image": "label without an image ({})",
    "duplicate-stem": "has {}",
    "split-list": "{}, which matches no image or more than one",
    "known-odd": "{}",
    "left-out": "{}",
}


class FoundFile(NamedTuple):
    """A file without a partner, or one that a named rule is about.

    Attributes:
        code: The finding of `udaseg doctor` for it.
        path: The file.
        note: A glob, a name or a rule, as the code says.
    """

    code: str
    path: Path
    note: str

    def __str__(self) -> str:
        return f"{self.path}: {_LINES[self.code].format(self.note)}"


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset: its pairs, and what could not be paired.

    Attributes:
        splits: The pairs of each split, sorted by their key.
        unpaired: Files without a partner.
        splits_without_images: Declared splits without images.
        label_globs_without_match: Label globs that match nothing although there are images.
        excluded: Images that a named rule excludes.
        known: Images that a named rule would exclude, but which are kept.
    """

    splits: dict[str, list[Pair]] = field(default_factory=dict)
    unpaired: list[FoundFile] = field(default_factory=list)
    splits_without_images: list[str] = field(default_factory=list)
    label_globs_without_match: list[str] = field(default_factory=list)
    excluded: list[FoundFile] = field(default_factory=list)
    known: list[FoundFile] = field(default_factory=list)


def find_pairs(declaration: Declaration, folder: Path) -> DatasetFiles:
    """Return the pairs of each split, and the files that could not be paired.

    Raises:
        DataError: No image matches, or a split rule matches nothing.
    """
    return _Pairing(match_layout(declaration, folder), folder).run()


class _Pairing:
    """The pairing of one folder."""

    def __init__(self, declaration: Declaration, folder: Path) -> None:
        self.declaration, self.folder = declaration, folder
        self.files = DatasetFiles()
        self.unlabelled: list[Pair] = []
        self.shared = SharedFiles(declaration)

    def run(self) -> DatasetFiles:
        images, labels = self.declaration.images, self.declaration.labels
        if "" in images:
            self._split_by_rule()
        else:
            for split, pattern in images.items():
                pairs = self._pair_globs(pattern, labels.get(split, labels.get("")))
                if pairs is None:
                    self.files.splits_without_images.append(split)
                else:
                    self.files.splits[split] = pairs
        if not self.files.splits:
            globs = ", ".join(images.values())
            path = self.declaration.path
            raise DataError(f"{path}: no image below {self.folder} matches {globs}")
        self.shared.warn_of_unused()
        for split, pairs in self.files.splits.items():
            self.files.splits[split] = list(self._without_excluded(pairs))
        return self.files

    def _without_excluded(self, pairs: list[Pair]) -> Iterator[Pair]:
        """Exclude the files of the requested rules, and list those of the other rules."""
        rules = sorted(self.declaration.rules.items())
        for pair in pairs:
            stem = PurePosixPath(pair.key).name
            matching = [name for name, rule in rules if stem in rule.stems]
            requested = [name for name in matching if name in self.declaration.exclude]
            for name in requested[:1] or matching[:1]:
                note = f"rule {name}: {self.declaration.rules[name].reason}"
                code = "left-out" if requested else "known-odd"
                listed = self.files.excluded if requested else self.files.known
                listed.append(FoundFile(code, pair.image, note))
            if not requested:
                yield pair

    def _split_by_rule(self) -> None:
        pattern, labels = self.declaration.images[""], self.declaration.labels
        label_globs = {split: glob for split, glob in labels.items() if split}
        candidates: list[Pair] | None
        if label_globs:
            keyed = self._images_by_key(pattern)
            candidates = [Pair(key, path, None) for key, path in keyed.items()]
        else:
            candidates = self._pair_globs(pattern, labels.get(""))
        if not candidates and not self.files.unpaired:
            return
        start = 0.0
        for split, rule in self.declaration.splits.items():
            self.files.splits[split] = self._select_split(candidates or [], split, start)
            start += rule if isinstance(rule, float) else 0
        for split, label_glob in label_globs.items():
            if split not in self.files.splits:
                raise DataError(
                    f"{self.declaration.path}: labels.{split}: there is no such split; "
                    f"splits has {', '.join(self.files.splits)}"
                )
            images = {pair.key: pair.image for pair in self.files.splits[split]}
            # labels of other splits may be in the same folder, so extra labels are not a fault here
            self.files.splits[split] = self._match(images, label_glob, pattern, extra_labels=True)

    def _pair_globs(self, pattern: str, label_pattern: str | None) -> list[Pair] | None:
        """Return the pairs of an image glob and a label glob, or None without any image."""
        if label_pattern is None:
            start = self.folder / static_prefix(pattern)
            paths = matching_images(self.folder, pattern)
            return [Pair(path.relative_to(start).as_posix(), path, None) for path in paths] or None
        images = self._images_by_key(pattern)
        if not images:
            return None
        return self._match(images, label_pattern, pattern, extra_labels=False)

    def _match(
        self, images: Mapping[str, Path], label_pattern: str, pattern: str, *, extra_labels: bool
    ) -> list[Pair]:
        """Return the pairs of images and labels, and list the other files as unpaired.

        Labels without an image are unpaired unless there may be `extra_labels`.
        """
        labels: dict[str, tuple[Path, int | None]] = {}
        if self.shared.reader is not None:
            paths = find_files(self.folder, label_pattern)
            labels.update(self.shared.match(paths, images, self.folder))
            extra_labels = True  # a file often lists the images of all splits
        else:
            found = self._labels_by_key(label_pattern)
            paths = list(found.values())
            if not set(images) & set(found):  # they are nested differently
                images, found = self._renamed(images, found, (pattern, label_pattern))
            labels.update((key, (path, None)) for key, path in found.items())
        if images and not paths:
            self.files.label_globs_without_match.append(label_pattern)
        for key, path in images.items():
            if key not in labels:
                self._add_unpaired("image-without-label", path, label_pattern)
                self.unlabelled.append(Pair(key, path, None))
        alone = {} if extra_labels else {k: p for k, (p, _) in labels.items() if k not in images}
        unread = self._unread_files(pattern) if alone else {}
        for key, path in alone.items():
            other = unread.get(PurePosixPath(key).name, path)
            reason = f"; the format of {other.name} is not read" if other != path else ""
            self._add_unpaired("label-without-image", path, f"{pattern}{reason}")
        return [Pair(key, path, *labels[key]) for key, path in images.items() if key in labels]

    def _renamed(
        self, images: Mapping[str, Path], labels: Mapping[str, Path], globs: tuple[str, str]
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """Return images and labels by their names or, if names repeat, by their wildcards' texts.

        If these differ, too, files whose names repeat are listed as unpaired.
        """
        sides = (images, labels)
        by_name = [_grouped(side, [Path(key).name for key in side]) for side in sides]
        by_text = [
            _grouped(side, [self._wildcard_text(glob, path) for path in side.values()])
            for side, glob in zip(sides, globs, strict=True)
        ]
        is_unique = all(len(paths) == 1 for side in by_name for paths in side.values())
        chosen = by_name if is_unique or not set(by_text[0]) & set(by_text[1]) else by_text
        for paths in (paths for side in chosen for paths in side.values() if len(paths) > 1):
            for path, other in zip(paths, (*paths[1:], paths[0]), strict=True):
                self._add_unpaired("duplicate-stem", path, f"the same name as {other}")
        first, second = (
            {key: paths[0] for key, paths in side.items() if len(paths) == 1} for side in chosen
        )
        return first, second

    def _wildcard_text(self, glob: str, path: Path) -> str:
        text = wildcard_text(glob, PurePosixPath(path.relative_to(self.folder)))
        return self.declaration.without_endings(text)

    def _unread_files(self, pattern: str) -> dict[str, Path]:
        """Return the files that match an image glob but have another suffix, by their stem."""
        paths = find_files(self.folder, pattern)
        others = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]
        return {self.declaration.without_endings(path.stem): path for path in others}

    def _add_unpaired(self, code: str, path: Path, note: str) -> None:
        self.files.unpaired.append(FoundFile(code, path, note))

    def _images_by_key(self, pattern: str) -> dict[str, Path]:
        return self._files_by_key(pattern, matching_images(self.folder, pattern))

    def _labels_by_key(self, pattern: str) -> dict[str, Path]:
        suffixes = label_suffixes(self.declaration.label_format)
        paths = find_files(self.folder, pattern)
        if suffixes is not None:
            paths = [path for path in paths if path.suffix.lower() in suffixes]
        return self._files_by_key(pattern, paths)

    def _files_by_key(self, pattern: str, paths: Iterable[Path]) -> dict[str, Path]:
        """Return files by key: the path below the pattern's fixed folders, without endings.

        Of files with the same key the first is returned, and the others are listed as unpaired,
        because it is unclear which one is meant.
        """
        start = self.folder / static_prefix(pattern)
        groups: dict[str, list[Path]] = {}
        for path in paths:
            stem = self.declaration.without_endings(path.stem)
            key = (path.relative_to(start).parent / stem).as_posix()
            groups.setdefault(key, []).append(path)
        for first, *others in groups.values():
            for path in others:
                self._add_unpaired("duplicate-stem", path, f"the same name as {first.name}")
        return {key: group[0] for key, group in groups.items()}

    def _select_split(self, pairs: list[Pair], split: str, start: float) -> list[Pair]:
        """Return the pairs of a split; a fraction begins at `start`."""
        rule = self.declaration.splits[split]
        if isinstance(rule, float):
            chosen = _select_fraction(pairs, start, start + rule)
            message = f"that fraction of {len(pairs)} images is empty"
        elif isinstance(rule, tuple):
            chosen = [pair for pair in pairs if _name_matches(pair, rule)]
            message = f"no image name matches {', '.join(rule)}"
        elif rule.endswith(".txt"):
            chosen = self._select_listed(pairs, rule)
            message = f"{rule} lists no image of the dataset"
        else:
            chosen = [p for p in pairs if rule in p.image.relative_to(self.folder).parts[:-1]]
            message = f"no image is in a folder '{rule}'"
        if not chosen and not self.files.unpaired:  # otherwise the unpaired files explain it
            raise DataError(f"{self.declaration.path}: splits.{split}: {message}")
        return chosen

    def _select_listed(self, pairs: list[Pair], rule: str) -> list[Pair]:
        path = self.declaration.path.parent / rule
        if not path.is_file():
            path = self.folder / rule
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            message = f"split list {rule} cannot be read, beside the YAML or at {path}: {reason}"
            raise DataError(f"{self.declaration.path}: {message}") from error
        by_name = _pairs_by_name(pairs, self.folder)
        # their missing labels are listed already
        unlabelled = _pairs_by_name(self.unlabelled, self.folder)
        names = [line.strip() for line in text.splitlines()]
        names = [line for line in names if line and not line.startswith("#")]
        for name in names:
            if name not in by_name and name not in unlabelled:
                hint = " (write one name a line)" if len(name.split()) > 1 else ""
                self._add_unpaired("split-list", path, f"lists {name}{hint}")
        return list(dict.fromkeys(by_name[name] for name in names if name in by_name))


def matching_images(folder: Path, pattern: str) -> list[Path]:
    """Return the images below a folder that match a pattern, by their suffix."""
    return [path for path in find_files(folder, pattern) if path.suffix.lower() in IMAGE_SUFFIXES]


def _grouped(keyed: Mapping[str, Path], names: Sequence[str]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for name, path in zip(names, keyed.values(), strict=True):
        groups.setdefault(name, []).append(path)
    return groups


def _name_matches(pair: Pair, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern matches the image's name without suffix and endings."""
    name = PurePosixPath(pair.key).name
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _select_fraction(pairs: list[Pair], start: float, stop: float) -> list[Pair]:
    """Return a range of the pairs, in an order that depends on the names only."""
    order = sorted(pairs, key=lambda pair: hashlib.sha256(_name_bytes(pair.key)).digest())
    chosen = order[round(start * len(order)) : round(stop * len(order))]
    return sorted(chosen, key=lambda pair: pair.key)


def _name_bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # names need not be UTF-8


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
