"""The `udaseg calibrate` command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Run, Verbose, Weights, WeightsOption
from udaseg.cli.verbosity import set_verbosity


class LabelSource(StrEnum):
    """Labels that the temperature is fitted to; true target labels are never used."""

    source = "source"
    pseudo = "pseudo"


class CalibrationFormat(StrEnum):
    """Output format of the calibration results."""

    table = "table"
    json = "json"


def calibrate(
    run: Run,
    on: Annotated[
        LabelSource,
        typer.Option(help="Fit to source labels, or to pseudo-labels of mixed target images."),
    ] = LabelSource.source,
    images: Annotated[int, typer.Option(min=1, help="Maximum images per data set.")] = 100,
    weights: WeightsOption = Weights.student,
    output_format: Annotated[
        CalibrationFormat, typer.Option("--format", help="Output format.")
    ] = CalibrationFormat.table,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Calibrate the confidence of predictions without target labels."""
    set_verbosity(verbose, quiet)
    import udaseg

    udaseg.calibrate(
        run=run,
        on=on.value,
        images=images,
        weights=weights.value,
        format=output_format.value,
        device=device,
        root=root,
    )
