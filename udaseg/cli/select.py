"""The words of `udaseg select`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Verbose, Weights, WeightsOption
from udaseg.cli.talk import talk


class TableFormat(StrEnum):
    """How what is found is printed."""

    table = "table"
    json = "json"


def select(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|CHECKPOINT...",
            help="One run: all its checkpoints. Several: the newest of each.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Unlabelled images; by default the recipe's target.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of them to look at.")] = None,
    every: Annotated[
        bool, typer.Option("--every", help="All checkpoints of each of several runs.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Most images of each data set.")] = 50,
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="Also score on target labels; the output says so."),
    ] = False,
    weights: WeightsOption = Weights.student,
    output_format: Annotated[
        TableFormat, typer.Option("--format", help="Of stdout.")
    ] = TableFormat.table,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Choose among checkpoints or runs without target labels."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.select(
        runs=runs,
        data=data,
        split=split,
        oracle=oracle,
        every=every,
        images=images,
        weights=weights.value,
        format=output_format.value,
        device=device,
        root=root,
    )
