"""Open data as a run sees them: with the bits and bands that the run reads images by."""

from dataclasses import replace
from pathlib import Path

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.datasets.joined import join_datasets
from udaseg.data.files.bands import Bands
from udaseg.data.open import open_dataset
from udaseg.recipe.schema import Recipe


def bits_of_run(recipe: Recipe) -> int | None:
    """Return the bits of 16-bit images that no `prepare` has seen; None if the run knows none."""
    return recipe.target.bits or recipe.source.bits


def bands_of_run(recipe: Recipe) -> Bands | None:
    """Return the bands of TIFFs that no `prepare` has seen; None if the run knows none."""
    return recipe.target.bands or recipe.source.bands


def open_source(recipe: Recipe, *, root: Path) -> PreparedDataset:
    """Return the source of a run, of several data sets as one; see `open_run_data`."""
    return join_datasets([open_run_data(recipe, name, root=root) for name in recipe.source.sets])


def open_run_data(recipe: Recipe, data: str, *, root: Path) -> PreparedDataset:
    """Return the data set that `data` means, to be read as the run of `recipe` reads it.

    Its own source and target are read by their bits and bands in the recipe, other data by what
    `prepare` found, and what no `prepare` has seen by those of the run. See `open_dataset`.
    """
    dataset = open_dataset(data, root=root)
    own = [domain for domain in (recipe.target, recipe.source) if data in domain.sets]
    bands = next((domain.bands for domain in own if domain.bands), dataset.bands)
    if bands is None and dataset.bits is None:  # no `prepare` has seen it
        bands = bands_of_run(recipe)
    own_bits = [domain.bits for domain in own]
    known = next((bits for bits in (*own_bits, dataset.bits) if bits is not None), None)
    return replace(dataset, bits=bits_of_run(recipe) if known is None else known, bands=bands)
