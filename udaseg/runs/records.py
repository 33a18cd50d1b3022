"""What the JSON files of a run hold: a file, or a line of metrics, that differs counts as damaged.

Each is a type for `udaseg.files.mismatch`. Keys that are not listed may hold anything.
"""

from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from udaseg.files import mismatch, parse_json, read_json

Numbers = dict[str, float | None]
"""Numbers by name; null for one that was not finite."""


class Status(TypedDict, total=False):
    """`status.json`: how far a run is, or why it ended."""

    state: Required[str]
    time: str
    unix_time: float
    step: NonNegativeInt
    seconds: NonNegativeFloat
    miou: float | None
    counts: dict[str, NonNegativeInt]
    code: int
    reason: str
    signal: int


class Environment(TypedDict, total=False):
    """`environment.json`: where a run was started."""

    processes: PositiveInt
    launch: str | None
    data: dict[str, str]


class Cost(TypedDict):
    """`cost.json`: what the training of a run took."""

    step: NonNegativeInt
    seconds: NonNegativeFloat
    images: NonNegativeInt
    peak_memory_mib: NonNegativeInt
    peak_memory_of: str


class Event(TypedDict, total=False):
    """A line of `metrics.jsonl`."""

    step: Required[NonNegativeInt]
    stage: str
    losses: Numbers
    lr: Numbers
    gradient_norm: float | None
    dropped: dict[str, Any]
    alarms: dict[str, str]
    pseudo_labels: Numbers
    select: Numbers
    oracle_miou: float | None


class Start(TypedDict):
    """`init.json`: the checkpoint that a run started from."""

    checkpoint: str
    sha256: str


class Compared(TypedDict):
    """A checkpoint in `best.json`."""

    value: float | None
    collapsed: bool


class Best(TypedDict):
    """`best.json`: the values of the compared checkpoints by their steps."""

    steps: dict[Annotated[str, Field(pattern="^[0-9]{1,18}$")], Compared]


def read_status(folder: Path) -> dict[str, Any]:
    """Return `status.json` of a run; empty if it is missing or damaged."""
    return read_json(folder / "status.json", Status)


def read_environment(folder: Path) -> dict[str, Any]:
    """Return `environment.json` of a run; empty if it is missing or damaged."""
    return read_json(folder / "environment.json", Environment)


def parse_event(line: str) -> dict[str, Any]:
    """Return a line of metrics.

    Raises:
        ValueError: It is none.
    """
    event = parse_json(line)
    if problem := mismatch(event, Event):
        raise ValueError(problem)
    return dict(event)
