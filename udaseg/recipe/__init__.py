"""Recipes: what a run is, in one YAML file. No torch in here.

`Recipe` and its sections are frozen dataclasses; `load` reads a file with overrides and reports
every fault at once; the library holds the shipped recipes.
"""

from udaseg.recipe.hints import close
from udaseg.recipe.library import (
    RecipeEntry,
    choose_recipe,
    find_recipe,
    list_recipes,
    methods,
    recipes_folder,
)
from udaseg.recipe.load import dump, expand_path, from_dict, load, to_dict
from udaseg.recipe.request import Everyday, requested, scores_another_target, split_words
from udaseg.recipe.schema import (
    BatchSize,
    Domain,
    Machine,
    Method,
    Mixing,
    Model,
    Optimizer,
    Projector,
    Prototypes,
    Recipe,
    Regional,
    SelfTraining,
    SourceOnly,
    StrongAugmentation,
    Teacher,
    Validation,
)
from udaseg.recipe.text import printable

__all__ = [
    "BatchSize",
    "Domain",
    "Everyday",
    "Machine",
    "Method",
    "Mixing",
    "Model",
    "Optimizer",
    "Projector",
    "Prototypes",
    "Recipe",
    "RecipeEntry",
    "Regional",
    "SelfTraining",
    "SourceOnly",
    "StrongAugmentation",
    "Teacher",
    "Validation",
    "choose_recipe",
    "close",
    "dump",
    "expand_path",
    "find_recipe",
    "from_dict",
    "list_recipes",
    "load",
    "methods",
    "printable",
    "recipes_folder",
    "requested",
    "scores_another_target",
    "split_words",
    "to_dict",
]
