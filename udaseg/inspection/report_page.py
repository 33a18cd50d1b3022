"""Render the report page as one self-contained HTML file."""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from udaseg.inspection.charts import histogram, reliability_chart
from udaseg.inspection.curves import metric_curves
from udaseg.inspection.report_content import PageContent
from udaseg.inspection.summary import WITHOUT_ADAPTATION, change_text, summarize
from udaseg.text import percent

TEMPLATES = Path(__file__).parent / "templates"
MAX_PAGE_BYTES = 20_000_000
# characters that HTML forbids
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")

_Value = TypeVar("_Value", str, float)


def report_page(page: PageContent, *, max_bytes: int = MAX_PAGE_BYTES) -> str:
    """Return the page as one HTML document that loads nothing.

    All text from users is escaped. A content security policy allows only the script included here.
    If the page would be too large, images are omitted from the end, with a warning.
    """
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    template = _environment().get_template("report.html.j2")
    values = {
        "script": script,
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "confidence": [
            [
                histogram(f"{run.name}: share of pixels by confidence", run.reliability),
                reliability_chart(f"{run.name}: accuracy by confidence", run.reliability),
            ]
            for run in page.runs
            if run.reliability is not None and run.reliability.pixels.any()
        ],
        "summaries": summarize(page),
        "curves": metric_curves(page.runs, page.colors),
        "protocol_differences": _protocol_differences(page),
        "recipe_differences": _differences(run.settings for run in page.runs if run.settings),
    }

    def render(page: PageContent) -> str:
        text = template.render(values, page=page)
        # file names in other encodings have lone surrogates
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)

    text = render(page)
    shown = page.examples
    while len(text.encode()) > max_bytes and shown:
        shown = shown[: len(shown) * 3 // 4]
        omitted = len(page.examples) - len(shown)
        warning = f"{omitted} images were omitted to keep the page below {max_bytes} bytes"
        text = render(replace(page, examples=shown, warnings=[*page.warnings, warning]))
    return text


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: f"{value:.6g}" if isinstance(value, float) else value,
    )
    environment.globals |= {
        "rows": _rows,
        "nan": math.nan,
        "without_adaptation": WITHOUT_ADAPTATION,
        "change_text": change_text,
    }
    environment.filters |= {"percent": percent, "code": _with_code}
    environment.tests["measured"] = math.isfinite
    return environment


def _with_code(text: str) -> Markup:
    """Return a text as HTML in which commands in backticks are code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _rows(columns: Iterable[Mapping[str, _Value]], default: _Value) -> dict[str, list[_Value]]:
    """Return the values of each key in all columns."""
    tables = list(columns)
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: [table.get(key, default) for table in tables] for key in keys}


def _differences(columns: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    return {key: values for key, values in _rows(columns, "-").items() if len(set(values)) > 1}


def _protocol_differences(page: PageContent) -> list[str]:
    """Return the settings in which evaluations differ, so that scores are not comparable."""
    # old evaluations did not record the key `protocol`
    protocols = [
        {"protocol": "full size", **run.scores.protocol}
        for run in page.runs
        if run.scores is not None
    ]
    return [
        f"{key} ({', '.join(sorted(set(values)))})"
        for key, values in _differences(protocols).items()
        if key != "weights"
    ]
