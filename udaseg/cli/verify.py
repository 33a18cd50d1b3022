"""The `udaseg verify` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import Quiet, Verbose
from udaseg.cli.talk import talk


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check that a run is complete, unchanged and scores as expected."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.verify_run(run=run)
