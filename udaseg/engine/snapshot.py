"""A copy of all that a run has learnt, in memory, to go back to; and whether a state is finite."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from udaseg.distributed import sum_over_ranks
from udaseg.engine.optim import Trainer


class Snapshot:
    """Objective and optimiser as they are after `step` steps, copied to host memory.

    Args:
        step: Steps done.
        objective: Student, teacher and regularizers.
        optimizer: Its moments.
    """

    def __init__(self, step: int, objective: nn.Module, optimizer: Trainer) -> None:
        self.step = step
        self._objective = _copied(objective.state_dict())
        self._optimizer = _copied(optimizer.state_dict())

    def restore(self, objective: nn.Module, optimizer: Trainer) -> None:
        """Put everything back, bit for bit."""
        objective.load_state_dict(self._objective)
        # an optimiser keeps the tensors that it is given, and would then move the copy
        optimizer.load_state_dict(_copied(self._optimizer))


class BufferCopy:
    """The buffers of a module as they were at the last `take`, on the module's own device.

    A forward pass moves the running statistics of batch norms before its loss is known.

    Args:
        module: Its buffers keep their storage.
    """

    def __init__(self, module: nn.Module) -> None:
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in module.buffers():
            by_type.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        # one call for all tensors of a type; of mixed types it would go through them one by one
        self._live = list(by_type.values())
        self._kept = [[torch.empty_like(part) for part in group] for group in self._live]

    @torch.no_grad()
    def take(self) -> None:
        """Remember the buffers as they are."""
        for kept, live in zip(self._kept, self._live, strict=True):
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo all changes since `take`."""
        for kept, live in zip(self._kept, self._live, strict=True):
            torch._foreach_copy_(live, kept)


def state_is_finite(objective: nn.Module, optimizer: Trainer) -> bool:
    """Return whether every number of the whole state is finite, on all ranks (waits)."""
    tensors = [
        value.detach()
        for value in _tensors([objective.state_dict(), optimizer.state_dict()["state"]])
        if value.is_floating_point() and value.numel()
    ]
    bad = torch.tensor(0.0, device=tensors[0].device if tensors else None)
    # a norm reads ten times as fast as isfinite; only where squares overflow is that asked too
    if not bool(get_total_norm(tensors).isfinite()) and not all(
        bool(value.isfinite().all()) for value in tensors
    ):
        bad += 1
    return float(sum_over_ranks(bad)) == 0


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _copied(value: Any) -> Any:
    """Return a deep copy of nested plain values with all tensors in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
