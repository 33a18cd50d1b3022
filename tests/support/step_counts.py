"""What one training step of a shipped recipe asks of a GPU, counted on tensors without storage.

It is the loop's own step, of the recipe's own size: loading aside, from the random seed to the
callback that watches for a collapse. The second of two steps counts, as the first allocates.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support import small
from tests.support.fake_cuda import CUDA, FakeCuda, to_gpu
from udaseg.data.loading.batches import Batch
from udaseg.distributed import world_size
from udaseg.methods.build import apply_machine_options, build_objective
from udaseg.methods.objectives.objective import LossReport
from udaseg.methods.sync_norm import sync_batch_norms
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import Stage, stages_of
from udaseg.signals import StopSignal
from udaseg.training import loop
from udaseg.training.callbacks.collapse import CollapseWatch
from udaseg.training.footprint import peak_step_memory
from udaseg.training.guards import Guard
from udaseg.training.optimizer import build_optimizer
from udaseg.training.setup import TrainingSetup, one_process

FOLDER = small.REPOSITORY / "recipes" / "gta5_cityscapes"
CLASSES, CPU = 19, torch.device("cpu")
_STEPS_TO_END = 13
"""Far enough into the stage for every loss term, and no check of the state is due."""


@dataclass(frozen=True)
class Case:
    """A method, or one stage of it.

    Attributes:
        name: Such as `dacs`, `spcl/contrast` or `sepico/bank`.
    """

    name: str
    recipe: Recipe
    stage: Stage


def all_cases() -> list[Case]:
    """Return every method with every stage, and each variant of SePiCo."""
    cases = []
    for path in sorted(FOLDER.glob("*.yaml")):
        variants = ("distribution", "bank", "prototype") if path.stem == "sepico" else ("",)
        for variant in variants:
            words = ["model.weights=random", "machine.precision=bf16"]
            words += [f"method.semantic.variant={variant}"] if variant else []
            recipe = small.shipped(f"{FOLDER.name}/{path.stem}", words)
            for stage in stages_of(recipe):
                part = variant or stage.name
                cases.append(Case(f"{path.stem}/{part}" if part else path.stem, recipe, stage))
    return cases


def count_step(case: Case, *, ranks: int = 1) -> FakeCuda:
    """Return the GPU that the second of two steps ran on, with its events."""
    with _pretended(ranks), FakeCuda() as gpu:
        setup = _setup(case, CUDA)
        watch, done = CollapseWatch(), setup.stage.end - _STEPS_TO_END
        names = [f"class {number}" for number in range(CLASSES)]
        state: Any = SimpleNamespace(step=done, dropped=None, wants_line=False, gradient_norm=1.0)
        state.warm_up_end = 0
        state.context = SimpleNamespace(data=SimpleNamespace(classes=SimpleNamespace(names=names)))
        watch.begin(state)

        def on_step(done: int, report: LossReport) -> None:
            state.step, state.report = done, report
            watch.on_step(state)

        def batches(*_: Any, **__: Any) -> Iterator[Batch]:
            for step in (done, done + 1):
                batch = _batch(setup.batches.shapes(), step).pin_memory()
                gpu.forget()
                yield batch

        guard = Guard(setup)
        setup.objective.train()
        with mock.patch.object(loop, "iterate_batches", batches):
            loop._run_steps(setup, done, guard, on_step, StopSignal(), started_at=done)
    return gpu


def peak_bytes(case: Case) -> int:
    """Return the peak memory of a step on a GPU, without weights and moments.

    It is the estimate of `udaseg adapt --dry-run`, but of the code for a GPU.
    """
    setup = _setup(case, CPU)
    with mock.patch.object(FakeTensor, "is_cuda", property(lambda _: True)):
        return peak_step_memory(setup)


def _setup(case: Case, device: torch.device) -> TrainingSetup:
    """Return the setup of a case, whose networks have no storage."""
    recipe, stage = case.recipe, case.stage
    names = ["car", *(f"class {number}" for number in range(1, CLASSES))]
    digest = mock.patch("udaseg.models.frozen.state_digest", lambda _: "00" * 32)
    with digest, torch.device("meta"):  # takes no time for random weights
        objective = build_objective(recipe, CLASSES, classes=names, stage=stage)
    apply_machine_options(objective, recipe.machine)
    if device.type == "cuda":
        to_gpu(objective)
        if world_size() > 1:
            sync_batch_norms(objective)
    batches: Any = _Batches(stage.end, _shapes(recipe, stage))
    return TrainingSetup(
        join_ranks=one_process,
        objective=objective,
        optimizer=build_optimizer(recipe, objective, stage),
        batches=batches,
        device=device,
        recipe=recipe,
        stage=stage,
    )


@dataclass(frozen=True)
class _Batches:
    steps: int
    sizes: dict[str, tuple[int, ...]]

    def __len__(self) -> int:
        return self.steps

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.sizes


def _shapes(recipe: Recipe, stage: Stage) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a batch, as `TrainingBatches.shapes` does."""
    count, crop = recipe.batch.source, recipe.source.crop
    if not stage.reads_source:
        count, crop = 0, (1, 1)
    shapes: dict[str, tuple[int, ...]] = {"source_images": (count, 3, *crop)}
    shapes["source_labels"] = (count, *crop)
    if stage.reads_target:
        own = stage.target
        count = recipe.batch.target if own is None else own.batch
        crop = recipe.target.crop if own is None or own.crop is None else own.crop
        shapes["target_images"] = (count, 3, *crop)
        if stage.pseudo_labels is not None:
            shapes["pseudo_labels"] = (count, *crop)
    return shapes


def _batch(shapes: dict[str, tuple[int, ...]], step: int) -> Batch:
    tensors: dict[str, Any] = {
        name: torch.zeros(size, dtype=torch.uint8) for name, size in shapes.items()
    }
    return Batch(step=step, progress=0.99, seed=1, **{"target_images": None, **tensors})


@contextlib.contextmanager
def _pretended(ranks: int) -> Iterator[None]:
    """Join a group whose other ranks do not exist, if there are any."""
    if ranks == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
