"""Strip-wise losses and pseudo-labels against the plain upsample-then-compute form."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.operators import OperatorCount
from udaseg.data.labels.classes import IGNORE
from udaseg.methods import pixel_loss as pixel_loss_module
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels

STEPS = {"cpu": (16, 256), "gpu": (512, 4096), "odd": (7, 13)}


@pytest.fixture(params=STEPS)
def step(request, monkeypatch):
    """Compute with the strips of a CPU, of a GPU, and with ones that end anywhere."""
    step = pixel_loss_module._Step(*STEPS[request.param])
    monkeypatch.setattr(pixel_loss_module, "_STEP_CPU", step)


def _plain(logits, labels, weights, aligned):
    wide = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=aligned)
    each = F.cross_entropy(wide, labels.long(), ignore_index=IGNORE, reduction="none")
    each = each if weights is None else each * weights
    return each.sum() / max(1, int((labels != IGNORE).sum()))


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("low", "high"), [((5, 7), (40, 56)), ((23, 30), (45, 61)), ((8, 8), (8, 8)), ((1, 1), (9, 5))]
)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_upsample_then_cross_entropy(seed, low, high, aligned, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 6, *low, generator=generator)
    if seed:
        logits = logits.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 6, (2, *high), generator=generator).to(torch.uint8)
    labels[torch.rand(2, *high, generator=generator) < 0.2] = IGNORE
    weights = torch.rand(2, *high, generator=generator) if weighted else None
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = pixel_loss(ours, labels, weights, align_corners=aligned)
    expected = _plain(theirs, labels, None if weights is None else weights.double(), aligned)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)


def test_no_labelled_pixel_is_zero_with_a_graph():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 8, 8), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert str(loss.item()) == "0.0"  # not -0.0
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


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize("size", [(40, 56), (45, 61), (5, 7)])
@pytest.mark.parametrize("aligned", [False, True])
def test_pseudo_labels_equal_softmax_of_the_enlarged_logits(size, aligned):
    logits = 3 * torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    labels, confidence = pseudo_labels(logits, size, align_corners=aligned)
    wide = F.interpolate(logits, size, mode="bilinear", align_corners=aligned).softmax(1)
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


def _example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 8, 9, generator=generator)
    labels = torch.randint(0, 5, (2, 64, 72), generator=generator).to(torch.uint8)
    labels[:, :9] = IGNORE
    return logits.requires_grad_(), labels, torch.rand(2, 64, 72, generator=generator)


@pytest.mark.usefixtures("step")
@pytest.mark.filterwarnings("error")
def test_deterministic_mode_gives_the_same_bits():
    def results():
        logits, labels, weights = _example()
        loss = pixel_loss(logits, labels, weights)
        loss.backward()
        return loss.detach(), logits.grad, *pseudo_labels(logits, (64, 72))

    plain = results()
    torch.set_deterministic_debug_mode("error")
    try:
        deterministic = results()
    finally:
        torch.set_deterministic_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(plain, deterministic, strict=True))


VIEWS = {"alias", "detach", "expand", "permute", "select", "slice", "transpose", "unsqueeze"}
VIEWS |= {"view", "_unsafe_view"}
ALLOCATIONS = {"empty", "empty_like", "new_empty"}


def _launches(counter):
    """Return how many of the operators were neither views nor allocations."""
    free = VIEWS | ALLOCATIONS
    return sum(count for name, count in counter.counts.items() if name.split(".")[1] not in free)


def test_a_gpu_launches_few_operators_and_none_that_adds_in_any_order(monkeypatch):
    monkeypatch.setattr(pixel_loss_module, "_STEP_CPU", pixel_loss_module._STEP_GPU)
    for weighted in (False, True):
        logits, labels, weights = _example()
        pixel_loss(logits, labels)  # makes the constants
        with OperatorCount() as counter:
            pixel_loss(logits, labels, weights if weighted else None).backward()
        assert _launches(counter) <= 25
        assert not [name for name in counter.counts if "scatter" in name or "upsample" in name]
    with OperatorCount() as counter:
        pseudo_labels(logits, (64, 72))
    assert _launches(counter) <= 9


def test_half_precision_logits_get_a_gradient_of_their_type():
    logits, labels, _ = _example()
    half = logits.detach().bfloat16().requires_grad_()
    pixel_loss(half, labels).backward()
    exact = half.detach().float().requires_grad_()
    pixel_loss(exact, labels).backward()
    assert torch.equal(half.grad, exact.grad.bfloat16())
