"""Tells whether two recipes give the same numbers, ignoring the machine and expected scores."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from udaseg.recipe.load import to_dict
from udaseg.recipe.machine import Machine
from udaseg.recipe.schema import Recipe


def numbers_of(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that determine the numbers of a run, as plain values."""
    # precision is a setting of the machine, but it changes every number
    machine = Machine(precision=recipe.machine.precision)
    return to_dict(replace(recipe, machine=machine, expected=None))


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of `numbers_of`; the formatting of the file does not change it."""
    text = json.dumps(numbers_of(recipe), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
