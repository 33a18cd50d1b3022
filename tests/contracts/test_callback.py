"""All callbacks of a run, and the dispatcher that calls them."""

from types import SimpleNamespace

import pytest
import torch

from tests.contracts.callback import CallbackContract
from tests.support.text_record import TextRecord
from udaseg import distributed
from udaseg.errors import DivergedError
from udaseg.methods.objectives.objective import LossReport
from udaseg.runs.status import RunStatus
from udaseg.training.callbacks import callback as callback_module
from udaseg.training.callbacks import collapse
from udaseg.training.callbacks.build import build_callbacks
from udaseg.training.callbacks.callback import Callback, Dispatcher, TrainingState
from udaseg.training.callbacks.checkpoints import Checkpoints
from udaseg.training.callbacks.collapse import CollapseWatch, StopOnCollapse
from udaseg.training.callbacks.cost import Cost
from udaseg.training.callbacks.keep_best import KeepBest
from udaseg.training.callbacks.loggers.record import RecordLogger
from udaseg.training.callbacks.loggers.tensorboard import TensorBoard
from udaseg.training.callbacks.metrics import Metrics, MetricsFile
from udaseg.training.callbacks.previews import Previews
from udaseg.training.callbacks.progress import Progress
from udaseg.training.callbacks.scores import ValidationScores


@pytest.mark.slow  # TestAll has it in the fast tier
class TestCost(CallbackContract):
    kind = Cost
    counts_repeats = True

    def make(self, context):
        return (Cost(context.folder), Checkpoints())


@pytest.mark.slow  # TestAll has it in the fast tier
class TestCollapseWatch(CallbackContract):
    kind = CollapseWatch

    def make(self, context):
        return (CollapseWatch(), Metrics(), MetricsFile(context.folder))


@pytest.mark.slow  # TestAll has it in the fast tier
class TestStopOnCollapse(CallbackContract):
    kind = StopOnCollapse

    def make(self, context):
        watch = CollapseWatch()
        return (watch, StopOnCollapse(watch))


@pytest.mark.slow  # TestAll has it in the fast tier
class TestValidationScores(CallbackContract):
    kind = ValidationScores

    def make(self, context):
        return (ValidationScores(), Metrics(), MetricsFile(context.folder))


class TestMetrics(CallbackContract):
    kind = Metrics

    def make(self, context):
        return (Metrics(), MetricsFile(context.folder))


@pytest.mark.slow  # TestAll has it in the fast tier
class TestTensorBoard(CallbackContract):
    kind = TensorBoard
    counts_repeats = True

    def make(self, context):
        return (Metrics(), TensorBoard(context.folder))

    def files(self, folder):
        # the names of the files hold times
        return {path.name for path in folder.iterdir()}


@pytest.mark.slow
class TestRecordLogger(CallbackContract):
    kind = RecordLogger

    def make(self, context):
        return (Metrics(), MetricsFile(context.folder), TextRecord(context.folder))


@pytest.mark.slow  # TestAll has it in the fast tier
class TestPreviews(CallbackContract):
    kind = Previews

    def make(self, context):
        return (Previews(context.recipe, context.data.classes, context.folder),)


@pytest.mark.slow  # TestAll has it in the fast tier
class TestProgress(CallbackContract):
    kind = Progress

    def make(self, context):
        return (Metrics(), Progress())


class TestCheckpoints(CallbackContract):
    kind = Checkpoints

    def make(self, context):
        return (Checkpoints(),)


@pytest.mark.slow  # TestAll has it in the fast tier
class TestKeepBest(CallbackContract):
    kind = KeepBest

    def make(self, context):
        best = KeepBest(
            context.recipe, context.criterion_sets, context.data.classes, context.folder
        )
        return (Metrics(), MetricsFile(context.folder), Checkpoints(), best)


class TestAll(CallbackContract):
    counts_repeats = True

    def make(self, context):
        return build_callbacks(context)


def test_every_callback_of_the_package_is_a_member_here():
    members = {cls.kind for cls in CallbackContract.__subclasses__()} - {None}
    known = {cls for cls in Callback.__subclasses__() if cls.__module__.startswith("udaseg.")}
    assert known == members | {MetricsFile}


class Notes(Callback):
    """Writes down each call with its own name."""

    def __init__(self, name, calls, ranks="all"):
        self.name, self.calls, self.ranks = name, calls, ranks

    def _note(self, hook):
        self.calls.append((self.name, hook, distributed.world_size()))

    def begin(self, state):
        self._note("begin")

    def on_step(self, state):
        self._note("step")

    def on_event(self, state, event):
        self._note("event")

    def on_checkpoint(self, state, path):
        self._note("checkpoint")

    def on_rewind(self, state):
        self._note("rewind")

    def end(self, state, error):
        self._note(f"end {error}")


def dispatcher(*callbacks, **machine):
    """Return a dispatcher of callbacks that do not use the setup."""
    settings = {"log_every": 1, "stop_on_collapse": False, **machine}
    stage = SimpleNamespace(name="warm_up", begin=0, end=9, objective=None)
    setup = SimpleNamespace(
        recipe=SimpleNamespace(steps=9, machine=SimpleNamespace(**settings)),
        stage=stage,
        batches=SimpleNamespace(source=None, target=None),
        optimizer=SimpleNamespace(param_groups=[]),
    )
    classes = SimpleNamespace(names=("road", "sky"))
    context = SimpleNamespace(data=SimpleNamespace(classes=classes))
    return Dispatcher(TrainingState(context, setup, RunStatus(None), callbacks))


def report(*, counts=None):
    figures = {"confident": torch.tensor(0.5), "confidence": torch.tensor(0.8)}
    predicted = None if counts is None else torch.tensor(counts)
    return LossReport(torch.tensor(2.0), {}, figures, predicted_counts=predicted)


def test_callbacks_are_called_in_order_and_end_in_reverse():
    calls = []
    told = dispatcher(Notes("a", calls), Notes("b", calls))
    with told.running(3):
        told.on_step(4, report(), 1.0)
        told.on_rewind(3)
        told.state.write_event({})
        told.state.announce_checkpoint(None)
    hooks = ["begin", "step", "rewind", "event", "checkpoint"]
    expected = [(name, hook, 1) for hook in hooks for name in "ab"]
    assert calls == [*expected, ("b", "end None", 1), ("a", "end None", 1)]


def test_all_end_with_the_error_even_if_one_of_them_fails():
    class Fails(Callback):
        def end(self, state, error):
            raise OSError("disk full")

    calls = []
    told = dispatcher(Notes("a", calls), Fails(), Notes("b", calls))
    with pytest.raises(OSError, match="disk full"), told.running(0):
        raise ValueError("broken")
    assert [hook for _, hook, _ in calls] == ["begin", "begin", "end broken", "end broken"]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_calls_what_asks_for_it_and_alone(monkeypatch, rank):
    def size():
        return 2 if distributed.is_initialized() else 1

    monkeypatch.setattr(distributed, "is_initialized", lambda: not distributed._without_peers)
    monkeypatch.setattr(distributed, "world_size", size)
    monkeypatch.setattr(callback_module, "rank", lambda: rank)
    calls = []
    told = dispatcher(Notes("all", calls), Notes("zero", calls, ranks="zero"))
    told.on_step(1, report(), 1.0)
    assert calls == [("all", "step", 2), ("zero", "step", 1)][: 2 - rank]
    assert distributed.world_size() == 2


def test_a_step_says_what_was_dropped_and_forgets_it():
    class Sees(Callback):
        def on_step(self, state):
            seen.append((state.step, state.dropped, state.wants_line, state.report is not None))

    seen = []
    told = dispatcher(Sees(), log_every=5)
    dropped = SimpleNamespace(step=3)
    told.on_drop(dropped)
    for step in (3, 4, 5, 9):
        told.on_step(step, report(), 1.0)
    assert seen == [
        (3, dropped, True, True),
        (4, None, False, True),
        (5, None, True, True),
        (9, None, True, True),
    ]
    assert told.state.report is None


def test_a_line_has_the_numbers_first_and_then_what_others_add(monkeypatch):
    class Adds(Callback):
        def on_step(self, state):
            state.event["more"] = state.step

    class Reads(Callback):
        def on_event(self, state, event):
            events.append(event)

    events = []
    told = dispatcher(Adds(), Metrics(), Reads(), log_every=4)
    told.on_step(3, report(), 1.0)
    told.on_step(4, report(), 3.0)
    assert events[0] == {"stage": "warm_up", "more": 3}
    assert list(events[1]) == ["stage", "losses", "lr", "gradient_norm", "more"]
    assert events[1]["losses"]["total"] == 2.0


def test_the_first_steps_have_a_line_so_that_a_run_is_seen_to_work():
    class Sees(Callback):
        def on_step(self, state):
            if state.wants_line:
                seen.append(state.step)

    seen = []
    told = dispatcher(Sees(), log_every=50)
    for step in range(1, 51):
        told.on_step(step, report(), 1.0)
    last = told.state.recipe.steps
    assert seen == [1, 2, 5, last, 10, 20, 50]


def test_a_run_stops_at_a_collapse_once_the_step_is_recorded(monkeypatch):
    monkeypatch.setattr(collapse, "CHECK_INTERVAL", 1)
    monkeypatch.setattr(collapse, "PATIENCE_STEPS", dict.fromkeys(collapse.PATIENCE_STEPS, 1))
    calls = []
    watch = CollapseWatch()
    told = dispatcher(
        watch, Metrics(), Notes("log", calls), StopOnCollapse(watch), Notes("save", calls),
        log_every=99,
    )  # fmt: skip
    with pytest.raises(DivergedError, match=r"step 1: .*'sky'.*stop_on_collapse"), told.running(0):
        told.on_step(1, report(counts=[0, 999]), 1.0)
    during = [(name, hook) for name, hook, _ in calls if not hook.startswith(("begin", "end"))]
    assert during == [("log", "event"), ("save", "event"), ("log", "step")]
