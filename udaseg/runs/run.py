"""A run on disk, as Python users receive it."""

import os
from dataclasses import dataclass
from pathlib import Path

from udaseg.errors import DataError
from udaseg.recipe.load import load
from udaseg.recipe.schema import Recipe
from udaseg.runs.manifests import list_manifests
from udaseg.runs.records import read_status
from udaseg.runs.scores import Scores, read_evaluations
from udaseg.runs.worth import Worth, read_worth


@dataclass(frozen=True, repr=False)
class Run(os.PathLike[str]):
    """A run folder: what was trained, its checkpoints, and its scores.

    It is a path: every function that takes a run folder takes a `Run`. Nothing is read before it is
    asked for, and everything is read anew each time.

    Args:
        path: The run folder.

    Example:
        run = udaseg.Run("runs/city-rccr")
        run.finished, run.recipe.steps, run.scores["city-val"].miou
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def finished(self) -> bool:
        """Whether all steps are trained and scored."""
        return read_status(self.path).get("state") == "done"

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run was trained with.

        Raises:
            RecipeError: The file is missing or damaged.
        """
        return load(self.path / "recipe.yaml", stored=True)

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        manifests = reversed(list_manifests(self.path / "checkpoints"))
        return [path.with_suffix(".pt") for path in manifests]

    @property
    def scores(self) -> dict[str, Scores]:
        """The evaluations of the run by name, such as `toyland-target-val`; plain ones first.

        Raises:
            DataError: A score file cannot be read.
        """
        problems: list[str] = []
        scores = read_evaluations(self.path, problems)
        if problems:
            raise DataError(f"{self.path}: {problems[0]}; run `udaseg eval` again")
        return scores

    @property
    def worth(self) -> Worth | None:
        """Whether the adaptation was worth it; None if it was not compared, see `worth_it`."""
        return read_worth(self.path)
