"""Gradients formed in the forward pass, and products in true float32."""

import pytest
import torch

from udaseg.methods.fused import float32_products, rows_at_once, with_gradient


@pytest.mark.parametrize("once", [False, True])
def test_the_gradient_is_scaled_in_float32_and_rounded_last(once):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 7, generator=generator).bfloat16().requires_grad_()
    gradient = torch.randn(50, 7, generator=generator)
    expected = (gradient.double() * 0.3).bfloat16()
    total = with_gradient(torch.tensor(5.0), gradient.clone(), inputs, once=once)
    assert total.item() == 5
    (total * 0.3).backward()
    assert inputs.grad.dtype == torch.bfloat16
    different = (inputs.grad != expected).float().mean()
    assert different < 0.01, "float32 and float64 may round a few to other neighbours"
    # what rounding before the scaling would give
    early = gradient.bfloat16() * torch.tensor(0.3).bfloat16()
    assert (early != expected).float().mean() > 0.2


def test_a_graph_that_is_kept_gives_the_gradient_again():
    inputs = torch.ones(3, requires_grad=True)
    total = with_gradient(torch.tensor(1.0), torch.tensor([1.0, 2.0, 3.0]), inputs)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(2 * total, inputs, retain_graph=True)
        assert gradient.tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_products_are_float32_inside_and_as_before_outside(before):
    matmul = torch.backends.cuda.matmul
    original = matmul.fp32_precision
    product = torch.rand(4, 4)
    try:
        matmul.fp32_precision = before
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(KeyError), float32_products(product.device):
                assert matmul.fp32_precision == "ieee"
                assert (product @ product).dtype == torch.float32
                raise KeyError
            assert (product @ product).dtype == torch.bfloat16
        assert matmul.fp32_precision == before
    finally:
        matmul.fp32_precision = original


def test_a_gpu_computes_more_rows_at_once_but_not_without_bound():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert rows_at_once(512, gpu) * 512 == rows_at_once(2048, gpu) * 2048 == 2**25
    assert rows_at_once(2**26, gpu) == 1
    assert rows_at_once(512, cpu) == rows_at_once(2048, cpu) <= 4096
