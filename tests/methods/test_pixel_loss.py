"""Strip-wise losses and pseudo-labels against the plain upsample-then-compute form."""

import pytest
import torch
import torch.nn.functional as F

from udaseg.data.labels.classes import IGNORE
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels


def _plain(logits, labels, weights):
    wide = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    each = F.cross_entropy(wide, labels.long(), ignore_index=IGNORE, reduction="none")
    each = each if weights is None else each * weights
    return each.sum() / max(1, int((labels != IGNORE).sum()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("low", "high"), [((5, 7), (40, 56)), ((23, 30), (45, 61)), ((8, 8), (8, 8)), ((1, 1), (9, 5))]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_upsample_then_cross_entropy(seed, low, high, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 6, *low, generator=generator)
    labels = torch.randint(0, 6, (2, *high), generator=generator).to(torch.uint8)
    labels[torch.rand(2, *high, generator=generator) < 0.2] = IGNORE
    weights = torch.rand(2, *high, generator=generator) if weighted else None
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = pixel_loss(ours, labels, weights)
    expected = _plain(theirs, labels, None if weights is None else weights.double())
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)


def test_no_labelled_pixel_is_zero_with_a_graph():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 8, 8), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_low_weights_make_the_loss_small_not_merely_uneven():
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    half = pixel_loss(logits, labels, torch.full((1, 8, 8), 0.5))
    assert half.item() == pytest.approx(0.5 * pixel_loss(logits, labels).item(), rel=1e-6)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="2 logit maps but 1"):
        pixel_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="weights"):
        pixel_loss(
            torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 7)
        )


@pytest.mark.parametrize("size", [(40, 56), (45, 61), (5, 7)])
def test_pseudo_labels_equal_softmax_of_the_enlarged_logits(size):
    logits = 3 * torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    labels, confidence = pseudo_labels(logits, size)
    wide = F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)
    expected, best = wide.max(1)
    assert torch.equal(labels.long(), best)
    assert torch.allclose(confidence, expected, atol=1e-6)
    assert labels.dtype == torch.uint8


def test_loss_under_bf16_autocast_is_computed_in_float32():
    logits = torch.randn(1, 4, 6, 6)
    labels = torch.randint(0, 4, (1, 24, 24)).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pixel_loss(logits, labels)
    assert inside.item() == pixel_loss(logits, labels).item()


def test_a_mean_over_all_pixels_counts_void_ones_too():
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :4] = IGNORE
    labelled = pixel_loss(logits, labels)
    over_all = pixel_loss(logits, labels, torch.ones(1, 8, 8), mean_over="all")
    assert over_all.item() == pytest.approx(labelled.item() / 2, rel=1e-6)
