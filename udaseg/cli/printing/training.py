"""Prints what `udaseg.train`, `udaseg.adapt` and `udaseg.run_seeds` return."""

import shlex
from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.cli.printing.scores import print_scores
from udaseg.cli.printing.worth import print_worth
from udaseg.display.console import print_line, safe_text, show_table
from udaseg.recipe.stages import adapts
from udaseg.text import count_text, percent

if TYPE_CHECKING:
    from udaseg import Run, Scores, SeedRuns
    from udaseg.recipe.schema import Recipe


def print_run(run: "Run", scores: "Scores | None") -> None:
    """Print the final scores of a run, where it is, and the commands to use next."""
    if scores is not None:
        print_scores(scores)
    recipe, path = run.recipe, shlex.quote(str(run.path))
    worth = run.worth
    if worth is not None:
        print_worth(worth)
    print_line(f"{recipe.name}: done, in {path}")
    if recipe.validation.data is not None:
        print_line(f"  udaseg eval {path}")
    print_line(f"  udaseg report {path}")
    print_line(f"  udaseg predict IMAGES --checkpoint {path}")
    if worth is None and adapts(recipe):
        print_line(f"  udaseg select --worth-it {path} --baseline SOURCE_ONLY_RUN")


def print_recipe(recipe: "Recipe") -> None:
    """Print a recipe as YAML."""
    from udaseg.recipe.load import dump

    print_line(dump(recipe).rstrip())


def print_seeds(seeds: "SeedRuns") -> None:
    """Print mean and spread over the seeds, for each class and each mean."""
    if seeds.scored:
        show_table(_seed_table(seeds))
        print_line("spread: standard deviation over the seeds (n - 1)")
    else:
        print_line("nothing was scored: the recipe has no validation data")
    print_line(f"{count_text(len(seeds.runs), 'seed')}: {seeds.summary_path}")


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
