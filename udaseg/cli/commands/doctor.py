"""The `udaseg doctor` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import Quiet, Root, Verbose
from udaseg.cli.verbosity import set_verbosity


def doctor(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Name of a prepared or built-in data set, dataset YAML, or image folder.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Check DATA as the source and this as the target."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="Check only this split; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    root: Root = Path("data"),
    workers: Annotated[int, typer.Option(help="Number of threads (-1: automatic).")] = -1,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find problems in a data set or a source-target pair."""
    set_verbosity(verbose, quiet)
    import udaseg

    udaseg.doctor(
        data=data,
        target=target,
        root=root,
        splits=split or [],
        as_json=as_json,
        workers=workers,
    )
