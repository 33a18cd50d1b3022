"""The kernels that a recipe asks for, and that a run gives the switches back."""

import warnings
from dataclasses import replace

import pytest
import torch

from udaseg.recipe.schema import Machine
from udaseg.training.setup import chosen_kernels


def switches():
    backends = torch.backends
    return {
        "convolutions": backends.cudnn.conv.fp32_precision,
        "products": backends.cuda.matmul.fp32_precision,
        "benchmark": backends.cudnn.benchmark,
        "cudnn deterministic": backends.cudnn.deterministic,
        "deterministic": torch.get_deterministic_debug_mode(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
    }


def inside(**changes):
    with chosen_kernels(replace(Machine(), **changes)):
        return switches()


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_for_convolutions_and_products(tf32):
    expected = "tf32" if tf32 else "ieee"
    seen = inside(tf32=tf32)
    assert (seen["convolutions"], seen["products"]) == (expected, expected)


@pytest.mark.parametrize("wanted", [True, False])
def test_algorithms_are_tried_unless_they_must_be_deterministic(wanted):
    assert inside(cudnn_benchmark=wanted)["benchmark"] is wanted
    assert inside(cudnn_benchmark=wanted, deterministic=True)["benchmark"] is False


def test_deterministic_mode_warns_and_fills_no_memory():
    seen = inside(deterministic=True)
    assert (seen["cudnn deterministic"], seen["deterministic"], seen["filled"]) == (True, 1, False)
    assert inside()["deterministic"] == 0


def test_all_switches_are_given_back_also_after_an_error():
    before = switches()
    for machine in (Machine(), Machine(deterministic=True, tf32=False, cudnn_benchmark=False)):
        with warnings.catch_warnings(), pytest.raises(KeyError):
            warnings.simplefilter("error")
            with chosen_kernels(machine):
                raise KeyError
        assert switches() == before


@pytest.mark.parametrize("tf32", [True, False])
def test_compiled_code_can_read_the_switches(tf32):
    """torch raises where names of different age for one switch disagree."""
    torch._dynamo.reset()
    with chosen_kernels(Machine(tf32=tf32)):
        compiled = torch.compile(lambda rows: (rows @ rows).relu(), backend="aot_eager")
        assert compiled(torch.ones(2, 2)).sum() == 8
    torch._dynamo.reset()
