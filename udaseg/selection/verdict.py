"""The rule of `udaseg select --worth-it`: from the numbers of two networks to a verdict."""

import math
from collections.abc import Mapping
from dataclasses import replace

from udaseg.runs.worth import ComparedCriterion, ComparedNetwork, Network, Verdict, Worth

COMPARED = ("entropy", "infomax", "flip", "source", "drift")
"""Criteria that are computed. Not `teacher`: before the adaptation, it is the student."""

COUNTED = ("infomax", "source", "drift")
"""Criteria whose gains are added up: information about the target (0 to 1), mIoU on the source
(0 to 1), and the fall of the distance between the class shares (in bits). `entropy` and `flip` are
shown but do not count: self-training lowers the entropy even where it does harm."""

CLEAR = 0.01
"""A smaller sum of gains says nothing. Smaller differences of a criterion prefer no network."""

LOST_BELOW = 0.25
"""A class is lost if a network predicts less than this part of what can be expected: the share of
the class in the source or in the predictions of the other network, whichever is smaller."""

SMALLEST_SHARE = 2e-4
"""Classes of which less can be expected are not counted."""

KNOWN_FROM = 0.3
"""A class can only be lost if the other network knows it: IoU on the source. The few pixels of a
class that it does not know are mostly wrong."""


def judge(worth: Worth) -> Worth:
    """Return a comparison with its verdict, from the numbers that it stores.

    An adaptation gains something on the target and forgets something of the source. The gains of
    `COUNTED` are added up, losses below 0, and the sign of the sum decides. A network that has
    collapsed to one class is worse than one that has not; of two such networks, none is better.

    Args:
        worth: Needs the values of `criteria`, both networks and `source`; the rest is replaced.
    """
    assert worth.adapted is not None
    assert worth.baseline is not None
    expected = (worth.source or {}).get("shares", {})
    gains = {row.name: _gain(row) for row in worth.criteria}
    counted = [gains.get(name) for name in COUNTED]
    known = [gain for gain in counted if gain is not None]
    balance = sum(known) if len(known) == len(counted) else None
    verdict: Verdict = "unclear"
    if worth.adapted.collapsed or worth.baseline.collapsed:
        if worth.adapted.collapsed != worth.baseline.collapsed:
            verdict = "worse" if worth.adapted.collapsed else "better"
    elif balance is not None and abs(balance) >= CLEAR:
        verdict = "better" if balance > 0 else "worse"
    judged = replace(
        worth,
        verdict=verdict,
        criteria=[replace(row, prefers=_preferred(gains[row.name])) for row in worth.criteria],
        lost=_lost(worth.adapted, worth.baseline, expected),
        found=_lost(worth.baseline, worth.adapted, expected),
        balance=balance,
    )
    return replace(judged, reason=_reason(judged, gains))


def _gain(row: ComparedCriterion) -> float | None:
    """Return how much better the adapted network is; None if one of the values is missing."""
    if row.adapted is None or row.baseline is None:
        return None
    gain = row.adapted - row.baseline if row.better == "higher" else row.baseline - row.adapted
    return gain if math.isfinite(gain) else None


def _preferred(gain: float | None) -> Network | None:
    if gain is None or abs(gain) < CLEAR:
        return None
    return "adapted" if gain > 0 else "baseline"


def _lost(
    network: ComparedNetwork, other: ComparedNetwork, expected: Mapping[str, float]
) -> list[str]:
    """Return the classes that a network hardly predicts, though the other one and the source do."""
    floors = {name: min(other.shares[name], share) for name, share in expected.items()}
    return [
        name
        for name, floor in floors.items()
        if floor >= SMALLEST_SHARE
        and other.source_iou.get(name, 0) >= KNOWN_FROM
        and network.shares[name] < LOST_BELOW * floor
    ]


def _reason(worth: Worth, gains: Mapping[str, float | None]) -> str:
    """Return the sentence about a verdict."""
    sides = ((worth.adapted, "the adapted network"), (worth.baseline, "the baseline"))
    collapsed = [name for network, name in sides if network is not None and network.collapsed]
    if collapsed:
        verb = "predicts" if len(collapsed) == 1 else "predict"
        return f"{' and '.join(collapsed)} {verb} almost only one class"
    if worth.balance is None:
        missing = " and ".join(name for name in COUNTED if gains.get(name) is None)
        return f"nothing can be said without {missing}"
    if abs(worth.balance) < CLEAR:
        verb = f"neither gains nor loses {CLEAR} in all"
    else:
        verb = f"{'gains' if worth.balance > 0 else 'loses'} {abs(worth.balance):.3f} in all"
    listed = ", ".join(f"{gains[name]:+.3f} by {name}" for name in COUNTED)
    parts = [f"the adapted network {verb}: {listed.replace('-0.000', '+0.000')}"]
    if worth.lost:
        parts.append(f"it hardly predicts {', '.join(worth.lost)} any more")
    if worth.found:
        parts.append(f"the baseline hardly predicts {', '.join(worth.found)}")
    return "; ".join(parts)
