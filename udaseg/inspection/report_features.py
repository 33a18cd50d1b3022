"""What `udaseg features` wrote into a run, for its report."""

import base64
import math
from pathlib import Path

from typing_extensions import TypedDict

from udaseg.figures.table import NumberTable
from udaseg.files import read_json
from udaseg.inspection.report_content import FeatureContent
from udaseg.runs.scores import plain_first


class _Table(TypedDict):
    title: str
    rows: dict[str, dict[str, float | None]]


class _Record(TypedDict):
    """The form of `features.json`."""

    facts: dict[str, str]
    tables: list[_Table]
    notes: list[str]


def read_features(folder: Path, warnings: list[str]) -> FeatureContent | None:
    """Return the newest look at the features of a run; None without one that can be read."""
    files = plain_first(folder / "features", "features.json")
    if not files:
        return None
    path = files[0]
    document = read_json(path, _Record)
    try:
        picture = base64.b64encode((path.parent / "features.png").read_bytes()).decode()
    except OSError:
        picture = ""
    if not document or not picture:
        warnings.append(f"features/{path.parent.name} cannot be read; run `udaseg features` again")
        return None
    return FeatureContent(
        facts=document["facts"],
        picture=f"data:image/png;base64,{picture}",
        tables=[_number_table(table) for table in document["tables"]],
        notes=document["notes"],
    )


def _number_table(table: _Table) -> NumberTable:
    rows = {
        name: {key: math.nan if value is None else value for key, value in row.items()}
        for name, row in table["rows"].items()
    }
    return NumberTable(table["title"], rows)
