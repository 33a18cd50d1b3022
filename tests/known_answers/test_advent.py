"""ADVENT's release: entropy maps, and one adversarial step."""

import torch

from tests.known_answers.reader import answer, probe
from tests.support.small import shipped
from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.objectives.adversarial import Adversarial, output_map
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.models.discriminator import Discriminator
from udaseg.models.segmenter import SegmenterOutput


def test_self_information_and_entropy_are_the_releases():
    case = answer("advent/entropy")
    logits = case.tensor("logits").requires_grad_()
    case.expect("self_information", output_map(logits, logits.shape[-2:], "self_information"))
    entropy = normalised_entropy(logits)
    case.expect("entropy_map", entropy)
    case.expect("entropy_loss", entropy.mean())
    entropy.mean().backward()
    case.expect("gradient", logits.grad)


def test_saturated_logits_give_finite_values_as_there():
    case = answer("advent/entropy_saturated")
    logits = case.tensor("logits")
    # the logarithm of an exact 0 or 1 in float32; the release's own float32 is as far off
    seen = output_map(logits, logits.shape[-2:], "self_information")
    case.expect("self_information", seen, bound=1e-4)
    case.expect("entropy_loss", normalised_entropy(logits).mean(), bound=1e-4)


class _Given(torch.nn.Module):
    """A network that returns the logits of the case: first of the source, then of the target."""

    align_corners = False

    def __init__(self, *logits):
        super().__init__()
        self.logits = [each.requires_grad_() for each in logits]
        self.calls = 0

    def forward(self, images):
        logits = self.logits[self.calls]
        self.calls += 1
        return SegmenterOutput(logits, logits, None)


def test_one_adversarial_step_has_the_releases_losses_and_gradients():
    case = answer("advent/adversarial_step")
    method = shipped("gta5_cityscapes/advent_release").method.stages[0].objective
    assert (method.weight, method.sees) == (case.constants["weight"], "self_information")
    student = _Given(case.tensor("source"), case.tensor("target"))
    discriminator = Discriminator(7, width=4)
    convolutions = [part for part in discriminator.modules() if isinstance(part, torch.nn.Conv2d)]
    for number, part in enumerate(convolutions):
        part.weight.data = case.tensor(f"weight_{number}")
        part.bias.data = case.tensor(f"bias_{number}")
    images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    batch = Batch(0, 0.0, 0, images, case.tensor("label").to(torch.uint8), images)
    on_source, on_target = Adversarial(student, discriminator, method).passes(batch, RankSums())
    case.expect("source_loss", on_source.parts["source"])
    case.expect("discriminator_source_loss", on_source.parts["discriminator"])
    case.expect("adversarial_loss", on_target.parts["adversarial"])
    case.expect("discriminator_target_loss", on_target.parts["discriminator"])
    (on_source.total + on_target.total).backward()
    source, target = student.logits
    case.expect("source_gradient", source.grad)
    case.expect("target_gradient", target.grad)
    case.expect("target_gradient_probe", probe(target.grad.numpy()))
    first, last = convolutions[0].weight.grad, convolutions[-1].weight.grad
    case.expect("gradient_first", first)
    case.expect("gradient_last", last)
    case.expect("gradient_first_probe", probe(first.numpy()))
    case.expect("gradient_last_probe", probe(last.numpy()))
    with torch.no_grad():
        for name, logits in (("source", source), ("target", target)):
            seen = output_map(logits, (64, 96), "self_information")
            case.expect(f"discriminator_of_{name}", discriminator(seen))
