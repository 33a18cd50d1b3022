"""The shipped recipes: their folder, their names, and which one a user means."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from udaseg.documents import DocumentKind, ListNode, Node, ScalarNode, node_at, read_document
from udaseg.errors import EnvironmentFault, RecipeError, UsageError
from udaseg.text import did_you_mean, instead, shortened

RECIPE = DocumentKind(
    "recipe", RecipeError, 1_000_000, 5_000, "; `udaseg recipes ls` lists the shipped recipes"
)
NETWORK = DocumentKind(
    "network file", RecipeError, 100_000, 500, "; `udaseg recipes ls` lists the shipped networks"
)
DEFAULT_SOURCE = "gta5"
DEFAULT_TARGET = "cityscapes"
_DEFAULT_FOLDER = "gta5_cityscapes"
_DEFAULT_METHOD = "rccr"
OWN_FOLDER = "own"
"""Folder of the recipes for data of the user, which name no data."""
_NETWORKS = "networks"
_NO_RECIPES = ("datasets", _NETWORKS)  # folders of other files beside those of recipes


DataNames = tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None]
"""The data of source and target, of which a source may have several."""


@dataclass(frozen=True)
class RecipeEntry:
    """A shipped recipe, or a shipped network file.

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
        path for path in recipes_folder().glob("*/*.yaml") if path.parent.name not in _NO_RECIPES
    )
    return list(map(_entry, paths))


def list_networks() -> list[RecipeEntry]:
    """Return all shipped network files, sorted by name, which is `networks/<network>`."""
    return list(map(_entry, sorted((recipes_folder() / _NETWORKS).glob("*.yaml"))))


def find_recipe(word: str | os.PathLike[str]) -> Path:
    """Return the recipe file for a path or for the name of a shipped recipe.

    Raises:
        RecipeError: There is no such file and no such shipped recipe.
    """
    word = os.fspath(word)
    if _exists(word):
        if Path(word).is_dir():
            if (Path(word) / "recipe.yaml").exists():
                use = f"use --resume {shortened(word)} to continue a run"
            else:
                use = f"use --target {shortened(word)} for images to adapt to"
            raise RecipeError(f"{shortened(word)}: is a folder, not a recipe; {use}")
        return Path(word)
    known = {entry.name: entry for entry in list_recipes()}
    name = word.removesuffix(".yaml")
    if name in known:
        return known[name].path
    if name in {entry.name for entry in list_networks()}:
        network = name.removeprefix(f"{_NETWORKS}/")
        raise RecipeError(f"{word}: is a network; use --network {network} beside a recipe")
    raise RecipeError(
        f"{shortened(word)}: no such file or shipped recipe; {_meant_recipe(name, known)}"
        "`udaseg recipes ls` lists the shipped ones"
    )


def _meant_recipe(name: str, known: Mapping[str, RecipeEntry]) -> str:
    """Return "did you mean …? " for a word that is near a recipe, a method or a folder."""
    methods = list_methods()
    folders = list(dict.fromkeys(entry.folder for entry in known.values()))
    hint = did_you_mean(name, [*known, *methods, *folders])
    if hint in methods:
        return f"did you mean --method {hint}, or a recipe such as {_example(hint, known)}? "
    if hint in folders:
        names = [entry.method for entry in known.values() if entry.folder == hint]
        return f"did you mean {hint}/METHOD, where METHOD is one of {', '.join(names)}? "
    return instead(hint)


def _example(method: str, known: Mapping[str, RecipeEntry]) -> str:
    """Return the recipe of a method for the default pair, or another one."""
    names = [entry.name for entry in known.values() if entry.method == method]
    default = f"{_DEFAULT_FOLDER}/{method}"
    return default if default in names else names[0]


def find_network(word: str | os.PathLike[str]) -> Path:
    """Return the network file for a path or for the name of a shipped network.

    Raises:
        RecipeError: There is no such file and no such shipped network.
    """
    word = os.fspath(word)
    if _exists(word) and Path(word).is_file():
        return Path(word)
    known = {entry.method: entry.path for entry in list_networks()}
    name = word.removesuffix(".yaml").removeprefix(f"{_NETWORKS}/")
    if name in known:
        return known[name]
    if name in {entry.name for entry in list_recipes()}:
        raise RecipeError(is_a_recipe(word))
    raise RecipeError(
        f"{shortened(word)}: no such network file or shipped network; "
        f"{instead(did_you_mean(name, list(known)))}"
        f"available: {', '.join(known)}"
    )


def is_a_recipe(word: str) -> str:
    """Return the error for a recipe where a network is needed."""
    return f"{shortened(word, 300)}: is a recipe, not a network; name it without --network"


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # the name is too long or contains NUL
        return False


def list_methods() -> dict[str, str]:
    """Return the summary of each shipped method, preferably from the default pair."""
    entries = [entry for entry in list_recipes() if entry.folder != OWN_FOLDER]
    entries.sort(key=lambda e: (e.folder != _DEFAULT_FOLDER, e.name))
    summaries: dict[str, str] = {}
    for entry in entries:
        summaries.setdefault(entry.method, entry.summary)
    return summaries


def choose_recipe(
    method: str, source: str | Sequence[str] | None = None, target: str | None = None
) -> Path:
    """Return the shipped recipe of a method that fits the data best.

    Preference: the same pair, then the same source, then the default pair, then any other. If no
    recipe has the source or the target, both of which the user names, it is that of `own/`.

    Args:
        method: File name without suffix.
        source: The user's source data, of several sets the first counts; None means GTA5.
        target: The user's target data; None means Cityscapes.

    Raises:
        UsageError: No shipped recipe has this method.
    """
    entries = [entry for entry in list_recipes() if entry.method == method]
    own = [entry for entry in entries if entry.folder == OWN_FOLDER]
    entries = [entry for entry in entries if entry.folder != OWN_FOLDER]
    if not entries:
        known = list_methods()
        meant = instead(did_you_mean(method, list(known)))
        raise UsageError(
            f"no method '{shortened(method)}'; {meant}available: {', '.join(sorted(known))}"
        )
    first = source if isinstance(source, str) or not source else source[0]
    requested_pair = (first or DEFAULT_SOURCE, target or DEFAULT_TARGET)

    pairs = {entry.name: _pairs(entry) for entry in entries}

    def distance(entry: RecipeEntry) -> tuple[bool, bool, bool, str]:
        known = pairs[entry.name]
        other_source = requested_pair[0] not in [pair[0] for pair in known]
        default = entry.folder == _DEFAULT_FOLDER
        return requested_pair not in known, other_source, not default, entry.name

    known_data = {name for both in pairs.values() for pair in both for name in pair}
    is_given = first is not None and (target is not None or method == "source_only")
    if own and is_given and not known_data & ({first, target} - {None}):
        return own[0].path
    return min(entries, key=distance).path


def _pairs(entry: RecipeEntry) -> tuple[DataNames, DataNames]:
    """Return source and target as the recipe and as its folder name them.

    A release may read its source as another set.
    """
    source, _, target = entry.folder.partition("_")
    return data_names(entry.path), (source, target)


def is_reversed_pair(source: str, target: str) -> bool:
    """Return whether shipped recipes adapt the target to the source, and none the other way."""
    entries = [entry for entry in list_recipes() if entry.method == _DEFAULT_METHOD]
    pairs = {pair for entry in entries if entry.folder != OWN_FOLDER for pair in _pairs(entry)}
    return (target, source) in pairs and (source, target) not in pairs


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
        meant = instead(did_you_mean(method, known))
        raise UsageError(
            f"no method '{shortened(method)}' in {path.parent.name}; {meant}"
            f"available: {', '.join(known)}"
        )
    return path.parent / f"{method}.yaml"


def data_names(path: Path) -> DataNames:
    """Return `source.data` and `target.data` of a recipe; None for what cannot be read."""
    try:
        root = read_document(path, RECIPE).root
    except RecipeError:
        return None, None
    return _data_name(root, "source"), _data_name(root, "target")


def _data_name(root: Node, name: str) -> str | tuple[str, ...] | None:
    node = node_at(root, name, "data")
    if isinstance(node, ListNode):
        return tuple(item.text for item in node.items if isinstance(item, ScalarNode))
    return node.text if isinstance(node, ScalarNode) else None


def _entry(path: Path) -> RecipeEntry:
    return RecipeEntry(f"{path.parent.name}/{path.stem}", path, _summary(path))


def _summary(path: Path) -> str:
    comments = _comments(path.read_text(encoding="utf-8").splitlines())
    return next((line for line in comments if line and not line.startswith("udaseg ")), "")


def _comments(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line.lstrip("# ").rstrip()
