"""`worth.json`: whether the adapted network of a run is better than one that was not adapted."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from udaseg.errors import CheckpointError
from udaseg.files import plain_json, write_json
from udaseg.runs.best import warm_up_folder
from udaseg.runs.manifests import digest_of_newest

WORTH_FILE = "worth.json"
Verdict = Literal["better", "worse", "unclear", "unknown"]
Network = Literal["adapted", "baseline"]


@dataclass(frozen=True)
class ComparedNetwork:
    """One of the two networks of a comparison.

    Attributes:
        checkpoint: Its file; relative to the run folder if it is in it.
        step: Number of training steps.
        sha256: Digest of the file.
        collapsed: Whether it predicts one class for nearly all of the target.
        shares: Share of each class in the pixels that it predicts on the target, 0 to 1.
        source_iou: IoU on the source of each class that has labels there; empty without a source.
    """

    checkpoint: str
    step: int
    sha256: str
    collapsed: bool
    shares: Mapping[str, float]
    source_iou: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparedCriterion:
    """What a criterion without target labels says of both networks.

    Attributes:
        name: As in `udaseg select`.
        better: Whether `lower` or `higher` values are better.
        adapted: Value of the adapted network; None if it could not be computed.
        baseline: Value of the other network.
        prefers: The network with the better value; None if they differ too little.
    """

    name: str
    better: Literal["lower", "higher"]
    adapted: float | None
    baseline: float | None
    prefers: Network | None


@dataclass(frozen=True)
class Worth:
    """Whether an adaptation was worth it, by criteria that need no target labels.

    Attributes:
        verdict: `better` or `worse` than the baseline, `unclear` if gains and losses cancel, or
            `unknown` without a baseline.
        reason: A sentence about the verdict.
        criteria: The values of both networks; empty if `unknown`.
        lost: Classes that the adapted network hardly predicts any more.
        found: Classes that the baseline hardly predicts, and the adapted network does.
        adapted: The adapted network; None if `unknown`.
        baseline: The network before the adaptation, or any other to compare with.
        target: Data, split and number of the images that both were compared on.
        source: The same of the source; None if it was not available.
        balance: What the adapted network gains by the criteria that count, losses below 0; None if
            one of them could not be computed.

    Example:
        worth = udaseg.worth_it("runs/city-rccr", baseline="runs/city-source_only")
        worth.verdict, worth.reason, [row.prefers for row in worth.criteria]
    """

    verdict: Verdict
    reason: str
    criteria: Sequence[ComparedCriterion] = ()
    lost: Sequence[str] = ()
    found: Sequence[str] = ()
    adapted: ComparedNetwork | None = None
    baseline: ComparedNetwork | None = None
    target: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    balance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object, as `worth.json` stores it."""
        document: dict[str, Any] = plain_json(asdict(self))
        return document


_STORED = TypeAdapter(Worth)


def unknown_worth(run: Path) -> Worth:
    """Return the verdict on a network that was not compared, and how to get one."""
    command = f"udaseg select --worth-it {shlex.quote(str(run))}"
    if warm_up_folder(run).is_dir():
        return Worth(
            "unknown", f"it was not compared with the one before the adaptation yet: `{command}`"
        )
    return Worth(
        "unknown",
        "there is nothing to compare the adapted network with. Train on the source alone, then run "
        f"`{command} --baseline SOURCE_ONLY_RUN`; a run with method.warm_up=0.25 keeps its own "
        "network before the adaptation",
    )


def write_worth(run: Path, worth: Worth) -> Path:
    """Store a comparison in a run, which the caller shares with others; return the file."""
    write_json(run / WORTH_FILE, worth.to_json())
    return run / WORTH_FILE


def read_worth(run: Path, sha256: str | None = None) -> Worth | None:
    """Return the comparison that a run stores of a network; None if there is none.

    Args:
        run: The run folder.
        sha256: Digest of the adapted network; None takes the newest checkpoint of the run, or what
            is stored if there is none any more.
    """
    try:
        worth = _STORED.validate_json((run / WORTH_FILE).read_bytes(), strict=True)
    except (OSError, ValueError):
        return None
    if worth.adapted is None or worth.baseline is None:
        return None
    return worth if (sha256 or _newest(run)) in (None, worth.adapted.sha256) else None


def _newest(run: Path) -> str | None:
    """Return the digest of the newest checkpoint; None if the run has none any more."""
    try:
        return digest_of_newest(run)
    except (CheckpointError, OSError):
        return None
