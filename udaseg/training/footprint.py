"""Estimate the memory of a training step, from a step on tensors without storage.

It runs every operation of the real step, but no kernel, and adds up the sizes of live tensors. That
excludes memory of libraries: workspaces of convolutions, the device context, and fragmentation.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udaseg.data.loading.batches import Batch
from udaseg.methods.objectives.objective import LossReport
from udaseg.runs.checkpoint import SavesState
from udaseg.training.setup import TrainingSetup, one_process
from udaseg.training.step import compute_gradients

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Footprint:
    """Memory that training needs, in bytes.

    Attributes:
        student: Weights and buffers of the student and of the discriminator, if any.
        teacher: Weights and buffers of the teacher; 0 without one.
        memories: Banks, prototypes and statistics of the regularizers.
        moments: Optimiser state of the trained weights.
        gradients: Gradients of the trained weights.
        activations: Peak of everything else that a step holds until the end of the backward pass.
        guard: Copies of all buffers, for undoing a step that is not finite.
        base: Weights that checkpoints leave out: of student and teacher with `model.adapters`, and
            of the frozen backbone.
    """

    student: int
    teacher: int
    memories: int
    moments: int
    gradients: int
    activations: int
    guard: int
    base: int = 0

    def total(self) -> int:
        """Return the peak memory on the device in bytes."""
        return sum(vars(self).values())

    def checkpoint_size(self) -> int:
        """Return the bytes of a checkpoint, which is also the size of the rollback copy."""
        return self.student + self.teacher + self.memories + self.moments


def estimate_footprint(setup: TrainingSetup) -> Footprint:
    """Estimate the memory that `setup` needs; change nothing and train no step.

    The estimated step is the last of the run, when every loss term is active.
    """
    objective = setup.objective
    parts = {"teacher": 0, "memories": 0, "student": 0, "base": 0}
    saved = objective.state_dict().keys()
    for name, value in _state(objective).items():
        kind = {"teacher": "teacher", "regularizers": "memories"}.get(name.partition(".")[0])
        left_out = isinstance(value, nn.Parameter) and name not in saved
        parts["base" if left_out else kind or "student"] += value.nbytes
    trained = sum(part.nbytes for part in objective.parameters() if part.requires_grad)
    return Footprint(
        **parts,
        moments=_optimizer_bytes(setup.optimizer),
        gradients=trained,
        activations=max(0, peak_step_memory(setup) - trained),
        guard=sum(buffer.nbytes for buffer in objective.buffers()),
    )


def peak_step_memory(setup: TrainingSetup) -> int:
    """Return the peak bytes of forward and backward pass, including gradients."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    whole = _TrainingStep(setup)
    with mode:
        state = {name: _fake_like(value) for name, value in _state(whole).items()}
        batch = _fake_batch(setup)
    ledger = StorageTracker()
    # otherwise torch.compile would compile code that never runs
    with torch.compiler.set_stance("force_eager"), ledger:
        functional_call(whole, state, (batch,))
    return ledger.peak


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Context manager that adds up the live storages that operations allocate, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.alive = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(  # signature of torch
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            # the count is unknown without values, so assume the maximum: all elements
            shape = (args[0].numel(), args[0].dim())
            result = torch.zeros(shape, dtype=torch.int64)
        else:
            result = func(*args, **(kwargs or {}))
        inputs = {
            _storage_id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)
        }
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _storage_id(value) not in inputs:
                self._track(value)
        return result

    def _track(self, value: Tensor) -> None:
        storage, key = value.untyped_storage(), _storage_id(value)
        if key in self._seen:
            return
        size = storage.nbytes()

        def release(_: object) -> None:
            self.alive -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, release)
        self.alive += size
        self.peak = max(self.peak, self.alive)


class _TrainingStep(nn.Module):
    """Forward and backward pass as one module, so that both use the same parameters."""

    def __init__(self, setup: TrainingSetup) -> None:
        super().__init__()
        self.objective = setup.objective
        self.setup = replace(setup, join_ranks=one_process, device=_CPU)

    def forward(self, batch: Batch) -> LossReport:
        return compute_gradients(self.setup, batch)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _fake_like(value: Tensor) -> Tensor:
    """Return a tensor of the same size and layout without storage; call in a fake mode."""
    hollow = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    return hollow.requires_grad_(value.requires_grad)


def _fake_batch(setup: TrainingSetup) -> Batch:
    """Return a batch of the last step, with the sizes of the run; call in a fake mode."""
    tensors: dict[str, Any] = {
        name: torch.zeros(size, dtype=torch.uint8) for name, size in setup.batches.shapes().items()
    }
    step = len(setup.batches) - 1
    return Batch(step=step, progress=1.0, seed=0, **{"target_images": None, **tensors})


def _optimizer_bytes(trainer: SavesState) -> int:
    """Return the bytes of the optimiser state after the first step."""
    total = 0
    for group in trainer.param_groups:
        copies = 2 if "betas" in group else int(group.get("momentum", 0) > 0)
        total += copies * sum(part.nbytes for part in group["params"])
    return total


def _storage_id(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)
