"""One network of some families with `--compile`, in the memory estimate, and with `--fit`."""

import copy

import pytest
import torch

import udaseg
from tests.support.network_matrix import FAMILIES
from tests.support.small import shipped
from tests.support.toy import TINY
from tests.training.test_footprint import dry_run, real_peak
from udaseg.models import compiling
from udaseg.models.segmenter import build_segmenter
from udaseg.training import step
from udaseg.training.footprint import peak_step_memory
from udaseg.training.train import TrainOptions

pytestmark = [
    pytest.mark.slow,
    # torch's tracer reads `.grad` of non-leaf tensors, and suppresses this warning itself
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
SETTINGS = [
    *(word for word in TINY if not word.startswith(("model.backbone", "model.output_stride"))),
    *("model.output_stride=32", "model.head=deeplab_v3plus", "model.head_channels=8"),
    *("steps=1", "validation.data=null", "machine.loggers=[]", "machine.preview_every=0"),
]


TRIED = tuple(FAMILIES)


@pytest.fixture(scope="module", params=[FAMILIES[family][0] for family in TRIED], ids=TRIED)
def name(request):
    return request.param


def test_compiled_it_gives_the_same_logits_and_gradients(name, monkeypatch):
    """Code is traced and differentiated as usual, but none is generated: no compiler is needed."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch.manual_seed(0)
    recipe = shipped("toyland/dacs", [*SETTINGS, f"model.backbone={name}"])
    plain = build_segmenter(recipe.model, 5).train()
    compiled = copy.deepcopy(plain)
    compiled.enable_compile("training")
    images = torch.rand(2, 3, 64, 64)
    outputs = [network(images).logits for network in (plain, compiled)]
    scale = outputs[0].abs().max()
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-4 * scale
    for logits in outputs:
        logits.square().mean().backward()
    assert compiled.backbone._compiled_call_impl is not None
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    largest = max(each.grad.norm() for each in plain.parameters() if each.grad is not None)
    for (key, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if one.grad is not None:
            # what batch norms take out again is nothing but rounding
            near = (one.grad - other.grad).norm() <= 1e-3 * one.grad.norm() + 1e-5 * largest
            assert near, key
    torch._dynamo.reset()


def test_the_estimate_of_a_step_is_what_it_takes(name, root):
    run = dry_run(root, "toyland/dacs", *SETTINGS, f"model.backbone={name}")
    assert peak_step_memory(run) == pytest.approx(real_peak(run), rel=0.01)


def test_a_step_that_does_not_fit_is_split(name, root, tmp_path, monkeypatch):
    real = step.compute_gradients

    def full(run, batch, sums):
        if run.recipe.machine.micro_batches == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(run, batch, sums)

    monkeypatch.setattr("udaseg.training.loop.compute_gradients", full)
    recipe = shipped("toyland/dacs", [*SETTINGS, f"model.backbone={name}"])
    options = TrainOptions(root=root, fit_memory=True)
    run = udaseg.adapt(recipe, out=tmp_path / "run", options=options)
    assert run.recipe.machine.micro_batches == 2
    assert run.finished
