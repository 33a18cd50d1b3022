"""In-memory copies of the training state for rollbacks, and a check that a state is finite."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_leaves, tree_map_only

from udaseg.distributed import all_ranks
from udaseg.runs.checkpoint import SavesState, all_finite


class Snapshot:
    """A copy of objective and optimiser after `step` steps, in host memory.

    Weights that two networks share are copied once.
    A GPU copies into page-locked memory while the host goes on. Torch keeps that memory of a
    snapshot that is freed, so the next one allocates none.
    """

    def __init__(self, step: int, objective: nn.Module, optimizer: SavesState) -> None:
        self.step = step
        self._objective = _to_host(objective.state_dict())
        self._optimizer = _to_host(optimizer.state_dict())

    def restore(self, objective: nn.Module, optimizer: SavesState) -> None:
        """Restore the state exactly (waits)."""
        device = next(objective.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the copy may still be under way
        objective.load_state_dict(self._objective)
        # an optimiser keeps the tensors that it loads, and would then update the copy
        optimizer.load_state_dict(_to_host(self._optimizer))


class BufferCopy:
    """A copy of a module's buffers from the last `save`, on the module's device.

    It is needed because a forward pass changes the running statistics of batch norms before its
    loss is known. The buffers must keep their storage.
    """

    def __init__(self, module: nn.Module) -> None:
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in module.buffers():
            by_type.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        # grouped by type: foreach copies mixed types one by one, and one type in a single call
        self._live = list(by_type.values())
        self._saved = [[torch.empty_like(part) for part in group] for group in self._live]

    @torch.no_grad()
    def save(self) -> None:
        """Copy the current buffers."""
        for saved, live in zip(self._saved, self._live, strict=True):
            torch._foreach_copy_(saved, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo all changes of the buffers since `save`."""
        for saved, live in zip(self._saved, self._live, strict=True):
            torch._foreach_copy_(live, saved)


def state_is_finite(objective: nn.Module, optimizer: SavesState) -> bool:
    """Return whether every number in the state is finite on all ranks (waits).

    Weights whose squares overflow count as not finite: no output of theirs is finite.
    """
    weights = [part.detach() for part in objective.parameters()]
    moments = [
        value for value in tree_leaves(optimizer.state_dict()["state"]) if isinstance(value, Tensor)
    ]
    others = [*objective.buffers(), *moments]
    return all_ranks(bool(get_total_norm(weights).isfinite()) and all_finite(others))


def _to_host(state: Any) -> Any:
    """Return a copy of nested mappings and lists with all tensors in host memory.

    Copies from a GPU are in page-locked memory, and unfinished when this returns.
    """
    copies: dict[object, Tensor] = {}

    def copy(value: Tensor) -> Tensor:
        key = value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride()
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True, non_blocking=True)
        return copies[key]

    # a tuple that two groups share stays one object, so that equal checkpoints have equal sizes
    return tree_map_only(Tensor, copy, state, is_leaf=lambda value: isinstance(value, tuple))
