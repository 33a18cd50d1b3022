"""The images that a figure is made of."""

import os
from dataclasses import replace
from pathlib import Path

from udaseg.errors import DataError
from udaseg.inference.run_data import open_run_data
from udaseg.recipe.schema import Recipe
from udaseg.selection.images import ImageSet, choose_images


def target_images(
    recipe: Recipe,
    data: str | os.PathLike[str] | None,
    split: str | None,
    limit: int,
    root: str | os.PathLike[str],
) -> ImageSet:
    """Return at most `limit` evenly spaced images of the target.

    Args:
        recipe: Recipe of the run.
        data: Data set, dataset YAML or folder of images; None takes the validation data of the
            recipe, else its target.
        split: Split of the data; None takes that of the recipe or, for `data`, `val` if it has one.
        limit: Maximum number of images.
        root: Folder of the prepared data.
    """
    own = recipe.target if recipe.validation.data is None else recipe.validation
    name = own.data if data is None else os.fspath(data)
    assert name is not None
    dataset = open_run_data(recipe, name, root=Path(root))
    if split is None and data is None:
        split = own.split
    elif split is None:
        split = "val" if "val" in dataset.splits else next(iter(dataset.splits))
    return choose_images(dataset, split, limit)


def pick_images(images: ImageSet, parts: tuple[str, ...]) -> ImageSet:
    """Return, for each of `parts`, the image whose name has it; the first if there are several."""
    chosen = []
    for part in parts:
        found = next((sample for sample in images.samples if part in sample.image), None)
        if found is None:
            name = images.dataset.name
            raise DataError(f"{name}: no image of split '{images.split}' has '{part}' in its name")
        chosen.append(found)
    splits = {**images.dataset.splits, images.split: tuple(chosen)}
    return ImageSet(replace(images.dataset, splits=splits), images.split)
