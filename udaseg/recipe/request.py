"""From the words of `udaseg train` and `udaseg adapt` to a recipe file and its overrides."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.errors import UsageError
from udaseg.recipe.identity import numbers_of
from udaseg.recipe.library import choose_recipe, domains, find_recipe, sibling
from udaseg.recipe.load import load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.text import clipped


@dataclass(frozen=True)
class Everyday:
    """The everyday options that change a recipe; None leaves it as it is.

    Attributes:
        source: Data of the source.
        target: Data of the target.
        seed: Of all randomness.
        steps: Optimiser steps.
        batch: Images a step from each domain.
        device: Where to compute.
        precision: Of the network's arithmetic.
        workers: Loader processes.
        tensorboard: `require` or `never`.
        keep_best: Criterion by which the best checkpoint is kept.
        compile: Compile the networks.
        deterministic: Only kernels that give the same bits each time.
    """

    source: str | None = None
    target: str | None = None
    seed: int | None = None
    steps: int | None = None
    batch: int | None = None
    device: str | None = None
    precision: str | None = None
    workers: int | None = None
    tensorboard: str | None = None
    keep_best: str | None = None
    compile: bool | None = None
    deterministic: bool | None = None

    def overrides(self) -> list[str]:
        """Return the options as `KEY=VALUE`; text is quoted, so it stays text."""
        keys = {
            "source": ("source.data",),
            "target": ("target.data",),
            "batch": ("batch.source", "batch.target"),
            "device": ("machine.device",),
            "precision": ("machine.precision",),
            "workers": ("machine.workers",),
            "tensorboard": ("machine.tensorboard",),
            "keep_best": ("machine.keep_best",),
            "compile": ("machine.compile",),
            "deterministic": ("machine.deterministic",),
        }
        return [
            f"{key}={json.dumps(value, ensure_ascii=False)}"
            for name, value in vars(self).items()
            if value is not None
            for key in keys.get(name, (name,))
        ]


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the RECIPE among the words, if any, and the `KEY=VALUE` overrides.

    Raises:
        UsageError: More than one word is no override.
    """
    overrides = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    rest = [word for word in words if word not in overrides]
    if len(rest) > 1:
        shown = " ".join(map(clipped, rest))
        raise UsageError(f"one RECIPE at most, got {shown}; an override is written KEY=VALUE")
    return (rest[0] if rest else None), overrides


def scores_another_target(
    recipe: Recipe, own: tuple[str | None, str | None], words: Sequence[str]
) -> bool:
    """Return whether the recipe's validation data say nothing about what the user trains on.

    A target that the user brings need not have labels, and those of the recipe's own target say
    nothing about it; `validation.data=...` scores what the user asks for.

    Args:
        recipe: With all overrides.
        own: Source and target data that the recipe's file names.
        words: The overrides.
    """
    if recipe.validation.data is None:
        return False
    if any(word.startswith(("validation=", "validation.data=")) for word in words):
        return False
    own_source, own_target = own
    others_source = recipe.method.kind == "source_only" and recipe.source.data != own_source
    return recipe.target.data != own_target or others_source


def requested(
    words: Sequence[str],
    everyday: Everyday,
    default_method: str,
    method: str | None = None,
    resume: Path | None = None,
) -> tuple[Recipe, Path]:
    """Return the recipe that the user asks for, and its file.

    Args:
        words: RECIPE and `KEY=VALUE` in any order.
        everyday: Options that become overrides.
        default_method: Method when neither RECIPE nor `method` is given.
        method: The user's `--method`.
        resume: A run folder; its recipe is the one to continue.

    Raises:
        UsageError: The words contradict each other.
        RecipeError: The recipe, or an override, is wrong.
    """
    named, overrides = split_words(words)
    if resume is not None:
        if named is not None or method is not None:
            other = clipped(named) if named is not None else "--method"
            raise UsageError(f"--resume takes the recipe of the run; leave out {other}")
        path = resume / "recipe.yaml"
        if not path.is_file():
            raise UsageError(
                f"{clipped(str(resume), 300)}: not a run folder, it has no recipe.yaml; --init "
                "CHECKPOINT starts a new run from weights"
            )
    elif named is None:
        path = choose_recipe(method or default_method, everyday.source, everyday.target)
    else:
        path = find_recipe(named)
        path = sibling(path, method) if method is not None else path
    overrides = [*everyday.overrides(), *overrides]
    recipe = load(path, overrides=overrides)
    if scores_another_target(recipe, domains(path), overrides):
        recipe = replace(recipe, validation=replace(recipe.validation, data=None))
    if recipe.expected is not None and not any(word.startswith("expected") for word in overrides):
        # what is expected was found with the file's own numbers, whatever the seed
        own = replace(load(path), seed=recipe.seed)
        if numbers_of(own) != numbers_of(recipe):
            recipe = replace(recipe, expected=None)
    return recipe, path
