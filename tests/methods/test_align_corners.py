"""Every objective enlarges logits with the corners of its network, written out with torch."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.methods.test_self_training import _batch, _objective
from tests.support.small import PROTOTYPES, small_segmenter
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.alignment import PrototypeAlignment, SelfDistillation
from udaseg.methods.objectives.entropy import EntropyMinimization
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.methods.views import PSEUDO_LABELLED
from udaseg.models.discriminator import Discriminator
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.recipe.methods import EntropyMinimization as EntropySpec
from udaseg.recipe.methods import PrototypeAlignment as AlignmentSpec

ADVERSARIAL = AdversarialSpec("adversarial", "softmax", 0.01, 1.0, discriminator_lr=1e-4)


def alignment(student):
    contrast = PrototypeContrast(PROTOTYPES, num_classes=5, channels=8, second_view=PSEUDO_LABELLED)
    return PrototypeAlignment(student, contrast, AlignmentSpec("prototype_alignment", PROTOTYPES))


MAKERS = {
    "source_only": SourceOnly,
    "entropy": lambda student: EntropyMinimization(student, EntropySpec("entropy", 0.1)),
    "adversarial": lambda student: Adversarial(student, Discriminator(5, 4), ADVERSARIAL),
    "self_training": lambda student: _objective(),
    "alignment": alignment,
    "self_distillation": SelfDistillation,
}


def losses(objective, batch, aligned):
    """Return the reported losses, and the cross-entropy with that enlarging written out."""
    objective.student.align_corners = aligned
    parts = objective(batch).parts
    name, images, labels = "source", batch.source_images, batch.source_labels
    if "target" in parts:
        name, images, labels = "target", batch.target_images, batch.pseudo_labels
    with torch.no_grad():
        logits = objective.student(images.float() / 255).logits
    wide = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=aligned)
    expected = F.cross_entropy(wide, labels.long(), ignore_index=255)
    return {key: value.item() for key, value in parts.items()}, name, expected.item()


@pytest.mark.parametrize("kind", MAKERS)
def test_losses(kind):
    objective = MAKERS[kind](small_segmenter(projector=False)).train()
    with torch.no_grad():
        for weight in objective.student.head.parameters():
            weight.mul_(20)  # logits that differ from cell to cell
    batch = _batch(size=(32, 64))
    batch = dataclasses.replace(batch, pseudo_labels=batch.source_labels.flip(1))
    found, name, expected = losses(objective, batch, aligned=True)
    other, name, plain = losses(objective, batch, aligned=False)
    assert found[name] == pytest.approx(expected, rel=1e-5)
    assert other[name] == pytest.approx(plain, rel=1e-5)
    assert found[name] != pytest.approx(other[name], rel=1e-4)
    for part in {"mixed", "adversarial", "discriminator"} & set(found):
        assert found[part] != pytest.approx(other[part], rel=1e-6)
