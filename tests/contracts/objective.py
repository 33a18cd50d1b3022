"""What every objective must do. To test one of your own, subclass it and fill in `make`."""

import copy

import pytest
import torch

from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.batches import Batch
from udaseg.methods.objectives.objective import LossReport, Objective

CLASSES = 5


def make_batch(step=0, *, ignored=False):
    """Return a batch of two images of each domain, with pseudo-labels."""
    generator = torch.Generator().manual_seed(step)

    def images():
        return torch.randint(0, 256, (2, 3, 64, 96), generator=generator).to(torch.uint8)

    labels = torch.randint(0, CLASSES, (2, 64, 96), generator=generator).to(torch.uint8)
    labels[:, :3] = IGNORE
    if ignored:
        labels = torch.full_like(labels, IGNORE)
    return Batch(step, step / 10, 7 + step, images(), labels, images(), pseudo_labels=labels)


def _state(objective):
    return {name: value.clone() for name, value in objective.state_dict().items()}


def _step(objective, step):
    """Train one step with plain gradient descent."""
    report = objective(make_batch(step))
    objective.zero_grad()
    report.total.backward()
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    objective.after_step(step, report)
    return report


class ObjectiveContract:
    """Every member passes these tests."""

    def make(self) -> Objective:
        """Return a new objective for 5 classes with always the same weights."""
        raise NotImplementedError

    @pytest.fixture
    def objective(self):
        return self.make().train()

    def test_its_parts_add_up_to_a_finite_loss(self, objective):
        report = objective(make_batch())
        assert isinstance(report, LossReport)
        assert torch.isfinite(report.total)
        parts = torch.stack(list(report.parts.values())).sum()
        torch.testing.assert_close(report.total, parts)
        assert not any(value.requires_grad for value in report.figures.values())

    def test_every_trained_tensor_has_a_gradient_at_every_step(self, objective):
        """Several processes wait for the gradient of each trained tensor."""
        for step in range(2):
            _step(objective, step)
            trained = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
            assert [name for name, parameter in trained if parameter.grad is None] == []

    def test_forward_changes_only_batch_norm_statistics(self, objective):
        before = _state(objective)
        objective(make_batch())
        for name, value in objective.state_dict().items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                assert torch.equal(value, before[name]), name

    def test_a_step_is_a_function_of_its_batch(self):
        reports = []
        for seed in (1, 2):
            objective = self.make().train()
            torch.manual_seed(seed)
            reports.append([_step(objective, step).total for step in range(2)])
        assert reports[0] == reports[1]

    def test_its_state_dict_is_its_whole_memory(self, objective):
        for step in range(2):
            _step(objective, step)
        other = self.make().train()
        other.load_state_dict(copy.deepcopy(objective.state_dict()))
        for step in range(2, 4):
            assert torch.equal(_step(objective, step).total, _step(other, step).total)

    def test_a_batch_without_any_label_is_harmless(self, objective):
        report = objective(make_batch(ignored=True))
        report.total.backward()
        assert torch.isfinite(report.total)
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
