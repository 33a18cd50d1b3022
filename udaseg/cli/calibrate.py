"""The words of `udaseg calibrate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Run, Verbose, Weights, WeightsOption
from udaseg.cli.talk import talk


class FittedOn(StrEnum):
    """Whose labels the temperature is fitted to; never the target's own."""

    source = "source"
    pseudo = "pseudo"


class TrustFormat(StrEnum):
    """How the figures are printed."""

    table = "table"
    json = "json"


def calibrate(
    run: Run,
    on: Annotated[
        FittedOn,
        typer.Option(help="The source's labels, or the network's own of mixed target images."),
    ] = FittedOn.source,
    images: Annotated[int, typer.Option(min=1, help="Most images of each data set.")] = 100,
    weights: WeightsOption = Weights.student,
    output_format: Annotated[
        TrustFormat, typer.Option("--format", help="Of stdout.")
    ] = TrustFormat.table,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Fit the confidence of predictions, without target labels."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.calibrate(
        run=run,
        on=on.value,
        images=images,
        weights=weights.value,
        format=output_format.value,
        device=device,
        root=root,
    )
