"""The `udaseg` application: registers every command.

Commands import what they run inside their functions, so that `--help` stays fast.
"""

from pathlib import Path
from typing import Annotated

import typer

from udaseg import __version__
from udaseg.cli.command import Command, Group
from udaseg.cli.commands.calibrate import calibrate
from udaseg.cli.commands.datasets import datasets_app
from udaseg.cli.commands.doctor import doctor
from udaseg.cli.commands.eval import evaluate
from udaseg.cli.commands.experiments import sweep, table
from udaseg.cli.commands.export import export, import_checkpoint
from udaseg.cli.commands.features import features
from udaseg.cli.commands.grid import grid
from udaseg.cli.commands.info import info, verify
from udaseg.cli.commands.predict import predict
from udaseg.cli.commands.prepare import init, prepare, tile
from udaseg.cli.commands.recipes import recipes_app
from udaseg.cli.commands.report import report
from udaseg.cli.commands.select import select
from udaseg.cli.commands.train import adapt, train
from udaseg.cli.options import OutputFormat, Quiet, Root, Verbose, with_base
from udaseg.cli.verbosity import set_verbosity
from udaseg.text import printable

app = typer.Typer(
    name="udaseg",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(datasets_app, name="datasets")


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"udaseg {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "-V",
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error (works in any position)."),
    ] = False,
) -> None:
    """Adapt a segmentation network from labelled source images to unlabelled target images."""


for _first in (init, prepare, tile, with_base(train, trains=True), with_base(adapt, trains=True)):
    app.command(cls=Command)(_first)
app.command("eval", cls=Command)(with_base(evaluate))
_COMMANDS = (
    *(with_base(predict), with_base(sweep, trains=True), table, with_base(report)),
    *(with_base(grid), with_base(features)),
    *(with_base(calibrate), doctor, with_base(select), with_base(export), info, verify),
)
for _then in _COMMANDS:
    app.command(cls=Command)(_then)
app.command("import", cls=Command)(import_checkpoint)


@app.command(cls=Command)
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the training.")] = 0,
    out: Annotated[Path, typer.Option(file_okay=False, help="Output folder.")] = Path("runs/demo"),
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show training and adaptation on generated images, in minutes."""
    set_verbosity(verbose, quiet)
    from udaseg.demo import demo

    demo(seed=seed, out=out, root=root)


@app.command("methods", cls=Command)
def show_methods(output_format: OutputFormat = "table") -> None:
    """List the methods that `--method` accepts."""
    import udaseg

    known = udaseg.list_methods()
    if output_format == "json":
        from udaseg.display.console import print_json

        print_json(known)
        return
    width = max(map(len, known), default=0)
    for name, summary in sorted(known.items()):
        typer.echo(printable(f"{name:{width}}  {summary}".rstrip()))
