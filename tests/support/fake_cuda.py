"""Run code for CUDA without a GPU, on tensors without storage, and note what it asks of the GPU.

Inside `FakeCuda`, tensors can be made on `cuda:0`. Every operator runs as far as its shapes; code
that checks the device sees a GPU, and mixing tensors of two devices raises an error. An operator
with a kernel counts as one launch: a lower bound, as some start several.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.cuda.amp.common
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import udaseg
from tests.support.fake_backward import Backward
from udaseg.models.segmenter import Segmenter
from udaseg.models.upsampling import constant

CUDA = torch.device("cuda:0")
SMALL = 1000
"""An all_reduce of fewer numbers than this is one of scalars, such as counts."""

_PACKAGE = Path(udaseg.__file__).parent
_KEPT = "made once and kept on a GPU, which is not done with tensors without storage"
_NO_KERNEL = {
    *("view", "_unsafe_view", "expand", "t", "transpose", "permute", "slice", "select", "squeeze"),
    *("unsqueeze", "detach", "detach_", "alias", "as_strided", "diagonal", "unbind", "split"),
    *("split_with_sizes", "chunk", "narrow", "reshape", "_reshape_alias", "unfold", "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
    *("is_same_size", "sym_size", "sym_stride", "view_as_real", "real"),
}
"""Views and allocations."""

_SIZE_FROM_VALUES = {
    *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("bincount", "repeat_interleave"),
}
"""Operators that wait for the device, because the size of what they return depends on values."""

_NO_META_KERNEL = {
    *("batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt"),
    *("batch_norm_backward_reduce", "batch_norm_backward_elemt"),
}


class Event(NamedTuple):
    """Something that a step asks of the GPU.

    Attributes:
        kind: `operator`; `read`, of the device by the host, which waits; `pageable copy` to the
            device; `values decide`, an operator that waits for the size of its result; `scalars`,
            an all_reduce of fewer than `SMALL` numbers; `collective`, any other.
        name: Of the operator.
        place: Path and line in the package.
        network: Whether it belongs to a pass through the segmentation network, or back.
    """

    kind: str
    name: str
    place: str
    network: bool


class FakeCuda(TorchDispatchMode):
    """Context manager that stands in for a GPU; leaving it restores everything.

    Attributes:
        events: What was asked of the GPU, with how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: Counter[Event] = Counter()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._depth = 0
        self._passes: list[range] = []
        self._node: Any = None
        self._made_at: dict[int | None, str] = {}
        self._pinned: dict[int, Tensor] = {}
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> "FakeCuda":
        self._patches.enter_context(_patched(self))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def total(self, kind: str, *, network: bool | None = None) -> int:
        """Return the number of events of a kind, also of the network or of the rest alone."""
        return sum(
            number
            for event, number in self.events.items()
            if event.kind == kind and network in (None, event.network)
        )

    def forget(self) -> None:
        """Count from zero."""
        self.events.clear()
        self._passes.clear()
        self._made_at.clear()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].device
        named, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        tensors = list(_tensors((*args, *named.values())))
        if name.startswith("c10d::"):
            small = "allreduce" in name and tensors[0].numel() < SMALL
            self._note("scalars" if small else "collective", name)
            with self.fake:
                return func(*args, **named)
        device = named.get("device")
        made_on_gpu = device is not None and torch.device(device).type == "cuda"
        if not made_on_gpu and not any(isinstance(value, FakeTensor) for value in tensors):
            return func(*args, **named)  # on the host, such as draws
        self._note_waits(name, args, named)
        if name not in _NO_KERNEL and "::" not in name:
            self._note("operator", name)
            if self._node is None and self._depth == 0:
                # if the operator has a node in the graph, it was made just before
                self._made_at.setdefault(_sequence_number() - 1, _place(""))
        return self._run(func, name, args, named)

    def _note_waits(self, name: str, args: Sequence[Any], named: dict[str, Any]) -> None:
        """Note what makes the host wait for the device, or the device for the host."""
        indices: list[Tensor] = []
        if name.lstrip("_").startswith("index"):
            indices = list(_tensors(args[1:2]))
        if name == "_local_scalar_dense":
            self._note("read", name)
        elif name in _SIZE_FROM_VALUES:
            self._note("values decide", name)
        elif any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self._note("values decide", f"{name} with a mask")
        elif any(not isinstance(index, FakeTensor) for index in indices):
            self._note("pageable copy", f"{name} with indices of the host")
        elif name in ("_to_copy", "copy_"):
            self._note_copy(name, args, named)

    def _note_copy(self, name: str, args: Sequence[Any], named: dict[str, Any]) -> None:
        if name == "copy_":
            target, source = args[:2]
            down, asynchronous = not isinstance(target, FakeTensor), args[2:] == (True,)
        else:
            source = args[0]
            down, asynchronous = _to_host(named), bool(named.get("non_blocking"))
        if isinstance(source, FakeTensor):
            if down:
                self._note("read", f"{name} to the host")
        elif not asynchronous or source.untyped_storage()._cdata not in self._pinned:
            self._note("pageable copy", name)

    def _run(self, func: Any, name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Return what the operator returns, with values that are zero where the host sees them."""
        first = args[0] if args else None
        if name == "_local_scalar_dense":
            return torch.zeros((), dtype=first.dtype).item()
        if name == "_to_copy" and isinstance(first, FakeTensor) and _to_host(named):
            return torch.zeros(first.shape, dtype=named.get("dtype") or first.dtype)
        if name == "copy_" and not isinstance(first, FakeTensor):
            return first
        if name.startswith("_fused_"):
            return None  # of an optimizer, in place
        with self.fake:
            if name == "nonzero":
                return first.new_empty((first.numel(), first.dim()), dtype=torch.int64)
            if name == "index" and args[1][0] is not None and args[1][0].dtype == torch.bool:
                return first.flatten(0, args[1][0].dim() - 1)
            if name in _NO_META_KERNEL:
                return _without_meta_kernel(name, args)
            made = func(*args, **named)
        return _as_cudnn(made, args) if name.startswith("convolution") else made

    def _note(self, kind: str, name: str) -> None:
        network = self._depth > 0 or self._is_of_network(self._node)
        number = None if self._node is None else self._node._sequence_nr()
        place = "" if network else _place(self._made_at.get(number, "elsewhere"))
        if place != _KEPT:
            self.events[Event(kind, name, place, network)] += 1

    def _is_of_network(self, node: Any) -> bool:
        if node is None:
            return False
        number = node._sequence_nr()
        return hasattr(node, "variable") or any(number in nodes for nodes in self._passes)

    def pin(self, value: Tensor) -> Tensor:
        """Return a copy in memory that counts as page-locked."""
        copy = value.clone()
        self._pinned[copy.untyped_storage()._cdata] = copy
        return copy

    def read(self, value: Tensor) -> Any:
        """Return zeros for the values of a tensor, as nested lists."""
        self._note("read", "tolist")
        return torch.zeros(value.shape, dtype=value.dtype).tolist()

    @contextlib.contextmanager
    def network_pass(self) -> Iterator[None]:
        """What runs inside, and the nodes that it makes, belongs to the network."""
        first = _sequence_number()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._passes.append(range(first, _sequence_number()))

    @contextlib.contextmanager
    def entered(self, node: Any) -> Iterator[None]:
        """What runs inside is the work of a node of the graph."""
        self._node = node
        try:
            yield
        finally:
            self._node = None


def to_gpu(module: torch.nn.Module) -> None:
    """Replace each tensor of a module by one on the device, of the same size and layout."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(_empty(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = _empty(value)


@contextlib.contextmanager
def _patched(gpu: FakeCuda) -> Iterator[None]:
    """Make torch believe in the device, and have `gpu` see what no operator shows."""
    forward = Segmenter.forward

    def network(self: Segmenter, *args: Any, **named: Any) -> Any:
        with gpu.network_pass():
            return forward(self, *args, **named)

    def backward(tensors: Any, grad_tensors: Any = None, *_: Any, **named: Any) -> None:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        grads = grad_tensors if isinstance(grad_tensors, Sequence) else [grad_tensors] * len(roots)
        assert not named.get("create_graph") and named.get("inputs") is None
        Backward(gpu.entered).run(roots, grads)

    replaced: list[tuple[Any, str, Any]] = [
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_bf16_supported", lambda *_: True),
        # otherwise autocast would disable itself
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        # it wants tensors of no subclass
        (torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True),
        (torch.autograd, "backward", backward),
        (Tensor, "pin_memory", lambda value, *_: gpu.pin(value)),
        (FakeTensor, "tolist", lambda value: gpu.read(value)),
        (Segmenter, "forward", network),
    ]
    lifts = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as patches:
        for owner, name, value in replaced:
            patches.enter_context(mock.patch.object(owner, name, value))
        # `torch.tensor` then copies to the device by an operator, which is seen
        torch._C._set_only_lift_cpu_tensors(True)
        patches.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        yield


def _empty(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors of the arguments of an operator."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _as_cudnn(made: Any, args: Sequence[Any]) -> Any:
    """Return the results of a convolution in the layout that cuDNN chooses."""
    last = torch.channels_last
    if all(value.is_contiguous() for value in _tensors(args)):
        return made
    if isinstance(made, Tensor):
        return made.contiguous(memory_format=last)
    return tuple(
        value.contiguous(memory_format=last) if value is not None and value.dim() == 4 else value
        for value in made
    )


def _to_host(named: Mapping[str, Any]) -> bool:
    device = named.get("device")
    return device is not None and torch.device(device).type == "cpu"


def _sequence_number() -> int:
    return int(torch._C._autograd._get_sequence_nr())


def _place(made: str) -> str:
    """Return path and line of the innermost code of the package, which may call `distributed`.

    In a backward pass this is `made`, unless a node runs code of the package.
    """
    frame: Any = sys._getframe(1)
    place = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if frame.f_code in constant.__code__.co_consts:
            return _KEPT
        if path.endswith("fake_backward.py"):
            return place or f"{made} (backward)"
        if path.startswith(str(_PACKAGE)) and not path.endswith("distributed.py"):
            place = place or f"{_PACKAGE.name}/{Path(path).relative_to(_PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return place or "elsewhere"


def _without_meta_kernel(name: str, args: Sequence[Any]) -> Any:
    """Return what the operators of a batch norm over ranks return."""
    if name.endswith("elemt"):
        return torch.empty_like(args[0])
    channels = (args[1] if "gather" in name else args[0]).shape[1]
    count = 4 if name == "batch_norm_backward_reduce" else 2
    return tuple(args[0].new_empty(channels, dtype=torch.float32) for _ in range(count))
