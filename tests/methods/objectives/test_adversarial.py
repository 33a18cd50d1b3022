"""Adversarial and entropy objectives against their published formulas, written out by hand."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.methods.test_self_training import _batch
from tests.support.small import small_segmenter
from udaseg.methods.augmentation import fourier_style
from udaseg.methods.objectives.adversarial import Adversarial, output_map
from udaseg.methods.objectives.entropy import EntropyMinimization, normalised_entropy
from udaseg.models.discriminator import Discriminator
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.recipe.methods import EntropyMinimization as EntropySpec
from udaseg.training.optimizer import (
    JointOptimizer,
    build_discriminator_optimizer,
    make_optimizer,
    parameter_group,
)

SIZE = (32, 64)


def _adversarial(sees="softmax"):
    student = small_segmenter(projector=False)
    torch.manual_seed(1)
    spec = AdversarialSpec("adversarial", sees, 0.01, 1.8, discriminator_lr=1e-4)
    return Adversarial(student, Discriminator(5, 4), spec)


@pytest.mark.parametrize("sees", ["softmax", "self_information"])
def test_one_backward_gives_the_gradients_of_the_two_published_ones(sees):
    ours, theirs = _adversarial(sees), _adversarial(sees)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    batch = _batch(size=SIZE)
    ours(batch).total.backward()

    source = theirs.student(batch.source_images.float() / 255).logits / 1.8
    target = theirs.student(batch.target_images.float() / 255).logits / 1.8
    theirs.discriminator.requires_grad_(False)
    wide = F.interpolate(source, SIZE, mode="bilinear", align_corners=False)
    loss = F.cross_entropy(wide, batch.source_labels.long(), ignore_index=255)
    seen = output_map(target, SIZE, sees)
    verdict = theirs.discriminator(seen)
    loss = loss + 0.01 * F.binary_cross_entropy_with_logits(verdict, torch.zeros_like(verdict))
    loss.backward()
    theirs.discriminator.requires_grad_(True)
    for maps, domain in ((output_map(source, SIZE, sees), 0.0), (seen, 1.0)):
        verdict = theirs.discriminator(maps.detach())
        truth = torch.full_like(verdict, domain)
        (F.binary_cross_entropy_with_logits(verdict, truth) / 2).backward()
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-6, rtol=1e-4), name


def test_the_disguise_moves_the_student_only_and_the_guess_the_discriminator_only():
    for part, moved, still in (
        ("adversarial", "student", "discriminator"),
        ("discriminator", "discriminator", "student"),
    ):
        objective = _adversarial()
        objective(_batch(size=SIZE)).parts[part].backward()
        assert any(
            p.grad is not None and p.grad.any() for p in getattr(objective, moved).parameters()
        )
        assert all(p.grad is None for p in getattr(objective, still).parameters())


def test_parts_add_up():
    report = _adversarial()(_batch(size=SIZE))
    assert report.total.item() == pytest.approx(sum(v.item() for v in report.parts.values()))


def test_self_information_of_the_uniform_and_of_the_certain():
    uniform = output_map(torch.zeros(1, 4, 2, 2), (2, 2), "self_information")
    assert torch.allclose(uniform, torch.full_like(uniform, 1 / 4))
    certain = torch.zeros(1, 4, 2, 2)
    certain[:, 2] = 200
    assert output_map(certain, (2, 2), "self_information").abs().max() < 1e-6


def test_entropy_of_the_uniform_is_1_and_of_the_certain_0_with_a_finite_gradient():
    assert torch.allclose(normalised_entropy(torch.zeros(1, 7, 2, 2)), torch.ones(1, 2, 2))
    logits = torch.tensor([1e4, -1e4, 0.0])[None, :, None, None].clone().requires_grad_()
    entropy = normalised_entropy(logits)
    assert entropy.item() == pytest.approx(0, abs=1e-6)
    entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_entropy_terms_are_the_published_formulas():
    batch = _batch()
    for power in (None, 2.0):
        spec = EntropySpec("entropy", weight=0.5, power=power)
        objective = EntropyMinimization(small_segmenter(projector=False), spec)
        report = objective(batch)
        objective.eval()
        twin = copy.deepcopy(objective).train()
        twin.student(batch.source_images.float() / 255)
        shares = twin.student(batch.target_images.float() / 255).logits.double().softmax(1)
        entropy = -(shares * shares.log2()).sum(1) / math.log2(5)
        expected = entropy if power is None else (entropy**2 + 1e-8) ** power
        assert report.parts["entropy"].item() == pytest.approx(
            0.5 * expected.mean().item(), rel=1e-5
        )


def test_restyling_equals_the_centred_window_of_numpy():
    generator = torch.Generator().manual_seed(0)
    content, style = (torch.rand(1, 3, 24, 31, generator=generator) for _ in range(2))
    ours = fourier_style(content, style, band=0.1)
    spectrum = np.fft.fftshift(np.fft.fft2(content.double().numpy()), axes=(-2, -1))
    style_spectrum = np.fft.fftshift(np.fft.fft2(style.double().numpy()), axes=(-2, -1))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    reach, row, column = 2, 12, 15
    window = (..., slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1))
    amplitude[window] = np.abs(style_spectrum)[window]
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(-2, -1))
    assert np.allclose(ours.numpy(), np.fft.ifft2(mixed).real, atol=1e-5)


def test_an_image_in_its_own_style_is_itself_and_band_0_moves_only_the_mean():
    generator = torch.Generator().manual_seed(0)
    content, style = (torch.rand(2, 3, 16, 24, generator=generator) for _ in range(2))
    assert torch.allclose(fourier_style(content, content, band=0.2), content, atol=1e-5)
    moved = fourier_style(content, style, band=0.0)
    assert torch.allclose(moved.mean((2, 3)), style.mean((2, 3)), atol=1e-5)
    flat = moved - moved.mean((2, 3), keepdim=True)
    assert torch.allclose(flat, content - content.mean((2, 3), keepdim=True), atol=1e-5)


def test_two_optimisers_are_saved_and_restored_as_one():
    def build():
        objective = _adversarial()
        first = make_optimizer(
            "sgd",
            [parameter_group("all", 0.1, objective.student.named_parameters())],
            momentum=0.9,
            weight_decay=0.0,
        )
        second = build_discriminator_optimizer(objective.discriminator.named_parameters(), 0.01)
        return objective, JointOptimizer([first, second])

    def step(objective, trainer, number):
        trainer.zero_grad()
        objective(_batch(number, size=SIZE)).total.backward()
        for group in trainer.param_groups:
            group["lr"] = group["base_lr"]
        trainer.step()

    objective, trainer = build()
    for number in range(2):
        step(objective, trainer, number)
    twin, its_trainer = build()
    twin.load_state_dict(copy.deepcopy(objective.state_dict()))
    its_trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for number in range(2, 4):
        step(objective, trainer, number)
        step(twin, its_trainer, number)
    for one, two in zip(objective.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
    held = [n for group in trainer.state_dict()["param_groups"] for n in group["params"]]
    assert held == list(range(len(list(objective.parameters()))))
