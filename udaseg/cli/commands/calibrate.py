"""The `udaseg calibrate` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from udaseg.cli import options
from udaseg.cli.verbosity import set_verbosity
from udaseg.display.console import print_json, print_line, safe_text, show_table
from udaseg.text import percent

if TYPE_CHECKING:
    from udaseg import Calibration

LabelSource = Literal["source", "pseudo"]
"""Labels that the temperature is fitted to; true target labels are never used."""


def calibrate(
    run: options.Run,
    on: Annotated[
        LabelSource,
        typer.Option(help="Fit to source labels, or to pseudo-labels of mixed target images."),
    ] = "source",
    images: Annotated[int, typer.Option(min=1, help="Maximum images per data set.")] = 100,
    weights: options.WeightsOption = "student",
    output_format: options.OutputFormat = "table",
    device: options.AnyDevice = "auto",
    root: options.Root = Path("data"),
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Calibrate the confidence of predictions without target labels."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks

    check_networks(run, device=device, root=root)
    import udaseg

    calibration = udaseg.calibrate(
        run=run, on=on, images=images, weights=weights, device=device, root=root
    )
    if output_format == "json":
        print_json(calibration.to_json())
    else:
        _print_calibration(calibration)


def _print_calibration(calibration: "Calibration") -> None:
    """Print the temperature, and how well confidence matches accuracy before and after."""
    table = Table(title=f"temperature {calibration.temperature:.3f}", title_justify="left")
    table.add_column("pixels of")
    for heading in ("", "accuracy %", "confidence %", "ECE %", "NLL"):
        table.add_column(heading, justify="right")
    for row in calibration.rows:
        for stage, statistics in (("before", row.before), ("after", row.after)):
            label = row.description if stage == "before" else f"{statistics.pixels:,} of them"
            shares = (statistics.accuracy, statistics.confidence, statistics.error)
            table.add_row(safe_text(label), stage, *map(percent, shares), f"{statistics.nll:.3f}")
    show_table(table)
    for row in calibration.rows:
        if row.note:
            print_line(f"{row.description}: {row.note}")
