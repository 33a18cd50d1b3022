"""The rule that turns the numbers of two networks into a verdict."""

import math
from dataclasses import replace

import pytest

from udaseg.runs.worth import ComparedCriterion, ComparedNetwork, Worth
from udaseg.selection.criteria import CRITERIA
from udaseg.selection.verdict import judge

BETTER = {each.name: each.better for each in CRITERIA if each.name != "teacher"}
SAME = {"entropy": 0.2, "infomax": 0.4, "flip": 0.6, "source": 0.6, "drift": 0.1}
GOOD = {"entropy": 0.1, "infomax": 0.6, "flip": 0.8, "source": 0.7, "drift": 0.05}
SHARES = {"road": 0.7, "car": 0.29, "sign": 0.01}


def network(shares=SHARES, *, collapsed=False, known=0.3):
    ious = dict.fromkeys(shares, known)
    return ComparedNetwork("step-000001.pt", 1, "", collapsed, shares, ious)


def worth(adapted=SAME, baseline=SAME, ours=None, theirs=None, expected=SHARES):
    rows = [
        ComparedCriterion(name, better, adapted.get(name), baseline.get(name), None)
        for name, better in BETTER.items()
    ]
    source = None if expected is None else {"shares": expected}
    networks = {"adapted": ours or network(), "baseline": theirs or network()}
    return judge(Worth("unclear", "", rows, source=source, **networks))


def preferred(judged):
    return {row.name: row.prefers for row in judged.criteria}


def test_the_sum_of_gains_decides():
    judged = worth(GOOD, SAME)
    assert judged.verdict == "better"
    assert judged.balance == pytest.approx(0.2 + 0.1 + 0.05)
    assert judged.reason == (
        "the adapted network gains 0.350 in all: "
        "+0.200 by infomax, +0.100 by source, +0.050 by drift"
    )
    assert preferred(judged) == dict.fromkeys(BETTER, "adapted")
    judged = worth(SAME, GOOD)
    assert (judged.verdict, judged.balance) == ("worse", pytest.approx(-0.35))
    assert judged.reason.startswith("the adapted network loses 0.350 in all: -0.200 by infomax, ")
    assert preferred(judged) == dict.fromkeys(BETTER, "baseline")
    judged = worth({**SAME, "source": 0.5999}, SAME)
    assert judged.verdict == "unclear"
    assert judged.reason == (
        "the adapted network neither gains nor loses 0.01 in all: "
        "+0.000 by infomax, +0.000 by source, +0.000 by drift"
    )


@pytest.mark.parametrize("name", ["infomax", "source", "drift"])
def test_a_hair_is_no_difference(name):
    sign = 1 if BETTER[name] == "higher" else -1
    for change, verdict, side in ((0.009, "unclear", None), (0.011, "better", "adapted")):
        judged = worth({**SAME, name: SAME[name] + sign * change}, SAME)
        assert (judged.verdict, preferred(judged)[name]) == (verdict, side)


def test_what_is_forgotten_of_the_source_can_cost_more_than_what_is_gained():
    surer = {**GOOD, "drift": 0.1}
    assert worth({**surer, "source": 0.5}, SAME).verdict == "better"  # 0.2 - 0.1
    assert worth({**surer, "source": 0.395}, SAME).verdict == "unclear"
    assert worth({**surer, "source": 0.3}, SAME).verdict == "worse"


def test_being_sure_and_agreeing_with_mirror_images_is_shown_and_does_not_count():
    judged = worth({**SAME, "entropy": 0.0, "flip": 1.0}, SAME)
    assert preferred(judged) == {
        **dict.fromkeys(BETTER),
        "entropy": "adapted",
        "flip": "adapted",
    }
    assert (judged.verdict, judged.balance) == ("unclear", 0)


def test_a_collapsed_network_never_wins():
    # sure of road everywhere: the best entropy and agreement with mirror images, no information
    sure = {**SAME, "entropy": 0.0, "flip": 1.0, "infomax": 0.02}
    road = {"road": 0.98, "car": 0.02, "sign": 0.0}
    assert worth({**sure, "source": 0.1, "drift": 0.6}, SAME, network(road)).verdict == "worse"
    flagged = network(collapsed=True)
    assert worth(GOOD, SAME, flagged).verdict == "worse"
    assert worth(GOOD, SAME, flagged).reason == (
        "the adapted network predicts almost only one class"
    )
    assert worth(SAME, GOOD, theirs=flagged).verdict == "better"
    assert worth(SAME, GOOD, theirs=flagged).reason == (
        "the baseline predicts almost only one class"
    )
    judged = worth(GOOD, SAME, flagged, flagged)
    assert judged.verdict == "unclear"
    assert judged.reason == ("the adapted network and the baseline predict almost only one class")


def test_known_classes_that_vanish_are_named():
    # expected: the smaller of the source's share and the other network's; lost below a quarter
    kept = network({"road": 0.7, "car": 0.2975, "sign": 0.0025})
    lost = network({"road": 0.7, "car": 0.298, "sign": 0.002})
    assert worth(ours=kept).lost == []
    judged = worth(ours=lost)
    assert (judged.lost, judged.found) == (["sign"], [])
    assert judged.reason.endswith("; it hardly predicts sign any more")
    judged = worth(theirs=lost)
    assert (judged.lost, judged.found) == ([], ["sign"])
    assert judged.reason.endswith("; the baseline hardly predicts sign")
    # the other network predicts too much of it, says the source
    assert worth(ours=lost, expected={**SHARES, "sign": 0.005}).lost == []
    # the other network did not know it: IoU on the source below 0.3
    assert worth(ours=lost, theirs=network(known=0.29)).lost == []
    # without a source, nothing says how much to expect
    assert worth(ours=lost, expected=None).lost == []
    # a class that nobody expects is not lost
    rare = {"road": 0.7, "car": 0.2999, "sign": 0.0001}
    assert worth(ours=network({**rare, "sign": 0}), theirs=network(rare)).lost == []
    # they are a warning: the verdict stays
    assert worth(GOOD, SAME, lost).verdict == "better"


@pytest.mark.parametrize("missing", [("infomax",), ("source", "drift")])
@pytest.mark.parametrize("value", [None, math.nan])
def test_without_one_of_them_there_is_no_verdict(missing, value):
    judged = worth({**GOOD, **dict.fromkeys(missing, value)}, SAME)
    assert (judged.verdict, judged.balance) == ("unclear", None)
    assert judged.reason == f"nothing can be said without {' and '.join(missing)}"
    assert preferred(judged) == {**dict.fromkeys(BETTER, "adapted"), **dict.fromkeys(missing)}


def test_a_verdict_can_be_made_again_from_what_is_stored():
    judged = worth(GOOD, SAME)
    rows = [replace(row, prefers=None) for row in judged.criteria]
    assert judge(replace(judged, verdict="unclear", reason="", criteria=rows)) == judged
