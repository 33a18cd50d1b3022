"""Prints what `udaseg.select` returns."""

from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.display.console import open_console, print_line, safe_text

if TYPE_CHECKING:
    from udaseg import Selection

_MIN_WIDTH = 110


def print_selection(selection: "Selection") -> None:
    """Print one row per candidate, with a star at each criterion's choice, and the choice."""
    console = open_console()
    if not console.is_terminal:
        console.width = max(console.width, _MIN_WIDTH)
    if selection.warning is not None:
        console.print(safe_text(selection.warning, style="bold red"), soft_wrap=True)
    console.print(_candidate_table(selection))
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
    table.add_column("candidate", overflow="fold")
    for criterion in selection.criteria:
        arrow = "↑" if criterion.better == "higher" else "↓"
        table.add_column(f"{criterion.name} {arrow}", justify="right")
    table.add_column("mean rank ↓", justify="right")
    if selection.oracle:
        table.add_column("ORACLE mIoU %", justify="right", style="red")
    one_run = len({candidate.run for candidate in selection.candidates}) == 1
    for candidate in selection.candidates:
        cells = [
            _format_value(candidate.values[criterion.name])
            + _mark_chosen(selection.chosen.get(criterion.name) is candidate)
            for criterion in selection.criteria
        ]
        cells.append(f"{candidate.mean_rank:.2f}{_mark_chosen(selection.consensus is candidate)}")
        if selection.oracle:
            cells.append(f"{100 * candidate.oracle_miou:.2f}")
        name = f"step {candidate.step}" if one_run else candidate.name
        table.add_row(*map(safe_text, [name, *cells]))
    return table


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mark_chosen(chosen: bool) -> str:
    return "*" if chosen else " "
