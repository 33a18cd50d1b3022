"""Memory that is too small: the two errors it ends in, and a step in parts that needs less.

In parts, a step sees the same images and makes one update, with the mean of the parts' gradients.
Teacher and memories still learn once a step, from all parts together. What differs: batch norms
normalise each part by itself (and their running statistics move once a part), means over labelled
pixels, confident shares and the choice of pasted classes are a part's own, and a part's contrast
does not see the others' newest rows.
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

# the CPU's allocator and the libraries of CUDA have no error class of their own for it
_WORDS = (
    *("can't allocate memory", "not enough memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


class DoesNotFit(EnvironmentFault):
    """The first step needs more memory than there is; nothing was changed."""


class RanOut(DivergedError):
    """Memory ran out after steps that went well.

    Args:
        message: What happened.
        done: Steps that the state has behind it; it is whole.
    """

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that memory is used up, on a GPU or not."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def free() -> None:
    """Give back what a step that was cut off still held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_told(device: torch.device) -> str:
    """Return how much of the device's memory was used at most; nothing to tell of a CPU."""
    if device.type != "cuda":
        return ""
    most = torch.cuda.max_memory_allocated(device) / 2**30
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{most:.1f} of {total:.1f} GiB used when it ran out"


def gradients(run: Fit, batch: Batch) -> LossReport:
    """Form the gradient of a batch and return what it reports.

    It is made in `run.micro_batches` parts, or in as many of them as divide the batch evenly.
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
        del report  # or this part's features would live through the next forward pass
    return joined(reports)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Return the batch as `parts` batches of equal size, each with a seed of its own.

    Raises:
        ValueError: The images cannot be shared out evenly.
    """
    pieces = {
        name: value.chunk(parts) if len(value) else (value,) * parts
        for name in ("source_images", "source_labels", "target_images", "pseudo_labels")
        if (value := getattr(batch, name)) is not None
    }
    for name, found in pieces.items():
        if len(found) != parts or len({len(piece) for piece in found}) != 1:
            count = len(getattr(batch, name))
            raise ValueError(f"{count} {name} cannot be split evenly into {parts} parts")
    return [
        replace(
            batch,
            seed=_seed(batch.seed, number),
            **{name: found[number] for name, found in pieces.items()},
        )
        for number in range(parts)
    ]


def joined(reports: Sequence[LossReport]) -> LossReport:
    """Return what the parts of a step report together: means of scalars, views one after another.

    Args:
        reports: Of parts of equal size, without graphs.
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
    """Let ranks exchange gradients once a step, after the last part."""
    if last or not isinstance(run.model, DistributedDataParallel):
        yield
        return
    with run.model.no_sync():
        yield


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/part/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _detached(value: Any) -> Any:
    """Return nested dataclasses and mappings with their tensors free of graphs."""
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
    """Return dataclasses as one: tensors joined along the batch, all else as in the first."""
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
