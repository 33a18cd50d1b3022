"""The `udaseg select` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from udaseg.cli import options
from udaseg.cli.printing.worth import print_worth
from udaseg.cli.verbosity import set_verbosity
from udaseg.display.console import open_console, print_json, print_line, safe_text, show_table
from udaseg.errors import UsageError

if TYPE_CHECKING:
    from udaseg import Selection


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
    worth_it: Annotated[
        bool,
        typer.Option(
            "--worth-it",
            help="Instead, say whether the adapted network of one run is better than before its "
            "adaptation.",
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="With --worth-it: a run trained on the source alone. Default: the warm-up of the "
            "run.",
        ),
    ] = None,
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
    from udaseg.preflight import check_networks

    if worth_it:
        if len(runs) > 1:
            raise UsageError("--worth-it compares one run; give the other one with --baseline")
        options.refuse_options(
            "--worth-it compares two students without target labels",
            {"--every": every, "--oracle": oracle, "--weights": weights != "student"},
        )
    elif baseline is not None:
        raise UsageError("--baseline needs --worth-it")
    check_networks(*runs, baseline, device=device, data=data, split=split, scored=oracle, root=root)
    import udaseg

    if worth_it:
        comparing = udaseg.WorthOptions(images=images, device=device, root=root)
        worth = udaseg.worth_it(
            runs[0], baseline=baseline, data=data, split=split, options=comparing
        )
        print_worth(worth, output_format)
        return
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
        _print_selection(selection)


def _print_selection(selection: "Selection") -> None:
    """Print one row per candidate, with a star at each criterion's choice, and the choice."""
    if selection.warning is not None:
        open_console(soft_wrap=True).print(safe_text(selection.warning, style="bold red"))
    show_table(_candidate_table(selection))
    collapsed = [candidate.name for candidate in selection.candidates if candidate.collapsed]
    if collapsed:
        print_line(f"predicts almost only one class, so not chosen: {', '.join(collapsed)}")
    if selection.without_vote:
        names = ", ".join(selection.without_vote)
        print_line(f"not computed for every candidate, so not included in the mean rank: {names}")
    print_line(f"chosen by mean rank: {selection.best}")
    if selection.oracle:
        losses = [f"{name} {100 * points:.2f}" for name, points in selection.lost_miou.items()]
        correlations = [
            f"{name} {'-' if value is None else f'{value:+.2f}'}"
            for name, value in selection.rank_correlations.items()
        ]
        print_line(
            f"ORACLE: mIoU points that each choice loses to the best candidate: {', '.join(losses)}"
        )
        print_line(f"ORACLE: rank correlation with mIoU (1: same order): {', '.join(correlations)}")


def _candidate_table(selection: "Selection") -> Table:
    """Return the table of criteria, without those that no candidate has."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("candidate")
    for criterion in selection.criteria:
        arrow = "↑" if criterion.better == "higher" else "↓"
        table.add_column(f"{criterion.name} {arrow}", justify="right")
    table.add_column("mean rank ↓", justify="right")
    if selection.oracle:
        table.add_column("ORACLE mIoU %", justify="right", style="red")
    one_run = len({candidate.run for candidate in selection.candidates}) == 1
    for candidate in selection.candidates:
        cells = []
        for criterion in selection.criteria:
            value = candidate.values[criterion.name]
            star = "*" if selection.chosen.get(criterion.name) is candidate else " "
            cells.append(("-" if value is None else f"{value:.3f}") + star)
        star = "*" if selection.consensus is candidate else " "
        cells.append(f"{candidate.mean_rank:.2f}{star}")
        if selection.oracle:
            cells.append(f"{100 * candidate.oracle_miou:.2f}")
        name = f"step {candidate.step}" if one_run else candidate.name
        table.add_row(*map(safe_text, [name, *cells]))
    return table
