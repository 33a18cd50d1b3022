"""Render a report as one HTML page from the plain data in `content`."""

from udaseg.reporting.html.content import (
    Layer,
    PageContent,
    Reliability,
    RunContent,
    Shot,
)
from udaseg.reporting.html.page import LARGEST_BYTES, report_page
from udaseg.reporting.html.pictures import mask_uri, photo_uri, shrunk

__all__ = [
    "LARGEST_BYTES",
    "Layer",
    "PageContent",
    "Reliability",
    "RunContent",
    "Shot",
    "mask_uri",
    "photo_uri",
    "report_page",
    "shrunk",
]
