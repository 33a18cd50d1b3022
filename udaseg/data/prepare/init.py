"""`udaseg init`: a dataset YAML for the images and labels of folders."""

import contextlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from udaseg.data.datasets.catalog import builtin_names
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.datasets.pairs import find_pairs
from udaseg.data.files.find import find_files
from udaseg.data.files.folders import find_images
from udaseg.data.files.images import IMAGE_SUFFIXES, image_size
from udaseg.data.labels.formats import object_format
from udaseg.data.labels.objects.drawing import BACKGROUND
from udaseg.data.labels.objects.shared import forget_shared
from udaseg.data.labels.tables import color_text
from udaseg.data.prepare.label_guess import (
    CLASS_FILES,
    LabelGroup,
    group_labels,
    is_document,
    is_label_file,
    known_table,
    sample_content,
    sample_shared,
)
from udaseg.errors import DataError, UsageError
from udaseg.files import write_text
from udaseg.text import count_text, percent

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9 _./*-]*")
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
_VOID = 255
_FEW_IMAGES = 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LOSSY = (".jpg", ".jpeg")
_LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "gt", "ground_truth")
_LABEL_ENDING = re.compile(r"[._-](mask|label|labelids|gt|seg|segmentation)s?$", re.IGNORECASE)
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class InitReport:
    """The dataset YAML that `init_dataset` wrote.

    Attributes:
        path: The YAML.
        counts: Number of images of each split that have a label, or of all without labels.
        unpaired: Number of images and labels without a partner.
        label_format: The format of the labels; None without labels.
        classes: Number of classes.
    """

    path: Path
    counts: dict[str, int]
    unpaired: int
    label_format: str | None
    classes: int


def init_dataset(
    name: str,
    images: _Path,
    labels: _Path | None = None,
    *,
    out: _Path | None = None,
    overwrite: bool = False,
) -> InitReport:
    """Write a dataset YAML for images and labels, guessed from the files; it has comments to check.

    It says how images and labels match, the format of the labels, the classes that a sample of at
    most 50 labels has, and splits. Classes that no file names are called `class_ID`: rename them.

    Args:
        name: Name of the data set.
        images: Folder of the images, in any nesting.
        labels: Folder of the labels, or the file that lists them all; None without labels.
        out: The YAML; `NAME.yaml` in the current folder by default.
        overwrite: Replace an existing YAML.

    Returns:
        What was found.

    Raises:
        UsageError: The YAML exists.
        DataError: A folder has no images or labels, none match, or no format fits.

    Example:
        report = udaseg.init_dataset("my_city", "images/", "labels/")
        report.path, report.counts
    """
    if name in builtin_names():
        raise UsageError(f"'{name}' is a built-in data set; choose another name")
    if not _NAME.fullmatch(name):
        raise UsageError(f"a name has letters, digits, '.', '_' and '-', got '{name}'")
    path = Path(f"{name}.yaml" if out is None else out)
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; use --overwrite to replace it, or --out FILE")
    folders = [Path(images), *([] if labels is None else [Path(labels)])]
    for folder in folders:
        if not folder.exists():
            raise DataError(f"{folder}: does not exist")
    root = _shared_root(path.parent, folders)
    lines = [f"name: {yaml_text(name)}"]
    if root != path.parent.resolve():
        lines.append(f"root: {yaml_text(str(root))}")
    pictures = find_images(folders[0])
    guess = None if labels is None else _LabelGuess(pictures, folders[1], root)
    if guess is None:
        _warn_of_labels(name, folders[0], pictures)
    lines.append(f"images: {yaml_text(_glob(folders[0], pictures, root, guess))}")
    lines += [] if guess is None else guess.lines(path.parent.resolve())
    lines.append(_splits(pictures) if guess is not None else "splits: {train: 1.0}")
    seen = count_text(len(pictures), "image")
    lines.insert(0, f"# Guessed by `udaseg init` from {seen}; check it.")
    write_text(path, "\n".join([*lines, ""]))
    try:
        return _report(path, guess)
    finally:
        forget_shared()


def _report(path: Path, guess: "_LabelGuess | None") -> InitReport:
    """Return what the declaration in the YAML finds."""
    declaration = read_declaration(path)
    assert declaration.root is not None
    pairs = find_pairs(declaration, declaration.root)
    return InitReport(
        path,
        {split: len(members) for split, members in pairs.splits.items()},
        len(pairs.unpaired),
        None if guess is None else guess.content.label_format,
        0 if declaration.table is None else len(declaration.table.classes),
    )


def _shared_root(parent: Path, folders: Sequence[Path]) -> Path:
    """Return the folder of the YAML or, if not all files are below it, one that has them all."""
    parent = parent.resolve()
    resolved = [folder.resolve() for folder in folders]
    if all(folder.is_relative_to(parent) for folder in resolved):
        return parent
    tops = [folder.parent if folder.is_file() else folder for folder in resolved]
    return Path(os.path.commonpath(tops))


def _glob(folder: Path, pictures: Sequence[Path], root: Path, guess: "_LabelGuess | None") -> str:
    suffixes = {path.suffix.lower() for path in pictures}
    labels = set() if guess is None else {path.resolve() for path in guess.files}
    if labels & {path.resolve() for path in pictures}:  # in one folder, told apart by the suffix
        suffixes = {path.suffix.lower() for path in pictures if path.resolve() not in labels}
    name = f"*{suffixes.pop()}" if len(suffixes) == 1 else "*"
    below = "" if guess is None or guess.siblings is None else f"{guess.siblings[0]}/"
    return _relative(folder, root, f"**/{below}{name}")


def _relative(folder: Path, root: Path, below: str = "") -> str:
    return (folder.resolve().relative_to(root) / below).as_posix()


def _splits(pictures: Sequence[Path]) -> str:
    folders = Path(os.path.commonpath([path.resolve().parent for path in pictures]))
    firsts = {path.resolve().relative_to(folders).parts[0] for path in pictures}
    named = [name for name in _SPLITS if name in firsts]
    short = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
    if "train" in {short.get(name, name) for name in named}:
        rules = ", ".join(f"{short.get(name, name)}: {name}" for name in named)
        return f"splits: {{{rules}}}   # folders"
    if len(pictures) < _FEW_IMAGES:
        return "splits: {train: 1.0}   # too few images to hold some out"
    return "splits: {train: 0.9, val: 0.1}   # or a list file, a folder name, or name patterns"


def yaml_text(value: str) -> str:
    """Return a YAML scalar."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


def _warn_of_sizes(pairs: Mapping[Path, Path]) -> None:
    """Warn if the first image and its label image differ in size, however they are turned."""
    image, label = next(iter(pairs.items()))
    if label.suffix.lower() not in IMAGE_SUFFIXES:
        return
    with contextlib.suppress(DataError):  # `prepare` names each file that cannot be read
        sizes = [image_size(path) for path in (image, label)]
        if sorted(sizes[0]) != sorted(sizes[1]):
            (height, width), (label_height, label_width) = sizes
            log.warning(
                "%s has %dx%d pixels, and its label %s has %dx%d; `udaseg prepare` leaves such "
                "images out, or resizes the labels with --on-mismatch resize",
                image,
                width,
                height,
                label,
                label_width,
                label_height,
            )


def _is_lossless(path: Path) -> bool:
    return path.suffix.lower() not in _LOSSY


def _seems_label(path: Path) -> bool:
    """Return whether the folder or the end of the name is one that people give to labels."""
    is_named = path.parent.name.lower() in _LABEL_FOLDERS or _LABEL_ENDING.search(path.stem)
    return _is_lossless(path) and bool(is_named)


def _warn_of_labels(name: str, folder: Path, pictures: Sequence[Path]) -> None:
    """Warn if some of the images seem to be labels of the others."""
    labels = list(filter(_seems_label, pictures))
    if labels and len(labels) < len(pictures):
        place = shlex.quote(str(folder))
        log.warning(
            "%s of %s images seem to be labels, such as %s; `udaseg init %s %s %s` reads them so",
            f"{len(labels):,}",
            f"{len(pictures):,}",
            labels[0],
            name,
            place,
            place,
        )


def _sibling_folders(paths: Mapping[Path, Path]) -> tuple[str, str] | None:
    """Return the names of the folders of images and labels if they lie side by side everywhere."""
    if any(image.parent.parent != label.parent.parent for image, label in paths.items()):
        return None
    names = {(image.parent.name, label.parent.name) for image, label in paths.items()}
    pair = names.pop()
    return pair if not names and pair[0] != pair[1] else None


class _LabelGuess:
    """What the labels in a folder, or in one file, seem to be."""

    def __init__(self, pictures: Sequence[Path], place: Path, root: Path) -> None:
        self.place, self.root = place, root
        self.group: LabelGroup | None = None
        self.siblings: tuple[str, str] | None = None
        if place.is_file():
            self.files, self.content = [place], sample_shared(place)
            return
        below = find_files(place, "**/*")
        self.files = [path for path in below if is_label_file(path)]
        if not self.files:
            known = "images, .npy, .json or .xml"
            raise DataError(f"{place}: contains no label files ({known})")
        own = {path.resolve() for path in pictures}
        labels = [path for path in self.files if path.resolve() not in own]
        if not labels:  # images and labels are in one folder
            is_label = _seems_label if any(map(_seems_label, self.files)) else _is_lossless
            labels = list(filter(is_label, self.files))
            pictures = [path for path in pictures if not is_label(path)]
            if not labels or not pictures:
                raise DataError(f"{place}: move labels to a folder without images")
        if not any(map(_is_lossless, labels)) and all(map(_is_lossless, pictures)):
            raise DataError(
                f"{place}: these are JPEG images, which no labels are, and the images are none; "
                "are IMAGES and LABELS swapped?"
            )
        self.group = group_labels(pictures, labels)
        if self.group is not None:
            self.files = list(self.group.paths.values())
            if any(place in image.parents for image in self.group.paths):
                self.siblings = _sibling_folders(self.group.paths)
            self.content = sample_content(self.group.paths)
            _warn_of_sizes(self.group.paths)
        elif len(labels) <= len(_SPLITS) and is_document(labels[0]):
            self.files, self.content = [labels[0]], sample_shared(labels[0])
        else:
            raise DataError(
                f"{place}: no label has the name of an image; there are {labels[0].name} and "
                f"{pictures[0].name}. Names must begin alike"
            )

    def lines(self, folder: Path) -> Iterator[str]:
        """Yield the lines of the YAML, which is in `folder`."""
        content, group = self.content, self.group
        if group is None:
            below = "" if self.place.is_file() else f"**/*{self.files[0].suffix}"
            yield f"labels: {yaml_text(_relative(self.place, self.root, below))}"
        else:
            below = "" if self.siblings is None else f"{self.siblings[1]}/"
            names = f"**/{below}*{group.label_ending}{group.suffix}"
            yield f"labels: {yaml_text(_relative(self.place, self.root, names))}"
            endings = [each for each in (group.image_ending, group.label_ending) if each]
            if endings:
                listed = ", ".join(map(json.dumps, endings))
                yield f"match: {{strip: [{listed}]}}   # endings of names"
        yield f"label_format: {content.label_format}"
        yield from self._classes(folder, "" if group is None else group.label_ending)

    def _classes(self, folder: Path, ending: str) -> Iterator[str]:
        content = self.content
        if table := known_table(content, ending):
            yield f"classes: {table}   # the table whose classes the labels have"
            return
        top = self.place.parent if self.place.is_file() else self.place
        for place in dict.fromkeys([top, top.parent, folder, self.root]):
            for name in CLASS_FILES:
                if (place / name).is_file():
                    yield f"classes: {yaml_text(os.path.relpath(place / name, folder))}"
                    return
        if object_format(content.label_format) is not None:
            yield from self._named_classes()
        else:
            yield from self._numbered_classes()

    def _named_classes(self) -> Iterator[str]:
        yield "classes:"
        share = percent(self.content.share(BACKGROUND))
        comment = f"{share} % of the pixels have no object; without this class they are ignored"
        yield f"  - {BACKGROUND}   # {comment}"
        for label, _ in self.content.pixels.most_common():
            if label != BACKGROUND:
                yield f"  - {yaml_text(str(label))}   # {percent(self.content.share(label))} %"

    def _numbered_classes(self) -> Iterator[str]:
        content = self.content
        is_color = content.label_format == "rgb"
        numbers = sorted(int(number) for number in content.pixels)
        void = [number for number in numbers if number == _VOID and len(numbers) > 2]
        binary = numbers == [0, _VOID] and not is_color
        yield "classes:   # rename them; `ids` may list several ids for one class"
        for number in numbers:
            if number in void and not is_color:
                continue
            share = f"# {percent(content.share(number))} % of the pixels"
            if is_color:
                color = color_text(number)
                yield f"  - {{name: color_{number:06x}, color: {color}}}   {share}"
            else:
                name = {0: BACKGROUND, _VOID: "foreground"}[number] if binary else f"class_{number}"
                yield f"  - {{name: {name}, ids: [{number}]}}   {share}"
        if void and not is_color:
            yield f"ignore: [{_VOID}]   # {percent(content.share(_VOID))} % of the pixels"
