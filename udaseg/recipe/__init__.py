"""Recipes: all settings of a run in one YAML file. Does not import torch.

`Recipe` and its sections are frozen dataclasses. `load` reads a file with overrides and reports all
errors at once. `list_recipes` and `find_recipe` access the shipped recipes.
"""
