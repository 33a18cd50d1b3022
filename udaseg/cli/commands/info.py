"""The `udaseg info` command."""

from typing import Annotated

import typer

from udaseg.cli.commands.select import TableFormat
from udaseg.cli.options import Quiet, Run, Verbose
from udaseg.cli.verbosity import set_verbosity


def info(
    run: Run,
    output_format: Annotated[
        TableFormat, typer.Option("--format", help="Output format.")
    ] = TableFormat.table,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show details of a run or checkpoint."""
    set_verbosity(verbose, quiet)
    import udaseg

    udaseg.info(run=run, format=output_format.value)
