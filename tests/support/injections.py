"""Run a tiny training and inject NaN or infinity into one place at one step."""

import copy
import functools
from dataclasses import replace
from unittest import mock

import torch

from tests.methods.test_self_training import _batch, _objective, _regional
from tests.support.small import PROTOTYPES, shipped, small_segmenter
from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.objectives.objective import add_reports
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.recipe.stages import stages_of
from udaseg.signals import StopSignal
from udaseg.training.callbacks.collapse import CHECK_INTERVAL, CollapseMonitor
from udaseg.training.guards import Guard
from udaseg.training.loop import run_steps
from udaseg.training.optimizer import (
    learning_rate_factor,
    make_optimizer,
    parameter_group,
    set_learning_rate,
)
from udaseg.training.setup import TrainingSetup, one_process

PASSING = (
    *("image", "label weight", "logits", "loss", "gradient", "teacher output"),
    *("projection", "teacher projection"),
)
"""Places where the value affects only one step."""
LASTING = ("bank row", "prototype", "optimiser state")
"""Places where the value corrupts the state, and so every later step."""
PLACES = PASSING + LASTING


class Batches:
    """Batches of a tiny run; calls the functions in `before` before making each batch."""

    def __init__(self, steps, seed, make=_batch):
        self.steps, self.seed, self.make = steps, seed, make
        self.source = self.target = None
        self.batch_source = self.batch_target = 2
        self.before = []
        self.step = -1

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        self.step = step
        for act in self.before:
            act(step)
        return self.make(step, self.seed)

    def image_paths(self, step):
        return [f"source/{step}.png", f"target/{step}.png"]


def easy_batch(step, seed):
    """Return a batch of blocks coloured by class, so that a tiny network can learn it."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    colors = torch.tensor([[20, 20, 20], [230, 40, 40], [40, 230, 40], [40, 40, 230], [230] * 3])

    def drawn(size):
        blocks = torch.randint(0, 5, (2, size[0] // 8, size[1] // 8), generator=generator)
        labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        noise = torch.randint(-20, 21, (2, 3, *size), generator=generator)
        return (colors[labels].permute(0, 3, 1, 2) + noise).clamp(0, 255).byte(), labels.byte()

    (source, labels), (target, _) = drawn((16, 24)), drawn((16, 24))
    return Batch(step, 0.0, 7 * seed + step, source, labels, target)


def rich_objective():
    """Return a self-training objective with a memory bank and prototypes."""
    prototypes = PrototypeContrast(PROTOTYPES, num_classes=5, channels=8)
    regularizers = {"regional": _regional(), "prototypes": prototypes}
    return _objective(_regional(), regularizers=regularizers)


def plain_objective():
    return SourceOnly(small_segmenter(projector=False)).train()


@functools.cache
def _recipe():
    return shipped("toyland/rccr", ["optimizer.warmup=0", "machine.checkpoint_every=0"])


def tiny_fit(*, objective=None, steps=8, seed=0, kind="adamw", lr=0.01, make=_batch, **changes):
    """Return the training setup of a tiny run; `changes` are settings of its recipe."""
    objective = objective or rich_objective()
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    trainer = make_optimizer(
        kind, [parameter_group("all", lr, named)], momentum=0.9, weight_decay=0.01
    )
    recipe = replace(_recipe(), steps=steps)
    clip = changes.pop("clip_norm", None)
    recipe = replace(
        recipe,
        optimizer=replace(recipe.optimizer, clip_norm=clip),
        machine=replace(recipe.machine, **changes),
    )
    batches, device = Batches(steps, seed, make), torch.device("cpu")
    (stage,) = stages_of(recipe)
    return TrainingSetup(one_process, objective, trainer, batches, device, recipe, stage)


def _in_order(batches, first, **_):
    for step in range(first, len(batches)):
        yield batches[step]


def trained(run, *, on_step=lambda done, report: None, first=0, guard=None, stop=None):
    """Train to the end and return the number of steps done."""
    # make each batch when its step begins; a loader would prefetch
    with mock.patch("udaseg.training.loop.iterate_batches", _in_order):
        return run_steps(run, first=first, on_step=on_step, stop=stop or StopSignal(), guard=guard)


def plainly_trained(run, *, without=()):
    """Train with a plain loop and skip the steps in `without`."""
    run.objective.train()
    for step in range(len(run.batches)):
        if step in without:
            continue
        batch = run.batches.make(step, run.batches.seed)
        torch.manual_seed(batch.seed)
        optimizer = run.recipe.optimizer
        rate = learning_rate_factor(
            step, len(run.batches), power=optimizer.power, warmup=optimizer.warmup
        )
        set_learning_rate(run.optimizer, rate)
        run.optimizer.zero_grad()
        reports = []
        for report in run.objective.passes(batch, RankSums()):
            report.total.backward()
            reports.append(report)
        report = functools.reduce(add_reports, reports)
        run.optimizer.step()
        run.objective.after_step(step, report)


def everything(run):
    """Return a copy of every tensor of the objective and the optimiser, by name."""
    found = dict(run.objective.state_dict())
    for number, state in run.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    return copy.deepcopy(found)


def differing(one, other):
    """Return the names of the tensors that are not bitwise identical."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def not_finite(state):
    return [name for name, value in state.items() if not torch.isfinite(value).all()]


def change_reports(objective, change):
    """Let `change` replace each report that the objective yields."""
    real = objective.passes
    objective.passes = lambda batch, sums: map(change, real(batch, sums))


def inject(run, place, at, value=float("nan")):
    """Set one element at `place` to `value`, once, at step `at`.

    Returns a list that stays empty until the injection happens.
    """
    done = []
    objective, batches = run.objective, run.batches
    student = objective.student
    teacher = getattr(objective, "teacher", None)

    def once(act):
        if batches.step != at or done:
            return None
        done.append(place)
        return act()

    def spoilt(tensor):
        spot = torch.zeros_like(tensor, dtype=torch.bool, memory_format=torch.contiguous_format)
        spot.view(-1)[spot.numel() // 2] = True
        return tensor.masked_fill(spot, value)

    def on_output(module):
        module.register_forward_hook(lambda _, __, out: once(lambda: spoilt(out)))

    def on_input(module):
        module.register_forward_pre_hook(lambda _, given: once(lambda: (spoilt(given[0]),)))

    def before_the_step(tensor):
        batches.before.append(lambda _: once(lambda: tensor().view(-1)[1:2].fill_(value)))

    def on_loss():
        change_reports(
            objective, lambda out: once(lambda: replace(out, total=out.total * value)) or out
        )

    def on_weight():
        real = objective.weights.share_of_images

        def share(sure):
            right = real(sure)
            wrong = once(lambda: spoilt(right))
            return right if wrong is None else wrong

        objective.weights.share_of_images = share

    first = next(student.backbone.parameters())
    terms = getattr(objective, "regularizers", None)
    ways = {
        "image": lambda: on_input(student.backbone),
        "label weight": on_weight,
        "logits": lambda: on_output(student.head),
        "loss": on_loss,
        "gradient": lambda: first.register_hook(lambda grad: once(lambda: spoilt(grad))),
        "teacher output": lambda: on_output(teacher.network.head),
        "projection": lambda: on_output(student.projector),
        "teacher projection": lambda: on_output(teacher.network.projector),
        "bank row": lambda: before_the_step(lambda: terms["regional"].bank.embeddings),
        "prototype": lambda: before_the_step(lambda: terms["prototypes"].prototypes.means),
        "optimiser state": lambda: before_the_step(lambda: run.optimizer.state[first]["exp_avg"]),
    }
    ways[place]()
    return done


def biased(run, bias=9.0):
    """Bias the teacher's logits of a run towards one class, whatever it learns."""
    towards = torch.tensor([0.0, bias, 0.0, 0.0, 0.0])[:, None, None]
    run.objective.teacher.network.head.register_forward_hook(lambda _, __, out: out + towards)


def alarms_of(run):
    """Train to the end and return (step, kind) of each alarm."""
    watch, found = CollapseMonitor(["a", "b", "c", "d", "e"]), []

    def on_step(done, report):
        watch.add(report)
        if done % CHECK_INTERVAL == 0:
            found.extend((done, alarm.kind) for alarm in watch.check(done))

    trained(run, on_step=on_step)
    return found


def campaign(*, seeds, steps, at, values):
    """Inject into every place at each step of `at`; return the number of trials and the failures.

    A run recovers from a bad step by dropping it: the result is identical to a run without that
    step. It recovers from a bad state by restoring a good one: the result is identical to an
    uninterrupted run. Both are bitwise identical and counted once.
    """
    trials, failed = 0, []
    for seed in seeds:
        whole = tiny_fit(steps=steps, seed=seed)
        plainly_trained(whole)
        for step in at:
            short = tiny_fit(steps=steps, seed=seed)
            plainly_trained(short, without={step})
            for place in PLACES:
                for value in values:
                    trials += 1
                    wanted = everything(short if place in PASSING else whole)
                    problem = _problem(place, step, value, steps, seed, wanted)
                    if problem:
                        failed.append(f"{value} in {place} at step {step}, seed {seed}: {problem}")
    return trials, failed


def _problem(place, step, value, steps, seed, wanted):
    run = tiny_fit(steps=steps, seed=seed)
    injected = inject(run, place, step, value)
    guard = Guard(run)
    trained(run, guard=guard)
    if not injected:
        return "nothing was injected"
    name = "dropped_steps" if place in PASSING else "returns_to_a_good_state"
    if guard.counts != {name: 1}:
        return f"counted {dict(guard.counts)}"
    found = everything(run)
    return ", ".join((not_finite(found) or differing(found, wanted))[:3])
