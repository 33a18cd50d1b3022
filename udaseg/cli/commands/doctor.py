"""The `udaseg doctor` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import OutputFormat, Quiet, Root, Verbose
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import DataError
from udaseg.text import count_text


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
    output_format: OutputFormat = "table",
    root: Root = Path("data"),
    workers: Annotated[int, typer.Option(help="Number of threads (-1: automatic).")] = -1,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find problems in a data set or a source-target pair."""
    set_verbosity(verbose, quiet)
    import udaseg

    diagnosis = udaseg.doctor(
        data=data, target=target, root=root, splits=split or [], workers=workers
    )
    from udaseg.cli.printing.doctor import print_diagnosis
    from udaseg.display.console import open_console, print_json

    if output_format == "json":
        print_json(diagnosis.to_dict())
    else:
        print_diagnosis(open_console(), diagnosis)
    if diagnosis.errors:
        codes = ", ".join(dict.fromkeys(error.code for error in diagnosis.errors))
        checked = " and ".join(facts.name for facts in diagnosis.sets)
        count = count_text(len(diagnosis.errors), "kind")
        raise DataError(f"{checked}: {count} of error: {codes}")
