"""The scalars of a step: the same numbers as one by one, from a single reduction."""

import torch

from udaseg.methods.objectives.objective import LossReport
from udaseg.training import scalars

REPORT = LossReport(
    total=torch.tensor(1 / 3, requires_grad=True) * 2,
    parts={"source": torch.tensor(1e-38), "mixed": torch.tensor(float("nan"))},
    figures={
        "share": torch.tensor(0.1, dtype=torch.float64),
        "half": torch.tensor(0.7, dtype=torch.bfloat16),
    },
)


def test_one_process_gets_each_number_exactly():
    numbers = scalars.mean_scalars(REPORT)
    values = {"total": REPORT.total, **REPORT.parts, **REPORT.figures}
    assert list(numbers) == list(values)
    assert repr(numbers) == repr({name: value.item() for name, value in values.items()})


def test_ranks_reduce_all_numbers_at_once(monkeypatch):
    reduced = []

    def mean_with_another_rank(stacked):
        reduced.append(stacked.shape)
        return (stacked + torch.arange(5)) / 2

    monkeypatch.setattr(scalars, "all_reduce_mean", mean_with_another_rank)
    numbers = scalars.mean_scalars(REPORT)
    assert reduced == [(5,)]
    assert numbers["share"] == (0.1 + 3) / 2
