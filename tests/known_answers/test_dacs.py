"""DACS's release: ClassMix and its loss, and kornia's jitter and blur of its time."""

from unittest import mock

import pytest
import torch

from tests.known_answers.reader import answer
from udaseg.methods.augmentation import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Change,
    change_images,
    gaussian_blur,
)
from udaseg.methods.mixing import class_mask, paste
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels

OPERATIONS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}


def _jittered(output, kind):
    """Return the image of the case after one operation, such as `contrast_0.8`."""
    name, amount = output.split("_")
    amounts = {BRIGHTNESS: 1.0, CONTRAST: 1.0, SATURATION: 1.0, HUE: 0.0}
    amounts[OPERATIONS[name]] = float(amount)
    change = Change(list(amounts.items()), None)
    image = answer("dacs/jitter_kornia").tensor("image")
    return change_images(image, [change], together=False, kind=kind)


@pytest.mark.parametrize(
    "output", [o for o in answer("dacs/jitter_kornia").outputs if "blur" not in o]
)
def test_each_operation_is_kornias_if_told_and_torchvisions_otherwise(output):
    case = answer("dacs/jitter_kornia")
    case.expect(output, _jittered(output, "kornia_0_4"))
    assert case.differs(output, _jittered(output, "torchvision")) == ("hue" not in output)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("convolve", [True, False])
def test_blur_mirrors_the_image_at_its_edges_if_told(sigma, convolve):
    case = answer("dacs/jitter_kornia")
    side, middle = torch.exp(torch.tensor([-0.5 / sigma**2, 0.0])).tolist()
    taps = torch.zeros(1, 11)
    taps[0, 4:7] = torch.tensor([side, middle, side]) / (2 * side + middle)
    image = case.tensor("image")
    soft = gaussian_blur(image, taps, convolve=convolve, edges="reflect")
    case.expect(f"blur_3_{sigma}", soft)
    assert case.differs(f"blur_3_{sigma}", gaussian_blur(image, taps, convolve=convolve))


@pytest.mark.parametrize("name", ["dacs/mixed_image", "rccr/mixed_image", "daformer/mixed_image"])
def test_mixed_image_label_weight_and_loss_are_the_releases(name):
    case, classes = answer(name), 7
    whole_batch = name.startswith("daformer")  # it takes the classes of both images together
    places, labels = case.constants["chosen_places"], case.tensor("source_label")
    order = torch.ones(2, classes + 1)  # 255, the last in order, is class 7
    for image, chosen in enumerate(places):
        order[image, chosen] = 0
    if whole_batch:
        mask = torch.stack([(order[i, labels[i].clamp(max=classes)] == 0) for i in range(2)])
    else:
        with mock.patch("torch.rand", lambda *_, **__: order):
            mask = class_mask(labels, classes, torch.Generator(), ignore_is_class=True)
    case.expect("mask", mask.long())
    source, target = case.tensor("source_image"), case.tensor("target_image")
    case.expect("mixed_image", paste(mask, source, target))

    logits = case.tensor("logits" if whole_batch else "teacher_logits")
    guessed, sure = pseudo_labels(logits, labels.shape[1:])
    mixed_labels = paste(mask, labels, guessed.to(labels.dtype))
    case.expect("mixed_label", mixed_labels)
    share = (sure >= case.constants.get("confidence", 0.968)).float().mean()
    weight = share.expand(labels.shape).clone()
    if whole_batch:
        weight[:, : case.constants["ignore_top"]] = 0
        weight[:, -case.constants["ignore_bottom"] :] = 0
    else:
        case.expect("confident_share", share)
    weight[mask] = 1.0
    case.expect("pixel_weight", weight)
    student = case.tensor("student_logits").requires_grad_()
    loss = pixel_loss(student, mixed_labels, weight, mean_over="all")
    loss.backward()
    case.expect("loss", loss)
    case.expect("gradient", student.grad)
