"""The shipped recipes: their folder, their names, and which one a user means."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from udaseg.documents import DocumentKind, ListNode, MappingNode, ScalarNode, read_document
from udaseg.errors import EnvironmentFault, RecipeError, UsageError
from udaseg.text import did_you_mean, shortened

RECIPE = DocumentKind(
    "recipe", RecipeError, 1_000_000, 5_000, "; `udaseg recipes ls` lists the shipped recipes"
)
DEFAULT_SOURCE = "gta5"
DEFAULT_TARGET = "cityscapes"
_DEFAULT_FOLDER = "gta5_cityscapes"
_DATASETS = "datasets"  # dataset declarations of recipes, in a folder beside them


@dataclass(frozen=True)
class RecipeEntry:
    """A shipped recipe.

    Attributes:
        name: `<source>_<target>/<method>`, as the user types it.
        path: The recipe file.
        summary: The first comment line of the file that is not a command.
    """

    name: str
    path: Path
    summary: str

    @property
    def folder(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def method(self) -> str:
        """The part of the name after the slash."""
        return self.name.partition("/")[2]


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes, in the wheel or else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise EnvironmentFault(f"{package / '_recipes'}: no shipped recipes; reinstall udaseg")


def list_recipes() -> list[RecipeEntry]:
    """Return all shipped recipes, sorted by name."""
    paths = sorted(
        path for path in recipes_folder().glob("*/*.yaml") if path.parent.name != _DATASETS
    )
    return [RecipeEntry(f"{p.parent.name}/{p.stem}", p, _summary(p)) for p in paths]


def find_recipe(word: str | os.PathLike[str]) -> Path:
    """Return the recipe file for a path or for the name of a shipped recipe.

    Raises:
        RecipeError: There is no such file and no such shipped recipe.
    """
    word = os.fspath(word)
    try:
        if Path(word).is_file():
            return Path(word)
        if Path(word).is_dir():
            raise RecipeError(
                f"{word}: is a folder; use --resume {shortened(word)} to continue a run"
            )
    except (OSError, ValueError):  # the name is too long or contains NUL
        pass
    known = {entry.name: entry for entry in list_recipes()}
    name = word.removesuffix(".yaml")
    if name in known:
        return known[name].path
    by_method = {entry.method: entry.name for entry in reversed(known.values())}
    hint = did_you_mean(name, [*known, *by_method])
    hint = by_method.get(hint or "", hint)
    instead = f"did you mean '{hint}'? " if hint else ""
    raise RecipeError(
        f"{shortened(word)}: no such file or shipped recipe; {instead}"
        "`udaseg recipes ls` lists the shipped ones"
    )


def list_methods() -> dict[str, str]:
    """Return the summary of each shipped method, preferably from the default pair."""
    entries = sorted(list_recipes(), key=lambda e: (e.folder != _DEFAULT_FOLDER, e.name))
    summaries: dict[str, str] = {}
    for entry in entries:
        summaries.setdefault(entry.method, entry.summary)
    return summaries


def choose_recipe(
    method: str, source: str | Sequence[str] | None = None, target: str | None = None
) -> Path:
    """Return the shipped recipe of a method that fits the data best.

    Preference: the same pair, then the same source, then the default pair, then any other.

    Args:
        method: File name without suffix.
        source: The user's source data, of several sets the first counts; None means GTA5.
        target: The user's target data; None means Cityscapes.

    Raises:
        UsageError: No shipped recipe has this method.
    """
    entries = [entry for entry in list_recipes() if entry.method == method]
    if not entries:
        known = list_methods()
        hint = did_you_mean(method, list(known))
        instead = f"did you mean '{hint}'? " if hint else ""
        raise UsageError(
            f"no method '{shortened(method)}'; {instead}available: {', '.join(sorted(known))}"
        )
    first = source if isinstance(source, str) or not source else source[0]
    requested_pair = (first or DEFAULT_SOURCE, target or DEFAULT_TARGET)

    def distance(entry: RecipeEntry) -> tuple[bool, bool, bool, str]:
        # the folder is named after the pair; a release may read its source as another set
        pairs = data_names(entry.path), tuple(entry.folder.split("_", 1))
        sources = [pair[0] for pair in pairs]
        other_source = requested_pair[0] not in sources
        default = entry.folder == _DEFAULT_FOLDER
        return requested_pair not in pairs, other_source, not default, entry.name

    return min(entries, key=distance).path


def recipe_of_method(path: Path, method: str) -> Path:
    """Return the recipe of another method for the same data as the shipped recipe `path`.

    Raises:
        UsageError: `path` is not a shipped recipe, or its folder lacks the method.
    """
    if path.resolve().parent.parent != recipes_folder().resolve():
        raise UsageError(
            f"{shortened(str(path))}: a recipe file defines its own method; leave out "
            f"--method {shortened(method)}, or name a shipped recipe"
        )
    known = sorted(other.stem for other in path.parent.glob("*.yaml"))
    if method not in known:
        hint = did_you_mean(method, known)
        instead = f"did you mean '{hint}'? " if hint else ""
        raise UsageError(
            f"no method '{shortened(method)}' in {path.parent.name}; {instead}"
            f"available: {', '.join(known)}"
        )
    return path.parent / f"{method}.yaml"


DataNames = tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None]
"""The data of source and target, of which a source may have several."""


def data_names(path: Path) -> DataNames:
    """Return `source.data` and `target.data` of a recipe; None for what cannot be read."""
    try:
        root = read_document(path, RECIPE).root
    except RecipeError:
        return None, None
    return _data_name(root, "source"), _data_name(root, "target")


def _data_name(node: object, name: str) -> str | tuple[str, ...] | None:
    for key in (name, "data"):
        node = node.entries.get(key, ("", None))[1] if isinstance(node, MappingNode) else None
    if isinstance(node, ListNode):
        return tuple(item.text for item in node.items if isinstance(item, ScalarNode))
    return node.text if isinstance(node, ScalarNode) else None


def _summary(path: Path) -> str:
    comments = _comments(path.read_text(encoding="utf-8").splitlines())
    return next((line for line in comments if line and not line.startswith("udaseg ")), "")


def _comments(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line.lstrip("# ").rstrip()
