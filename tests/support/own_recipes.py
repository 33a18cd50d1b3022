"""Data for the recipes of `recipes/own/`, which name none."""

from pathlib import Path

from udaseg.recipe.library import OWN_FOLDER


def own_data(path: Path) -> list[str]:
    """Return the overrides with which a shipped recipe loads."""
    return ["source.data=mine", "target.data=photos"] if path.parent.name == OWN_FOLDER else []
