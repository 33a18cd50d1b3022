"""Checkpoints of released code become runs: each beside its network, built from its description.

No published file was at hand; the files here have the names, and the networks the structure, of the
releases of AdaptSegNet, DACS, RCCR and SPCL. A ResNet-50 of thin blocks, which has the shapes of a
ResNet-50 at the ends of its layers, stands in for the ResNet-101; one slow test has a real one.
"""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from typer.testing import CliRunner

import udaseg
from udaseg.cli.app import app
from udaseg.errors import CheckpointError, UsageError
from udaseg.methods.build import build_objective
from udaseg.runs.checkpoint import find_checkpoint

SIZE = (72, 104)


def thin_resnet(**options):
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(block, [1, 1, 6, 1], width_per_group=2, **options)


@pytest.fixture
def thin(monkeypatch):
    """Let both sides build a ResNet-50 with one or six thin blocks in a layer."""
    monkeypatch.setattr(torchvision.models, "resnet50", thin_resnet)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: thin_resnet())


class Classifier(nn.Module):
    """Four dilated convolutions; `used` of them are added."""

    def __init__(self, channels, classes, used):
        super().__init__()
        self.used = used
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate) for rate in (6, 12, 18, 24)
        )

    def forward(self, maps):
        return sum(branch(maps) for branch in self.conv2d_list[: self.used])


class FrozenNorm(nn.Module):
    """Four buffers, and no epsilon."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, maps):
        scale = self.weight / self.running_var.sqrt()
        shift = self.bias - self.running_mean * scale
        return maps * scale[:, None, None] + shift[:, None, None]


def body(**options):
    network = torchvision.models.resnet50(**options)
    del network.fc, network.avgpool
    return network


def randomised(network, seed):
    """Give norms statistics that differ from those of a new network, and the head some contrast."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 1.5 + 1e-3)
        elif name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif "bn" in name and name.endswith("weight"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.3 + 0.2)
    return network.eval()


class AdaptSegNet(nn.Module):
    """Strides in the 1x1, pooling that rounds up, dilations 2 and 4 from the first block on."""

    def __init__(self, classes=19, used=2, levels=1, embedding=0):
        super().__init__()
        for name, part in body().named_children():
            self.add_module(name, part)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer2[0].conv1.stride, self.layer2[0].conv2.stride = (2, 2), (1, 1)
        for layer, rate in ((self.layer3, 2), (self.layer4, 4)):
            layer[0].downsample[0].stride = (1, 1)
            for block in layer:
                block.conv2.stride, block.conv2.dilation = (1, 1), (rate, rate)
                block.conv2.padding = (rate, rate)
        self.levels = levels
        if levels == 2:
            self.layer5 = Classifier(1024, classes, used)
        self.add_module(f"layer{4 + levels}", Classifier(2048, classes, used))
        if embedding:
            self.proj_head = nn.Module()
            self.proj_head.project = nn.Sequential(
                nn.Conv2d(2048, 2048, 1), nn.ReLU(), nn.Conv2d(2048, embedding, 1)
            )

    def forward(self, rgb):
        """Return logits of RGB in [0, 1]; the network itself sees BGR in [0, 255] less a mean."""
        mean = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(3, 1, 1)
        maps = rgb[:, [2, 1, 0]] * 255 - mean
        maps = self.maxpool(self.bn1(self.conv1(maps)).relu())
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return (self.layer6 if self.levels == 2 else self.layer5)(maps)


class SPCL(nn.Module):
    """torchvision's dilated ResNet with frozen norms, RGB by mean and std of ImageNet."""

    def __init__(self, classes=19):
        super().__init__()
        dilated = [False, True, True]
        self.feature_extractor = nn.Module()
        self.feature_extractor.backbone = body(
            replace_stride_with_dilation=dilated, norm_layer=FrozenNorm
        )
        self.classifier = Classifier(2048, classes, 4)

    def forward(self, rgb):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        net = self.feature_extractor.backbone
        maps = net.maxpool(net.bn1(net.conv1((rgb - mean) / std)).relu())
        return self.classifier(net.layer4(net.layer3(net.layer2(net.layer1(maps)))))


def reference(kind, **options):
    torch.manual_seed(0)
    return randomised(kind(**options), seed=1)


def dacs_file(path, student, teacher):
    config = {"model": "DeepLab", "training": {"batch_size": 2}}
    states = {"model": student.state_dict(), "ema_model": teacher.state_dict()}
    torch.save({"iteration": 250000, "optimizer": {"state": {}}, "config": config, **states}, path)
    return path


def spcl_file(path, network):
    states = {
        part: {
            f"module.{name}": value for name, value in getattr(network, part).state_dict().items()
        }
        for part in ("feature_extractor", "classifier")
    }
    torch.save({"iteration": 40000, **states, "optimizer_fea": {}, "optimizer_cls": {}}, path)
    return path


def assert_equal_logits(run, network, weights="student"):
    """At the size of the cells, and enlarged with aligned corners to that of the image."""
    rgb = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    model = udaseg.load(run, weights=weights, device="cpu")
    with torch.no_grad():
        expected = network(rgb)
        cells, pixels = model.segmenter(rgb).logits, model(rgb)
    assert cells.shape == expected.shape
    bound = 1e-4 * expected.abs().max()
    assert (cells - expected).abs().max() <= bound
    enlarged = F.interpolate(expected, SIZE, mode="bilinear", align_corners=True)
    assert (pixels - enlarged).abs().max() <= bound


@pytest.mark.usefixtures("thin")
def test_a_checkpoint_of_rccr_is_a_run_with_student_and_teacher(tmp_path):
    student, teacher = reference(AdaptSegNet, embedding=8), randomised(AdaptSegNet(embedding=8), 2)
    path = dacs_file(tmp_path / "checkpoint.pth", student, teacher)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    run = udaseg.import_checkpoint(path, out=tmp_path / "run")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert_equal_logits(run, student)
    assert_equal_logits(run, teacher, weights="teacher")
    model = udaseg.load(run, device="cpu")
    assert model.step == 250000
    assert (len(model.classes), model.classes.names[0]) == (19, "road")
    assert run.finished
    spec = run.recipe.model
    assert (spec.backbone, spec.input, spec.stride_in) == ("resnet50", "caffe", "1x1")
    assert (spec.ceil_pool, spec.first_dilation, spec.align_corners) == (True, "own", True)
    recipe = dataclasses.replace(
        run.recipe, model=dataclasses.replace(run.recipe.model, weights="random")
    )
    start = build_objective(recipe, 19, init=find_checkpoint(run.path)).student
    assert torch.equal(start.head.branches[1].bias, student.layer5.conv2d_list[1].bias)


@pytest.mark.usefixtures("thin")
def test_a_checkpoint_of_spcl_is_a_run(tmp_path):
    network = reference(SPCL)
    run = udaseg.import_checkpoint(
        spcl_file(tmp_path / "model_iter040000.pth", network), out=tmp_path / "run"
    )
    assert_equal_logits(run, network)
    spec = run.recipe.model
    assert (spec.input, spec.first_dilation, spec.ceil_pool) == ("imagenet", "previous", False)
    assert spec.aspp_dilations == (6, 12, 18, 24)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dacs", "spcl"])
def test_a_whole_resnet_101_becomes_a_run(tmp_path, monkeypatch, form):
    monkeypatch.setattr(torchvision.models, "resnet50", torchvision.models.resnet101)
    network = reference(AdaptSegNet if form == "dacs" else SPCL)
    path = tmp_path / "file.pth"
    path = dacs_file(path, network, network) if form == "dacs" else spcl_file(path, network)
    run = udaseg.import_checkpoint(path, out=tmp_path / "run")
    assert_equal_logits(run, network)
    assert run.recipe.model.backbone == "resnet101"


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(("levels", "used"), [(2, 2), (1, 4)])
def test_the_last_classifier_and_as_many_of_its_convolutions_as_told(tmp_path, levels, used):
    """AdaptSegNet has a second classifier on the third layer; ADVENT and FDA add four rates."""
    network = reference(AdaptSegNet, levels=levels, used=used, classes=16)
    torch.save(network.state_dict(), tmp_path / "GTA2Cityscapes.pth")
    rates = (6, 12, 18, 24)[:used]
    run = udaseg.import_checkpoint(
        tmp_path / "GTA2Cityscapes.pth", out=tmp_path / "run", dilations=rates
    )
    assert_equal_logits(run, network)
    assert "train" not in udaseg.load(run, device="cpu").classes.names
    with pytest.raises(CheckpointError, match="holds no teacher"):
        udaseg.load(run, weights="teacher", device="cpu")


@pytest.mark.usefixtures("thin")
def test_the_command_makes_a_run_that_predict_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = reference(AdaptSegNet)
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, "dacs.pth")
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    result = CliRunner().invoke(app, ["import", "dacs.pth", "--recipe", "toyland/source_only"])
    assert result.exit_code == 0, result.output
    assert "imported-dacs: resnet50, caffe images, dilations [6, 12]" in result.stdout
    model = udaseg.load("runs/imported-dacs", device="cpu")
    assert model.predict(image).ids.shape == SIZE
    resumed = CliRunner().invoke(app, ["adapt", "--resume", "runs/imported-dacs"])
    assert isinstance(resumed.exception, UsageError)
    assert "start a new run from them with --init runs/imported-dacs" in str(resumed.exception)
    again = CliRunner().invoke(app, ["import", "dacs.pth"])
    assert isinstance(again.exception, UsageError)
    assert "exists already; use --overwrite to start again" in str(again.exception)
    broken = network.state_dict()
    broken["layer3.0.conv1.weight"][0] = float("nan")
    torch.save(broken, "broken.pth")
    with pytest.raises(CheckpointError, match="holds values that are not finite: backbone"):
        udaseg.import_checkpoint("broken.pth", recipe="toyland/source_only")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"blocks.0.weight": torch.zeros(1)}, "holds blocks.0.weight"),
        ({"epoch": 3}, "holds no tensors"),
        ([1, 2], "holds no tensors"),
        (
            {"feature_extractor": {"backbone.0.bias": torch.zeros(1)}, "classifier": {}},
            "holds 0.bias",
        ),
        (
            {"layer3.22.x": torch.zeros(1), "layer5.conv2d_list.0.bias": torch.zeros(19)},
            "layer3.22.x",
        ),
        (
            {
                **{f"layer3.{n}.conv1.weight": torch.zeros(1) for n in range(6)},
                "layer5.conv2d_list.0.bias": torch.zeros(19),
            },
            "lacks tensors of its network, or their shape: backbone.low.0.weight",
        ),
    ],
)
def test_other_checkpoints_are_refused_with_what_is_in_them(tmp_path, content, shown):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=shown):
        udaseg.import_checkpoint(tmp_path / "other.pth", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_dilations_on_the_command_line_are_numbers(tmp_path):
    result = CliRunner().invoke(app, ["import", "x.pth", "--dilations", "6;12"])
    assert isinstance(result.exception, UsageError)
    assert "as 6,12" in str(result.exception)
