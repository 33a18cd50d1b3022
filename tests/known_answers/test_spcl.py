"""SPCL's release: our functions with the fields of `spcl_release` give what its code gave."""

import contextlib
import itertools
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from tests.known_answers.reader import answer, probe
from tests.support.small import shipped
from udaseg.data.loading.batches import Batch
from udaseg.data.loading.sampling import balanced_order
from udaseg.distributed import RankSums
from udaseg.methods import passes
from udaseg.methods.augmentation import Change, change_images
from udaseg.methods.contrast.prototypes import PrototypeContrast, _correct_cells
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.alignment import PrototypeAlignment
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.views import PSEUDO_LABELLED, SOURCE, CellView, Views, labelled_view
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.segmenter import SegmenterOutput

RELEASE = shipped("gta5_cityscapes/spcl_release")
WARM_UP, CONTRAST, _ = RELEASE.method.stages
NEAR = 2e-6  # at temperature 100 a loss hardly depends on anything


class Given(nn.Module):
    """A network that returns the outputs it was given, one after the other."""

    def __init__(self, *outputs, align_corners=RELEASE.model.align_corners):
        super().__init__()
        self._outputs, self.align_corners = iter(outputs), align_corners
        self.backbone = SimpleNamespace(grid=lambda size: [-(-side // 8) for side in size])

    def forward(self, images):
        return next(self._outputs)


def output(logits, features=None):
    if features is None:
        features = torch.ones(len(logits), 4, *logits.shape[-2:])
    return SegmenterOutput(logits, features, None)


def batch(labels):
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=torch.uint8)
    return Batch(0, 0.0, 0, images, labels, images, torch.full_like(labels, 255))


def contrast(classes, channels, **changes):
    spec = replace(CONTRAST.objective.prototypes, **changes)
    return PrototypeContrast(
        spec, num_classes=classes, channels=channels, second_view=PSEUDO_LABELLED
    )


def second_view(features, labels):
    ones = torch.ones(labels.shape)
    return CellView(features, None, labels, labels, ones)


def source_loss(case, temperature, aligned):
    logits, labels = case.tensor("logits").requires_grad_(), case.tensor("label").byte()
    spec = replace(CONTRAST.objective, temperature=temperature)
    student = Given(output(logits), align_corners=aligned)
    objective = PrototypeAlignment(student, contrast(7, 4), spec)
    report = next(objective.passes(batch(labels), RankSums()))
    report.parts["source"].backward()
    return report.parts["source"], logits.grad


@pytest.mark.parametrize("name", ["spcl/stage2_source_ce", "spcl/stage2_source_ce_same_size"])
def test_source_loss_of_the_second_stage(name):
    case = answer(name)
    aligned, temperature = RELEASE.model.align_corners, CONTRAST.objective.temperature
    loss, gradient = source_loss(case, temperature, aligned)
    case.expect("loss", loss)
    case.expect("gradient", gradient)
    case.expect("loss_without_temperature", source_loss(case, 1.0, aligned)[0])
    if name == "spcl/stage2_source_ce":
        loss, gradient = source_loss(case, temperature, False)
        case.expect("loss_corners_not_aligned", loss)
        case.expect("gradient_corners_not_aligned", gradient)


def test_prototype_loss():
    case = answer("spcl/contrast_loss")
    regularizer = contrast(19, 24, momentum=1.0)
    means = case.tensor("prototypes").T.contiguous()
    regularizer.prototypes.initialise(means, torch.ones(19, dtype=torch.bool))
    source, target = (case.tensor(name).requires_grad_() for name in ("source", "target"))
    views = Views(0, 0.0, 0, {})
    views.by_name[SOURCE] = second_view(source, case.tensor("source_label").long())
    views.by_name[PSEUDO_LABELLED] = second_view(target, case.tensor("target_label").long())
    regularizer.prototypes.absent = "keep"  # with a momentum of 1, no update comes first
    loss = regularizer(views)
    loss.backward()
    case.expect("loss", loss, bound=NEAR)
    case.expect("source_gradient", source.grad)
    case.expect("target_gradient", target.grad)


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.9}, {"absent": "keep"}, {"normalise": True}]
)
def test_three_steps_of_prototypes(changes):
    case = answer("spcl/prototype_update")
    regularizer = contrast(7, 1024, **changes)
    regularizer.prototypes.initialise(
        case.tensor("prototypes").T.contiguous(), torch.ones(7, dtype=torch.bool)
    )
    same = True
    for step in range(3):
        source = case.tensor(f"features_{step}").requires_grad_()
        target = case.tensor(f"target_{step}").requires_grad_()
        seen = output(case.tensor(f"logits_{step}"), source)
        views = Views(step, 0.0, step, {})
        views.by_name[SOURCE] = labelled_view(seen, case.tensor(f"label_{step}").byte())
        views.by_name[PSEUDO_LABELLED] = second_view(
            target, case.tensor(f"target_label_{step}").long()
        )
        counted = _correct_cells(views[SOURCE])[1].view(2, 4, 6)
        case.expect(f"source_label_{step}", counted)
        assert case.differs(f"source_label_{step}", views[SOURCE].labels)
        loss = regularizer(views)
        loss.backward()
        regularizer.update(views)
        means = regularizer.prototypes.means.T
        if changes:
            same = same and not case.differs(f"prototypes_{step}", means)
            continue
        case.expect(f"loss_{step}", loss, bound=NEAR)
        case.expect(f"source_gradient_{step}", source.grad)
        case.expect(f"target_gradient_{step}", target.grad)
        case.expect(f"prototypes_{step}", means)
        case.expect(f"length_{step}", means.norm(dim=0))
    assert same == (not changes)


def test_first_prototypes():
    case = answer("spcl/prototype_initialisation")

    def each_image(act, *_):
        for number in range(4):
            labels = case.inputs[f"label_{number}"][0].astype(np.uint8)
            seen = output(case.tensor(f"logits_{number}"), case.tensor(f"features_{number}"))
            act(SimpleNamespace(labels=labels), seen)

    with (
        mock.patch.object(passes, "_for_each_image", each_image),
        mock.patch.object(passes, "all_reduce_sum", side_effect=torch.clone) as over_ranks,
    ):
        student = SimpleNamespace(feature_channels=16)
        source = SimpleNamespace(samples=())
        means, seen = passes.collect_prototypes(student, source, 5, torch.device("cpu"), print)
    case.expect("prototypes", means.T)
    ((_sums,), _), ((images,), _) = over_ranks.call_args_list
    case.expect("images", images)
    assert seen.all()


def threshold_case(rank):
    case = answer("spcl/thresholds")
    predicted = [pseudo_labels(case.tensor(f"logits_{n}"), (24, 32)) for n in range(3)]
    histogram = sum(passes.confidence_histogram(*each, 5) for each in predicted)
    settings = CONTRAST.pseudo_labels
    limits = passes.confidence_thresholds(
        histogram, quantile=settings.quantile, cap=settings.cap, rank=rank
    )
    return case, limits, predicted


def test_thresholds_are_the_releases_cut_down_to_a_bin():
    case, limits, predicted = threshold_case(CONTRAST.pseudo_labels.rank)
    exact = torch.tensor(case.outputs["thresholds"]["values"], dtype=torch.float64)
    below = exact - limits
    assert ((below >= 0) & (below < 1e-4)).all()
    for number, (labels, confidence) in enumerate(predicted):
        # the pixel at the threshold is kept, whichever way its confidence was rounded
        ours = passes.threshold_labels(labels, confidence, limits)
        theirs = passes.threshold_labels(labels, confidence, exact - 3e-7)
        case.expect(f"pseudo_label_{number}", theirs[0])
        more = ours != theirs  # pixels between the edge of the bin and the threshold
        assert (theirs[more] == 255).all()
        assert (confidence[more] < exact[labels[more].long()]).all()
        assert more.float().mean() < 0.005


def test_the_lower_rank_is_our_variation():
    case, limits, _ = threshold_case("lower")
    case.expect("thresholds", limits, variation=True)
    assert case.differs("thresholds", limits, bound=2e-4)


def adversarial_case(spec):
    case = answer("spcl/stage1_adversarial")
    discriminator = Discriminator(7, width=4)
    names = ("conv1", "conv2", "conv3", "conv4", "classifier")
    convolutions = [part for part in discriminator.layers if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for name, part in zip(names, convolutions, strict=True):
            part.weight.copy_(case.tensor(f"weight_{name}"))
            part.bias.copy_(case.tensor(f"bias_{name}"))
    source, target = (case.tensor(name).requires_grad_() for name in ("source", "target"))
    objective = Adversarial(Given(output(source), output(target)), discriminator, spec)
    seen = []  # the discriminator's outputs: of the source, then twice of the target
    discriminator.register_forward_hook(lambda *call: seen.append(call[-1]))
    reports = list(objective.passes(batch(case.tensor("label").byte()), RankSums()))
    sum(report.total for report in reports).backward()
    return case, reports, (source, target), convolutions, seen


def test_warm_up():
    case, (first, second), (source, target), convolutions, seen = adversarial_case(
        WARM_UP.objective
    )
    case.expect("source_loss", first.parts["source"])
    case.expect("discriminator_source_loss", first.parts["discriminator"])
    case.expect("adversarial_loss", second.parts["adversarial"])
    case.expect("discriminator_target_loss", second.parts["discriminator"])
    case.expect("source_gradient", source.grad)
    case.expect("target_gradient", target.grad)
    case.expect("target_gradient_probe", probe(target.grad.numpy()))
    for name, part in (("conv1", convolutions[0]), ("classifier", convolutions[-1])):
        case.expect(f"gradient_{name}", part.weight.grad)
        case.expect(f"gradient_{name}_probe", probe(part.weight.grad.numpy()))
    for name, found in zip(("source", "target", "target"), seen, strict=True):
        case.expect(f"discriminator_of_{name}", found)


def test_warm_up_with_one_temperature_is_another():
    spec = replace(WARM_UP.objective, target_temperature=None)
    case, (_, second), *_, seen = adversarial_case(spec)
    assert case.differs("adversarial_loss", second.parts["adversarial"], bound=1e-4)
    assert case.differs("discriminator_of_target", seen[-1], bound=1e-4)


OPERATIONS = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}


@pytest.mark.parametrize("operation", answer("spcl/jitter_pil").outputs)
def test_colour_jitter(operation):
    case = answer("spcl/jitter_pil")
    name, factor = operation.split("_")
    image = case.tensor("image").permute(2, 0, 1)[None].float() / 255
    adjustments = [(OPERATIONS[name], float(factor))]
    if name != "hue":
        adjustments.append((OPERATIONS["hue"], 0.0))
    changed = change_images(image, [Change(adjustments, None)], together=False)
    levels = (changed[0].permute(1, 2, 0) * 255).numpy()
    expected = np.array(case.outputs[operation]["values"]).reshape(levels.shape)
    # Pillow works on whole numbers, and turns the hue in whole numbers too
    assert np.abs(levels - expected).max() <= (11 if name == "hue" else 1.01)
    assert np.abs(image[0].permute(1, 2, 0).numpy() * 255 - expected).max() > 20
    if name == "brightness":  # one product, cut off
        case.expect(operation, np.floor(levels + 1e-3))


@pytest.mark.parametrize("first", [0, 1])
def test_class_balanced_order(first):
    """From its second turn on, a class's list begins at entry 0 here, at entry 1 in the release."""
    case = answer("spcl/class_balanced_order")

    def turns(images, cycle=itertools.cycle):
        return itertools.chain(images, cycle(images[first:]))

    present = case.inputs["uniform"] < np.array(case.constants["rates"])
    case.expect("present", present.sum(0))
    choices, probabilities = iter(case.inputs["choice"]), []

    def searchsorted(cumulative, mark):
        probabilities.append(np.diff(cumulative, prepend=0) / cumulative[-1])
        return next(choices)

    with (
        mock.patch("numpy.searchsorted", searchsorted),
        mock.patch("numpy.random.default_rng") as rng,
        mock.patch("itertools.cycle", turns) if first else contextlib.nullcontext(),
    ):
        rng.return_value.permutation = lambda images: images
        rng.return_value.random = lambda: 0.5
        order = balanced_order(present, seed=0, sub_epoch=0)
    for draw in (0, 1, 2, 5, 10):  # before the list of a class is at its end
        case.expect(f"probability_{draw}", probabilities[draw])
    case.expect("first_images", order[:18])
    draws = np.bincount(order, minlength=len(present))
    case.expect("draws_of_an_image", draws, variation=first == 0)
    assert case.differs("draws_of_an_image", draws) == (first == 0)
    for draw in (100, 1000, 2999):
        if first == 1:
            case.expect(f"probability_{draw}", probabilities[draw])
        else:
            assert case.differs(f"probability_{draw}", probabilities[draw], bound=0.01)


def test_classifier():
    case = answer("spcl/classifier_head")
    head = DeepLabV2((16,), 3, RELEASE.model.aspp_dilations)
    convolutions = [part for part in head.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for number, part in enumerate(convolutions):
            part.weight.copy_(case.tensor(f"weight_{number}"))
            part.bias.copy_(case.tensor(f"bias_{number}"))
        case.expect("logits", head([case.tensor("features")]))
