"""The `udaseg report` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Verbose
from udaseg.cli.verbosity import set_verbosity


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="One run folder, or several to compare.", show_default=False
        ),
    ],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run to compare with, such as source_only.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Output file. Default: report.html in the first run.",
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(min=0, max=40, help="Number of images to show (0: do not run the network)."),
    ] = 8,
    scan: Annotated[
        int, typer.Option(min=1, help="Maximum number of images to search for the worst ones.")
    ] = 60,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write an HTML report of a run, or of several runs compared."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks, check_output, check_run_folders

    if out is not None:
        check_output(out, ".html", "the report is a page")
    check_run_folders(*runs, baseline)
    check_networks(device=device, root=root)
    import udaseg
    from udaseg.display.console import print_line

    page = udaseg.report(
        runs=runs, baseline=baseline, out=out, images=images, scan=scan, device=device, root=root
    )
    print_line(f"{page}: {page.stat().st_size / 1e6:.2f} MB")
