"""Batch norms over two ranks: values, gradients and running statistics of one with all images."""

import copy
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.ranks import found_by_each, joined
from udaseg import distributed
from udaseg.methods.sync_norm import _Normalise, _pixel_counts, _PlainKernels, sync_batch_norms

RANKS, EACH, CHANNELS, STEPS = 2, 2, 5, 3


def _frozen(norm):
    return norm.requires_grad_(False)


def _uncounted(norm):
    norm.num_batches_tracked = None
    return norm


def _teacher(norm):
    norm.track_running_stats = False
    return norm


CASES = {
    "plain": lambda: nn.BatchNorm2d(CHANNELS, momentum=0.3, eps=1e-3),
    "frozen": lambda: _frozen(nn.BatchNorm2d(CHANNELS)),
    "no scale": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(CHANNELS, momentum=None),
    "uncounted": lambda: _uncounted(nn.BatchNorm2d(CHANNELS)),
    "teacher": lambda: _teacher(nn.BatchNorm2d(CHANNELS)),
    "evaluated": lambda: nn.BatchNorm2d(CHANNELS).eval(),
    "channels last": lambda: nn.BatchNorm2d(CHANNELS),
    "bf16": lambda: nn.BatchNorm2d(CHANNELS),
}
COMPILED = ("plain", "no scale", "uncounted", "teacher", "bf16")
BF16_ATOL = 2**-6
"""bf16 images are near 2, where the distance of two numbers is 2^-7."""


def _images(name, step):
    """Return all images: the channels have other scales, the ranks other means."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(RANKS * EACH, CHANNELS, 4, 3, generator=generator)
    images *= torch.tensor([1e-3, 1.0, 1.0, 10.0, 100.0]).view(1, -1, 1, 1)
    images[EACH:] += torch.arange(CHANNELS).view(1, -1, 1, 1)
    if name == "bf16":
        images = images.bfloat16()
    layout = torch.channels_last if name == "channels last" else torch.contiguous_format
    return images.contiguous(memory_format=layout)


def _results(name, part, *, synced=False, compiled=False):
    """Return outputs, gradients of images, and gradients and buffers of a norm on `part`."""
    norm = CASES[name]()
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, CHANNELS))
            norm.bias.copy_(torch.linspace(3, -1, CHANNELS))
    if synced:
        sync_batch_norms(norm)
    if compiled:
        norm.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    outputs, gradients = [], []
    for step in range(STEPS):
        images = _images(name, step)[part].requires_grad_()
        output = norm(images)
        factors = torch.sin(torch.arange(RANKS * images[0].numel() * EACH).float())
        (output * factors.view(-1, *images.shape[1:])[part]).sum().backward()
        outputs.append(output.detach())
        gradients.append(images.grad)
    weights = {key: value.grad for key, value in norm.named_parameters() if value.requires_grad}
    return outputs, gradients, weights, dict(norm.named_buffers())


def _rank(number, folder):
    with joined(number, folder, RANKS):
        part = slice(EACH * number, EACH * (number + 1))
        results = {name: _results(name, part, synced=True) for name in CASES}
        compiled = {name: _results(name, part, synced=True, compiled=True) for name in COMPILED}
        torch.save((results, compiled), folder / f"{number}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the results of both processes."""
    return found_by_each(_rank, tmp_path_factory.mktemp("ranks"), RANKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [*[(name, 0) for name in CASES], *[(name, 1) for name in COMPILED]]
)
def test_a_norm_over_two_ranks_is_one_norm_of_all_images(ranks, name, kind):
    outputs, gradients, weights, buffers = _results(name, slice(None))
    ours = [results[kind][name] for results in ranks]
    close = {"rtol": 1e-5, "atol": 2e-6} if name != "bf16" else {"rtol": 1e-2, "atol": BF16_ATOL}
    for index, whole in ((0, outputs), (1, gradients)):
        for step in range(STEPS):
            joint = torch.cat([results[index][step] for results in ours])
            scale = whole[step].abs().amax((0, 2, 3), keepdim=True)
            torch.testing.assert_close(joint / scale, whole[step] / scale, **close)
    for key, value in weights.items():
        total = sum(results[2][key] for results in ours)
        torch.testing.assert_close(total, value, **close | {"atol": 100 * close["atol"]})
    for results in ours:
        assert results[2].keys() == weights.keys()
        assert results[3].keys() == buffers.keys()
        for key, value in buffers.items():
            torch.testing.assert_close(results[3][key], value, rtol=1e-5, atol=1e-7)


def test_means_of_each_rank_would_be_told_apart():
    """Norms of each rank's own images are wrong here; otherwise the test above proves nothing."""
    whole = _results("plain", slice(None))[0][0]
    own = _results("plain", slice(0, EACH))[0][0]
    assert (whole[:EACH] - own).abs().max() > 0.1


class _FakeKernels(TorchDispatchMode):
    """Notes the operators, and does for CUDA's kernels, which take no fake tensors."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if func.namespace == "aten" and not func.is_view:
            self.names.append(name)
        if name == "batch_norm_gather_stats_with_counts":
            # the kernel takes its type from the running statistics, or else from its first argument
            assert args[0].dtype == args[1].dtype == args[-1].dtype == torch.float32
        if name == "batch_norm_backward_elemt":
            assert args[-1].dtype == torch.int32
        return getattr(_PlainKernels, name, func)(*args, **(kwargs or {}))


class _Context:
    needs_input_grad = (True, True, True)

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("running", [True, False])
def test_on_a_gpu_a_norm_takes_few_kernels_and_reads_nothing_back(dtype, running):
    groups = []
    _pixel_counts.cache_clear()

    def gather(output, value, group):
        groups.append(group)

    def reduce(value, group):
        groups.append(group)

    with (
        FakeTensorMode(),
        patch.object(distributed, "world_size", lambda: RANKS),
        patch.object(distributed, "norm_group", lambda: "own"),
        patch.object(dist, "all_gather_single", gather, create=True),
        patch.object(dist, "all_reduce", reduce),
        _FakeKernels() as recorded,
    ):
        layout = {"device": "cuda", "memory_format": torch.channels_last}
        images = torch.empty(2, CHANNELS, 4, 3, dtype=dtype, **layout)
        weight, bias, *statistics = (torch.empty(CHANNELS, device="cuda") for _ in range(4))
        context, grad = _Context(), torch.empty_like(images)
        arguments = (*(statistics if running else (None, None)), 0.1, 1e-5)
        _Normalise.forward(context, images, weight, bias, *arguments)  # makes the counts
        recorded.names.clear()
        output = _Normalise.forward(context, images, weight, bias, *arguments)
        back = _Normalise.backward(context, grad)
    _pixel_counts.cache_clear()  # fake tensors
    assert (output.dtype, output.shape, output.device) == (dtype, images.shape, images.device)
    assert (back[0].dtype, back[0].shape) == (dtype, images.shape)
    assert [value.dtype for value in back[1:3]] == [torch.float32] * 2
    assert groups == ["own"] * 3
    assert recorded.names == [
        "batch_norm_stats",
        "cat",
        "new_empty",
        "batch_norm_gather_stats_with_counts",
        "batch_norm_elemt",
        "batch_norm_backward_reduce",
        "cat",
        "batch_norm_backward_elemt",
    ]


def test_the_group_of_norms_is_made_once_and_again_for_a_new_run():
    groups = []
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            groups.append(distributed.norm_group())
            assert distributed.norm_group() is groups[-1]
            assert groups[-1] is not dist.group.WORLD
            distributed.all_reduce_in_norm(torch.ones(2))
        finally:
            dist.destroy_process_group()
    assert groups[0] is not groups[1]


def test_a_synced_norm_is_a_copy_that_can_be_copied():
    with patch.object(distributed, "norm_group"):
        norm = nn.Sequential(nn.BatchNorm2d(CHANNELS))
        sync_batch_norms(norm)
    assert isinstance(copy.deepcopy(norm)[0], type(norm[0]))
