"""Entropy and Fourier style: naive loops, extreme values, and which images are restyled."""

import math
from dataclasses import replace

import pytest
import torch

from tests.methods.test_self_training import _batch
from tests.support.small import small_segmenter
from udaseg.methods.augmentation import fourier_style
from udaseg.methods.objectives.adversarial import Adversarial, output_map
from udaseg.methods.objectives.entropy import EntropyMinimization, normalised_entropy
from udaseg.models.discriminator import Discriminator
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.recipe.methods import EntropyMinimization as EntropySpec


def _random(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _minimization(power=None, band=None):
    spec = EntropySpec("entropy", weight=0.5, power=power, band=band)
    return EntropyMinimization(small_segmenter(projector=False), spec)


def _adversarial():
    spec = AdversarialSpec("adversarial", "softmax", 0.01, 1.8, discriminator_lr=1e-4)
    return Adversarial(small_segmenter(projector=False), Discriminator(5, 4), spec)


def _seen_by_the_student(objective, batch):
    seen = []
    hook = objective.student.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    objective(batch)
    hook.remove()
    return seen


def test_entropy_equals_a_loop_over_cells():
    logits = _random(2, 5, 3, 4, scale=3)
    ours = normalised_entropy(logits)
    for image in range(2):
        for row in range(3):
            for column in range(4):
                scores = logits[image, :, row, column].tolist()
                total = sum(math.exp(score) for score in scores)
                shares = [math.exp(score) / total for score in scores]
                expected = -sum(p * math.log2(p) for p in shares) / math.log2(5)
                assert ours[image, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_entropy_of_an_even_choice_among_some_classes_is_a_ratio_of_logarithms():
    for chosen in (1, 2, 3, 8):
        logits = torch.full((1, 8, 1, 1), -50.0)
        logits[:, :chosen] = 50
        expected = math.log2(chosen) / math.log2(8)
        assert normalised_entropy(logits).item() == pytest.approx(expected, abs=1e-6)


def test_entropy_is_a_share_and_knows_neither_shift_nor_order_of_classes():
    logits = _random(2, 7, 4, 5, scale=10)
    entropy = normalised_entropy(logits)
    assert entropy.min() >= 0
    assert entropy.max() <= 1 + 1e-6
    assert torch.allclose(normalised_entropy(logits + 5), entropy, atol=1e-5)
    assert torch.allclose(normalised_entropy(logits.flip(1)), entropy, atol=1e-6)


def test_the_gradient_of_entropy_is_that_of_double_precision():
    logits = _random(1, 5, 3, 3).requires_grad_()
    normalised_entropy(logits).mean().backward()
    exact = logits.detach().double().requires_grad_()
    shares = exact.softmax(1)
    (-(shares * shares.log2()).sum(1) / math.log2(5)).mean().backward()
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-7)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("power", [None, 2.0])
def test_extreme_logits_leave_entropy_and_gradient_finite(size, power):
    logits = torch.tensor([-size, size, 0.0, size])[None, :, None, None].clone().requires_grad_()
    entropy = normalised_entropy(logits)
    penalty = entropy if power is None else (entropy.square() + 1e-8) ** power
    penalty.sum().backward()
    assert entropy.item() == pytest.approx(0.5)  # two of four classes
    assert torch.isfinite(logits.grad).all()


def test_extreme_logits_leave_self_information_and_its_gradient_finite():
    logits = torch.tensor([-1e4, 1e4, 0.0])[None, :, None, None].clone().requires_grad_()
    seen = output_map(logits, (2, 2), "self_information")
    seen.sum().backward()
    assert torch.isfinite(seen).all()
    assert torch.isfinite(logits.grad).all()


def test_autocast_changes_no_precision():
    content, style = _random(1, 3, 16, 24).abs(), _random(1, 3, 16, 24, seed=1).abs()
    logits = _random(1, 5, 4, 6)
    plain = (
        fourier_style(content, style, band=0.1),
        normalised_entropy(logits),
        output_map(logits, (8, 12), "self_information"),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (
            fourier_style(content, style, band=0.1),
            normalised_entropy(logits),
            output_map(logits, (8, 12), "self_information"),
        )
    for one, other in zip(plain, cast, strict=True):
        assert other.dtype == torch.float32
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_each_source_image_takes_the_style_of_the_target_of_its_number_in_a_circle(targets):
    whole = _batch()
    pool = torch.cat([whole.target_images, _batch(1).target_images])
    batch = replace(whole, target_images=pool[:targets])
    source, target = _seen_by_the_student(_minimization(band=0.1), batch)
    assert torch.allclose(target, batch.target_images.float() / 255)
    for number in range(len(source)):
        style = batch.target_images[number % targets][None].float() / 255
        content = batch.source_images[number][None].float() / 255
        expected = fourier_style(content, style, band=0.1)[0]
        assert torch.allclose(source[number], expected, atol=1e-5)


def test_without_a_band_the_student_sees_the_source_as_it_is():
    batch = _batch()
    source, _ = _seen_by_the_student(_minimization(), batch)
    assert torch.equal(source, batch.source_images.float() / 255)


def test_restyling_changes_no_phase_and_may_leave_the_range():
    content, style = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    content[..., :8] = 1
    styled = fourier_style(content, style, band=0.0)
    assert styled.max().item() == pytest.approx(1.5, abs=1e-5)  # the mean rises by 0.5
    noise, other = _random(1, 3, 16, 24).abs(), _random(1, 3, 16, 24, seed=1).abs()
    before = torch.fft.fft2(noise)
    after = torch.fft.fft2(fourier_style(noise, other, band=0.2))
    cosine = (before * after.conj()).real / (before.abs() * after.abs())
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-3)


def test_a_style_of_another_size_is_brought_to_the_content():
    content = _random(1, 3, 16, 24).abs()
    flat = torch.full((1, 3, 9, 40), 0.25)
    styled = fourier_style(content, flat, band=0.0)
    assert styled.shape == content.shape
    assert torch.allclose(styled.mean((2, 3)), torch.full((1, 3), 0.25), atol=1e-5)


def test_parts_add_up_and_the_figure_is_the_mean_entropy_without_a_graph():
    batch = _batch()
    for power in (None, 2.0):
        report = _minimization(power)(batch)
        assert list(report.parts) == ["source", "entropy"]
        total = sum(part.item() for part in report.parts.values())
        assert report.total.item() == pytest.approx(total)
        (figure,) = report.figures.values()
        assert not figure.requires_grad
        if power is None:
            assert report.parts["entropy"].item() == pytest.approx(0.5 * figure.item())


def test_a_step_down_the_entropy_lowers_it():
    objective, batch = _minimization(), _batch()
    before = objective(batch).parts["entropy"]
    before.backward()
    with torch.no_grad():
        for part in objective.student.parameters():
            if part.grad is not None:
                part -= 0.1 * part.grad
    assert objective(batch).parts["entropy"] < before


@pytest.mark.parametrize("made", [_minimization, _adversarial])
def test_a_batch_without_target_images_is_refused(made):
    with pytest.raises(ValueError, match="target images"):
        made()(replace(_batch(), target_images=None))


@pytest.mark.parametrize(("size", "cells"), [((32, 48), (1, 1)), ((64, 64), (2, 2))])
def test_the_discriminator_answers_once_for_32_pixels(size, cells):
    assert Discriminator(5, 4)(_random(2, 5, *size)).shape == (2, 1, *cells)
