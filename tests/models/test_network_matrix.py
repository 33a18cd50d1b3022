"""Real networks with random weights, each through a training, a resume, a prediction and ONNX."""

import numpy as np
import pytest
import torch

import udaseg
from tests.cli.test_fit import assert_same, tensors
from tests.support.network_matrix import NAMES, REFUSED, table, table_of_page
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.errors import RecipeError, UsageError
from udaseg.models.backbones.build import build_backbone
from udaseg.models.segmenter import build_segmenter
from udaseg.training.train import TrainOptions

pytestmark = pytest.mark.slow

SETTINGS = [
    *(word for word in TINY if not word.startswith(("model.backbone", "model.output_stride"))),
    *("model.output_stride=32", "model.head=daformer", "model.head_channels=16", "steps=2"),
    *("validation.data=null", "machine.checkpoint_every=1", "machine.loggers=[]"),
]
"""The head reads every map. Crops of 64 x 64 are no multiple of a patch of 14."""


def recipe_of(name):
    return shipped("toyland/source_only", [*SETTINGS, f"model.backbone={name}"])


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def run(name, root, tmp_path_factory):
    """Return a run of two steps, with the tensors of both checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return udaseg.train(recipe_of(name), out=out, options=TrainOptions(root=root))


def test_its_first_and_last_block_learn(name):
    torch.manual_seed(0)
    network = build_segmenter(recipe_of(name).model, 5)
    images, labels = torch.rand(2, 3, 65, 97), torch.randint(5, (2, 65, 97))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        logits = torch.nn.functional.interpolate(network(images).logits, (65, 97), mode="bilinear")
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    body = network.backbone
    for layer in (1, body.depth):
        of_block = {
            name: value.grad
            for name, value in body.named_parameters()
            if body.layer_of(name) == layer
        }
        assert of_block
        assert all(each.isfinite().all() for each in of_block.values())
        assert [name for name, each in of_block.items() if not each.any()] == []


def test_it_resumes_bit_for_bit(run, root):
    whole = tensors(run.path)
    for kind in ("pt", "json"):
        (run.path / f"checkpoints/step-000002.{kind}").unlink()
    udaseg.train(options=TrainOptions(root=root, resume=run))
    assert_same(tensors(run.path), whole)


def test_it_predicts_an_image_of_any_size(run):
    image = np.random.default_rng(0).integers(0, 256, (77, 101, 3), dtype=np.uint8)
    prediction = udaseg.load(run, device="cpu").predict(image)
    assert prediction.ids.shape == (77, 101)
    assert np.isfinite(prediction.confidence).all()


def test_its_onnx_file_agrees_with_torch(name, run, root, tmp_path):
    """At the size of the data, and at one that is no multiple of anything."""
    pytest.importorskip("onnxruntime")
    if "swin" in name:
        with pytest.raises(UsageError, match=f"^{name}: the windows of a Swin are fixed to one"):
            udaseg.export(run, out=tmp_path / "model.onnx", images=1, root=root)
        assert list(tmp_path.iterdir()) == []
        return
    compared = udaseg.export(run, out=tmp_path / "model.onnx", images=1, root=root).comparison
    assert compared.on_real_images
    assert compared.relative < 1e-4


@pytest.mark.parametrize("refused", REFUSED)
def test_a_network_that_does_not_fit_is_refused_with_a_sentence(refused):
    with pytest.raises(RecipeError, match=rf"{refused}.* {REFUSED[refused]}"):
        build_backbone(refused, output_stride=32, weights="random")


def test_the_page_has_the_table():
    assert table_of_page() == table()
