"""Open data as a run sees them: with the bits that the run reads 16-bit images by."""

from dataclasses import replace
from pathlib import Path

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.datasets.joined import join_datasets
from udaseg.data.open import open_dataset
from udaseg.recipe.schema import Recipe


def bits_of_run(recipe: Recipe) -> int | None:
    """Return the bits of 16-bit images that no `prepare` has seen; None if the run knows none."""
    return recipe.target.bits or recipe.source.bits


def open_source(recipe: Recipe, *, root: Path) -> PreparedDataset:
    """Return the source of a run, of several data sets as one; see `open_run_data`."""
    return join_datasets([open_run_data(recipe, name, root=root) for name in recipe.source.sets])


def open_run_data(recipe: Recipe, data: str, *, root: Path) -> PreparedDataset:
    """Return the data set that `data` means, to be read as the run of `recipe` reads it.

    Its own source and target are read by their bits in the recipe, other data by what `prepare`
    found, and what no `prepare` has seen by the bits of the run. See `open_dataset`.
    """
    dataset = open_dataset(data, root=root)
    own = [domain.bits for domain in (recipe.target, recipe.source) if data in domain.sets]
    known = next((bits for bits in (*own, dataset.bits) if bits is not None), None)
    return replace(dataset, bits=bits_of_run(recipe) if known is None else known)
