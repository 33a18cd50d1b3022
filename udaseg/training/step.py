"""Forward and backward passes of one step, whole or in micro-batches."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.objectives.objective import LossReport, add_reports
from udaseg.methods.views import Views
from udaseg.training.setup import TrainingSetup


def compute_gradients(
    setup: TrainingSetup, batch: Batch, sums: RankSums | None = None
) -> LossReport:
    """Compute the gradient of a batch and return its loss report.

    Numbers in `sums` are summed over ranks with those that the losses need.

    Each forward pass of the student is followed by its own backward pass, so only one graph exists
    at a time. The batch is split into `machine.micro_batches` parts, or fewer if they do not divide
    it evenly. Ranks average their gradients in the last backward pass only.

    If a loss, a figure or a view is not finite, on any rank, neither is the gradient.
    """
    setup.optimizer.zero_grad(set_to_none=True)
    images = [
        len(batch.source_images),
        0 if batch.target_images is None else len(batch.target_images),
    ]
    parts = math.gcd(setup.recipe.machine.micro_batches, *images)
    sums = sums or RankSums()
    if parts == 1:
        return _run_passes(setup, batch, sums, [], parts)
    reports: list[LossReport] = []
    for part in split_batch(batch, parts):
        part_sums = RankSums() if reports else sums
        reports.append(_run_passes(setup, part, part_sums, reports, parts))
    return merge_reports(reports)


def _run_passes(
    setup: TrainingSetup, batch: Batch, sums: RankSums, before: Sequence[LossReport], parts: int
) -> LossReport:
    """Run the passes of one of several parts of a batch; `before` are the reports of the others."""
    passes = setup.objective.passes(batch.to(setup.device), sums)
    report = None
    while (each := _next_pass(setup, passes)) is not None:
        loss = each.total / parts if parts > 1 else each.total
        each = _without_graph(each)
        report = each if report is None else add_reports(report, each)
        if each.is_last and len(before) == parts - 1:
            loss = setup.join_ranks(loss * _finite_factor([*before, report]))
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        del loss  # otherwise its graph lives through the next forward pass
    assert report is not None and report.is_last
    return report


def _next_pass(setup: TrainingSetup, passes: Iterator[LossReport]) -> LossReport | None:
    """Run the next forward pass of the student; return None after the last."""
    autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if setup.recipe.machine.precision == "bf16":
        autocast = torch.autocast(setup.device.type, dtype=torch.bfloat16)
    with autocast:
        return next(passes, None)


def _without_graph(report: LossReport) -> LossReport:
    """Return a report whose losses have no graph; its views are those of the objective."""
    parts = {name: loss.detach() for name, loss in report.parts.items()}
    return replace(report, total=report.total.detach(), parts=parts)


def _finite_factor(reports: Sequence[LossReport]) -> Tensor:
    """Return 1 if all losses, figures and views are finite, else NaN, on the device."""
    scalars = [
        value
        for report in reports
        for value in (report.total, *report.parts.values(), *report.figures.values())
    ]
    # a memory may store values that the loss ignores, so every view is checked
    views = [
        value.detach()
        for report in reports
        for value in _tensors(report.views)
        if value.is_floating_point()
    ]
    if views:
        scalars.append(get_total_norm(views))
    # a number times 0 is 0 if it is finite, and NaN if not
    return 1 + 0 * torch.stack([value.float() for value in scalars]).sum()


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif is_dataclass(value):
        yield from _tensors(vars(value))


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
        views=_map_tensors(lambda *parts: torch.cat(parts), *map(_views_alone, reports)),
        predicted_counts=_sum(*counts) if len(counts) == len(reports) else None,
        seen=_map_tensors(_sum, *(report.seen for report in reports)),
    )


def _sum(*values: Tensor) -> Tensor:
    return torch.stack(values).sum(0)


def _views_alone(report: LossReport) -> Views | None:
    """Return the views without what only the losses of a step need."""
    return None if report.views is None else replace(report.views, labels={}, totals={}, images={})


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
