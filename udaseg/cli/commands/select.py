"""The `udaseg select` command."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Verbose, Weights, WeightsOption
from udaseg.cli.verbosity import set_verbosity


class TableFormat(StrEnum):
    """Output format of a command that prints one table."""

    table = "table"
    json = "json"


def select(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="One run: compare its checkpoints. Several: compare the newest of each.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Unlabelled images. Default: the target of the recipe.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of these images to use.")] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Compare all checkpoints of several runs.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Maximum images per data set.")] = 50,
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="Also score with target labels; the output is marked."),
    ] = False,
    weights: WeightsOption = Weights.student,
    output_format: Annotated[
        TableFormat, typer.Option("--format", help="Output format.")
    ] = TableFormat.table,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Choose the best checkpoint or run without target labels."""
    set_verbosity(verbose, quiet)
    import udaseg
    from udaseg.cli.printing.selection import print_selection
    from udaseg.display.console import open_console

    options = udaseg.SelectOptions(
        oracle=oracle,
        all_checkpoints=every,
        images=images,
        weights=weights.value,
        device=device,
        root=root,
    )
    selection = udaseg.select(runs=runs, data=data, split=split, options=options)
    if output_format is TableFormat.json:
        console = open_console(soft_wrap=True)
        console.print(json.dumps(selection.to_json(), indent=2), markup=False)
    else:
        print_selection(selection)
