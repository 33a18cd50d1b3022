"""Find problems of a data set and how to fix them; read every file and change nothing."""

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
