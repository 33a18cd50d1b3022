"""`--seeds`: train one recipe with several seeds in turn, and summarise their scores."""

import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from udaseg.display.console import open_console, safe_text
from udaseg.errors import DivergedError, Interrupted, PartialError, UsageError
from udaseg.files import read_json, write_json
from udaseg.recipe.load import load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import recipe_digest
from udaseg.runs.folder import default_run_folder
from udaseg.runs.scores import Scores, find_score_files, read_scores
from udaseg.text import percent
from udaseg.training.memory import empty_cache
from udaseg.training.train import TrainOptions

log = logging.getLogger(__name__)
SUMMARY = "seeds.json"


@dataclass(frozen=True)
class SeedRun:
    """One finished run of several.

    Attributes:
        seed: Seed of the run.
        folder: Run folder.
        scores: Final scores; None if nothing is scored.
    """

    seed: int
    folder: Path
    scores: Scores | None


def run_seeds(
    train_one: Callable[[TrainOptions], Path], seeds: Sequence[int], options: TrainOptions
) -> Path:
    """Train with each seed in its own folder, and return the folder of all runs.

    The same command again continues: finished seeds are skipped, an interrupted one is resumed. If
    a seed diverges, the other seeds are still trained.

    Args:
        train_one: `train` or `adapt`, called once for each seed.
        seeds: In order.
        options: For each run, apart from the seed. `out` is the folder of all runs; `dry_run`
            prints only the plan of the first seed.

    Raises:
        UsageError: A finished seed was trained with another recipe, or there are several processes.
        Interrupted: A signal was received; the completed steps are saved.
        PartialError: Some seeds diverged; the others are finished.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--seeds runs in one process; start torchrun once for each --seed")
    recipe, folder = options.recipe, options.out or _default_folder(options.recipe)
    if (folder / "recipe.yaml").is_file():
        raise UsageError(f"{folder}: is a run of a single seed; use another --out for --seeds")
    failed: dict[int, str] = {}
    for seed in seeds:
        seed_options = replace(
            options, recipe=replace(recipe, seed=seed), out=folder / f"s{seed}", resume=None
        )
        if options.dry_run:
            train_one(seed_options)
            return folder
        try:
            if not _train_seed(train_one, seed_options):
                continue
        except Interrupted as interruption:
            _write_summary(folder, recipe, seeds, failed)
            raise Interrupted(
                f"{interruption}\nrun the same command again to continue with "
                f"seed {seed} and the remaining seeds",
                interruption.exit_code - 128,
            ) from interruption
        except DivergedError as error:
            log.error("seed %d: %s", seed, error)
            failed[seed] = str(error).partition("\n")[0]
        empty_cache()
        _write_summary(folder, recipe, seeds, failed)
    _print_summary(folder, _write_summary(folder, recipe, seeds, failed))
    _raise_if_any_failed(seeds, failed)
    return folder


def _raise_if_any_failed(seeds: Sequence[int], failed: Mapping[int, str]) -> None:
    if failed:
        reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise PartialError(f"{len(failed)} of {len(seeds)} seeds did not finish: {reasons}")


def _train_seed(train_one: Callable[[TrainOptions], Path], options: TrainOptions) -> bool:
    """Train or resume the run of a seed; return False if it is finished already."""
    seed, run_folder = options.recipe.seed, options.out
    assert run_folder is not None
    if not options.overwrite and _is_finished(run_folder, options.recipe):
        log.info("seed %d: finished already, in %s", seed, run_folder)
        return False
    if not options.overwrite and (run_folder / "recipe.yaml").is_file():
        log.info("seed %d: resumes in %s", seed, run_folder)
        train_one(replace(options, out=None, resume=run_folder, init=None))
    else:
        log.info("seed %d: starts in %s", seed, run_folder)
        train_one(options)
    return True


def seed_statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, standard deviation (n - 1), minimum and maximum over seeds, without NaN."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return {"seeds": 0, "mean": None, "spread": None, "least": None, "most": None}
    return {
        "seeds": len(known),
        "mean": statistics.fmean(known),
        "spread": statistics.stdev(known) if len(known) > 1 else None,
        "least": min(known),
        "most": max(known),
    }


def _default_folder(recipe: Recipe) -> Path:
    single_run = default_run_folder(recipe, None)
    return single_run.with_name(single_run.name.removesuffix(f"-s{recipe.seed}") + "-seeds")


def _is_finished(run_folder: Path, recipe: Recipe) -> bool:
    """Return whether the run of a seed is finished.

    Raises:
        UsageError: It is finished, but with another recipe.
    """
    if read_json(run_folder / "status.json").get("state") != "done":
        return False
    if recipe_digest(load(run_folder / "recipe.yaml")) != recipe_digest(recipe):
        raise UsageError(
            f"{run_folder}: is finished, but with another recipe; use another --out, or "
            "--overwrite to train all seeds again"
        )
    return True


def _write_summary(
    folder: Path, recipe: Recipe, seeds: Sequence[int], failed: Mapping[int, str]
) -> list[SeedRun]:
    """Write `seeds.json` for the finished runs, and return them."""
    runs = []
    for seed in seeds:
        run_folder = folder / f"s{seed}"
        if read_json(run_folder / "status.json").get("state") == "done":
            score_file = next(iter(find_score_files(run_folder).values()), None)
            runs.append(
                SeedRun(
                    seed, run_folder, None if score_file is None else read_scores(score_file, [])
                )
            )
    scored = [run for run in runs if run.scores is not None]
    write_json(
        folder / SUMMARY,
        {
            "recipe": recipe.name,
            "seeds": list(seeds),
            "finished": {str(run.seed): run.folder.name for run in runs},
            "failed": {str(seed): reason for seed, reason in failed.items()},
            "means": {
                name: seed_statistics(values) for name, values in means_by_name(scored).items()
            },
            "classes": {
                name: seed_statistics(values) for name, values in class_ious_by_name(scored).items()
            },
            "each": {
                str(run.seed): {
                    "means": dict(run.scores.means),
                    "classes": dict(run.scores.iou),
                }
                for run in scored
                if run.scores is not None
            },
        },
    )
    return runs


def means_by_name(runs: Sequence[SeedRun]) -> dict[str, list[float]]:
    """Return the mean IoUs of each run by name."""
    return _collect_by_name([run.scores.means for run in runs if run.scores is not None])


def class_ious_by_name(runs: Sequence[SeedRun]) -> dict[str, list[float]]:
    """Return the IoU of each class in each run."""
    return _collect_by_name([run.scores.iou for run in runs if run.scores is not None])


def _collect_by_name(parts: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {name: [part.get(name, math.nan) for part in parts] for name in names}


def _print_summary(folder: Path, runs: Sequence[SeedRun]) -> None:
    """Print mean and spread over the seeds, for each class and each mean."""
    console = open_console(soft_wrap=True)
    scored = [run for run in runs if run.scores is not None]
    if scored:
        table = Table(title=f"IoU in percent over {len(scored)} seeds", title_justify="left")
        table.add_column("class")
        for name in ("mean", "spread", *(f"seed {run.seed}" for run in scored)):
            table.add_column(name, justify="right")
        means = means_by_name(scored)
        for name, values in {**class_ious_by_name(scored), **means}.items():
            summary = seed_statistics(values)
            row = [
                _format_percent(summary["mean"]),
                _format_percent(summary["spread"]),
                *map(percent, values),
            ]
            style = "bold" if name in means else None
            table.add_row(safe_text(name), *row, style=style)
        console.print(table)
        console.print(safe_text("spread: standard deviation over the seeds (n - 1)"))
    else:
        console.print(safe_text("nothing was scored: the recipe has no validation data"))
    console.print(safe_text(f"{len(runs)} seeds: {folder / SUMMARY}"))


def _format_percent(value: float | None) -> str:
    return "-" if value is None else percent(value)
