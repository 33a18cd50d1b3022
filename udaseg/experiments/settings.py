"""The settings of a sweep: every combination of values, by name, as recipes."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.errors import UsageError
from udaseg.recipe.load import dump
from udaseg.recipe.request import changed_recipe, override_words
from udaseg.recipe.schema import Recipe
from udaseg.text import shortened

Values = Mapping[str, Sequence[object]] | Sequence[str]
"""Values by dotted key, or words such as `optimizer.lr=1e-4,1e-3`."""

_SPLIT = re.compile(r"""[^,\[\]{}"']+|"(?:\\.|[^"\\])*"|'[^']*'|.""")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,=+-]+")
_LONGEST = 100


@dataclass(frozen=True)
class SweepSetting:
    """One row of a sweep.

    Attributes:
        name: What tables call it, such as `temperature=0.1`.
        recipe: The recipe, with any seed.
        values: The values of the swept keys as written, by dotted key.
        each: The single change from `--each`, if any.
    """

    name: str
    recipe: Recipe
    values: Mapping[str, str]
    each: str | None = None

    @property
    def folder(self) -> str:
        """The name as a file name."""
        plain = _UNSAFE.sub("_", self.name.replace(" ", ","))[:_LONGEST]
        if plain == self.name.replace(" ", ","):
            return plain
        return f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"


def split_values(values: Values) -> dict[str, list[str]]:
    """Return the values of each key as YAML.

    In words, values are separated by the commas outside of brackets, braces and quotes.

    Raises:
        UsageError: A word is not KEY=VALUE, a key is given twice, or a value is no plain value.
    """
    swept: dict[str, list[str]] = {}
    if isinstance(values, Mapping):
        for key, several in values.items():
            words = [override_words({key: value})[0] for value in several]
            swept[key] = [word.partition("=")[2] for word in words]
    else:
        for word in values:
            key, equals, text = word.partition("=")
            if not equals or key in swept:
                raise UsageError(
                    f"{shortened(word)}: give each key once, as KEY=VALUE or KEY=VALUE,VALUE"
                )
            swept[key] = _split(text)
    for key, several in swept.items():
        if not several or len(set(several)) < len(several):
            raise UsageError(f"{shortened(key)}: give one or more different values")
    return swept


def settings_of(
    recipes: Sequence[tuple[Recipe, Path]],
    values: Mapping[str, Sequence[str]],
    each: Mapping[str, Sequence[str]],
) -> tuple[SweepSetting, ...]:
    """Return all combinations: of recipes, of one value of each key, and of the single changes.

    Args:
        recipes: The recipes with the files to name in messages.
        values: The values of each key as YAML. A key with one value does not appear in the names.
        each: Changes to make one at a time; the first setting has none of them.

    Raises:
        RecipeError: A combination is wrong.
        UsageError: Two settings have the same name or values, or the seed is one of the keys.
    """
    if "seed" in {*values, *each}:
        raise UsageError("seed: give all seeds of a sweep with --seeds, as --seeds 0,1,2")
    several = [key for key, options in values.items() if len(options) > 1]
    names = _short_names([*several, *each])
    alone = [(key, value) for key, options in each.items() for value in options]
    changes: list[tuple[str, str] | None] = [None, *alone]
    settings = []
    for (recipe, path), change in itertools.product(recipes, changes):
        for combination in itertools.product(*values.values()):
            chosen = dict(zip(values, combination, strict=True))
            written = [*chosen.items(), *([] if change is None else [change])]
            told = [(key, value) for key, value in written if key in names]
            parts = [f"{names[key]}={_unquoted(value)}" for key, value in told]
            if len(recipes) > 1 or not parts:
                parts.insert(0, recipe.name)
            words = [f"{key}={value}" for key, value in written]
            changed = changed_recipe(recipe, words, path) if words else recipe
            alone_word = None if change is None else words[-1]
            settings.append(SweepSetting(" ".join(parts), changed, chosen, alone_word))
    if len({setting.folder for setting in settings}) < len(settings):
        listed = ", ".join(recipe.name for recipe, _ in recipes)
        raise UsageError(f"give recipes of different names and different changes, got {listed}")
    _refuse_equal(settings)
    return tuple(settings)


def _refuse_equal(settings: Sequence[SweepSetting]) -> None:
    """Refuse settings that differ only in their names: they would be trained twice."""
    known: dict[str, str] = {}
    for setting in settings:
        numbers = dump(replace(setting.recipe, name="same", seed=0, expected=None))
        first = known.setdefault(numbers, setting.name)
        if first != setting.name:
            raise UsageError(
                f"{shortened(setting.name)}: has the same settings as {shortened(first)}; leave "
                "one of them out"
            )


def _split(text: str) -> list[str]:
    """Return the parts between the commas outside of brackets, braces and quotes."""
    parts, depth = [""], 0
    for token in _SPLIT.findall(text):
        depth += (token in "[{") - (token in "]}")
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _unquoted(value: str) -> str:
    return value.strip("\"'")


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for each key its last words, as many as tell it from the others."""
    names = {}
    for key in keys:
        words = key.split(".")
        ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        names[key] = next(
            end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1
        )
    return names
