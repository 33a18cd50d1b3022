"""Read dataset declarations: YAML with the paths of images and labels and the label meanings."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from pydantic import AfterValidator

from udaseg import documents
from udaseg.data.files.bands import Bands
from udaseg.data.labels.class_files import with_listed_classes
from udaseg.data.labels.formats import (
    BUILT_IN,
    LabelPackage,
    format_package,
    object_format,
    unknown_format_message,
)
from udaseg.data.labels.names import parse_name_table
from udaseg.data.labels.tables import (
    DATASET_YAML,
    Classes,
    LabelDescription,
    LabelTable,
    parse_label_table,
)
from udaseg.data.labels.turned import LabelOrientation
from udaseg.documents import Document, Must
from udaseg.errors import DataError
from udaseg.text import shortened, suggestion
from udaseg.validation import FileName, validate

_CATALOG = Path(__file__).parent / "catalog"
SplitRule = str | float | tuple[str, ...]
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Layout:
    """An alternative file layout: another release, or folders rearranged by well-known code.

    Attributes:
        images: Glob per split, or one for all images under "".
        labels: Glob per split likewise; splits without one have no labels.
        stem_endings: Endings to remove from file stems before matching images and labels.
    """

    images: Mapping[str, str]
    labels: Mapping[str, str]
    stem_endings: tuple[str, ...]


@dataclass(frozen=True)
class FileRule:
    """Files that can be excluded together.

    Attributes:
        reason: The problem with these files, and its source.
        stems: File names without suffix and without the endings that matching strips.
    """

    reason: str
    stems: frozenset[str]


@dataclass(frozen=True)
class Declaration:
    """A dataset as declared in its YAML.

    Attributes:
        name: Name of the dataset and of its prepared folder.
        path: Path of the YAML.
        root: Folder that globs are relative to; None for a built-in dataset, which is searched for.
        images: Glob per split, or one for all images under "".
        labels: Glob per split likewise; splits without one have no labels.
        stem_endings: Endings to remove from file stems before matching images and labels.
        label_format: How labels store ids or objects: the name of a built-in format, or of one of
            another package.
        table: Meaning of the labels; None without labels.
        splits: Rule per split: a list file, a fraction, a folder name, or name patterns.
        about: Title, home, licence, download and size, as given in the YAML.
        folders: Folder names to search for a built-in dataset.
        archives: Globs of the archives that the dataset is published in.
        expected_counts: Published number of images per split.
        base: Built-in dataset that this one modifies, or None.
        rules: Named lists of files with known problems.
        exclude: Rules whose files are excluded.
        layouts: Alternative layouts to try if `images` matches no files.
        label_package: The package that reads `label_format`; None for a built-in format.
        bits: Bits that the values of 16-bit images use; None if `prepare` decides.
        bands: The bands of TIFFs that are red, green and blue; None for gray, RGB or RGBA.
        label_orientation: Orientation of labels of turned images, if their size does not decide:
            `stored` or `upright`; None if it is not declared.
    """

    name: str
    path: Path
    root: Path | None
    images: Mapping[str, str]
    labels: Mapping[str, str]
    stem_endings: tuple[str, ...]
    label_format: str
    table: LabelTable | None
    splits: Mapping[str, SplitRule]
    about: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    expected_counts: Mapping[str, int] = field(default_factory=dict)
    base: str | None = None
    rules: Mapping[str, FileRule] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    label_package: LabelPackage | None = None
    bits: int | None = None
    bands: Bands | None = None
    label_orientation: LabelOrientation | None = None

    @property
    def argument(self) -> str:
        """Argument for `udaseg prepare`: the name of a built-in dataset, else the YAML's path."""
        return self.name if self.is_builtin else str(self.path)

    @property
    def is_builtin(self) -> bool:
        """Whether it is in the catalog."""
        return self.root is None and self.base is None

    def without_endings(self, stem: str) -> str:
        """Return the stem of a file's name without the endings that do not count in matching."""
        for ending in self.stem_endings:
            stem = stem.removesuffix(ending)
        return stem


@dataclass(frozen=True, kw_only=True)
class _Strip:
    strip: Annotated[list[str] | str, Must("an ending, or a list of endings")]


def _below_root(glob: str) -> str:
    parts = Path(glob).parts
    if not parts or glob.startswith(("/", "~")) or ".." in parts:
        raise ValueError("not below the root")
    return glob


_Glob = Annotated[str, AfterValidator(_below_root), Must("a glob below the root")]
_Globs = Annotated[
    dict[str, _Glob] | _Glob,
    Must("a glob below the root, or one per split (`root: FOLDER` sets the root)"),
]
_INHERITED = ""  # no glob
_Match = Annotated[Literal["stem"] | _Strip, Must("`stem` or `{strip: [ENDING, ...]}`")]
_Band = Annotated[int, Interval(ge=0)]
_Strings = Annotated[list[str], Must("a list of strings")]


@dataclass(frozen=True, kw_only=True)
class _WrittenRule:
    why: str
    images: Annotated[list[str | int], Must("a list of image names")]


@dataclass(frozen=True, kw_only=True)
class _WrittenLayout:
    images: _Globs | None = _INHERITED
    labels: _Globs | None = _INHERITED
    match: _Match | None = None


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a dataset YAML says about where the data come from."""

    title: Any = None
    home: Any = None
    licence: Any = None
    download: Any = None
    size: Any = None


_ABOUT = tuple(part.name for part in fields(_About))


@dataclass(frozen=True, kw_only=True)
class _Written(_About, LabelDescription):
    """A dataset YAML as written; `Declaration` says what each key means."""

    name: FileName
    images: _Globs
    labels: _Globs | None = None
    root: Annotated[str, MinLen(1), Must("a folder")] | None = None
    match: _Match = "stem"
    label_format: Any = "ids"
    bits: Annotated[int, Interval(ge=8, le=16), Must("a whole number from 8 to 16")] | None = None
    bands: (
        Annotated[tuple[_Band, _Band, _Band], Must("three whole numbers from 0, as [0, 1, 2]")]
        | None
    ) = None
    orientation: Annotated[LabelOrientation, Must("`stored` or `upright`")] | None = None
    classes: Classes | None = None  # type: ignore[assignment]  # required only with labels
    splits: Annotated[
        dict[
            str,
            Annotated[
                str | Annotated[float, Interval(gt=0, le=1)] | Annotated[list[str], MinLen(1)],
                Must("a list file, a folder, or a fraction above 0 and at most 1"),
            ],
        ],
        Must("a mapping of splits to rules"),
    ] = field(default_factory=dict)
    folders: _Strings = field(default_factory=list)
    archives: _Strings = field(default_factory=list)
    expected: Annotated[dict[str, int], Must("a mapping of splits to image counts")] = field(
        default_factory=dict
    )
    base: Annotated[str, Must("the name of a built-in dataset")] | None = None
    rules: Annotated[
        dict[str, Annotated[_WrittenRule, Must("{why: ..., images: [NAME, ...]}")]],
        Must("`name: {why: ..., images: [...]}`"),
    ] = field(default_factory=dict)
    exclude: Annotated[list[str], Must("a list of rule names")] = field(default_factory=list)
    layouts: Annotated[
        list[_WrittenLayout] | _WrittenLayout, Must("a list of {images, labels, match}")
    ] = field(default_factory=list)


RecordedPackage = Callable[[str, str], LabelPackage | None]
"""Returns the package that read a label format when a dataset was prepared, given both names."""


def read_declaration(
    path: Path, *, builtin: bool = False, recorded_package: RecordedPackage | None = None
) -> Declaration:
    """Return the declaration in a dataset YAML.

    Args:
        path: The YAML.
        builtin: Whether it is in the catalog.
        recorded_package: A label format that it knows is accepted without its package, because
            the labels that it was prepared to need none.

    Raises:
        DataError: The YAML is invalid; the message lists all problems, one per line.
        EnvironmentFault: Several installed packages read the label format.
    """
    document = documents.read_document(path, DATASET_YAML)
    _refuse_recipe(document, path)
    if "base" in document.root.entries:
        document = _with_base(document)
    _refuse_empty(document.root, "", document)
    document.problems.raise_if_any()
    written = validate(_Written, document)
    if written is None:
        raise document.problems.failure()
    if not builtin and written.name in _builtin_names():
        problem = f"'{written.name}' is a built-in data set; choose another name"
        document.add("name", problem)
    label_format, label_package = _label_format(written, document, recorded_package)
    images, labels = _globs(written.images), _globs(written.labels)
    rules = {
        name: FileRule(rule.why, frozenset(map(str, rule.images)))
        for name, rule in written.rules.items()
    }
    for name in written.exclude:
        if name not in rules:
            document.add("exclude", unknown_rule_message(name, rules))
    root = _root(written, path, document, builtin or written.base is not None)
    declaration = Declaration(
        name=written.name,
        path=path,
        root=root,
        images=images,
        labels=labels,
        stem_endings=_stem_endings(written.match),
        label_format=label_format,
        table=_table(written, document, label_format, path, root) if labels else None,
        splits=_splits(written, images, document),
        about={key: getattr(written, key) for key in _ABOUT if key in document.root.entries},
        folders=tuple(written.folders),
        archives=tuple(written.archives),
        expected_counts=written.expected,
        base=written.base,
        rules=rules,
        exclude=tuple(written.exclude),
        layouts=_layouts(written, document),
        label_package=label_package,
        bits=written.bits,
        bands=written.bands,
        label_orientation=written.orientation,
    )
    document.problems.raise_if_any()
    return declaration


def _builtin_names() -> list[str]:
    return sorted(path.stem for path in _CATALOG.glob("*.yaml"))


def _refuse_recipe(document: Document, path: Path) -> None:
    if {"method", "optimizer"} <= document.root.entries.keys():
        name = shortened(str(path), 300)
        raise DataError(f"{name}: is a recipe, not a dataset YAML; `udaseg adapt {name}` runs it")


def _refuse_empty(node: documents.Node, path: str, document: Document) -> None:
    """Add a problem for each key without a value, which would count as left out."""
    entries = node.entries if isinstance(node, documents.MappingNode) else {}
    for name, (position, child) in entries.items():
        key = documents.join_key(path, name)
        _refuse_empty(child, key, document)
        is_empty = isinstance(child, documents.ScalarNode) and documents.plain_value(child) is None
        if is_empty and name != "labels" and key not in _ABOUT:
            document.problems.add(position, key, "has no value; write one, or remove the key")
    for index, item in enumerate(node.items if isinstance(node, documents.ListNode) else ()):
        _refuse_empty(item, f"{path}[{index}]", document)


def _label_format(
    written: _Written, document: Document, recorded_package: RecordedPackage | None
) -> tuple[str, LabelPackage | None]:
    """Return the label format and, unless it is built in, the package that reads it."""
    label_format = written.label_format
    if isinstance(label_format, str):
        if label_format in BUILT_IN:
            return label_format, None
        package = format_package(label_format)
        if package is None and recorded_package is not None:
            package = recorded_package(written.name, label_format)
        if package is not None:
            return label_format, package
    document.add("label_format", unknown_format_message(label_format))
    return "ids", None


def _table(
    written: _Written, document: Document, label_format: str, path: Path, root: Path | None
) -> LabelTable | None:
    if written.classes is None:
        document.add("labels", "labels need 'classes': a table's name or a list")
        return None
    objects = object_format(label_format)
    ids_from = "name" if objects else "color" if label_format == "rgb" else "position"
    folders = [written_in for written_in in (path.parent, root) if written_in is not None]
    listed = with_listed_classes(written, folders, document, ids_from=ids_from)
    if objects is not None:
        return parse_name_table(listed, document, label_format, objects.unscored)
    return parse_label_table(listed, document, label_format)


def _with_base(document: Document) -> Document:
    """Return the document, with missing keys taken from a built-in dataset."""
    own = document.root.entries
    position, node = own["base"]
    name = node.text if isinstance(node, documents.ScalarNode) else documents.plain_value(node)
    known = _builtin_names()
    if name not in known:
        hint = suggestion(str(name), known)
        problem = f"no built-in dataset '{name}'{hint}; available: {', '.join(known)}"
        document.problems.add(position, "base", problem)
        raise document.problems.failure()
    base = documents.read_document(_CATALOG / f"{name}.yaml", DATASET_YAML).root.entries
    del base["name"]
    if isinstance(own.get("classes", ("", None))[1], documents.ListNode) and "table" not in own:
        base["table"] = base["classes"]
    if {"images", "splits", "exclude"} & set(own):  # published counts include all files
        base.pop("expected", None)
    if "images" in own:
        base.pop("splits", None)
    if {"images", "labels", "match"} & set(own):  # the document gives its own layout
        base.pop("layouts", None)
    root = documents.MappingNode({**base, **own}, document.root.position)
    return Document(root, document.problems)


def _root(written: _Written, path: Path, document: Document, builtin: bool) -> Path | None:
    if written.root is None:
        return None if builtin else path.resolve().parent

    def value(match: re.Match[str]) -> str:
        folder = os.environ.get(match[1])
        if not folder:
            problem = f"the environment variable {match[1]} is not set; set it to the folder"
            document.add("root", problem)
        return folder or ""

    return path.resolve().parent / Path(_VARIABLE.sub(value, written.root)).expanduser()


def _globs(value: dict[str, str] | str | None) -> dict[str, str]:
    return {"": value} if isinstance(value, str) else value or {}


def _layouts(written: _Written, document: Document) -> tuple[Layout, ...]:
    """Return the listed layouts, with missing keys taken from the document."""
    layouts = []
    listed = written.layouts
    for index, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        if entry == _WrittenLayout():
            document.add(f"layouts[{index}]", "must name images, labels or match")
        images = written.images if entry.images == _INHERITED else entry.images
        labels = written.labels if entry.labels == _INHERITED else entry.labels
        match = entry.match or written.match
        layouts.append(Layout(_globs(images), _globs(labels), _stem_endings(match)))
    return tuple(layouts)


def _stem_endings(match: Literal["stem"] | _Strip) -> tuple[str, ...]:
    if match == "stem":
        return ()
    return (match.strip,) if isinstance(match.strip, str) else tuple(match.strip)


def _splits(
    written: _Written, images: Mapping[str, str], document: Document
) -> dict[str, SplitRule]:
    if written.splits and "" not in images:
        document.add("splits", "images are already given per split; remove splits")
    total = sum(rule for rule in written.splits.values() if isinstance(rule, float))
    if total > 1 + 1e-9:
        document.add("splits", f"the fractions add up to {total:g}, more than 1")
    rules: dict[str, SplitRule] = {
        name: tuple(rule) if isinstance(rule, list) else rule
        for name, rule in written.splits.items()
    }
    return rules or ({"train": 1.0} if "" in images else {})


def unknown_rule_message(name: str, rules: Iterable[str]) -> str:
    """Return the message for a rule that does not exist."""
    known = sorted(rules)
    available = f"known rules: {', '.join(known)}" if known else "this dataset has no rules"
    return f"no rule '{name}'{suggestion(name, known)}; {available}"
