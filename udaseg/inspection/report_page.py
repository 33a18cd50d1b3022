"""Render the report page as one self-contained HTML file."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from udaseg.inspection.charts import confusion_chart, histogram, reliability_chart
from udaseg.inspection.curves import curve_section
from udaseg.inspection.markup import Html, element, join, read_asset
from udaseg.inspection.report_content import ExampleImage, PageContent, RunContent
from udaseg.inspection.report_scores import differing_protocols, score_section, scrollable, swatch

MAX_PAGE_BYTES = 20_000_000


def report_page(page: PageContent, *, max_bytes: int = MAX_PAGE_BYTES) -> str:
    """Return the page as one HTML document that loads nothing.

    All text from users is escaped. A content security policy allows only the script included here.
    If the page would be too large, images are omitted from the end, with a warning.

    Args:
        page: Content of the page.
        max_bytes: Maximum size of the page in bytes.
    """
    text = _document(page)
    shown = list(page.examples)
    while len(text.encode()) > max_bytes and shown:
        shown = shown[: len(shown) * 3 // 4]
        omitted = len(page.examples) - len(shown)
        warning = f"{omitted} images were omitted to keep the page below {max_bytes} bytes"
        text = _document(replace(page, examples=shown, warnings=[*page.warnings, warning]))
    return text


def _document(page: PageContent) -> str:
    style, script = read_asset("page.css"), read_asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    sections = {
        "What was run": _facts(page.runs),
        "Scores": score_section(page),
        "Images": _image_section(page),
        "Confidence": _confidence(page.runs),
        "Confusion": _confusion(page.runs),
        "Curves": curve_section(page.runs, page.colors),
        "Cost": _facts_table({run.name: run.cost for run in page.runs}, "Cost"),
        "Environment": _facts_table(
            {run.name: run.environment for run in page.runs}, "Environment"
        ),
        "Recipes": _recipes(page.runs),
    }
    kept = {title: body for title, body in sections.items() if body}
    anchors = {title: f"s-{title.lower().replace(' ', '-')}" for title in kept}
    menu = [element("li", element("a", title, href=f"#{anchors[title]}")) for title in kept]
    bodies = [
        element("section", element("h2", title), body, id=anchors[title])
        for title, body in kept.items()
    ]
    body = element(
        "body",
        element("header", element("h1", page.title), element("p", page.created, class_="note")),
        element("nav", element("ul", *menu), aria_label="Sections"),
        element("main", _warnings(page), *bodies),
        element("script", Html(script)),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", page.title),
        element("style", Html(style)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _warnings(page: PageContent) -> Html:
    """Return the warnings about page and runs; they come first on the page."""
    items = [element("li", text) for text in page.warnings]
    if differing := differing_protocols(page.runs):
        items.append(
            element("li", f"these scores are not comparable: they differ in {'; '.join(differing)}")
        )
    for run in page.runs:
        for text in run.warnings:
            items.append(element("li", element("strong", run.name), f": {text}"))
    if not items:
        return Html("")
    return element("section", element("h2", "Warnings"), element("ul", *items), class_="warnings")


def _facts(runs: Sequence[RunContent]) -> Html:
    table = _facts_table({run.name: run.facts for run in runs}, "What was run")
    commands = [
        join([element("p", run.name, class_="note"), element("pre", element("code", run.command))])
        for run in runs
        if run.command
    ]
    return join([table, *commands])


def _facts_table(columns: Mapping[str, Mapping[str, str]], label: str) -> Html:
    """Return a table with one column per run; empty if there is nothing to show."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    if not keys:
        return Html("")
    heads = [element("th", name, scope="col") for name in columns]
    rows = [
        element(
            "tr",
            element("th", key, scope="row"),
            *(element("td", column.get(key, "-")) for column in columns.values()),
        )
        for key in keys
    ]
    head = element("thead", element("tr", element("td"), *heads))
    return scrollable(element("table", head, element("tbody", *rows), class_="facts"), label)


def _recipes(runs: Sequence[RunContent]) -> Html:
    """Return the differences between the recipes, then each recipe in full."""
    parts = []
    settings = {run.name: run.settings for run in runs if run.settings}
    if len(settings) > 1:
        keys = dict.fromkeys(key for column in settings.values() for key in column)
        differing = [
            key for key in keys if len({column.get(key) for column in settings.values()}) > 1
        ]
        different = {
            name: {key: column.get(key, "-") for key in differing}
            for name, column in settings.items()
        }
        parts.append(element("h3", "Differences between the recipes"))
        parts.append(_facts_table(different, "Differences") if differing else element("p", "None."))
    for run in runs:
        if run.recipe:
            text = element("pre", element("code", run.recipe))
            parts.append(element("details", element("summary", f"Recipe of {run.name}"), text))
    return join(parts)


def _confidence(runs: Sequence[RunContent]) -> Html:
    rows = []
    for run in runs:
        counts = run.reliability
        if counts is not None and any(counts.pixels):
            pair = [
                histogram(f"{run.name}: share of pixels by confidence", counts),
                reliability_chart(f"{run.name}: accuracy by confidence", counts),
            ]
            rows.append(element("div", *pair, class_="charts pair"))
    if not rows:
        return Html("")
    note = "Measured on the evaluated images. Bars below the dashed line: overconfident."
    return join([element("p", note, class_="note"), *rows])


def _confusion(runs: Sequence[RunContent]) -> Html:
    figures = [
        join(
            [
                element("h3", run.name),
                scrollable(
                    confusion_chart(run.scores.class_names, run.scores.confusion),
                    f"Confusion matrix of {run.name}",
                ),
            ]
        )
        for run in runs
        if run.scores is not None and run.scores.confusion
    ]
    if not figures:
        return Html("")
    return element("div", *(element("div", figure) for figure in figures), class_="matrices")


def _image_section(page: PageContent) -> Html:
    if not page.examples:
        return Html("")
    buttons = [
        element(
            "button",
            swatch(color),
            name,
            type="button",
            data_lift=name,
            data_rgb=",".join(map(str, color)),
        )
        for name, color in page.colors.items()
    ]
    legend = element("p", *buttons, class_="legend")
    hint = (
        "Click a class to highlight it, here and in tables, curves and matrices. Each slider moves "
        "between the two images chosen below it; arrow keys work."
    )
    parts = [
        element("p", page.examples_note, class_="note"),
        element("p", hint, class_="note script"),
    ]
    examples = [_image_article(example) for example in page.examples]
    return join([*parts, legend, element("div", *examples, class_="shots")])


def _image_article(example: ExampleImage) -> Html:
    """Return all layers of an image in a row; a script turns them into a slider."""
    pictures = [
        element(
            "figure",
            element(
                "img",
                src=layer.uri,
                alt=f"{layer.title} of {example.name}",
                data_title=layer.title,
                data_mask="1" if layer.is_mask else None,
            ),
            element("figcaption", layer.title),
        )
        for layer in example.layers
    ]
    head = element("h3", example.name, element("small", f" {example.reason}"))
    return element("article", head, element("div", *pictures, class_="strip"), class_="shot")
