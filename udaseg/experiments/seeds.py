"""`--seeds`: train one recipe with several seeds in turn, and summarise their scores."""

import logging
import math
import os
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.errors import DivergedError, Interrupted, PartialError, UsageError
from udaseg.files import write_json
from udaseg.recipe.schema import LARGEST_SEED, Recipe
from udaseg.runs.folder import default_run_folder
from udaseg.runs.groups import SEEDS_FILE, refuse_other_folder, refuse_other_runs, seed_folder
from udaseg.runs.run import Run
from udaseg.runs.scores import Scores, find_score_files, read_scores
from udaseg.text import shortened
from udaseg.training.memory import empty_cache
from udaseg.training.train import StrPath, TrainOptions, adapt, everyday_options, read_recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeedStatistics:
    """One score over the seeds.

    Attributes:
        values: The score of each scored run; NaN where it was not measured.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that measured the score; None if no seed did."""
        return statistics.fmean(self._known) if self._known else None

    @property
    def spread(self) -> float | None:
        """Standard deviation (n - 1); None for fewer than two seeds."""
        return statistics.stdev(self._known) if len(self._known) > 1 else None

    def to_json(self) -> dict[str, float | int | None]:
        """Return number of seeds, mean, spread, minimum and maximum as a JSON object."""
        return {
            "seeds": len(self._known),
            "mean": self.mean,
            "spread": self.spread,
            "least": min(self._known, default=None),
            "most": max(self._known, default=None),
        }

    @property
    def _known(self) -> list[float]:
        return [value for value in self.values if not math.isnan(value)]


@dataclass(frozen=True)
class SeedRun:
    """One finished run of several; no scores if the recipe has no validation data."""

    seed: int
    run: Run
    scores: Scores | None


@dataclass(frozen=True)
class SeedRuns:
    """Runs of one recipe with several seeds.

    Attributes:
        path: Folder of all runs and of `seeds.json`.
        recipe: The recipe, with any seed.
        seeds: All seeds, in order.
        runs: The finished runs, in the order of their seeds.
        failed: Why a seed diverged, by seed.
    """

    path: Path
    recipe: Recipe
    seeds: tuple[int, ...]
    runs: tuple[SeedRun, ...]
    failed: Mapping[int, str]

    @property
    def summary_path(self) -> Path:
        """The file with the statistics."""
        return self.path / SEEDS_FILE

    @property
    def scored(self) -> dict[int, Scores]:
        """The final scores by seed."""
        return {run.seed: run.scores for run in self.runs if run.scores is not None}

    @property
    def means(self) -> dict[str, SeedStatistics]:
        """Each mean IoU over the seeds, by name."""
        return statistics_by_name([scores.means for scores in self.scored.values()])

    @property
    def iou(self) -> dict[str, SeedStatistics]:
        """The IoU of each class over the seeds, by name."""
        return statistics_by_name([scores.iou for scores in self.scored.values()])

    def raise_if_failed(self) -> None:
        """Raise an error with all reasons if a seed diverged.

        Raises:
            PartialError: Some seeds diverged; the others are finished.
        """
        if self.failed:
            reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in self.failed.items())
            raise PartialError(
                f"{len(self.failed)} of {len(self.seeds)} seeds did not finish: {reasons}"
            )


def run_seeds(
    seeds: Sequence[int],
    recipe: StrPath | Recipe = "rccr",
    *,
    source: StrPath | Sequence[StrPath] | None = None,
    target: StrPath | None = None,
    steps: int | None = None,
    network: StrPath | None = None,
    overrides: Mapping[str, object] | None = None,
    out: StrPath | None = None,
    options: TrainOptions | None = None,
) -> SeedRuns:
    """Train with each seed in its own folder, and return the runs and their statistics.

    The same call again continues: finished seeds are skipped, an interrupted one is resumed. If a
    seed diverges, the other seeds are still trained; see `SeedRuns.failed`. The arguments are those
    of `adapt`, but `out` is the folder of all runs, and the recipe may be one for `train`.
    `options.dry_run` shows only the plan of the first seed.

    Raises:
        UsageError: A finished seed was trained with another recipe, or there are several processes.
        RecipeError: The recipe or an override is wrong.
        Interrupted: A signal was received; the completed steps are saved.

    Example:
        three = udaseg.run_seeds([0, 1, 2], "rccr", target="my_photos", out="runs/rccr")
        three.means["mIoU"].mean, three.means["mIoU"].spread
    """
    options, seeds = options or TrainOptions(), checked_seeds(seeds)
    if "seed" in (overrides or {}):
        raise UsageError("seed: give it with the other seeds, not as an override")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--seeds runs in one process; start torchrun once for each --seed")
    if options.resume is not None:
        raise UsageError("--seeds cannot be combined with --resume; the same call again continues")
    changes = everyday_options(source, target, steps, network=network)
    chosen, path = read_recipe(recipe, changes, overrides, options)
    folder = Path(out or default_run_folder(chosen, "seeds"))
    refuse_other_folder(folder, SEEDS_FILE)
    command = options.command or ["udaseg.run_seeds"]
    options = replace(options, recipe_path=path, command=command)
    if options.dry_run:
        first = replace(chosen, seed=seeds[0])
        adapt(first, out=seed_folder(folder, seeds[0]), options=options)
        return SeedRuns(folder, chosen, seeds, (), {})
    refuse_other_runs(folder, chosen, seeds, init=options.init, overwrite=options.overwrite)
    return _train_seeds(seeds, chosen, folder, options)


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return seeds that are different whole numbers.

    Raises:
        UsageError: They are not.
    """
    several = tuple(seeds) if isinstance(seeds, Iterable) else ()
    is_known = all(isinstance(seed, int) and 0 <= seed <= LARGEST_SEED for seed in several)
    if not several or len(set(several)) < len(several) or not is_known:
        raise UsageError(
            f"seeds must be one or more different whole numbers from 0 to {LARGEST_SEED}, such as "
            f"[0, 1, 2], got {shortened(repr(seeds))}"
        )
    return several


def _train_seeds(
    seeds: tuple[int, ...], recipe: Recipe, folder: Path, options: TrainOptions
) -> SeedRuns:
    """Train the seeds that are not finished, and write `seeds.json` after each."""
    failed: dict[int, str] = {}
    for seed in seeds:
        try:
            _train_seed(replace(recipe, seed=seed), seed_folder(folder, seed), options)
        except Interrupted as interruption:
            _summarise(folder, recipe, seeds, failed)
            raise Interrupted(
                f"{interruption}\nrun the same command again to continue with "
                f"seed {seed} and the remaining seeds",
                interruption.exit_code - 128,
            ) from interruption
        except DivergedError as error:
            log.error("seed %d: %s", seed, error)
            failed[seed] = str(error).partition("\n")[0]
        empty_cache()
        _summarise(folder, recipe, seeds, failed)
    result = _summarise(folder, recipe, seeds, failed)
    for each in result.runs:
        if each.scores is None and result.scored:
            log.warning(
                "%s has no scores, so mean and spread leave it out; `udaseg eval %s` scores it, if "
                "it has a checkpoint",
                each.run.path,
                shlex.quote(str(each.run.path)),
            )
    return result


def _train_seed(recipe: Recipe, folder: Path, options: TrainOptions) -> None:
    """Train or resume the run of a seed, unless it is finished."""
    seed, run = recipe.seed, Run(folder)
    if options.overwrite or not (folder / "recipe.yaml").is_file():
        log.info("seed %d: starts in %s", seed, folder)
        adapt(recipe, out=folder, options=options)
    elif not run.finished:
        log.info("seed %d: resumes in %s", seed, folder)
        adapt(recipe, options=replace(options, resume=folder, init=None))
    else:
        log.info("seed %d: finished already, in %s", seed, folder)


def _summarise(
    folder: Path, recipe: Recipe, seeds: tuple[int, ...], failed: Mapping[int, str]
) -> SeedRuns:
    """Return the finished runs, and write their statistics to `seeds.json`."""
    runs = []
    for seed in seeds:
        run = Run(seed_folder(folder, seed))
        if run.finished:
            file = next(iter(find_score_files(run.path).values()), None)
            runs.append(SeedRun(seed, run, None if file is None else read_scores(file, [])))
    result = SeedRuns(folder, recipe, seeds, tuple(runs), dict(failed))
    document = {
        "recipe": recipe.name,
        "seeds": seeds,
        "finished": {run.seed: run.run.path.name for run in runs},
        "failed": failed,
        "means": {name: score.to_json() for name, score in result.means.items()},
        "classes": {name: score.to_json() for name, score in result.iou.items()},
        "each": {
            seed: {"means": scores.means, "classes": scores.iou}
            for seed, scores in result.scored.items()
        },
    }
    write_json(result.summary_path, document)
    return result


def statistics_by_name(runs: Sequence[Mapping[str, float]]) -> dict[str, SeedStatistics]:
    """Return the statistics of every score that some run has."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: SeedStatistics(tuple(run.get(name, math.nan) for run in runs)) for name in names}
