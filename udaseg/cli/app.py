"""The commands of `udaseg`: what each takes, and which function of `udaseg.commands` it calls.

`udaseg.commands` is imported inside the functions only, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from udaseg import __version__
from udaseg.cli.calibrate import calibrate
from udaseg.cli.doctor import doctor
from udaseg.cli.eval import evaluate
from udaseg.cli.export import export
from udaseg.cli.info import info
from udaseg.cli.options import (
    Batch,
    CacheFormat,
    Compile,
    Deterministic,
    Device,
    DryRun,
    FitMemory,
    Init,
    KeepBest,
    OnMismatch,
    Out,
    Overwrite,
    PrecisionOption,
    Quiet,
    Resume,
    Root,
    Seed,
    Seeds,
    Source,
    Steps,
    Target,
    TensorBoard,
    Verbose,
    Words,
    Workers,
    pixels,
    width_by_height,
)
from udaseg.cli.options import seeds as each_seed
from udaseg.cli.predict import predict
from udaseg.cli.report import report
from udaseg.cli.select import select
from udaseg.cli.talk import talk
from udaseg.cli.verify import verify
from udaseg.errors import UsageError
from udaseg.recipe import Everyday, find_recipe, list_recipes, methods, printable, requested

app = typer.Typer(
    name="udaseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(no_args_is_help=True, help="List, show or copy the shipped recipes.")
app.add_typer(recipes_app, name="recipes")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"udaseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """Adapt a segmentation network from labelled source images to unlabelled target images."""


@app.command()
def prepare(
    names: Annotated[list[str], typer.Argument(metavar="NAME", show_default=False)],
    root: Root = Path("data"),
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Look at everything, write nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say which files changed since, write nothing.")
    ] = False,
    max_bad: Annotated[int, typer.Option(min=0, help="Damaged files to leave out.")] = 0,
    on_mismatch: Annotated[
        OnMismatch, typer.Option(help="When a label has another size than its image.")
    ] = OnMismatch.exclude,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Leave out the files of a named rule, as gta5 has."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of toyland.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of toyland's images.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads; -1 takes one a core.")] = -1,
    cache: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Also keep training images at this size (resize)."),
    ] = None,
    cache_format: Annotated[
        CacheFormat, typer.Option(help="raw is read faster and needs zstd.")
    ] = CacheFormat.png,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check and index datasets: known names or YAML files."""
    size_px, cache_px = pixels("--size", size), width_by_height("--cache", cache)
    if check_only and cache is not None:
        raise UsageError("--check-only writes nothing, so it takes no --cache")
    if verify and (check_only or cache is not None):
        raise UsageError("--verify goes without --check-only and --cache")
    talk(verbose, quiet)
    from udaseg import commands

    if verify:
        commands.verify(names=names, root=root, workers=workers)
        return
    commands.prepare(
        names=names,
        root=root,
        check_only=check_only,
        max_bad=max_bad,
        on_mismatch=on_mismatch.value,
        exclude=exclude or [],
        seed=seed,
        size=size_px,
        workers=workers,
        cache=cache_px,
        cache_format=cache_format.value,
    )


@app.command()
def train(
    words: Words = None,
    method: Annotated[
        str | None, typer.Option(help="A method of `udaseg methods`; by default source_only.")
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
    """Train on labelled source images only: the baseline."""
    everyday = Everyday(
        *(source, target, seed, steps, batch, device, precision, workers),
        tensorboard=_board(tensorboard),
        keep_best=keep_best,
        compile=compiled,
        deterministic=deterministic,
    )
    _refuse_with_resume(resume, out, init, overwrite)
    recipe, path = requested(words or [], everyday, "source_only", method, resume)
    talk(verbose, quiet)
    from udaseg import commands

    _run(
        commands.train,
        seeds,
        seed=seed,
        recipe=recipe,
        recipe_path=path,
        out=out,
        root=root,
        resume=resume,
        init=init,
        overwrite=overwrite,
        dry_run=dry_run,
        command=_command(),
        fit_memory=fit,
    )


@app.command()
def adapt(
    words: Words = None,
    method: Annotated[
        str | None, typer.Option(help="A method of `udaseg methods`; by default rccr.")
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
    """Adapt to unlabelled target images."""
    everyday = Everyday(
        *(source, target, seed, steps, batch, device, precision, workers),
        tensorboard=_board(tensorboard),
        keep_best=keep_best,
        compile=compiled,
        deterministic=deterministic,
    )
    _refuse_with_resume(resume, out, init, overwrite)
    recipe, path = requested(words or [], everyday, "rccr", method, resume)
    talk(verbose, quiet)
    from udaseg import commands

    _run(
        commands.adapt,
        seeds,
        seed=seed,
        recipe=recipe,
        recipe_path=path,
        out=out,
        root=root,
        resume=resume,
        init=init,
        overwrite=overwrite,
        dry_run=dry_run,
        command=_command(),
        fit_memory=fit,
    )


app.command("eval")(evaluate)


for _command_of_its_own_file in (predict, calibrate, doctor, report, select, export, info, verify):
    app.command()(_command_of_its_own_file)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run the main job on generated images, in minutes."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.demo(seed=seed, out=out, root=root)


@app.command("methods")
def show_methods() -> None:
    """List the methods that `--method` knows."""
    known = methods()
    width = max(map(len, known), default=0)
    for name, summary in sorted(known.items()):
        typer.echo(printable(f"{name:{width}}  {summary}".rstrip()))


@recipes_app.command("ls")
def show_recipes() -> None:
    """List the shipped recipes."""
    entries = list_recipes()
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        typer.echo(printable(f"{entry.name:{width}}  {entry.summary}".rstrip()))


@recipes_app.command("cat")
def show_recipe(name: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """Print a recipe."""
    typer.echo(printable(find_recipe(name).read_text(encoding="utf-8")), nl=False)


@recipes_app.command("cp")
def copy_recipe(
    name: Annotated[str, typer.Argument(show_default=False)],
    destination: Annotated[
        Path, typer.Argument(metavar="[DEST]", help="A file or a folder.")
    ] = Path(),
) -> None:
    """Copy a recipe, to change it."""
    path = find_recipe(name)
    copy = destination / path.name if destination.is_dir() else destination
    try:
        with copy.open("xb") as file:
            file.write(path.read_bytes())
    except FileExistsError as error:
        raise UsageError(f"{copy}: exists; name another file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{copy.parent}: no such folder; make it first") from error
    typer.echo(printable(str(copy)))


def _board(wanted: bool | None) -> str | None:
    return None if wanted is None else "require" if wanted else "never"


def _run(one: Callable[..., Path], many: str | None, *, seed: int | None, **options: Any) -> None:
    """Run a command once, or once for each seed."""
    if many is None:
        one(**options)
        return
    if seed is not None or options["resume"] is not None:
        other = "--seed" if seed is not None else "--resume (the same command again goes on)"
        raise UsageError(f"--seeds goes without {other}")
    from udaseg import commands

    del options["resume"]
    commands.run_seeds(one, each_seed(many), **options)


def _command() -> list[str]:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return ["udaseg", *sys.argv[1:]]
    hosts, each = (os.environ.get(f"{word}_WORLD_SIZE", "1") for word in ("GROUP", "LOCAL"))
    launcher = ["torchrun", f"--nnodes={hosts}", f"--nproc-per-node={each}", "-m", "udaseg"]
    return [*launcher, *sys.argv[1:]]


def _refuse_with_resume(
    resume: Path | None, out: Path | None, init: Path | None, overwrite: bool
) -> None:
    given = {"--out": out is not None, "--init": init is not None, "--overwrite": overwrite}
    if resume is not None and any(given.values()):
        others = ", ".join(name for name, present in given.items() if present)
        raise UsageError(f"--resume continues in the run's own folder; leave out {others}")
