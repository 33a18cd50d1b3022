"""Render the table of scores per class and run, with the change against the baseline."""

import math
from collections.abc import Mapping, Sequence

from udaseg.inspection.markup import Html, css_color, element, join
from udaseg.inspection.report_content import Color, PageContent, RunContent
from udaseg.runs.scores import Scores
from udaseg.text import percent

# values for old evaluations, which did not record these keys
_PROTOCOL_DEFAULTS = {"protocol": "full size"}


def score_section(page: PageContent) -> Html:
    """Return a table of class IoUs with means, protocol lines and notes."""
    scored = [(run, run.scores) for run in page.runs if run.scores is not None]
    if not scored:
        return element("p", "No scores. Run `udaseg eval RUN` on data with labels to add them.")
    first = page.runs[0].scores if page.has_baseline else None
    names = list(dict.fromkeys(name for _, scores in scored for name in scores.class_names))
    iou = [scores.iou for _, scores in scored]
    share = scored[-1][1].truth_share
    base = None if first is None else first.iou
    rows = []
    for name in names:
        cells = [element("th", _class_button(name, page.colors), scope="row")]
        for number, column in enumerate(iou):
            value = column.get(name, math.nan)
            base_value = base.get(name) if base is not None and number else None
            cells.append(_iou_cell(value, base_value))
        cells.append(element("td", percent(share.get(name, math.nan)), class_="number"))
        rows.append(element("tr", *cells, data_class=name))
    labels = list(dict.fromkeys(label for _, scores in scored for label in scores.means))
    footer = []
    for label in labels:
        values = [scores.means.get(label, math.nan) for _, scores in scored]
        footer.append(_mean_row(label, values, compare=first is not None))
    accuracies = [scores.pixel_accuracy for _, scores in scored]
    footer.append(_mean_row("pixel accuracy", accuracies, compare=first is not None))
    header = [element("th", "class", scope="col")]
    for number, (run, _) in enumerate(scored):
        role = "baseline, IoU %" if first is not None and number == 0 else "IoU %"
        header.append(element("th", run.name, element("small", role), scope="col"))
    header.append(element("th", "pixels %", scope="col"))
    caption = "IoU per class in percent"
    if first is not None:
        caption += f"; in brackets the change in points against {page.runs[0].name}"
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *header)),
        element("tbody", *rows),
        element("tfoot", *footer),
        class_="scores",
    )
    notes = [_protocol_note(run, scores) for run, scores in scored]
    return join([scrollable(table, "Scores"), *notes, _all_evaluations(page.runs)])


def differing_protocols(runs: Sequence[RunContent]) -> list[str]:
    """Return the protocol settings in which evaluations differ, so scores are not comparable."""
    scored = [run.scores for run in runs if run.scores is not None]
    keys = dict.fromkeys(key for scores in scored for key in scores.protocol if key != "weights")
    differing = []
    for key in keys:
        values = {scores.protocol.get(key, _PROTOCOL_DEFAULTS.get(key, "-")) for scores in scored}
        if len(values) > 1:
            differing.append(f"{key} ({', '.join(sorted(values))})")
    return differing


def _protocol_note(run: RunContent, scores: Scores) -> Html:
    line = element("p", element("strong", run.name), f": {scores.protocol_line}", class_="note")
    if not scores.notes:
        return line
    return join([line, element("ul", *(element("li", note) for note in scores.notes))])


def scrollable(table: Html, label: str) -> Html:
    """Wrap a table or chart so that it scrolls on a narrow screen, also by keyboard."""
    return element("div", table, class_="wide", tabindex="0", role="region", aria_label=label)


def _all_evaluations(runs: Sequence[RunContent]) -> Html:
    """Return the means of all evaluations, if any run has more than one."""
    if max(len(run.evaluations) for run in runs) < 2:
        return Html("")
    rows = [
        element(
            "tr",
            element("th", run.name, scope="row"),
            element("td", name),
            element("td", ", ".join(f"{key} {percent(mean)}" for key, mean in means.items())),
        )
        for run in runs
        for name, means in run.evaluations.items()
    ]
    table = element("table", element("tbody", *rows))
    return element("details", element("summary", "All evaluations of these runs"), table)


def _class_button(name: str, colors: Mapping[str, Color]) -> Html:
    """Return a button with a class's name and colour; a script highlights the class on click."""
    return element("button", swatch(colors.get(name)), name, type="button", data_lift=name)


def swatch(color: Color | None) -> Html:
    """Return a small square in the colour of a class; unfilled if the colour is unknown."""
    fill = "none" if color is None else css_color(color)
    box = element("rect", width=12, height=12, rx=2, fill=fill)
    return element("svg", box, viewBox="0 0 12 12", class_="swatch", aria_hidden="true")


def _iou_cell(value: float, base: float | None) -> Html:
    width = 0.0 if math.isnan(value) else round(100 * value, 1)
    bar = element(
        "svg",
        element("rect", width=width, height=4),
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        class_="share",
        aria_hidden="true",
    )
    return element("td", percent(value), _change(value, base), bar, class_="number")


def _mean_row(label: str, values: Sequence[float], *, compare: bool) -> Html:
    cells = [
        element(
            "td",
            percent(value),
            _change(value, values[0] if compare and number else None),
            class_="number",
        )
        for number, value in enumerate(values)
    ]
    return element("tr", element("th", label, scope="row"), *cells, element("td"))


def _change(value: float, base: float | None) -> Html:
    """Return the difference of two scores in points, with the sign shown by text and colour."""
    if base is None or math.isnan(value) or math.isnan(base):
        return Html("")
    points = 100 * (value - base)
    css_class = "gain" if points >= 0.005 else "loss" if points <= -0.005 else "same"
    return join([Html(" "), element("span", f"({points:+.2f})", class_=css_class)])
