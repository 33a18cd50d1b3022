"""The `udaseg calibrate` command."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from udaseg.cli import options
from udaseg.cli.verbosity import set_verbosity

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
    import udaseg
    from udaseg.cli.printing.calibration import print_calibration
    from udaseg.display.console import print_json

    calibration = udaseg.calibrate(
        run=run, on=on, images=images, weights=weights, device=device, root=root
    )
    if output_format == "json":
        print_json(calibration.to_json())
    else:
        print_calibration(calibration)
