"""The `udaseg train` and `udaseg adapt` commands."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import (
    Batch,
    Compile,
    Deterministic,
    Device,
    DryRun,
    FitMemory,
    Init,
    KeepBest,
    Out,
    Overwrite,
    PrecisionOption,
    Quiet,
    RecipeArguments,
    Resume,
    Root,
    Seed,
    Seeds,
    Source,
    Steps,
    Target,
    TensorBoard,
    Verbose,
    Workers,
    parse_seeds,
)
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import UsageError


def _training_command(name: str, default: str, summary: str) -> Callable[..., None]:
    """Return the command `name` with the default method `default`.

    Both commands take the same options; methods that use target images belong to `adapt`.
    """

    def command(
        words: RecipeArguments = None,
        method: Annotated[
            str | None,
            typer.Option(help=f"Method, see `udaseg methods`. Default: {default}."),
        ] = None,
        source: Source = None,
        target: Target = None,
        out: Out = None,
        root: Root = Path("data"),
        seed: Seed = None,
        seeds: Seeds = None,
        device: Device = None,
        precision: PrecisionOption = None,
        steps: Steps = None,
        batch: Batch = None,
        workers: Workers = None,
        resume: Resume = None,
        init: Init = None,
        overwrite: Overwrite = False,
        fit: FitMemory = False,
        compiled: Compile = None,
        deterministic: Deterministic = None,
        keep_best: KeepBest = None,
        tensorboard: TensorBoard = None,
        dry_run: DryRun = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        # the recipe's schema is not needed for --help
        from udaseg.recipe.request import Overrides, requested_recipe

        everyday = Overrides(
            source,
            target,
            seed,
            steps,
            batch,
            device,
            precision,
            workers,
            tensorboard=_tensorboard_setting(tensorboard),
            keep_best=keep_best,
            compile=compiled,
            deterministic=deterministic,
        )
        _refuse_with_resume(resume, out, init, overwrite)
        recipe, path = requested_recipe(words or [], everyday, default, method, resume)
        set_verbosity(verbose, quiet)
        import udaseg

        options = udaseg.TrainOptions(
            recipe=recipe,
            recipe_path=path,
            root=root,
            command=_command_line(),
            out=out,
            resume=resume,
            init=init,
            overwrite=overwrite,
            dry_run=dry_run,
            fit_memory=fit,
        )
        if seeds is None:
            getattr(udaseg, name)(options=options)
            return
        if seed is not None or resume is not None:
            other = "--seed" if seed is not None else "--resume; rerun the same command to continue"
            raise UsageError(f"--seeds cannot be combined with {other}")
        udaseg.run_seeds(getattr(udaseg, name), parse_seeds(seeds), options)

    command.__name__, command.__doc__ = name, summary
    return command


def _tensorboard_setting(requested: bool | None) -> str | None:
    return None if requested is None else "require" if requested else "never"


def _command_line() -> list[str]:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return ["udaseg", *sys.argv[1:]]
    hosts, per_host = (os.environ.get(f"{word}_WORLD_SIZE", "1") for word in ("GROUP", "LOCAL"))
    launcher = ["torchrun", f"--nnodes={hosts}", f"--nproc-per-node={per_host}", "-m", "udaseg"]
    return [*launcher, *sys.argv[1:]]


def _refuse_with_resume(
    resume: Path | None, out: Path | None, init: Path | None, overwrite: bool
) -> None:
    given = {"--out": out is not None, "--init": init is not None, "--overwrite": overwrite}
    if resume is not None and any(given.values()):
        others = ", ".join(name for name, present in given.items() if present)
        raise UsageError(f"--resume continues in the folder of the run; leave out {others}")


train = _training_command(
    "train", "source_only", "Train on labelled source images only (the baseline)."
)
adapt = _training_command("adapt", "rccr", "Train with adaptation to unlabelled target images.")
