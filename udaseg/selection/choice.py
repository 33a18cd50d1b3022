"""The candidates that `udaseg select` compared, and which of them are chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.selection.candidates import ORACLE_WARNING, Candidate, EvaluationSets
from udaseg.selection.criteria import (
    CRITERIA,
    Criterion,
    complete_ranks,
    rank_correlation,
    ranks,
)

CONSENSUS = "consensus"


@dataclass(frozen=True)
class Selection:
    """The compared candidates with their criteria, and the choices.

    Attributes:
        candidates: The candidates with all values.
        chosen: Choice of each criterion by name, and of the mean rank as `consensus`.
        voters: Names of the criteria in the mean rank.
        sets: The images that the criteria were computed on.
        oracle: Whether the candidates were also scored on target labels.
        weights: `student` or `teacher`.
    """

    candidates: Sequence[Candidate]
    chosen: Mapping[str, Candidate]
    voters: Sequence[str]
    sets: EvaluationSets
    oracle: bool = False
    weights: str = "student"

    @property
    def consensus(self) -> Candidate:
        """The choice of the mean rank."""
        return self.chosen[CONSENSUS]

    @property
    def best(self) -> Path:
        """The checkpoint with the best mean rank."""
        return self.consensus.checkpoint

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria that were computed for at least one candidate."""
        return tuple(
            criterion
            for criterion in CRITERIA
            if any(candidate.values[criterion.name] is not None for candidate in self.candidates)
        )

    @property
    def without_vote(self) -> list[str]:
        """Names of the criteria with no vote because they lack the value of a candidate."""
        return [criterion.name for criterion in CRITERIA if criterion.name not in self.voters]

    @property
    def warning(self) -> str | None:
        """What to tell whoever reads these results, if target labels were used."""
        return ORACLE_WARNING if self.oracle else None

    @property
    def lost_miou(self) -> dict[str, float]:
        """How much mIoU each choice loses to the best candidate; empty without an oracle."""
        if not self.oracle:
            return {}
        best = max(candidate.oracle_miou for candidate in self.candidates)
        return {name: best - candidate.oracle_miou for name, candidate in self.chosen.items()}

    @property
    def rank_correlations(self) -> dict[str, float | None]:
        """Rank correlation of each complete criterion with mIoU; empty without an oracle."""
        if not self.oracle:
            return {}
        truth = ranks([candidate.oracle_miou for candidate in self.candidates], "higher")
        orders = complete_ranks(values_by_criterion(self.candidates))
        orders[CONSENSUS] = ranks([candidate.mean_rank for candidate in self.candidates], "lower")
        return {
            name: _json_number(rank_correlation(order, truth)) for name, order in orders.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the selection as a JSON object, as `selection.json` stores it."""
        sets = self.sets
        document: dict[str, Any] = {
            "uses_target_labels": self.oracle,
            "weights": self.weights,
            "target": sets.target.to_json(),
            "source": None if sets.source is None else sets.source.to_json(),
            "criteria": {
                criterion.name: {
                    "better": criterion.better,
                    "meaning": criterion.meaning,
                    "votes": criterion.name in self.voters,
                }
                for criterion in CRITERIA
            },
            "candidates": [
                _describe_candidate(candidate, oracle=self.oracle) for candidate in self.candidates
            ],
            "chosen": {name: str(candidate.checkpoint) for name, candidate in self.chosen.items()},
        }
        if self.oracle and sets.labelled is not None:
            document["oracle"] = {
                "warning": ORACLE_WARNING,
                **sets.labelled.to_json(),
                "lost_miou": self.lost_miou,
                "rank_correlation": self.rank_correlations,
            }
        return document


def values_by_criterion(candidates: Sequence[Candidate]) -> dict[str, list[float | None]]:
    """Return the values of all candidates, by the name of the criterion."""
    return {
        criterion.name: [candidate.values[criterion.name] for candidate in candidates]
        for criterion in CRITERIA
    }


def choose(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the choice of each criterion and of the mean rank; the later one if equal."""
    chosen = {}
    columns = values_by_criterion(candidates)
    for name, order in complete_ranks(columns).items():
        if any(_json_number(value) is not None for value in columns[name]):
            best = min(range(len(order)), key=lambda index: (order[index], -index))
            chosen[name] = candidates[best]
    chosen[CONSENSUS] = min(
        reversed(candidates), key=lambda candidate: (candidate.collapsed, candidate.mean_rank)
    )
    return chosen


def _describe_candidate(candidate: Candidate, *, oracle: bool) -> dict[str, Any]:
    return {
        "checkpoint": str(candidate.checkpoint),
        "step": candidate.step,
        **{name: _json_number(value) for name, value in candidate.values.items()},
        "mean_rank": _json_number(candidate.mean_rank),
        "collapsed": candidate.collapsed,
        **({"oracle_miou": _json_number(candidate.oracle)} if oracle else {}),
    }


def _json_number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
