"""Recipes: all settings of a run in one YAML file. Does not import torch.

`Recipe` and its sections are frozen dataclasses. `load` reads a file with overrides and reports all
errors at once. `list_recipes` and `find_recipe` access the shipped recipes.
"""

from udaseg.recipe.domain import Domain, RareClass
from udaseg.recipe.hints import close
from udaseg.recipe.identity import numbers_of, recipe_digest
from udaseg.recipe.legs import Leg, adapts, leg_at, legs, network_of
from udaseg.recipe.library import (
    RecipeEntry,
    choose_recipe,
    find_recipe,
    list_recipes,
    methods,
    recipes_folder,
)
from udaseg.recipe.load import dump, expand_path, from_dict, load, to_dict
from udaseg.recipe.machine import Machine
from udaseg.recipe.method import (
    Adversarial,
    EntropyMinimization,
    Method,
    Mixing,
    PrototypeAlignment,
    PseudoLabelling,
    SelfDistillation,
    SelfTraining,
    SourceOnly,
    Stage,
    Staged,
    StageTarget,
    StrongAugmentation,
    Teacher,
)
from udaseg.recipe.request import Everyday, requested, scores_another_target, split_words
from udaseg.recipe.schema import (
    BatchSize,
    Expected,
    Model,
    Optimizer,
    Recipe,
    Validation,
)
from udaseg.recipe.terms import Projector, Prototypes, Regional, Semantic
from udaseg.recipe.text import printable

__all__ = [
    "Adversarial",
    "BatchSize",
    "Domain",
    "EntropyMinimization",
    "Everyday",
    "Expected",
    "Leg",
    "Machine",
    "Method",
    "Mixing",
    "Model",
    "Optimizer",
    "Projector",
    "PrototypeAlignment",
    "Prototypes",
    "PseudoLabelling",
    "RareClass",
    "Recipe",
    "RecipeEntry",
    "Regional",
    "SelfDistillation",
    "SelfTraining",
    "Semantic",
    "SourceOnly",
    "Stage",
    "StageTarget",
    "Staged",
    "StrongAugmentation",
    "Teacher",
    "Validation",
    "adapts",
    "choose_recipe",
    "close",
    "dump",
    "expand_path",
    "find_recipe",
    "from_dict",
    "leg_at",
    "legs",
    "list_recipes",
    "load",
    "methods",
    "network_of",
    "numbers_of",
    "printable",
    "recipe_digest",
    "recipes_folder",
    "requested",
    "scores_another_target",
    "split_words",
    "to_dict",
]
