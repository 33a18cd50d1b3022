"""What a step needs of memory, found by a whole step on tensors that have a size but no storage.

Forward and backward pass go through every operation of the real step, in its order, and the sizes
of what is alive are added up; no kernel runs. What a library takes for itself (workspaces of
convolutions, a device's context, gaps between blocks) is not in it.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udaseg.adaptation import LossReport
from udaseg.data import Batch
from udaseg.engine.memory import gradients
from udaseg.engine.optim import Trainer
from udaseg.engine.parts import Fit

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Footprint:
    """Bytes that training holds.

    Attributes:
        student: Weights and buffers of the student, and of a discriminator.
        teacher: The same of the teacher; 0 without one.
        memories: Banks, prototypes and statistics of the regularizers.
        moments: What the optimiser remembers of each weight.
        gradients: One for each trained weight.
        activations: The most that a step holds at once besides, for the backward pass and in it.
        guard: Copies of all buffers that a step which is not finite is undone with.
    """

    student: int
    teacher: int
    memories: int
    moments: int
    gradients: int
    activations: int
    guard: int

    def total(self) -> int:
        """Return the most bytes at once, on the device."""
        return sum(vars(self).values())

    def checkpoint(self) -> int:
        """Return the bytes of a checkpoint, and of the copy that a run can go back to."""
        return self.student + self.teacher + self.memories + self.moments


def footprint(run: Fit) -> Footprint:
    """Return what `run` needs of memory; nothing of it is changed, and no step is made.

    The step is one of the last, when every term counts.
    """
    objective = run.objective
    parts = {"teacher": 0, "memories": 0, "student": 0}
    for name, value in _state(objective).items():
        kind = {"teacher": "teacher", "regularizers": "memories"}.get(name.partition(".")[0])
        parts[kind or "student"] += _bytes(value)
    trained = sum(_bytes(part) for part in objective.parameters() if part.requires_grad)
    peak = peak_of_step(run)
    return Footprint(
        **parts,
        moments=_moments(run.optimizer),
        gradients=trained,
        activations=max(0, peak - trained),
        guard=sum(_bytes(buffer) for buffer in objective.buffers()),
    )


def peak_of_step(run: Fit) -> int:
    """Return the most bytes that forward and backward pass hold, gradients with them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    whole = _WholeStep(run)
    with mode:
        state = {name: _hollow(value) for name, value in _state(whole).items()}
        batch = _batch(run)
    # compiled code would be made for sizes that are never run
    with torch.compiler.set_stance("force_eager"), Ledger() as ledger:
        report = functional_call(whole, state, (batch,))
    del report
    peak: int = ledger.peak
    return peak


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Context that adds up the storages which operations make, for as long as they live.

    Attributes:
        alive: Bytes now.
        peak: Most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.alive = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(  # torch's contract
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            # how many there are is unknown without values: all, at most
            shape = (args[0].numel(), args[0].dim())
            made = torch.zeros(shape, dtype=torch.int64)
        else:
            made = func(*args, **(kwargs or {}))
        before = {_key(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and _key(value) not in before:
                self._enter(value)
        return made

    def _enter(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = int(storage._cdata)
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen[key] = weakref.ref(storage, self._leaving(key, size))
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _leaving(self, key: int, size: int) -> Callable[[object], None]:
        def leave(_: object) -> None:
            self.alive -= size
            self._seen.pop(key, None)

        return leave


class _WholeStep(nn.Module):
    """Forward and backward pass as one call, so that both see the same parameters."""

    def __init__(self, run: Fit) -> None:
        super().__init__()
        self.objective = run.objective
        self.run = replace(run, model=run.objective, device=_CPU)

    def forward(self, batch: Batch) -> LossReport:
        return gradients(self.run, batch)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _hollow(value: Tensor) -> Tensor:
    """Return a tensor of the same size and layout without storage; call it in a fake mode."""
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    return made.requires_grad_(value.requires_grad)


def _batch(run: Fit) -> Batch:
    """Return a batch of the last step, of the sizes that a run has; call it in a fake mode."""
    sizes = run.batches.shapes()
    parts = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
    return Batch(
        step=len(run.batches) - 1,
        progress=1.0,
        seed=0,
        source_images=parts["source_images"],
        source_labels=parts["source_labels"],
        target_images=parts.get("target_images"),
        pseudo_labels=parts.get("pseudo_labels"),
    )


def _moments(trainer: Trainer) -> int:
    """Return the bytes that an optimiser will hold once it has stepped."""
    total = 0
    for group in trainer.param_groups:
        copies = 2 if "betas" in group else int(group.get("momentum", 0) > 0)
        total += copies * sum(map(_bytes, group["params"]))
    return total


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _key(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)
