"""Out-of-memory errors, and steps split into micro-batches, which need less memory.

A split step uses the same images and makes one update with the mean gradient of its parts. Teacher
and memories are still updated once per step, from all parts together. These things differ: batch
norms normalise each part separately (and their running statistics are updated once per part); means
over labelled pixels, confident shares and the choice of pasted classes are computed per part; and
the contrast of a part does not include the newest rows of the others.
"""

import contextlib
import gc
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from udaseg.adaptation import LossReport
from udaseg.data import Batch
from udaseg.engine.parts import Fit
from udaseg.errors import DivergedError, EnvironmentFault

# the CPU allocator and CUDA libraries have no error class of their own for this
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class DoesNotFit(EnvironmentFault):
    """The first step ran out of memory; nothing was changed."""


class RanOut(DivergedError):
    """Memory ran out after successful steps.

    Args:
        message: What happened.
        done: Number of steps in the state, which is intact.
    """

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means out of memory, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def free() -> None:
    """Free the memory that an interrupted step still held, including the GPU cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_told(device: torch.device) -> str:
    """Return a message with the peak memory use of the device; empty for a CPU."""
    if device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"peak use {peak:.1f} of {total:.1f} GiB"


def gradients(run: Fit, batch: Batch) -> LossReport:
    """Compute the gradient of a batch and return its loss report.

    The batch is split into `run.micro_batches` parts, or fewer if they do not divide it evenly.
    """
    run.optimizer.zero_grad(set_to_none=True)
    images = [
        len(batch.source_images),
        0 if batch.target_images is None else len(batch.target_images),
    ]
    parts = math.gcd(run.micro_batches, *images)
    if parts == 1:
        report = _forward(run, batch)
        report.total.backward()  # type: ignore[no-untyped-call]  # torch's own
        return report
    reports = []
    for number, part in enumerate(split(batch, parts), start=1):
        with _quiet(run, last=number == parts):
            report = _forward(run, part)
            (report.total / parts).backward()  # type: ignore[no-untyped-call]  # torch's own
        reports.append(_detached(report))
        del report  # otherwise the features of this part live through the next forward pass
    return joined(reports)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split the batch into `parts` batches of equal size, each with a different seed.

    Raises:
        ValueError: `parts` does not divide the number of images.
    """
    pieces = {
        name: value.chunk(parts) if len(value) else (value,) * parts
        for name in ("source_images", "source_labels", "target_images", "pseudo_labels")
        if (value := getattr(batch, name)) is not None
    }
    for name, chunks in pieces.items():
        if len(chunks) != parts or len({len(piece) for piece in chunks}) != 1:
            count = len(getattr(batch, name))
            raise ValueError(f"{count} {name} cannot be split evenly into {parts} parts")
    return [
        replace(
            batch,
            seed=_seed(batch.seed, number),
            **{name: chunks[number] for name, chunks in pieces.items()},
        )
        for number in range(parts)
    ]


def joined(reports: Sequence[LossReport]) -> LossReport:
    """Merge the reports of the parts of a step: average scalars, concatenate views.

    Args:
        reports: Reports of parts of equal size, without graphs.
    """
    first, count = reports[0], len(reports)
    counted = [report.predicted for report in reports if report.predicted is not None]
    return LossReport(
        total=torch.stack([report.total for report in reports]).mean(),
        parts={
            name: torch.stack([report.parts[name] for report in reports]).mean()
            for name in first.parts
        },
        figures={
            name: torch.stack([report.figures[name] for report in reports]).mean()
            for name in first.figures
        },
        views=_concatenated([report.views for report in reports]),
        predicted=torch.stack(counted).sum(0) if len(counted) == count else None,
    )


def _forward(run: Fit, batch: Batch) -> LossReport:
    autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if run.precision == "bf16":
        autocast = torch.autocast(run.device.type, dtype=torch.bfloat16)
    with autocast:
        report: LossReport = run.model(batch.to(run.device))
    return report


@contextlib.contextmanager
def _quiet(run: Fit, *, last: bool) -> Iterator[None]:
    """Synchronise gradients between ranks only after the last part of a step."""
    if last or not isinstance(run.model, DistributedDataParallel):
        yield
        return
    with run.model.no_sync():
        yield


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/part/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _detached(value: Any) -> Any:
    """Return nested dataclasses and mappings with all tensors detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: _detached(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{part.name: _detached(getattr(value, part.name)) for part in fields(value)}
        )
    return value


def _concatenated(values: Sequence[Any]) -> Any:
    """Merge dataclasses: concatenate tensors along the batch, keep other values of the first."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if is_dataclass(first) and not isinstance(first, type):
        return replace(
            first,
            **{
                part.name: _concatenated([getattr(value, part.name) for value in values])
                for part in fields(first)
            },
        )
    return first
