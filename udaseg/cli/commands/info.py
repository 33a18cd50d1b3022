"""The `udaseg info` and `udaseg verify` commands."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import OutputFormat, Quiet, Run, Verbose
from udaseg.cli.verbosity import set_verbosity


def info(
    run: Run,
    output_format: OutputFormat = "table",
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show details of a run or checkpoint."""
    set_verbosity(verbose, quiet)
    from rich.table import Table

    from udaseg.preflight import check_networks

    is_run = (run / "recipe.yaml").is_file()  # it is described before its first checkpoint, too
    check_networks(None if is_run else run, root=Path())
    import udaseg
    from udaseg.display.console import print_json, safe_text, show_table

    rows = udaseg.info(run=run).to_json()
    if output_format == "json":
        print_json(rows)
        return
    table = Table(show_header=False, box=None)
    for title, content in rows.items():
        lines = content if isinstance(content, list) else [content]
        table.add_row(safe_text(title, style="bold"), safe_text("\n".join(lines)))
    show_table(table)


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    output_format: OutputFormat = "table",
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check that a run is complete, unchanged and scores as expected."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_run_groups

    check_run_groups(run)
    import udaseg
    from udaseg.display.console import print_json, print_line

    verification = udaseg.verify(run=run)
    if output_format == "json":
        print_json([{**vars(check), "run": str(check.run)} for check in verification.checks])
    else:
        for check in verification.checks:
            if check.outcome == "passed":
                print_line(f"{check.run}: {check.message}")
    verification.raise_if_failed()
