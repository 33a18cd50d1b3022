"""Early warnings of a collapsing self-training, from the teacher's predictions on the target.

The loss does not show it: a teacher that predicts road everywhere and a student that agrees have a
low loss. The statistics are summed on the device and read every `CHECK_INTERVAL` steps.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udaseg.distributed import all_reduce_sum, world_size
from udaseg.errors import DivergedError
from udaseg.methods.objectives.objective import LossReport
from udaseg.training.callbacks.callback import Callback, TrainingState

log = logging.getLogger(__name__)
Kind = Literal["one_class", "always_sure", "nothing_accepted", "never_predicted", "nothing_learnt"]
CHECK_INTERVAL = 50
ONE_CLASS = 0.99
ALWAYS_SURE = 0.9999
NOTHING_ACCEPTED = 0.01

PATIENCE_STEPS: dict[Kind, int] = {"one_class": 100, "always_sure": 100, "nothing_accepted": 150}
"""Steps for which a condition must hold at every check; with the check interval, at most 200."""

UNSURE_START_STEPS = 1000
"""Steps that a new teacher may be unsure of everything before `nothing_accepted` applies."""

ABSENCE_STEPS = 1000
"""Steps without a single pixel until a class counts as never predicted."""

REPEAT_STEPS = 1000
"""Steps after which an alarm is repeated while its condition holds."""


@dataclass(frozen=True)
class Alarm:
    """A warning about the pseudo-labels, or about a loss of 0.

    Attributes:
        collapse: Whether the pseudo-labels are useless, so that more training is of no use.
    """

    kind: Kind
    text: str
    collapse: bool


class CollapseMonitor:
    """Monitors a teacher's predictions on the target for signs of a collapse.

    Attributes:
        shares: Share of each class in the pseudo-labels at the last check, by name; empty if that
            check had no pseudo-labels.
    """

    def __init__(self, names: Sequence[str], begin: int = 0) -> None:
        self.shares: dict[str, float] = {}
        self._begin = self._last_check = begin
        self._sums: Tensor | None = None
        self._next_alarm: dict[Kind, int] = {}  # the step, for each condition that holds
        self._last_seen = dict.fromkeys(names, begin)
        self._absent: list[str] = []
        self._was_sure = False

    def add(self, report: LossReport) -> None:
        """Add the report of a step that was not dropped, without waiting for the device."""
        if report.predicted_counts is None:
            return
        figures = report.figures
        row = torch.stack([figures["confident"], figures["confidence"]]).detach().double()
        row = torch.cat([row, row.new_ones(1), report.predicted_counts.double()])
        self._sums = row if self._sums is None else self._sums + row

    def check(self, done: int) -> list[Alarm]:
        """Return the alarms after `done` steps, from the reports since the last check (waits)."""
        sums, self._sums = self._sums, None
        first, self._last_check = self._last_check, done
        self.shares = {}
        if sums is None:
            return []
        confident, confidence, steps, *counts = all_reduce_sum(sums).tolist()
        accepted, mean_confidence = confident / steps, confidence / steps
        total = max(1.0, sum(counts))
        self.shares = {
            name: count / total for name, count in zip(self._last_seen, counts, strict=True)
        }
        top = max(self.shares, key=self.shares.__getitem__)
        self._was_sure = self._was_sure or accepted >= NOTHING_ACCEPTED
        armed = self._was_sure or done - self._begin > UNSURE_START_STEPS
        span = f"in the last {round(steps / world_size())} steps"
        texts: dict[Kind, str] = {}
        if self.shares[top] > ONE_CLASS:
            texts["one_class"] = (
                f"{100 * self.shares[top]:.2f} % of the target's pseudo-labels {span} are "
                f"'{top}': the teacher has collapsed into one class"
            )
        if mean_confidence > ALWAYS_SURE:
            texts["always_sure"] = (
                f"the teacher's mean confidence {span} is {mean_confidence:.6f}: it is sure of all "
                "labels, right or wrong, so confidence no longer separates right from wrong ones"
            )
        if armed and accepted < NOTHING_ACCEPTED:
            texts["nothing_accepted"] = (
                f"only {100 * accepted:.2f} % of the target's pixels {span} reach the confidence "
                f"threshold (mean {mean_confidence:.3f}): nothing is learnt from the target"
            )
        return [*self._due_alarms(texts, first, done), *self._absence_alarms(done)]

    def _due_alarms(self, texts: Mapping[Kind, str], first: int, done: int) -> Iterator[Alarm]:
        """Yield the alarms of those conditions that have held long enough."""
        self._next_alarm = {
            kind: self._next_alarm.get(kind, first + PATIENCE_STEPS[kind]) for kind in texts
        }
        for kind, text in texts.items():
            if done >= self._next_alarm[kind]:
                self._next_alarm[kind] = done + REPEAT_STEPS
                yield Alarm(kind, f"{text}. {_ADVICE}", collapse=True)

    def _absence_alarms(self, done: int) -> list[Alarm]:
        """Return one alarm for all classes that have just reached the limit of absence."""
        self._last_seen |= {name: done for name, share in self.shares.items() if share}
        absent = [name for name, seen in self._last_seen.items() if done - seen >= ABSENCE_STEPS]
        new, self._absent = [name for name in absent if name not in self._absent], absent
        if not new:
            return []
        text = (
            f"none of the target's pseudo-labels in the last {ABSENCE_STEPS} steps is "
            f"{', '.join(new)}: {len(absent)} of {len(self._last_seen)} classes are not learnt on "
            "the target"
        )
        return [Alarm("never_predicted", text, collapse=False)]


class CollapseWatch(Callback):
    """Warns of a collapse, and of a loss that is 0 from the start; adds both to the metrics.

    It also adds the shares of the classes in the pseudo-labels.

    Attributes:
        alarms: Alarms of the last step.
    """

    def __init__(self) -> None:
        self._monitor: CollapseMonitor | None = None
        self._shares: dict[str, float] = {}
        self._begin, self._learns = 0, False
        self.alarms: list[Alarm] = []

    def begin(self, state: TrainingState) -> None:
        """Count from the first step to come."""
        # there are no pseudo-labels in a warm-up
        first = max(state.step, state.warm_up_end)
        self._monitor = CollapseMonitor(state.context.data.classes.names, first)
        self._shares, self.alarms = {}, []
        self._begin, self._learns = state.step, False

    on_rewind = begin

    def on_step(self, state: TrainingState) -> None:
        """Count the step; at intervals, raise the alarms that are due."""
        assert self._monitor is not None and state.report is not None
        if state.dropped is None:
            self._monitor.add(state.report)
        self.alarms = []
        if state.step % CHECK_INTERVAL == 0:
            self.alarms = self._monitor.check(state.step)
            self._shares = self._monitor.shares
        self.alarms += self._idle_alarms(state)
        for alarm in self.alarms:
            log.warning("step %d: %s", state.step, alarm.text)
            state.status.incident_counts[f"alarm_{alarm.kind}"] += 1
        if self.alarms:
            state.status.write("running", step=state.step)
            state.event["alarms"] = {alarm.kind: alarm.text for alarm in self.alarms}
            state.wants_line = True
        if state.wants_line and self._shares:
            state.event["pseudo_labels"], self._shares = self._shares, {}

    def _idle_alarms(self, state: TrainingState) -> Iterator[Alarm]:
        """Yield an alarm if the gradient, which the loop has read, was 0 in all first steps."""
        self._learns = self._learns or state.gradient_norm != 0
        if not self._learns and state.step == min(self._begin + CHECK_INTERVAL, state.stage.end):
            steps = state.step - self._begin
            text = (
                f"the loss and its gradient were 0 in all of the first {steps} steps: nothing is "
                "learnt. Check that crops of the source show labelled pixels: see the truth in "
                "previews/, source.resize and source.crop"
            )
            yield Alarm("nothing_learnt", text, collapse=False)


class StopOnCollapse(Callback):
    """Ends a run whose pseudo-labels are useless, after the step is recorded."""

    def __init__(self, watch: CollapseWatch) -> None:
        self._watch = watch

    def on_step(self, state: TrainingState) -> None:
        """End the run if an alarm of this step means a collapse."""
        collapsed = [alarm.text for alarm in self._watch.alarms if alarm.collapse]
        if collapsed:
            raise DivergedError(f"step {state.step}: {collapsed[0]} (machine.stop_on_collapse)")


_ADVICE = (
    "Check the predictions of an earlier checkpoint; a lower optimizer.lr, a teacher momentum "
    "closer to 1 or better initial weights may help"
)
