"""`udaseg sweep`: train a recipe with several values and seeds, and compare the scores."""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.errors import PartialError, UsageError
from udaseg.experiments.compare import compare_runs
from udaseg.experiments.curve import curve_svg
from udaseg.experiments.seeds import SeedRuns, checked_seeds, run_seeds
from udaseg.experiments.settings import SweepSetting, Values, settings_of, split_values
from udaseg.experiments.table import RunTable
from udaseg.files import read_json, write_json, write_text
from udaseg.recipe.schema import Recipe
from udaseg.runs.folder import default_run_folder
from udaseg.runs.groups import SWEEP_FILE, SweepRecord, refuse_other_folder, refuse_other_runs
from udaseg.text import count_text
from udaseg.training.train import StrPath, TrainOptions, everyday_options, read_recipe

log = logging.getLogger(__name__)
CURVE = "curve.svg"


@dataclass(frozen=True)
class Sweep:
    """Runs of all settings of a sweep.

    Attributes:
        path: Folder of all runs, of `sweep.json`, and of the table.
        settings: All settings, in the order of the table.
        runs: The seeds of each setting; empty after a dry run.
        table: The scores, with the differences to the first setting; None if nothing was scored.
        curve: The picture of the first mean over the values; None without values to draw.
    """

    path: Path
    settings: tuple[SweepSetting, ...]
    runs: tuple[SeedRuns, ...] = ()
    table: RunTable | None = None
    curve: Path | None = None

    def raise_if_failed(self) -> None:
        """Raise an error with all reasons if a seed of a setting diverged.

        Raises:
            PartialError: Some seeds diverged; the others are finished.
        """
        reasons = [
            f"{setting.name}, seed {seed}: {reason}"
            for setting, seeds in zip(self.settings, self.runs, strict=False)
            for seed, reason in seeds.failed.items()
        ]
        if reasons:
            raise PartialError(
                f"{count_text(len(reasons), 'run')} did not finish: {'; '.join(reasons)}"
            )


def sweep(
    recipes: StrPath | Recipe | Sequence[StrPath | Recipe],
    values: Values = (),
    *,
    each: Values = (),
    seeds: Sequence[int] | None = None,
    network: StrPath | Sequence[StrPath] | None = None,
    overrides: Mapping[str, object] | None = None,
    out: StrPath | None = None,
    options: TrainOptions | None = None,
) -> Sweep:
    """Train all combinations of recipes and values with each seed, and compare their scores.

    All recipes, and those of runs in `out`, are checked before the first run. The same call again
    continues: finished runs are skipped, an interrupted one is resumed. The folder of each setting
    is one of `run_seeds`. A seed that diverges does not stop the others.

    Args:
        recipes: One or several of what `adapt` takes.
        values: Values of each key to combine: `{"method.regional.temperature": [0.1, 0.5]}`, or
            words as on the command line: `["method.regional.temperature=0.1,0.5"]`.
        each: Changes, written in the same way, that are made one at a time, beside the recipe as
            it is.
        seeds: Seeds of each setting; None takes that of the first recipe.
        network: A network that is put over each recipe, or several: each recipe with each of them.
        overrides: Other settings, by dotted name, for all runs.
        out: Folder of all runs; None takes one below `runs/`.
        options: Data, weights and start of the runs. `dry_run` shows the plan of the first.

    Raises:
        UsageError: Arguments contradict each other, or a finished run had another recipe.
        RecipeError: A recipe or a combination is wrong.
        Interrupted: A signal was received; the completed steps are saved.

    Example:
        temperatures = udaseg.sweep(
            "toyland/rccr", {"method.regional.temperature": [0.07, 0.1, 0.5]}, seeds=[0, 1, 2]
        )
        print(temperatures.table.to_markdown())
        ablation = udaseg.sweep(
            "toyland/rccr", each={"method.regional.negative_sampling": [False]}
        )
    """
    options = options or TrainOptions()
    several = [recipes] if isinstance(recipes, str | os.PathLike | Recipe) else list(recipes)
    if not several:
        raise UsageError("give one or more recipes")
    networks = (
        [network] if network is None or isinstance(network, str | os.PathLike) else [*network]
    )
    changes = [everyday_options(network=each) for each in networks]
    pairs = itertools.product(several, changes)
    chosen = [read_recipe(recipe, change, overrides, options) for recipe, change in pairs]
    settings = settings_of(chosen, split_values(values), split_values(each))
    seeds = checked_seeds(seeds if seeds is not None else (chosen[0][0].seed,))
    folder = _folder(chosen[0][0] if len(chosen) == 1 else None, out)
    if options.dry_run:
        run_seeds(seeds, settings[0].recipe, out=folder / settings[0].folder, options=options)
        return Sweep(folder, settings)
    for setting in settings:
        place, start = folder / setting.folder, options.init
        refuse_other_runs(place, setting.recipe, seeds, init=start, overwrite=options.overwrite)
    runs: list[SeedRuns] = []
    _write_record(folder, settings, runs)
    for number, setting in enumerate(settings, 1):
        log.info("setting %d of %d: %s", number, len(settings), setting.name)
        place = folder / setting.folder
        runs.append(run_seeds(seeds, setting.recipe, out=place, options=options))
        _write_record(folder, settings, runs)
    return _with_results(Sweep(folder, settings, tuple(runs)))


def _folder(recipe: Recipe | None, out: StrPath | None) -> Path:
    """Return the folder of a sweep of this recipe, or of several."""
    folder = Path("runs/sweep") if out is None else Path(out)
    if out is None and recipe is not None:
        folder = default_run_folder(recipe, "sweep")
    refuse_other_folder(folder, SWEEP_FILE)
    return folder


def _write_record(folder: Path, settings: Sequence[SweepSetting], runs: Sequence[SeedRuns]) -> None:
    """Write `sweep.json`: all settings, and the results of those whose seeds have run.

    Settings of an earlier call in the same folder follow as they were.
    """
    names = {each.folder for each in settings}
    known: list[Any] = [*read_json(folder / SWEEP_FILE, SweepRecord).get("settings", [])]
    earlier = [row for row in known if row["folder"] not in names]
    rows: list[dict[str, Any]] = [
        {"name": each.name, "folder": each.folder, "values": each.values, "change": each.each}
        for each in settings
    ]
    for row, seeds in zip(rows, runs, strict=False):
        row["means"] = {name: score.to_json() for name, score in seeds.means.items()}
        row["failed"] = seeds.failed
    write_json(folder / SWEEP_FILE, {"settings": [*rows, *earlier]})


def _with_results(finished: Sweep) -> Sweep:
    """Write the table and the curve, and return the sweep with them."""
    if not any(seeds.scored for seeds in finished.runs):
        return finished
    scored = [seeds.path for seeds in finished.runs if seeds.scored]
    baseline = scored[0] if len(scored) > 1 else None
    table = compare_runs(finished.path, baseline=baseline)
    write_text(finished.path / "table.csv", table.to_csv())
    write_text(finished.path / "table.md", table.to_markdown() + "\n")
    picture = _curve(finished)
    if picture is not None:
        write_text(finished.path / CURVE, picture)
    curve = None if picture is None else finished.path / CURVE
    return Sweep(finished.path, finished.settings, finished.runs, table, curve)


def _curve(finished: Sweep) -> str | None:
    """Return the first mean over the first key with several values, one line for all else."""
    swept: dict[str, dict[str, None]] = {}
    for setting in finished.settings:
        for key, value in setting.values.items():
            swept.setdefault(key, {})[value] = None
    keys = [key for key, several in swept.items() if len(several) > 1]
    means = next((list(seeds.means) for seeds in finished.runs if seeds.means), [])
    if not keys or not means:
        return None
    key = keys[0]
    lines: dict[str, dict[str, tuple[float, ...]]] = {}
    for setting, seeds in zip(finished.settings, finished.runs, strict=True):
        value = setting.values[key]
        rest = [
            f"{other.rpartition('.')[2]}={each}"
            for other, each in setting.values.items()
            if other in keys[1:]
        ]
        name = " ".join([setting.recipe.name, *rest, *([setting.each] if setting.each else [])])
        if means[0] in seeds.means:
            lines.setdefault(name, {})[value] = seeds.means[means[0]].values
    return curve_svg(key, f"{means[0]} %", list(swept[key]), lines)
