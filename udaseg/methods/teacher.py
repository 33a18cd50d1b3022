"""The mean teacher: a moving average of the student that receives no gradient."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from udaseg.models.segmenter import Segmenter, SegmenterOutput

_CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear)


class Teacher(nn.Module):
    """An exponential moving average of a student, including its projection head.

    Args:
        student: The initial weights are copied from it. What does not learn is shared, not copied.
        momentum: phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum).
        ramp: `from_half` has step + 2 instead, as DAFormer, so the first update keeps half of phi.
        batch_statistics: Normalise by the statistics of the batch instead of the running ones, as
            in the released DACS. Forward passes never change the running statistics. Norms that are
            frozen in the student are frozen here too, because its weights only fit the frozen
            statistics.

    Reference:
        Tarvainen and Valpola, mean teachers (2017), with the ramp of DACS (2021).
    """

    def __init__(
        self,
        student: Segmenter,
        *,
        momentum: float,
        batch_statistics: bool,
        ramp: Literal["from_zero", "from_half"] = "from_zero",
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self._first = 1 if ramp == "from_zero" else 2
        self.batch_statistics = batch_statistics
        shared = {id(part): part for part in student.parameters() if not part.requires_grad}
        self.network = copy.deepcopy(student, shared).requires_grad_(False)
        # not subclasses: they may do more with a weight than one convolution or product
        self._cast = [part for part in self.network.modules() if type(part) in _CAST_BY_AUTOCAST]
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode; batch norms use batch statistics if so configured."""
        super().train(mode)
        self.network.eval()
        if self.batch_statistics and mode:
            frozen = set(self.network.frozen_norms())
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d) and module not in frozen:
                    module.training = True
                    module.track_running_stats = False
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, *, embed: bool = False) -> SegmenterOutput:
        """Return the teacher's output for (B, 3, H, W) images, without a gradient."""
        with _cast_together(self._cast, images.device.type):
            segmented: SegmenterOutput = self.network(images, embed=embed)
        return segmented

    @torch.no_grad()
    def update(self, student: Segmenter, step: int) -> None:
        """Update the moving average after optimiser step `step` (from 0)."""
        self._average(student, min(1 - 1 / (step + self._first), self.momentum))

    @torch.no_grad()
    def copy(self, student: Segmenter) -> None:
        """Become the student, bit for bit."""
        self._average(student, keep=0.0)

    def _average(self, student: Segmenter, keep: float) -> None:
        """Keep this share of the average, and take the rest from the student."""
        floats: list[tuple[Tensor, Tensor]] = []
        integers: list[tuple[Tensor, Tensor]] = []
        for average, value in zip(_tensors(self.network), _tensors(student), strict=True):
            if average is not value:  # shared
                (floats if value.is_floating_point() else integers).append((average, value))
        averages, values = zip(*floats, strict=True)
        torch._foreach_lerp_(averages, values, 1 - keep)
        if integers:  # counters of batch norms, which cannot be averaged
            counters, counts = zip(*integers, strict=True)
            torch._foreach_copy_(counters, counts)


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return parameters and buffers, each once; faster than the methods that also make names."""
    values = (
        value
        for part in network.modules()
        for value in (*part._parameters.values(), *part._buffers.values())
        if value is not None
    )
    return list(dict.fromkeys(values))


@contextlib.contextmanager
def _cast_together(parts: Sequence[nn.Module], device_type: str) -> Iterator[None]:
    """Give `parts` copies of their weights in autocast's type, made by one operator.

    Autocast would cast them too, but one by one, and again in each pass: it only remembers weights
    that need a gradient. The copies live in this context only, so they are never out of date.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    weights = [
        (part._parameters, name, weight)
        for part in parts
        for name, weight in part._parameters.items()
        if weight is not None and weight.dtype == torch.float32
    ]
    dtype = torch.get_autocast_dtype(device_type)
    copies = [torch.empty_like(weight, dtype=dtype) for _, _, weight in weights]
    if copies:
        torch._foreach_copy_(copies, [weight for _, _, weight in weights])
    for (parameters, name, _), cast in zip(weights, copies, strict=True):
        parameters[name] = cast  # type: ignore[assignment]  # no Parameter, for one pass
    try:
        yield
    finally:
        for parameters, name, weight in weights:
            parameters[name] = weight
