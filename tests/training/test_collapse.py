"""Alarms: a collapsing teacher is detected within 200 steps; a healthy one raises no alarm."""

import pytest
import torch

from tests.methods.test_self_training import _objective
from tests.support.injections import alarms_of, biased, easy_batch, tiny_fit
from udaseg.data.labels.classes import IGNORE
from udaseg.methods.objectives.objective import LossReport
from udaseg.methods.target_labels import class_counts
from udaseg.training.callbacks.collapse import CHECK_INTERVAL, CollapseMonitor

NAMES = ("road", "sky", "car", "pole")
SOUND = {"counts": [40, 30, 20, 10], "confident": 0.4, "confidence": 0.8}
SIGNS = {
    "one_class": {**SOUND, "counts": [0, 999, 1, 0]},
    "always_sure": {**SOUND, "confidence": 0.99995},
    "nothing_accepted": {**SOUND, "confident": 0.002},
}


def _report(counts, confident, confidence):
    figures = {"confident": torch.tensor(confident), "confidence": torch.tensor(confidence)}
    return LossReport(torch.zeros(()), {}, figures, predicted_counts=torch.tensor(counts))


def _watched(says, steps, begin=0):
    """Return (step, kind) of every alarm if step i, from `begin` on, reports `says(i)`."""
    watch, alarms = CollapseMonitor(NAMES, begin), []
    for done in range(begin + 1, begin + steps + 1):
        watch.add(_report(**says(done)))
        if done % CHECK_INTERVAL == 0:
            alarms += [(done, alarm) for alarm in watch.check(done)]
    return alarms


@pytest.mark.parametrize("kind", list(SIGNS))
@pytest.mark.parametrize("onset", [1, 300, 301, 349, 350, 777])
def test_a_collapse_is_told_within_200_steps_whenever_it_begins(kind, onset):
    first = {"one_class": 0, "always_sure": 0, "nothing_accepted": 300}[kind]
    onset = max(onset, first)
    alarms = _watched(lambda done: SIGNS[kind] if done >= onset else SOUND, 1000)
    alarms = [(done, alarm) for done, alarm in alarms if alarm.kind != "never_predicted"]
    (done, alarm), *later_alarms = alarms
    assert later_alarms == []
    assert alarm.kind == kind
    assert alarm.collapse
    assert onset + 50 < done <= onset + 200


@pytest.mark.parametrize("kind", list(SIGNS))
def test_an_alarm_says_what_is_wrong_with_figures(kind):
    (_, alarm), *_ = _watched(lambda done: SOUND if done < 100 else SIGNS[kind], 400)
    figures = {
        "one_class": "99.90 % of the target's pseudo-labels in the last 50 steps are 'sky'",
        "always_sure": "0.999950",
        "nothing_accepted": "only 0.20 % of the target's pixels",
    }
    assert figures[kind] in alarm.text
    assert "optimizer.lr" in alarm.text


def test_the_shares_of_the_classes_are_those_since_the_last_look():
    watch = CollapseMonitor(NAMES)
    for counts in ([6, 2, 0, 0], [2, 2, 4, 0]):
        watch.add(_report(counts, 0.4, 0.8))
    watch.check(2)
    assert watch.shares == {"road": 0.5, "sky": 0.25, "car": 0.25, "pole": 0.0}
    watch.add(_report([0, 0, 0, 3], 0.4, 0.8))
    watch.check(3)
    assert watch.shares == {"road": 0.0, "sky": 0.0, "car": 0.0, "pole": 1.0}
    watch.check(4)
    assert watch.shares == {}


def test_a_sign_that_passes_is_no_alarm():
    assert _watched(lambda done: SIGNS["one_class"] if done % 200 < 90 else SOUND, 900) == []


def test_a_teacher_may_be_unsure_at_the_start_but_not_for_ever():
    unsure = SIGNS["nothing_accepted"]
    assert _watched(lambda done: unsure if done < 900 else SOUND, 1000) == []
    (done, alarm), *_ = _watched(lambda _: unsure, 1300)
    assert (done, alarm.kind) == (1150, "nothing_accepted")


def test_an_alarm_that_lasts_is_told_again_after_a_thousand_steps():
    steps = [
        done
        for done, alarm in _watched(lambda _: SIGNS["always_sure"], 2500)
        if alarm.kind == "always_sure"
    ]
    assert steps == [100, 1100, 2100]


def test_classes_that_are_never_predicted_are_named_once():
    gone = {**SOUND, "counts": [50, 40, 10, 0]}
    alarms = _watched(lambda done: gone if done > 250 else SOUND, 3000)
    assert [(done, alarm.kind) for done, alarm in alarms] == [(1250, "never_predicted")]
    assert not alarms[0][1].collapse
    assert "is pole: 1 of 4 classes" in alarms[0][1].text


def test_a_resumed_run_counts_from_where_it_goes_on():
    gone = {**SOUND, "counts": [50, 40, 10, 0]}
    assert _watched(lambda _: gone, 900, begin=5000) == []


def test_an_objective_without_a_teacher_is_not_watched():
    watch = CollapseMonitor(NAMES)
    watch.add(LossReport(torch.zeros(()), {}))
    assert watch.check(50) == []


def test_classes_are_counted_on_every_fourth_row_and_column():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (2, 13, 18), generator=generator).to(torch.uint8)
    labels[0, :5] = IGNORE
    expected = [0] * 5
    for image in labels:
        for row in image[::4]:
            for label in row[::4].tolist():
                if label != IGNORE:
                    expected[label] += 1
    assert class_counts(labels, 5).tolist() == expected


@pytest.mark.slow
def test_a_biased_teacher_of_a_real_run_is_noticed_and_a_sound_one_is_not():
    settings = {"steps": 150, "make": easy_batch, "lr": 3e-3}
    assert alarms_of(tiny_fit(objective=_objective(), **settings)) == []
    run = tiny_fit(objective=_objective(), **settings)
    biased(run)
    assert "one_class" in {kind for _, kind in alarms_of(run)}
