"""Between two logs a step copies nothing to the host: on a GPU each copy would synchronize."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.methods.test_self_training import _batch, _objective, _regional, _trainer
from tests.support.small import PROTOTYPES
from udaseg.methods.contrast import regional_loss
from udaseg.methods.contrast.prototypes import PrototypeContrast

WAITS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)


class Reads(TorchDispatchMode):
    """Record the operations that copy a tensor's value or data-dependent size to Python."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func is torch.ops.aten.index.Tensor and any(
            torch.is_tensor(part) and part.dtype == torch.bool for part in args[1]
        )
        if masked or func in WAITS:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def _prototypes():
    spec = replace(PROTOTYPES, momentum=0.999)
    return PrototypeContrast(spec, num_classes=5, channels=8)


@pytest.mark.parametrize("terms", [[], ["regional"], ["regional", "prototypes"]])
def test_a_step_reads_nothing_back(terms, monkeypatch):
    monkeypatch.setattr(regional_loss, "_counted_indices", lambda _: None)  # as on a GPU
    builders = {"regional": _regional, "prototypes": _prototypes}
    objective = _objective(_regional(), regularizers={name: builders[name]() for name in terms})
    trainer = _trainer(objective)
    with Reads() as reads:
        report = objective(_batch())
        report.total.backward()
        trainer.step()
        objective.after_step(0, report)
    # the square and the rows of the bank are drawn on the host, and so are their indices
    on_the_host = [torch.ops.aten.nonzero.default] * (3 if terms else 0)
    assert reads.found == on_the_host


def test_the_counter_counts():
    with Reads() as reads:
        torch.ones(()).item()
        torch.ones(2).nonzero()
        torch.ones(2)[torch.ones(2, dtype=torch.bool)]
    assert len(reads.found) == 3
