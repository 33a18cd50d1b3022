"""Whether two recipes make the same numbers: everything but the machine and what is expected."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from udaseg.recipe.load import to_dict
from udaseg.recipe.machine import Machine
from udaseg.recipe.schema import Recipe


def numbers_of(recipe: Recipe) -> dict[str, Any]:
    """Return what the numbers of a run hang on, as plain values."""
    # the precision belongs to the machine, but it changes every number
    machine = Machine(precision=recipe.machine.precision)
    return to_dict(replace(recipe, machine=machine, expected=None))


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of a recipe's numbers, the same however the file is written."""
    text = json.dumps(numbers_of(recipe), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
