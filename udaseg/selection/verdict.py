"""The rule of `udaseg select --worth-it`: from the numbers of two networks to a verdict."""

from collections.abc import Mapping
from dataclasses import replace

from udaseg.runs.worth import ComparedCriterion, ComparedNetwork, Network, Verdict, Worth

WEIGHTS = {"entropy": 0.5, "infomax": 1.0, "flip": 0.0, "source": 0.0, "drift": 2.0}
"""Weight of each criterion. `flip` and `source` are shown but do not count: between networks, they
do not follow the quality on the target. `teacher` is not computed: before the adaptation, the
teacher is the student."""

CLASSES_WEIGHT = 1.0
"""Weight of the classes that one of the networks has lost."""

SMALLEST_CHANGE = {"entropy": 0.01, "infomax": 0.01, "flip": 0.01, "source": 0.01, "drift": 0.005}
"""Smaller differences do not count."""

CLEAR = 0.5
"""Lead, as a share of all weights, that a verdict needs: no criterion reaches it alone."""

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

    The weight of each criterion goes to the network with the better value, and that of the classes
    to the network that has lost fewer known ones. A network that has collapsed to one class, or
    that tells the classes apart less well (`infomax`), is never the better one, and its lower
    `entropy` then does not count.

    Args:
        worth: Needs the values of `criteria`, both networks and `source`; the rest is replaced.
    """
    assert worth.adapted is not None
    assert worth.baseline is not None
    expected = (worth.source or {}).get("shares", {})
    lost = _lost(worth.adapted, worth.baseline, expected)
    found = _lost(worth.baseline, worth.adapted, expected)
    rows = [replace(row, prefers=_preferred(row)) for row in worth.criteria]
    by_information = next((row.prefers for row in rows if row.name == "infomax"), None)
    votes = dict.fromkeys(("adapted", "baseline"), 0.0)
    for row in rows:
        is_only_sure = row.name == "entropy" and by_information not in (None, row.prefers)
        if row.prefers is not None and not is_only_sure:
            votes[row.prefers] += WEIGHTS[row.name]
    if len(lost) != len(found):
        votes["adapted" if len(found) > len(lost) else "baseline"] += CLASSES_WEIGHT
    known = [row for row in rows if row.adapted is not None and row.baseline is not None]
    total = CLASSES_WEIGHT + sum(WEIGHTS[row.name] for row in known)
    lead = (votes["adapted"] - votes["baseline"]) / total
    verdict: Verdict = "unclear"
    if worth.adapted.collapsed != worth.baseline.collapsed:
        verdict = "worse" if worth.adapted.collapsed else "better"
    elif lead <= -CLEAR:
        verdict = "worse"
    elif lead >= CLEAR and by_information != "baseline" and not worth.adapted.collapsed:
        verdict = "better"
    judged = replace(worth, verdict=verdict, criteria=rows, lost=lost, found=found)
    return replace(judged, reason=_reason(judged))


def _preferred(row: ComparedCriterion) -> Network | None:
    if row.adapted is None or row.baseline is None:
        return None
    gain = row.adapted - row.baseline if row.better == "higher" else row.baseline - row.adapted
    if abs(gain) < SMALLEST_CHANGE[row.name]:
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


def _reason(worth: Worth) -> str:
    """Return the sentence about a verdict."""
    for network, name in ((worth.adapted, "adapted network"), (worth.baseline, "baseline")):
        if network is not None and network.collapsed:
            return f"the {name} predicts almost only one class"
    parts = []
    for side, name in (("adapted", "adapted network"), ("baseline", "baseline")):
        counted = (row.name for row in worth.criteria if row.prefers == side and WEIGHTS[row.name])
        criteria = ", ".join(counted)
        parts += [f"the {name} is better by {criteria}"] if criteria else []
    if worth.lost:
        parts.append(f"the adapted network hardly predicts {', '.join(worth.lost)} any more")
    if worth.found:
        parts.append(f"the baseline hardly predicts {', '.join(worth.found)}")
    return "; ".join(parts) or "the two networks hardly differ"
