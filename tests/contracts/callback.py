"""What every callback must do; subclass `CallbackContract` to test one of your own."""

import functools
import gc
import json
import random
import weakref

import numpy as np
import pytest
import torch

from tests.support.small import shipped
from tests.support.toy import TINY, toy_pair, toy_root
from udaseg.data.open import open_dataset
from udaseg.runs.status import RunStatus
from udaseg.training.callbacks import callback as callback_module
from udaseg.training.callbacks import collapse
from udaseg.training.callbacks.callback import Dispatcher, TrainingState
from udaseg.training.callbacks.keep_best import open_criterion_sets
from udaseg.training.optimizer import set_learning_rate
from udaseg.training.setup import RunContext, RunData, build_setup
from udaseg.training.snapshot import Snapshot
from udaseg.training.step import compute_gradients

STEPS = 4
WORDS = [
    *(word for word in TINY if not word.startswith("model.backbone")),
    *("model.backbone=timm:test_efficientnet", "model.head_channels=16", f"steps={STEPS}"),
    *("machine.log_every=1", "machine.preview_every=1", "machine.checkpoint_every=2"),
    *("machine.validate_every=1", "machine.keep_best=infomax", "machine.loggers=[]"),
]


@functools.cache
def prepared(root):
    return toy_root(root)


class Run:
    """A tiny training whose steps tell callbacks what the training loop tells them."""

    def __init__(self, context, callbacks):
        self.setup = build_setup(context.recipe, context.data.source, context.data.target)
        self.state = TrainingState(context, self.setup, RunStatus(None), callbacks)
        self.dispatcher = Dispatcher(self.state)
        self.copies = {0: self.copy(0)}

    def copy(self, step):
        return Snapshot(step, self.setup.objective, self.setup.optimizer)

    def restore(self, step):
        self.copies[step].restore(self.setup.objective, self.setup.optimizer)

    def train(self, first, last):
        """Train from step `first` to `last` and keep a copy of each state."""
        setup = self.setup
        for step in range(first, last):
            batch = setup.batches[step]
            torch.manual_seed(batch.seed)
            set_learning_rate(setup.optimizer, 1.0)
            report = compute_gradients(setup, batch)
            setup.optimizer.step()
            setup.objective.after_step(step, report)
            self.copies[step + 1] = self.copy(step + 1)
            self.dispatcher.on_step(step + 1, report, 1.0)

    def rewind(self, step):
        self.restore(step)
        self.dispatcher.on_rewind(step)


def trace(setup):
    """Return all that a callback must leave as it is."""
    objective, numpy_state = setup.objective, np.random.get_state()
    tensors = {name: value.clone() for name, value in objective.state_dict().items()}
    for name, part in objective.named_parameters():
        tensors[f"{name} gradient"] = torch.zeros(0) if part.grad is None else part.grad.clone()
    for number, moments in setup.optimizer.state_dict()["state"].items():
        tensors |= {f"{number} {name}": value.clone() for name, value in moments.items()}
    tensors["random"] = torch.get_rng_state()
    tensors["numpy"] = torch.from_numpy(numpy_state[1].astype(np.int64))
    switches = {
        "python": random.getstate(),
        "numpy": numpy_state[2],
        "modes": [module.training for module in objective.modules()],
        "trained": [part.requires_grad for part in objective.parameters()],
        "rates": [group["lr"] for group in setup.optimizer.param_groups],
    }
    return tensors, switches


def difference(before, after):
    tensors = [name for name, value in before[0].items() if not torch.equal(value, after[0][name])]
    return tensors + [name for name, value in before[1].items() if value != after[1][name]]


def flat(value, name=""):
    """Yield every tensor and plain value inside `value`, by name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}")
    elif torch.is_tensor(value):
        yield name, value.tolist()
    else:
        yield name, repr(value)


def content(path):
    """Return what a file says, without what differs between equal runs."""
    if path.suffix == ".pt":
        return dict(flat(torch.load(path, weights_only=True)))
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        document.pop("sha256", None)
        return document
    return path.read_bytes()


class CallbackContract:
    """Set `kind` and implement `make`.

    Set `counts_repeats` if steps that are run twice count twice in the files.
    """

    kind = None
    counts_repeats = False

    def make(self, context):
        """Return all callbacks of a run: the one under test, and others that it works with."""
        raise NotImplementedError

    @pytest.fixture
    def root(self, tmp_path_factory):
        return prepared(tmp_path_factory.getbasetemp() / "toyland_of_callbacks")

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(collapse, "CHECK_INTERVAL", 2)

    @pytest.fixture
    def context_in(self, root):
        """Return a function that makes the context of a run in a folder."""
        recipe, pair = shipped("toyland/dacs", WORDS), toy_pair(root)
        data = RunData(*pair, open_dataset("toyland-target", root=root))
        sets = open_criterion_sets(recipe, root)

        def context(folder):
            folder.mkdir()
            return RunContext(recipe, data, folder, None, False, sets)

        return context

    def start(self, context):
        torch.manual_seed(0)
        return Run(context, self.make(context))

    def files(self, folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(folder)): None if self.counts_repeats else content(path)
            for path in paths
        }

    @pytest.fixture
    def undisturbed(self, context_in, tmp_path):
        """Return the files of a run from its first step to its last."""
        cls = type(self)
        if "whole" not in vars(cls):
            run = self.start(context_in(tmp_path / "undisturbed"))
            with run.dispatcher.running(0):
                run.train(0, STEPS)
            cls.whole = self.files(tmp_path / "undisturbed")
        return cls.whole

    def test_no_call_changes_what_trains(self, context_in, tmp_path, monkeypatch):
        run = self.start(context_in(tmp_path / "run"))
        call, seen = callback_module.call_on_its_ranks, []

        def checked(callback, act):
            before = trace(run.setup)
            call(callback, act)
            seen.append(callback)
            assert difference(before, trace(run.setup)) == []

        monkeypatch.setattr(callback_module, "call_on_its_ranks", checked)
        with run.dispatcher.running(0):
            run.train(0, 3)
            run.rewind(2)
            run.train(2, STEPS)
        # begin, three steps, rewind, two steps, end
        assert all(seen.count(callback) >= 8 for callback in run.state.callbacks)

    def test_steps_that_are_run_again_leave_the_files_of_an_undisturbed_run(
        self, context_in, tmp_path, undisturbed
    ):
        run = self.start(context_in(tmp_path / "run"))
        with run.dispatcher.running(0):
            run.train(0, 3)
            run.rewind(2)
            run.train(2, 3)
            run.rewind(2)
            run.train(2, STEPS)
        assert self.files(tmp_path / "run") == undisturbed

    def test_a_resumed_run_leaves_the_files_of_an_undisturbed_one(
        self, context_in, tmp_path, undisturbed
    ):
        context = context_in(tmp_path / "run")
        killed = self.start(context)
        for callback in killed.state.callbacks:
            callback.begin(killed.state)
        killed.train(0, 3)
        resumed = self.start(context)
        resumed.copies = killed.copies
        resumed.restore(2)
        with resumed.dispatcher.running(2):
            resumed.train(2, STEPS)
        for callback in killed.state.callbacks:
            callback.end(killed.state, RuntimeError("killed"))
        assert self.files(tmp_path / "run") == undisturbed

    @pytest.mark.parametrize("steps", [0, 1])
    def test_an_error_ends_it_quietly(self, context_in, tmp_path, steps):
        run = self.start(context_in(tmp_path / "run"))
        with pytest.raises(RuntimeError, match="broken"), run.dispatcher.running(0):
            run.train(0, steps)
            raise RuntimeError("broken")
        assert run.state.report is None

    def test_it_can_begin_again_for_a_later_stage(self, context_in, tmp_path, undisturbed):
        context = context_in(tmp_path / "run")
        first = self.start(context)
        with first.dispatcher.running(0):
            first.train(0, 2)
        second = Run(context, first.state.callbacks)
        second.copies = first.copies
        second.restore(2)
        with second.dispatcher.running(2):
            second.train(2, STEPS)
        assert self.files(tmp_path / "run") == undisturbed

    def test_it_keeps_neither_the_state_nor_its_setup(self, context_in, tmp_path):
        run = self.start(context_in(tmp_path / "run"))
        callbacks = run.state.callbacks
        with run.dispatcher.running(0):
            run.train(0, 2)
        kept = [weakref.ref(thing) for thing in (run.state, run.setup, run.setup.objective)]
        del run
        gc.collect()
        assert [thing() for thing in kept] == [None] * 3
        assert callbacks
