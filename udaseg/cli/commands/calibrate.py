"""The `udaseg calibrate` command."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.commands.select import TableFormat
from udaseg.cli.options import AnyDevice, Quiet, Root, Run, Verbose, Weights, WeightsOption
from udaseg.cli.verbosity import set_verbosity


class LabelSource(StrEnum):
    """Labels that the temperature is fitted to; true target labels are never used."""

    source = "source"
    pseudo = "pseudo"


def calibrate(
    run: Run,
    on: Annotated[
        LabelSource,
        typer.Option(help="Fit to source labels, or to pseudo-labels of mixed target images."),
    ] = LabelSource.source,
    images: Annotated[int, typer.Option(min=1, help="Maximum images per data set.")] = 100,
    weights: WeightsOption = Weights.student,
    output_format: Annotated[
        TableFormat, typer.Option("--format", help="Output format.")
    ] = TableFormat.table,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Calibrate the confidence of predictions without target labels."""
    set_verbosity(verbose, quiet)
    import udaseg
    from udaseg.cli.printing.calibration import print_calibration
    from udaseg.display.console import open_console

    calibration = udaseg.calibrate(
        run=run, on=on.value, images=images, weights=weights.value, device=device, root=root
    )
    if output_format is TableFormat.json:
        console = open_console(soft_wrap=True)
        console.print(json.dumps(calibration.to_json(), indent=2), markup=False)
    else:
        print_calibration(calibration)
