"""What is wrong with a data set, and what helps: every file looked at, nothing changed."""

from udaseg.data.doctor.examination import Examination, examine
from udaseg.data.doctor.findings import KINDS, SEVERITIES, Example, Finding
from udaseg.data.doctor.statistics import SetFacts, SplitFacts

__all__ = [
    "KINDS",
    "SEVERITIES",
    "Examination",
    "Example",
    "Finding",
    "SetFacts",
    "SplitFacts",
    "examine",
]
