"""The `udaseg verify` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import Quiet, Verbose
from udaseg.cli.verbosity import set_verbosity


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check that a run is complete, unchanged and scores as expected."""
    set_verbosity(verbose, quiet)
    import udaseg
    from udaseg.display.console import open_console, safe_text

    verification = udaseg.verify(run=run)
    console = open_console(soft_wrap=True)
    for check in verification.checks:
        if check.outcome == "passed":
            console.print(safe_text(f"{check.run}: {check.message}"))
    verification.raise_if_failed()
