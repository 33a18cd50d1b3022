"""The `udaseg train` and `udaseg adapt` commands."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from udaseg.cli import options
from udaseg.cli.command import NEWEST
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import UsageError


def _training_command(
    name: Literal["train", "adapt"], default: str, summary: str
) -> Callable[..., None]:
    """Return the command `name` with the default method `default`.

    Both commands take the same options; methods that use target images belong to `adapt`.
    """

    def command(
        words: options.RecipeArguments = None,
        method: Annotated[
            str | None,
            typer.Option(help=f"Method, see `udaseg methods`. Default: {default}."),
        ] = None,
        network: options.Network = None,
        source: options.Source = None,
        target: options.Target = None,
        out: options.Out = None,
        root: options.Root = Path("data"),
        seed: options.Seed = None,
        seeds: options.Seeds = None,
        device: options.Device = None,
        precision: options.PrecisionOption = None,
        steps: options.Steps = None,
        batch: options.Batch = None,
        workers: options.Workers = None,
        resume: options.Resume = None,
        init: options.Init = None,
        overwrite: options.Overwrite = False,
        fit: options.FitMemory = False,
        compiled: options.Compile = None,
        deterministic: options.Deterministic = None,
        keep_best: options.KeepBest = None,
        logger: options.Loggers = None,
        tensorboard: options.TensorBoard = None,
        dry_run: options.DryRun = False,
        timed: options.Timed = False,
        verbose: options.Verbose = False,
        quiet: options.Quiet = False,
    ) -> None:
        # the recipe's schema is not needed for --help
        from udaseg.preflight import (
            check_data,
            check_one_run,
            check_start,
            check_training,
            newest_unfinished_run,
        )
        from udaseg.recipe.request import Overrides, requested_recipe

        set_verbosity(verbose, quiet)
        everyday = Overrides(
            source or None,
            target,
            seed,
            steps,
            batch,
            device,
            precision,
            workers,
            loggers=options.chosen_loggers(logger, tensorboard),
            keep_best=keep_best,
            compile=compiled,
            deterministic=deterministic,
            network=options.one_network(network),
        )
        if resume is not None:
            options.refuse_options(
                "--resume continues in the folder of the run",
                {
                    "--out": out is not None,
                    "--init": init is not None,
                    "--overwrite": overwrite,
                    "--seeds, whose command continues when it is repeated": seeds is not None,
                },
            )
        if timed and not dry_run:
            raise UsageError("--time needs --dry-run")
        if resume == NEWEST and not resume.exists():
            resume = newest_unfinished_run(Path("runs"))
        check_one_run(resume)
        several = None
        if seeds is not None:
            if seed is not None or any(word.startswith("seed=") for word in words or []):
                raise UsageError("--seeds cannot be combined with --seed or seed=N")
            several = options.parse_seeds(seeds)
        if not dry_run:  # the choice of a recipe for own data asks torch for a GPU
            check_data(target, sources=source or (), root=root)
            check_start(None if several else out, init, overwrite=overwrite)
        recipe, path = requested_recipe(words or [], everyday, default, method, resume)
        options.refuse_idle_base(has_adapters=recipe.model.adapters is not None)
        if not dry_run:
            check_training(
                recipe,
                root=root,
                out=out,
                seeds=several,
                resume=resume,
                init=init,
                overwrite=overwrite,
            )
        import udaseg
        from udaseg.cli.printing.training import print_recipe, print_run, print_seeds

        train_options = udaseg.TrainOptions(
            root=root,
            resume=resume,
            init=init,
            overwrite=overwrite,
            dry_run=dry_run,
            fit_memory=fit,
            source_only=name == "train",
            command=command_line(),
            recipe_path=path,
            on_finish=print_run,
            timed=timed,
        )
        if several is not None:
            runs = udaseg.run_seeds(several, recipe=recipe, out=out, options=train_options)
            if not dry_run:
                print_seeds(runs)
                runs.raise_if_failed()
            recipe = replace(recipe, seed=several[0])
        else:
            run = udaseg.train if name == "train" else udaseg.adapt
            run(recipe=recipe, out=out, options=train_options)
        if dry_run and os.environ.get("RANK", "0") == "0":
            print_recipe(recipe)

    command.__name__, command.__doc__ = name, summary
    return command


def command_line() -> list[str]:
    """Return the command of the user, with torchrun if it was started by it."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return ["udaseg", *sys.argv[1:]]
    hosts, per_host = (os.environ.get(f"{word}_WORLD_SIZE", "1") for word in ("GROUP", "LOCAL"))
    launcher = ["torchrun", f"--nnodes={hosts}", f"--nproc-per-node={per_host}", "-m", "udaseg"]
    return [*launcher, *sys.argv[1:]]


train = _training_command(
    "train", "source_only", "Train on labelled source images only (the baseline)."
)
adapt = _training_command("adapt", "rccr", "Train with adaptation to unlabelled target images.")
