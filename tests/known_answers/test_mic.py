"""MIC's release: which blocks are hidden, and the loss on what is left."""

from unittest import mock

import pytest
import torch

from tests.known_answers.reader import answer
from udaseg.methods.masking import hidden_blocks, hide
from udaseg.methods.pixel_loss import pixel_loss


def _hidden(case, size):
    numbers = case.tensor("uniform")[:, 0]
    with mock.patch("torch.rand", return_value=numbers) as drawn:
        block, ratio = case.constants["block"], case.constants["ratio"]
        hidden = hidden_blocks(2, size, block, ratio, torch.Generator())
    assert drawn.call_args.args == (tuple(numbers.shape),)
    return hidden


@pytest.mark.parametrize(
    "name",
    [
        "mic/block_mask_ratio_0.7",
        "mic/block_mask_ratio_0.5",
        "mic/block_mask_odd_size_ratio_0.7",
        "mic/block_mask_odd_size_ratio_0.5",
    ],
)
def test_the_blocks_of_the_release_are_hidden(name):
    case = answer(name)
    hidden = _hidden(case, case.constants["size"])
    case.expect("mask", ~hidden[:, None])
    case.expect("kept_share", (~hidden).float().mean())
    # its images are normalised, so that their mean colour is 0
    case.expect("masked_image", hide(case.tensor("image"), hidden, torch.zeros(1, 3, 1, 1)))


def test_what_is_seen_learns_the_labels_of_the_whole_image():
    case = answer("mic/masked_consistency")
    image = case.tensor("image")
    masked = hide(image, _hidden(case, image.shape[-2:]), torch.zeros(1, 3, 1, 1))
    case.expect("masked_image", masked)
    matrix = case.tensor("matrix").requires_grad_()
    logits = torch.einsum("kc,bchw->bkhw", matrix, masked) + case.tensor("offset")
    labels, weight = case.tensor("pseudo_label"), case.tensor("pseudo_weight")
    loss = pixel_loss(logits, labels, weight, mean_over="all")
    loss.backward()
    case.expect("loss", loss)
    case.expect("gradient", matrix.grad)
