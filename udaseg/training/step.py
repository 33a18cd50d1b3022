"""Forward and backward pass of one step, whole or in micro-batches."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
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
        sync: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if number < parts and isinstance(setup.model, DistributedDataParallel):
            sync = setup.model.no_sync()  # ranks add up their gradients after the last part only
        with sync:
            report = _forward(setup, part)
            (report.total / parts).backward()  # type: ignore[no-untyped-call]  # torch's own
        reports.append(_map_tensors(Tensor.detach, report))
        del report  # otherwise the features of this part live through the next forward pass
    return merge_reports(reports)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split the batch into `parts` batches of equal size, each with a different seed."""
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
    """Merge the reports of parts of equal size: average scalars, concatenate views."""

    def mean(*values: Tensor) -> Tensor:
        return torch.stack(values).mean()

    counts = [report.predicted_counts for report in reports if report.predicted_counts is not None]
    return LossReport(
        total=mean(*(report.total for report in reports)),
        parts=_map_tensors(mean, *(report.parts for report in reports)),
        figures=_map_tensors(mean, *(report.figures for report in reports)),
        views=_map_tensors(lambda *parts: torch.cat(parts), *(report.views for report in reports)),
        predicted_counts=torch.stack(counts).sum(0) if len(counts) == len(reports) else None,
    )


def _forward(setup: TrainingSetup, batch: Batch) -> LossReport:
    autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if setup.recipe.machine.precision == "bf16":
        autocast = torch.autocast(setup.device.type, dtype=torch.bfloat16)
    with autocast:
        report: LossReport = setup.model(batch.to(setup.device))
    return report


def _part_seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/part/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _map_tensors(act: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Call `act` with the tensors at each place of dataclasses and mappings; keep the rest."""
    if isinstance(first, Tensor):
        return act(first, *others)
    if isinstance(first, Mapping):
        return {
            name: _map_tensors(act, value, *(other[name] for other in others))
            for name, value in first.items()
        }
    if is_dataclass(first) and not isinstance(first, type):
        parts = (vars(value) for value in (first, *others))
        return replace(first, **_map_tensors(act, *parts))
    return first
