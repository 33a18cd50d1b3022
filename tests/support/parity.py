"""What tests share that train an objective beside a rule that is written out."""

import pytest
import torch
import torch.nn.functional as F

from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.batches import Batch


def blocks(generator, count, low, high, size, side=8):
    """Return two uint8 images (2, count, H, W) of random squares, numbers in [low, high)."""
    shape = (2, count, size[0] // side, size[1] // side)
    drawn = torch.randint(low, high, shape, generator=generator).float()
    return F.interpolate(drawn, size).to(torch.uint8)


def blocky_batch(step, *, seed, steps, classes, size, void_rows):
    """Return a batch of two source and two target images; the first rows have no label."""
    generator = torch.Generator().manual_seed(step)
    labels = blocks(generator, 1, 0, classes, size)[:, 0]
    labels[:, :void_rows] = IGNORE
    source = blocks(generator, 3, 0, 256, size)
    return Batch(step, step / steps, seed, source, labels, blocks(generator, 3, 0, 256, size))


def step_alike(objective, released, rules, batch):
    """Train both sides on a batch, each with its optimizer; the losses must be the same."""
    report, expected = objective(batch), released.losses(batch)
    assert set(report.parts) == set(expected)
    for part, value in expected.items():
        found = report.parts[part].item()
        assert found == pytest.approx(value.item(), abs=1e-5), (batch.step, part)
    for rule, total in zip(rules, (report.total, sum(expected.values())), strict=True):
        rule.zero_grad()
        total.backward()
        rule.step()
    objective.after_step(batch.step, report)
    released.follow(batch.step)


def assert_same_networks(objective, released):
    """Compare the weights of student and teacher."""
    pairs = (
        (objective.student, released.student),
        (objective.teacher.network, released.teacher),
    )
    for ours, theirs in pairs:
        weights = dict(theirs.named_parameters())
        for name, weight in ours.named_parameters():
            assert torch.allclose(weight, weights[name], atol=1e-5), name
