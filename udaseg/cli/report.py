"""The words of `udaseg report`."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Verbose
from udaseg.cli.talk import talk


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", show_default=False)],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="What to compare with, say source only.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="By default report.html in the first run.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, max=40, help="Images to show; 0 runs no network.")
    ] = 8,
    scan: Annotated[
        int, typer.Option(min=1, help="Most images to look at for the worst ones.")
    ] = 60,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about a run, or comparing runs."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.report(
        runs=runs,
        baseline=baseline,
        out=out,
        images=images,
        scan=scan,
        device=device,
        root=root,
    )
