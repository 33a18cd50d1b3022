"""Forward and backward pass of one step, whole or in micro-batches."""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from udaseg.data.loading.batches import Batch
from udaseg.methods.objectives.objective import LossReport
from udaseg.training.setup import TrainingSetup


def compute_gradients(setup: TrainingSetup, batch: Batch) -> LossReport:
    """Compute the gradient of a batch and return its loss report.

    The batch is split into `machine.micro_batches` parts, or fewer if they do not divide it evenly.
    """
    setup.optimizer.zero_grad(set_to_none=True)
    images = [
        len(batch.source_images),
        0 if batch.target_images is None else len(batch.target_images),
    ]
    parts = math.gcd(setup.recipe.machine.micro_batches, *images)
    if parts == 1:
        report = _forward(setup, batch)
        report.total.backward()  # type: ignore[no-untyped-call]  # torch's own
        return report
    reports = []
    for number, part in enumerate(split_batch(batch, parts), start=1):
        with _sync_after_last(setup, last=number == parts):
            report = _forward(setup, part)
            (report.total / parts).backward()  # type: ignore[no-untyped-call]  # torch's own
        reports.append(_detach(report))
        del report  # otherwise the features of this part live through the next forward pass
    return merge_reports(reports)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
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
            seed=_part_seed(batch.seed, number),
            **{name: chunks[number] for name, chunks in pieces.items()},
        )
        for number in range(parts)
    ]


def merge_reports(reports: Sequence[LossReport]) -> LossReport:
    """Merge the reports of the parts of a step: average scalars, concatenate views.

    Args:
        reports: Reports of parts of equal size, without graphs.
    """
    first, count = reports[0], len(reports)
    counted = [report.predicted_counts for report in reports if report.predicted_counts is not None]
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
        views=_concatenate([report.views for report in reports]),
        predicted_counts=torch.stack(counted).sum(0) if len(counted) == count else None,
    )


def _forward(setup: TrainingSetup, batch: Batch) -> LossReport:
    autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if setup.recipe.machine.precision == "bf16":
        autocast = torch.autocast(setup.device.type, dtype=torch.bfloat16)
    with autocast:
        report: LossReport = setup.model(batch.to(setup.device))
    return report


@contextlib.contextmanager
def _sync_after_last(setup: TrainingSetup, *, last: bool) -> Iterator[None]:
    """Synchronise gradients between ranks only after the last part of a step."""
    if last or not isinstance(setup.model, DistributedDataParallel):
        yield
        return
    with setup.model.no_sync():
        yield


def _part_seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/part/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _detach(value: Any) -> Any:
    """Return nested dataclasses and mappings with all tensors detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: _detach(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{part.name: _detach(getattr(value, part.name)) for part in fields(value)}
        )
    return value


def _concatenate(values: Sequence[Any]) -> Any:
    """Merge dataclasses and mappings: concatenate tensors, keep other values of the first."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, dict):
        return {name: _concatenate([value[name] for value in values]) for name in first}
    if is_dataclass(first) and not isinstance(first, type):
        return replace(
            first,
            **{
                part.name: _concatenate([getattr(value, part.name) for value in values])
                for part in fields(first)
            },
        )
    return first
