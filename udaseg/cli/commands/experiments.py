"""The `udaseg sweep` and `udaseg table` commands."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from udaseg.cli import options
from udaseg.cli.commands.train import command_line
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import UsageError

RunTableFormat = Literal["table", "json", "md", "csv", "latex"]
RunFormat = Annotated[RunTableFormat, typer.Option("--format", help="Output format.")]


def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|KEY=A,B,C",
            help="Recipes or methods, and the values to combine; a key with one value is set for "
            "all runs.",
            show_default=False,
        ),
    ] = None,
    each: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C", help="Also train with each of these changes alone; repeatable."
        ),
    ] = None,
    seeds: options.Seeds = None,
    network: options.Networks = None,
    source: options.Source = None,
    target: options.Target = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of all runs. Default: a new one in runs/."),
    ] = None,
    root: options.Root = Path("data"),
    device: options.Device = None,
    precision: options.PrecisionOption = None,
    steps: options.Steps = None,
    batch: options.Batch = None,
    workers: options.Workers = None,
    init: options.Init = None,
    overwrite: options.Overwrite = False,
    compiled: options.Compile = None,
    deterministic: options.Deterministic = None,
    logger: options.Loggers = None,
    tensorboard: options.TensorBoard = None,
    output_format: RunFormat = "table",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print all settings and the plan of the first.")
    ] = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Train every combination of values with several seeds, and compare the scores."""
    # the recipe's schema is not needed for --help
    from udaseg.preflight import check_data, check_networks, check_sweep
    from udaseg.recipe.library import list_methods
    from udaseg.recipe.request import Overrides, requested_recipe

    set_verbosity(verbose, quiet)
    everyday = Overrides(
        source or None,
        target,
        None,
        steps,
        batch,
        device,
        precision,
        workers,
        loggers=options.chosen_loggers(logger, tensorboard),
        compile=compiled,
        deterministic=deterministic,
    )
    swept = [word for word in words or () if "=" in word and "/" not in word.partition("=")[0]]
    names = [word for word in words or () if word not in swept]
    if not names:
        raise UsageError("Missing argument 'RECIPE'; `udaseg recipes ls` lists the shipped ones")
    _refuse_swept_options(everyday.overrides(), swept)
    numbers = None if seeds is None else options.parse_seeds(seeds)
    if not dry_run:
        check_data(target, sources=source or (), root=root)
    methods = list_methods()
    recipes, networks = [], [*(network or ())] or [None]
    for name, chosen in itertools.product(names, networks):
        named, changed = [] if name in methods else [name], replace(everyday, network=chosen)
        recipes.append(requested_recipe(named, changed, name)[0])
    varied = any("adapters" in word for word in (*swept, *(each or ())))
    given = any(recipe.model.adapters is not None for recipe in recipes)
    options.refuse_idle_base(has_adapters=varied or given)
    check_networks(init, root=root)
    check_sweep(recipes, swept, each or [], out)
    import udaseg
    from udaseg.cli.printing.experiments import print_settings, print_sweep

    train_options = udaseg.TrainOptions(
        root=root, init=init, overwrite=overwrite, dry_run=dry_run, command=command_line()
    )
    result = udaseg.sweep(
        recipes, swept, each=each or [], seeds=numbers, out=out, options=train_options
    )
    if dry_run:
        print_settings(result)
        return
    print_sweep(result, output_format)
    result.raise_if_failed()


def _refuse_swept_options(options: list[str], swept: list[str]) -> None:
    """Refuse an option for a key that is swept: it would change nothing."""
    values = {word.partition("=")[0]: word for word in options}
    for word in swept:
        if (option := values.get(word.partition("=")[0])) is not None:
            raise UsageError(f"{word} contradicts the option for {option}; give only one of them")


def table(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, folders of seeds, or folders of sweeps; runs that differ only in "
            "their seeds are one row.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run or folder of seeds to compare the others with."),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--scores",
            metavar="NAME",
            help="Folder in RUN/eval to compare, such as cityscapes-val+teacher. Default: the "
            "newest that all runs have.",
        ),
    ] = None,
    output_format: RunFormat = "table",
) -> None:
    """Compare the scores of runs by method and class, over seeds."""
    from udaseg.preflight import check_run_groups

    check_run_groups(*runs, baseline)
    import udaseg
    from udaseg.cli.printing.experiments import print_table

    print_table(udaseg.compare_runs(runs, baseline=baseline, evaluation=evaluation), output_format)
