"""The `udaseg info` command."""

from typing import Annotated

import typer

from udaseg.cli.options import Quiet, Run, Verbose
from udaseg.cli.select import TableFormat
from udaseg.cli.talk import talk


def info(
    run: Run,
    output_format: Annotated[
        TableFormat, typer.Option("--format", help="Output format.")
    ] = TableFormat.table,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show details of a run or checkpoint."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.info(run=run, format=output_format.value)
