"""Finds a head by its name in a recipe.

A new one is a module in this folder with its class as `HEAD`, and the module's name in `HeadName`
of `udaseg/recipe/choices.py`.
"""

from importlib import import_module

from udaseg.models.heads.head import Head
from udaseg.recipe.choices import HeadName


def head_class(name: HeadName) -> type[Head]:
    """Return the class of a head."""
    head: type[Head] = import_module(f"udaseg.models.heads.{name}").HEAD
    return head
