"""Report results: metrics logs, score tables, images and the HTML report."""

from udaseg.reporting.events import (
    MetricsLog,
    RunStatus,
    log_to_file,
    read_json,
    write_json_atomic,
    write_text_atomic,
)
from udaseg.reporting.html import (
    Layer,
    PageContent,
    Reliability,
    RunContent,
    Shot,
    mask_uri,
    photo_uri,
    report_page,
    shrunk,
)
from udaseg.reporting.pictures import (
    color_mask,
    confidence_picture,
    legend,
    overlay,
    side_by_side,
)
from udaseg.reporting.progress import TrainingProgress, WorkProgress
from udaseg.reporting.tables import (
    Scores,
    as_csv,
    as_json,
    as_markdown,
    comparison_table,
    percent,
    score_table,
)

__all__ = [
    "Layer",
    "MetricsLog",
    "PageContent",
    "Reliability",
    "RunContent",
    "RunStatus",
    "Scores",
    "Shot",
    "TrainingProgress",
    "WorkProgress",
    "as_csv",
    "as_json",
    "as_markdown",
    "color_mask",
    "comparison_table",
    "confidence_picture",
    "legend",
    "log_to_file",
    "mask_uri",
    "overlay",
    "percent",
    "photo_uri",
    "read_json",
    "report_page",
    "score_table",
    "shrunk",
    "side_by_side",
    "write_json_atomic",
    "write_text_atomic",
]
