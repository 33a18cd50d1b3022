"""The words of `udaseg doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import Quiet, Root, Verbose
from udaseg.cli.talk import talk


def doctor(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A prepared or built-in name, a dataset YAML, or a folder of images.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None, typer.Option(metavar="DATA", help="Check DATA as source, and this as target.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="Only this split; may be repeated.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON document to stdout.")
    ] = False,
    root: Root = Path("data"),
    workers: Annotated[int, typer.Option(help="Threads; -1 chooses.")] = -1,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find what is wrong with a data set or a pair."""
    talk(verbose, quiet)
    from udaseg import commands

    commands.doctor(
        data=data,
        target=target,
        root=root,
        splits=split or [],
        as_json=as_json,
        workers=workers,
    )
