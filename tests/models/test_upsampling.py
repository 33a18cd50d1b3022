"""Bilinear enlarging as products, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from udaseg.models.upsampling import constant, row_weights, upsample, upsample_by_products

SIZES = [
    ((5, 7), (40, 56)),
    ((23, 30), (45, 61)),
    ((8, 8), (8, 8)),
    ((1, 1), (9, 5)),
    ((9, 8), (4, 5)),
]
CPU = torch.device("cpu")


def interpolate(maps, size, *, align_corners=False):
    return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [False, True])
def test_maps_and_gradients_are_those_of_torch(low, high, aligned, layout):
    maps = torch.randn(2, 3, *low).contiguous(memory_format=layout)
    results = []
    for enlarge in (interpolate, upsample, upsample_by_products):
        given = maps.clone().requires_grad_()
        enlarged = enlarge(given, high, align_corners=aligned)
        (enlarged * torch.linspace(-1, 1, enlarged.numel()).view_as(enlarged)).sum().backward()
        results.append((enlarged.detach(), given.grad))
    (expected, gradient), same, close = results
    assert close[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(expected, same[0])
    assert torch.equal(gradient, same[1])
    # torch computes positions in float32
    assert torch.allclose(expected, close[0], rtol=1e-5, atol=2e-5)
    assert torch.allclose(gradient, close[1], rtol=1e-5, atol=5e-5)


def test_half_precision_is_rounded_once_even_under_autocast():
    maps = torch.randn(2, 3, 5, 7).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enlarged = upsample_by_products(maps, (19, 23))
    exact = upsample_by_products(maps.float(), (19, 23))
    assert torch.equal(enlarged, exact.bfloat16())


def test_row_weights_are_those_of_torch():
    for low, high in ((64, 512), (65, 513), (7, 3), (1, 5)):
        identity = torch.eye(low).double()[None, None]
        expected = interpolate(identity, (high, low))[0, 0]
        assert torch.allclose(row_weights(low, high, CPU).double(), expected, atol=1e-7)


def test_a_constant_is_made_once_for_each_argument():
    made = []

    @constant
    def zeros(size, device):
        made.append(size)
        return torch.zeros(size, device=device)

    assert zeros(3, CPU) is zeros(3, CPU)
    assert zeros(4, CPU).shape == (4,)
    assert made == [3, 4]
    for size in range(200):
        zeros(size, CPU)
    assert torch.equal(zeros(3, CPU), torch.zeros(3))


def test_fake_tensors_are_not_kept_and_a_tensor_of_inference_can_be_trained_with():
    with FakeTensorMode():
        row_weights(11, 21, CPU)
    with torch.inference_mode():
        assert type(row_weights(11, 21, CPU)) is torch.Tensor
    maps = torch.ones(1, 1, 11, 11, requires_grad=True)
    upsample_by_products(maps, (21, 21)).sum().backward()
    assert maps.grad.sum().item() == pytest.approx(21 * 21)


def test_compiled_code_makes_its_own():
    torch._dynamo.reset()
    compiled = torch.compile(upsample_by_products, backend="eager", fullgraph=True)
    maps = torch.randn(1, 2, 6, 5)
    assert torch.allclose(compiled(maps, (12, 10)), upsample(maps, (12, 10)), atol=1e-5)
    torch._dynamo.reset()
