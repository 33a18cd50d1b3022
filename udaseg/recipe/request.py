"""Turns the arguments of `udaseg train` and `udaseg adapt` into a recipe."""

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.errors import CheckpointError, RecipeError, UsageError
from udaseg.recipe.library import (
    OWN_FOLDER,
    DataNames,
    choose_recipe,
    data_names,
    find_network,
    find_recipe,
    is_reversed_pair,
    recipe_of_method,
)
from udaseg.recipe.load import dump, load, sets_key
from udaseg.recipe.requirements import may_have_gpu
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import adapts, numeric_settings
from udaseg.text import shortened

log = logging.getLogger(__name__)
_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclass(frozen=True)
class Overrides:
    """Command-line options that override a recipe; None changes nothing.

    `source`, `target` and `batch` are `source.data`, `target.data` and both batch sizes, `seed` and
    `steps` their keys, `network` is a network file or the name of one, the others keys of
    `machine`.
    """

    source: str | list[str] | None = None
    target: str | None = None
    seed: int | None = None
    steps: int | None = None
    batch: int | None = None
    device: str | None = None
    precision: str | None = None
    workers: int | None = None
    loggers: list[str] | None = None
    keep_best: str | None = None
    compile: bool | None = None
    deterministic: bool | None = None
    network: str | None = None

    def overrides(self) -> list[str]:
        """Return the options as `KEY=VALUE`; text is quoted, so that it is read as text."""
        keys = {
            "source": ["source.data"],
            "target": ["target.data"],
            "batch": ["batch.source", "batch.target"],
            "seed": ["seed"],
            "steps": ["steps"],
        }
        several = self.source if isinstance(self.source, list) else [self.source]
        source = several[0] if len(several) == 1 else several
        values = {**vars(self), "source": source}
        return [
            f"{key}={_json(key, value)}"
            for name, value in values.items()
            if value is not None and name != "network"
            for key in keys.get(name, [f"machine.{name}"])
        ]


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the RECIPE among the arguments, if any, and the `KEY=VALUE` overrides.

    Raises:
        UsageError: More than one argument is not an override.
    """
    if "=" in arguments:
        raise UsageError("write KEY=VALUE without spaces around the '='")
    overrides = [word for word in arguments if "=" in word and "/" not in word.partition("=")[0]]
    recipes = [word for word in arguments if word not in overrides]
    if len(recipes) > 1:
        shown = " ".join(map(shortened, recipes))
        raise UsageError(f"give at most one RECIPE, got {shown}; write an override as KEY=VALUE")
    return (recipes[0] if recipes else None), overrides


def validates_other_data(recipe: Recipe, file_data: DataNames, words: Sequence[str]) -> bool:
    """Return whether the recipe validates on other data than the user trains on.

    The user's own target may have no labels, and a score on the target of the recipe file would
    not describe it. An explicit `validation.data=...` is always scored. A run whose target is its
    source, an oracle, is scored on that set instead.

    Args:
        recipe: The recipe with all overrides.
        file_data: Source and target data in the recipe file.
        words: The overrides.
    """
    if recipe.validation.data is None:
        return False
    if sets_key(words, "validation", "data"):
        return False
    file_source, file_target = file_data
    other_source = recipe.method.kind == "source_only" and recipe.source.data != file_source
    return recipe.target.data != file_target or other_source


def requested_recipe(
    arguments: Sequence[str],
    options: Overrides,
    default_method: str,
    method: str | None = None,
    resume: Path | None = None,
) -> tuple[Recipe, Path]:
    """Return the recipe that the user requests, and its file, or both files of one with a network.

    Args:
        arguments: RECIPE and `KEY=VALUE` arguments in any order.
        options: Options that become overrides, and the network.
        default_method: Method if neither RECIPE nor `method` is given.
        method: The value of `--method`.
        resume: Run folder whose recipe is continued.

    Raises:
        UsageError: The arguments contradict each other.
        CheckpointError: There is no run to resume.
        RecipeError: The recipe, the network file or an override is wrong.
    """
    named, words = split_arguments(arguments)
    overrides = [*options.overrides(), *words]
    if resume is not None:
        given = {"--method": method, "--network": options.network}
        others = [shortened(named)] if named is not None else []
        others += [option for option, value in given.items() if value is not None]
        if others:
            raise UsageError(f"--resume uses the recipe of the run; leave out {others[0]}")
        path = resume / "recipe.yaml"
        if not path.is_file():
            raise CheckpointError(
                f"{shortened(str(resume), 300)}: not a run folder, it has no recipe.yaml; start "
                "the run again with its recipe and --out, or use --init CHECKPOINT to start a new "
                "run from weights"
            )
    elif named is None:
        path = choose_recipe(method or default_method, options.source, options.target)
        if path.parent.name == OWN_FOLDER:
            path, options, overrides = _suited(path, options, overrides)
    else:
        path = find_recipe(named)
        path = recipe_of_method(path, method) if method is not None else path
    network = None if options.network is None else find_network(options.network)
    stored = resume is not None
    recipe = load(path, overrides=overrides, stored=stored, network=network)
    original = functools.partial(load, path, stored=stored)
    recipe = _without_stale_parts(recipe, data_names(path), original, overrides)
    if resume is None and adapts(recipe):
        _warn_of_domains(recipe)
    return recipe, name_origin(path, network)


def _warn_of_domains(recipe: Recipe) -> None:
    """Warn of an adaptation from data to themselves, or in the wrong direction."""
    target = recipe.target.sets[0]
    for source in recipe.source.sets:
        if source == target:
            log.warning(
                "source and target are both %s, so there is nothing to adapt to; give the images "
                "of another domain with --target",
                shortened(source),
            )
        elif is_reversed_pair(source, target):
            log.warning(
                "shipped recipes adapt %s to %s, and this run adapts %s to %s; are --source and "
                "--target swapped?",
                target,
                source,
                source,
                target,
            )


def name_origin(path: Path, network: Path | None) -> Path:
    """Return what messages call a recipe: its file, or both files of one with a network."""
    return path if network is None else Path(f"{path} with {network}")


def _suited(
    path: Path, options: Overrides, overrides: list[str]
) -> tuple[Path, Overrides, list[str]]:
    """Return the recipe in `own/`, options and overrides that suit the machine, and say which."""
    source = options.source if isinstance(options.source, str) else (options.source or [""])[0]
    if options.target is None and not sets_key(overrides, "target", "data"):
        # a run on the source alone; its labels may be scored
        overrides = [*overrides, f"target.data={_json('target.data', source)}"]
    if options.network is not None:
        return path, options, overrides
    device = options.device or next(
        (word.partition("=")[2] for word in overrides if word.startswith("machine.device=")), "auto"
    )
    choices = {has_gpu: _own_recipe(path, has_gpu) for has_gpu in (False, True)}
    if device == "auto":
        _refuse_for_all(list(choices.values()), overrides)
        has_gpu = may_have_gpu() and _torch_finds_gpu()
    else:
        has_gpu = device.startswith("cuda")
    path, network = choices[has_gpu]
    log.info(
        "%s has no recipe of its own, so this run takes %s/%s%s, which suits %s; choose another "
        "network with --network, or name a recipe",
        shortened(source),
        OWN_FOLDER,
        path.stem,
        "" if network is None else f" --network {network}",
        "a GPU" if has_gpu else "a CPU",
    )
    return path, replace(options, network=network), overrides


def _torch_finds_gpu() -> bool:
    import torch  # the one thing here that needs it

    return torch.cuda.is_available()


def _own_recipe(path: Path, has_gpu: bool) -> tuple[Path, str | None]:
    """Return the recipe in `own/` that suits a machine, and the network to put over it, if any."""
    if path.stem == "rccr":
        return path.with_name("standard.yaml" if has_gpu else "light.yaml"), None
    return path, None if has_gpu else "light"


def _refuse_for_all(choices: Sequence[tuple[Path, str | None]], overrides: Sequence[str]) -> None:
    """Refuse overrides that are wrong with every recipe and network of `choices`.

    Raises:
        RecipeError: What is wrong with the first.
    """
    errors = []
    for path, network in choices:
        file = None if network is None else find_network(network)
        try:
            load(path, overrides=overrides, network=file)
        except RecipeError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def changed_recipe(
    recipe: Recipe, overrides: Sequence[str], origin: Path, network: Path | None = None
) -> Recipe:
    """Return a recipe with `KEY=VALUE` overrides, by the rules for overrides of a recipe file.

    Args:
        recipe: The recipe.
        overrides: The overrides.
        origin: What messages call the recipe.
        network: A network file, put over the recipe first.

    Raises:
        RecipeError: The network file or an override is wrong.
    """
    changed = load(origin, text=dump(recipe), overrides=overrides, network=network)
    file_data = (recipe.source.data, recipe.target.data)
    return _without_stale_parts(changed, file_data, lambda: recipe, overrides)


def _without_stale_parts(
    recipe: Recipe,
    file_data: DataNames,
    original: Callable[[], Recipe],
    overrides: Sequence[str],
) -> Recipe:
    """Return a recipe without what overrides void: validation data, bits, the expected score."""
    recipe = _without_other_forms(recipe, file_data, overrides)
    oracle = recipe.source.data == recipe.target.data  # the labels of the target are trained on
    is_own = file_data == (None, None) and not sets_key(overrides, "validation", "data")
    if validates_other_data(recipe, file_data, overrides) or (is_own and oracle):
        own = replace(recipe.validation, data=None)
        if oracle:
            own = replace(own, data=recipe.target.data, resize=recipe.source.resize)
        recipe = replace(recipe, validation=own)
    if recipe.expected is not None and not any(word.startswith("expected") for word in overrides):
        # the expected score holds for the settings of the file, with any seed
        unchanged = replace(original(), seed=recipe.seed)
        if numeric_settings(unchanged) != numeric_settings(recipe):
            recipe = replace(recipe, expected=None)
    return recipe


def _without_other_forms(recipe: Recipe, file_data: DataNames, overrides: Sequence[str]) -> Recipe:
    """Return a recipe without bits and bands of images that overrides replace by other data."""
    for name, before in zip(("source", "target"), file_data, strict=True):
        for key in ("bits", "bands"):
            domain = getattr(recipe, name)
            if domain.data != before and not sets_key(overrides, name, key):
                recipe = replace(recipe, **{name: replace(domain, **{key: None})})
    return recipe


def load_recipe(
    recipe: str | os.PathLike[str],
    *,
    overrides: Mapping[str, object] | None = None,
    network: str | os.PathLike[str] | None = None,
) -> Recipe:
    """Return a recipe, checked and with every field.

    Args:
        recipe: A shipped recipe such as `toyland/rccr`, or a recipe file.
        overrides: Settings that replace those of the recipe, by dotted name.
        network: A shipped network such as `light`, or a network file, put over the recipe before
            `overrides`.

    Raises:
        RecipeError: There is no such recipe or network, or it is wrong; all errors are listed.

    Example:
        recipe = udaseg.load_recipe("toyland/rccr", overrides={"optimizer.lr": 1e-4})
        udaseg.adapt(recipe)
    """
    file = None if network is None else find_network(network)
    return load(find_recipe(recipe), network=file, overrides=override_words(overrides or {}))


def override_words(overrides: Mapping[str, object]) -> list[str]:
    """Return settings by dotted name as `KEY=VALUE`.

    Raises:
        UsageError: A name is not dotted words, or a value is no plain value.
    """
    words = []
    for key, value in overrides.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise UsageError(
                f"overrides: {shortened(repr(key))} is no setting; write dotted names, such as "
                "'optimizer.lr'"
            )
        words.append(f"{key}={_json(key, value)}")
    return words


def _json(key: str, value: object) -> str:
    """Return a plain value, a path or a NumPy number as JSON.

    Raises:
        UsageError: It is something else.
    """

    def plain(other: object) -> object:
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if isinstance(number := getattr(other, "item", lambda: None)(), bool | int | float):
            return number
        raise TypeError(f"must be a plain value, got {type(other).__name__}")

    try:
        return json.dumps(value, ensure_ascii=False, default=plain)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{key}: {error}") from error
