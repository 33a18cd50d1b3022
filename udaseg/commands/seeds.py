"""`--seeds`: one recipe with several seeds, one after another, and what their scores come to."""

import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg.commands.run_folder import folder_of
from udaseg.commands.run_record import read_scores, score_files
from udaseg.engine import free
from udaseg.errors import DivergedError, Interrupted, PartialError, UsageError
from udaseg.recipe import Recipe, load, printable, recipe_digest
from udaseg.reporting import Scores, percent, read_json, write_json_atomic

log = logging.getLogger(__name__)

SUMMARY = "seeds.json"


@dataclass(frozen=True)
class SeedRun:
    """One finished run of several.

    Attributes:
        seed: Of the run.
        folder: Of the run.
        scores: At its end; None where nothing is scored.
    """

    seed: int
    folder: Path
    scores: Scores | None


def run_seeds(
    one: Callable[..., Path],
    seeds: Sequence[int],
    *,
    recipe: Recipe,
    out: Path | None,
    overwrite: bool,
    dry_run: bool,
    **options: Any,
) -> Path:
    """Train with each seed in a folder of its own, and return the folder of all.

    The same command again goes on: finished seeds are left as they are, one that was stopped is
    resumed. A seed whose training ends in an error does not keep the others from theirs.

    Args:
        one: `train` or `adapt`, called once for each seed.
        seeds: In order.
        recipe: Its own seed is replaced.
        out: The folder; None takes one below `runs/`.
        overwrite: Begin every seed anew.
        dry_run: Say the plan of the first.
        options: Handed on to `one`.

    Raises:
        UsageError: A finished seed was made with another recipe; or there are several processes.
        Interrupted: A signal came; what was done is saved.
        PartialError: Some seeds diverged; the others are finished.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--seeds runs in one process; start torchrun once for each --seed")
    folder = out or _folder(recipe)
    if (folder / "recipe.yaml").is_file():
        raise UsageError(f"{folder}: is the run of one seed; take another --out for --seeds")
    failed: dict[int, str] = {}
    for seed in seeds:
        own, where = replace(recipe, seed=seed), folder / f"s{seed}"
        words = {**options, "recipe": own, "dry_run": dry_run}
        if dry_run:
            one(**words, out=where, resume=None, overwrite=overwrite)
            return folder
        if not overwrite and _is_done(where, own):
            log.info("seed %d: is finished, in %s", seed, where)
            continue
        begun = not overwrite and (where / "recipe.yaml").is_file()
        log.info("seed %d: %s %s", seed, "goes on in" if begun else "begins in", where)
        try:
            if begun:
                one(**{**words, "init": None}, out=None, resume=where, overwrite=False)
            else:
                one(**words, out=where, resume=None, overwrite=overwrite)
        except Interrupted as stop:
            _summarise(folder, recipe, seeds, failed)
            raise Interrupted(
                f"{stop}\nthe same command goes on with seed {seed}, and then with the others",
                stop.exit_code - 128,
            ) from stop
        except DivergedError as error:
            log.error("seed %d: %s", seed, error)
            failed[seed] = str(error).partition("\n")[0]
        free()
        _summarise(folder, recipe, seeds, failed)
    runs = _summarise(folder, recipe, seeds, failed)
    _show(folder, runs)
    if failed:
        named = "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise PartialError(f"{len(failed)} of {len(seeds)} seeds did not finish: {named}")
    return folder


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, standard deviation over seeds (n - 1), least and most; NaN is left out."""
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


def _folder(recipe: Recipe) -> Path:
    named = folder_of(recipe, None)
    return named.with_name(named.name.removesuffix(f"-s{recipe.seed}") + "-seeds")


def _is_done(where: Path, recipe: Recipe) -> bool:
    """Return whether a seed's run is finished.

    Raises:
        UsageError: It is, but of another recipe.
    """
    if read_json(where / "status.json").get("state") != "done":
        return False
    if recipe_digest(load(where / "recipe.yaml")) != recipe_digest(recipe):
        raise UsageError(
            f"{where}: is finished, but with another recipe; take another --out, or --overwrite to "
            "make all seeds anew"
        )
    return True


def _summarise(
    folder: Path, recipe: Recipe, seeds: Sequence[int], failed: Mapping[int, str]
) -> list[SeedRun]:
    """Write `seeds.json` of what is finished, and return it."""
    runs = []
    for seed in seeds:
        where = folder / f"s{seed}"
        if read_json(where / "status.json").get("state") == "done":
            found = next(iter(score_files(where).values()), None)
            runs.append(SeedRun(seed, where, None if found is None else read_scores(found, [])))
    scored = [run for run in runs if run.scores is not None]
    write_json_atomic(
        folder / SUMMARY,
        {
            "recipe": recipe.name,
            "seeds": list(seeds),
            "finished": {str(run.seed): run.folder.name for run in runs},
            "failed": {str(seed): reason for seed, reason in failed.items()},
            "means": {name: spread(values) for name, values in means_of(scored).items()},
            "classes": {name: spread(values) for name, values in classes_of(scored).items()},
            "each": {
                str(run.seed): {
                    "means": dict(run.scores.means),
                    "classes": dict(zip(run.scores.names, run.scores.iou, strict=True)),
                }
                for run in scored
                if run.scores is not None
            },
        },
    )
    return runs


def means_of(runs: Sequence[SeedRun]) -> dict[str, list[float]]:
    """Return the mean IoUs of each run by their names."""
    return _gathered([run.scores.means for run in runs if run.scores is not None])


def classes_of(runs: Sequence[SeedRun]) -> dict[str, list[float]]:
    """Return the IoU of each class in each run."""
    return _gathered(
        [
            dict(zip(run.scores.names, run.scores.iou, strict=True))
            for run in runs
            if run.scores is not None
        ]
    )


def _gathered(parts: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {name: [part.get(name, math.nan) for part in parts] for name in names}


def _show(folder: Path, runs: Sequence[SeedRun]) -> None:
    """Print mean and spread over the seeds, by class and over all."""
    console = Console(highlight=False, soft_wrap=True)
    scored = [run for run in runs if run.scores is not None]
    if scored:
        table = Table(title=f"IoU in percent over {len(scored)} seeds", title_justify="left")
        table.add_column("class")
        for name in ("mean", "spread", *(f"seed {run.seed}" for run in scored)):
            table.add_column(name, justify="right")
        means = means_of(scored)
        for name, values in {**classes_of(scored), **means}.items():
            told = spread(values)
            row = [_percent(told["mean"]), _percent(told["spread"]), *map(percent, values)]
            style = "bold" if name in means else None
            table.add_row(Text(printable(name)), *row, style=style)
        console.print(table)
        console.print(Text("spread: standard deviation over the seeds (n - 1)"))
    else:
        console.print(Text("nothing was scored: the recipe has no validation data"))
    console.print(Text(f"{len(runs)} seeds: {printable(str(folder / SUMMARY))}"))


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)
