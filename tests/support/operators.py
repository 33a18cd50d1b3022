"""Count the operators that code launches."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCount(TorchDispatchMode):
    """Context manager that counts operators by name, such as `aten.add_.Tensor`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count a call and make it."""
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))
