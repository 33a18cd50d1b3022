"""Run code on tensors that say they are on a GPU, without one: count operators, refuse waits.

The tensors have shapes but no values. Backward passes ask for a driver, so only forward passes run.
"""

import contextlib
from collections import Counter
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# views, allocations and questions, which launch nothing
_FREE = {
    *("view", "_unsafe_view", "expand", "t", "transpose", "permute", "slice", "select", "squeeze"),
    *("unsqueeze", "detach", "alias", "as_strided", "empty", "empty_like", "empty_strided"),
    *("new_empty", "unbind", "split", "split_with_sizes", "diagonal", "prim::device"),
}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount"}


class Operators(TorchDispatchMode):
    """The operators on the GPU, by name; one that makes the host wait raises."""

    def __init__(self):
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        target = torch.device(kwargs.get("device") or "cpu").type
        if target != "cuda" and all(tensor.device.type == "cpu" for tensor in tensors):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name not in _FREE:
            self.counts[name] += 1
        indices = args[1] if name.startswith("index") and isinstance(args[1], list) else []
        # a number, a tensor without dimensions on the CPU, is an argument of the operator
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        crosses = len(devices | {target if "device" in kwargs else "cuda"}) > 1
        if (
            name in _WAITS
            or any(index is not None and index.dtype == torch.bool for index in indices)
            or (crosses and not (target == "cuda" and kwargs.get("non_blocking")))
        ):
            raise AssertionError(f"{name} makes the host wait for the GPU")
        with self._fake:
            return func(*args, **kwargs)

    def on_gpu(self, tensor):
        """Return a tensor like `tensor` on the GPU."""
        with self._fake:
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
            )
        return made.requires_grad_(tensor.requires_grad)

    def move(self, module):
        """Put the buffers of a module on the GPU."""
        for part in module.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = self.on_gpu(buffer)


@contextlib.contextmanager
def fake_gpu():
    """Let code run on a GPU that does not exist; yield its `Operators`."""
    with (
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch.object(torch.Tensor, "pin_memory", torch.Tensor.clone),
        Operators() as operators,
    ):
        yield operators
