"""The `udaseg select` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli import options
from udaseg.cli.verbosity import set_verbosity


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
    weights: options.WeightsOption = "student",
    output_format: options.OutputFormat = "table",
    device: options.AnyDevice = "auto",
    root: options.Root = Path("data"),
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose the best checkpoint or run without target labels."""
    set_verbosity(verbose, quiet)
    import udaseg
    from udaseg.cli.printing.selection import print_selection
    from udaseg.display.console import print_json

    comparison = udaseg.SelectOptions(
        oracle=oracle,
        all_checkpoints=every,
        images=images,
        weights=weights,
        device=device,
        root=root,
    )
    selection = udaseg.select(runs=runs, data=data, split=split, options=comparison)
    if output_format == "json":
        print_json(selection.to_json())
    else:
        print_selection(selection)
