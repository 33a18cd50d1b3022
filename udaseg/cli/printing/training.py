"""Prints what `udaseg.train`, `udaseg.adapt` and `udaseg.run_seeds` return."""

import shlex
from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.cli.printing.scores import print_scores
from udaseg.cli.printing.worth import print_worth
from udaseg.display.console import open_console, safe_text, show_table
from udaseg.recipe.stages import adapts
from udaseg.text import count_text, percent

if TYPE_CHECKING:
    from udaseg import Run, Scores, SeedRuns
    from udaseg.recipe.schema import Recipe


def print_run(run: "Run", scores: "Scores | None") -> None:
    """Print the final scores of a run, where it is, and the commands to use next."""
    if scores is not None:
        print_scores(scores)
    recipe, console = run.recipe, open_console(soft_wrap=True)
    path = shlex.quote(str(run.path))
    worth = run.worth
    if worth is not None:
        print_worth(worth)
    console.print(safe_text(f"{recipe.name}: done, in {path}"))
    if recipe.validation.data is not None:
        console.print(safe_text(f"  udaseg eval {path}"))
    console.print(safe_text(f"  udaseg report {path}"))
    console.print(safe_text(f"  udaseg predict IMAGES --checkpoint {path}"))
    if worth is None and adapts(recipe):
        console.print(safe_text(f"  udaseg select --worth-it {path} --baseline SOURCE_ONLY_RUN"))


def print_recipe(recipe: "Recipe") -> None:
    """Print a recipe as YAML."""
    from udaseg.recipe.load import dump

    open_console(soft_wrap=True).print(safe_text(dump(recipe).rstrip()))


def print_seeds(seeds: "SeedRuns") -> None:
    """Print mean and spread over the seeds, for each class and each mean."""
    console = open_console(soft_wrap=True)
    if seeds.scored:
        show_table(_seed_table(seeds))
        console.print(safe_text("spread: standard deviation over the seeds (n - 1)"))
    else:
        console.print(safe_text("nothing was scored: the recipe has no validation data"))
    console.print(safe_text(f"{count_text(len(seeds.runs), 'seed')}: {seeds.summary_path}"))


def _seed_table(seeds: "SeedRuns") -> Table:
    title = f"IoU in percent over {count_text(len(seeds.scored), 'seed')}"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in ("mean", "spread", *(f"seed {seed}" for seed in seeds.scored)):
        table.add_column(name, justify="right")
    means = seeds.means
    for name, score in {**seeds.iou, **means}.items():
        summary = ("-" if value is None else percent(value) for value in (score.mean, score.spread))
        style = "bold" if name in means else None
        table.add_row(safe_text(name), *summary, *map(percent, score.values), style=style)
    return table
