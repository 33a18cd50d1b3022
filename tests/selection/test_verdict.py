"""The rule that turns the numbers of two networks into a verdict."""

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


def test_all_criteria_decide():
    assert worth(GOOD, SAME).verdict == "better"
    assert preferred(worth(GOOD, SAME)) == dict.fromkeys(BETTER, "adapted")
    assert worth(SAME, GOOD).verdict == "worse"
    assert preferred(worth(SAME, GOOD)) == dict.fromkeys(BETTER, "baseline")
    assert worth(SAME, SAME).verdict == "unclear"
    assert worth(SAME, SAME).reason == "the two networks hardly differ"


@pytest.mark.parametrize("name", list(BETTER))
def test_a_hair_is_no_difference_and_no_criterion_decides_alone(name):
    sign = 1 if BETTER[name] == "higher" else -1
    hair = worth({**SAME, name: SAME[name] + sign * 0.004}, SAME)
    assert preferred(hair)[name] is None
    one = worth({**SAME, name: GOOD[name]}, SAME)
    assert preferred(one) == {**dict.fromkeys(BETTER), name: "adapted"}
    assert one.verdict == worth(SAME, {**SAME, name: GOOD[name]}).verdict == "unclear"


def test_what_the_source_and_mirror_images_say_is_shown_and_does_not_count():
    judged = worth(GOOD, {**SAME, "flip": 1.0, "source": 1.0})
    assert preferred(judged) == {
        **dict.fromkeys(BETTER, "adapted"),
        "flip": "baseline",
        "source": "baseline",
    }
    assert judged.verdict == "better"
    assert judged.reason == ("the adapted network is better by entropy, infomax, drift")


def test_a_collapsed_network_never_wins():
    # sure of road everywhere: the best entropy and agreement with mirror images, no information
    sure = {**SAME, "entropy": 0.0, "flip": 1.0, "infomax": 0.02}
    road = {"road": 0.98, "car": 0.02, "sign": 0.0}
    assert worth({**sure, "source": 0.1, "drift": 0.6}, SAME, network(road)).verdict == "worse"
    without_source = {key: sure[key] for key in ("entropy", "flip", "infomax")}
    assert worth(without_source, SAME, network(road), expected=None).verdict == "unclear"
    # even if nothing but the information speaks against it
    assert worth({**GOOD, "infomax": 0.3}, SAME).verdict != "better"
    flagged = network(collapsed=True)
    assert worth(GOOD, SAME, flagged).verdict == "worse"
    assert worth(GOOD, SAME, flagged).reason == (
        "the adapted network predicts almost only one class"
    )
    assert worth(SAME, GOOD, theirs=flagged).verdict == "better"
    assert worth(GOOD, SAME, flagged, flagged).verdict == "unclear"


def test_known_classes_that_vanish_are_named_and_count():
    # expected: the smaller of the source's share and the other network's; lost below a quarter
    kept = network({"road": 0.7, "car": 0.2975, "sign": 0.0025})
    lost = network({"road": 0.7, "car": 0.298, "sign": 0.002})
    assert worth(ours=kept).lost == []
    judged = worth(ours=lost)
    assert (judged.lost, judged.found) == (["sign"], [])
    assert judged.reason == "the adapted network hardly predicts sign any more"
    judged = worth(theirs=lost)
    assert (judged.lost, judged.found) == ([], ["sign"])
    assert judged.reason == "the baseline hardly predicts sign"
    # the other network predicts too much of it, says the source
    assert worth(ours=lost, expected={**SHARES, "sign": 0.005}).lost == []
    # the other network did not know it: IoU on the source below 0.3
    assert worth(ours=lost, theirs=network(known=0.29)).lost == []
    # without a source, nothing says how much to expect
    assert worth(ours=lost, expected=None).lost == []
    # a class that nobody expects is not lost
    rare = {"road": 0.7, "car": 0.2999, "sign": 0.0001}
    assert worth(ours=network({**rare, "sign": 0}), theirs=network(rare)).lost == []
    # a lost class can turn a lead into none
    lead = {**SAME, "entropy": 0.1, "drift": 0.05}
    assert worth(lead, SAME).verdict == "better"
    assert worth(lead, SAME, lost).verdict == "unclear"


def test_what_one_network_lacks_has_no_say():
    without = {**GOOD, "source": None, "drift": None}
    judged = worth(without, SAME)
    assert judged.verdict == "better"
    assert preferred(judged) == {**dict.fromkeys(BETTER, "adapted"), "source": None, "drift": None}


def test_a_verdict_can_be_made_again_from_what_is_stored():
    judged = worth(GOOD, SAME)
    rows = [replace(row, prefers=None) for row in judged.criteria]
    assert judge(replace(judged, verdict="unclear", reason="", criteria=rows)) == judged
