"""Backbones of other installed packages."""

import pytest
import torch

from udaseg.errors import CheckpointError, EnvironmentFault, RecipeError
from udaseg.models.backbones.build import build_backbone
from udaseg.models.segmenter import build_segmenter
from udaseg.recipe.contrast import Projector as ProjectorSpec
from udaseg.recipe.schema import Model

MODULE = """
import torch
from udaseg.models import Backbone


class Thin(Backbone):
    channels = (4, 6)
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, *, output_stride, weights):
        super().__init__()
        self.strides = (4, output_stride)
        self.weights = weights
        self.fine = torch.nn.Conv2d(3, 4, 7, 4, 3)
        self.last = torch.nn.Conv2d(4, 6, 3, output_stride // 4, 1)

    def forward(self, images):
        fine = self.fine(images)
        return [fine, self.last(fine)]
"""
NO_NETWORK = """
import torch


def Thin(**_):
    return torch.nn.Conv2d(3, 4, 1)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with one backbone, `thin`."""

    def install(code=MODULE, package="thin-nets"):
        module = f"{package.replace('-', '_')}_{tmp_path.name}"
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        about = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n", encoding="utf-8")
        entries = f"[udaseg.backbones]\nthin = {module}:Thin\n"
        (about / "entry_points.txt").write_text(entries, encoding="utf-8")

    return install


def _build(output_stride=8):
    return build_backbone("thin", output_stride=output_stride, weights="a file")


def test_a_backbone_of_another_package_is_built_by_its_name(install):
    install()
    body = _build(output_stride=16)
    assert body.strides == (4, 16)
    assert body.weights == "a file"
    assert body.training


def test_it_gets_the_older_word_for_its_own_weights(install):
    """Packages were written when `imagenet` was the only one."""
    install()
    assert build_backbone("thin", output_stride=8, weights="pretrained").weights == "imagenet"


@pytest.mark.parametrize("head", ["deeplab_v2", "deeplab_v3plus"])
def test_it_trains_with_every_head(install, head):
    install()
    spec = Model("thin", 8, "random", "train", head, (1, 2), head_channels=8)
    network = build_segmenter(spec, 5, projector=ProjectorSpec(channels=4, trainable=True))
    assert (network.output_stride, network.feature_channels) == (8, 6)
    assert network.mean.flatten().tolist() == [0.5] * 3
    for network.recompute in (False, True):
        network(torch.rand(2, 3, 65, 97), embed=True).logits.sum().backward()
    assert network.backbone.fine.weight.grad is not None


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("channels = (4, 6)", "channels = ()", "no tuple `channels`"),
        ("    channels = (4, 6)\n", "", "no tuple `channels`"),
        ("channels = (4, 6)", "channels = (4.0, 6.0)", "whole numbers"),
        ("channels = (4, 6)", "channels = (4, 5, 6)", "3 channels, but 2 strides"),
        ("channels = (4, 6)", "channels = (4, 7)", r"map 2 .* as \(1, 6, 8, 8\)"),
        ("(4, output_stride)", "(16, output_stride)", "must not fall"),
        ("(4, output_stride)", "(4, 32)", "map 2 .* say"),
        ("(4, output_stride)", "(2, output_stride)", "map 1 .* say"),
        ("std = (0.5, 0.5, 0.5)", "std = (0.5,)", "three numbers"),
        ("return [fine, self.last(fine)]", "return self.last(fine)", "a list of tensors"),
        ("return [fine, self.last(fine)]", "return [self.last(fine)]", "returns 1 maps"),
        ("fine = self.fine(images)", "raise ValueError('no')", "ValueError: no"),
        ("    def forward", "    def other", "TypeError"),
        ("output_stride, weights", "stride", "TypeError"),
    ],
)
def test_a_broken_contract_is_said_with_the_package(install, right, wrong, problem):
    assert right in MODULE
    install(MODULE.replace(right, wrong))
    with pytest.raises(EnvironmentFault, match=rf"(?s)package thin-nets: .*'thin'.*{problem}"):
        _build()


def test_what_is_no_backbone_is_refused(install):
    install(NO_NETWORK)
    with pytest.raises(EnvironmentFault, match=r"is a Conv2d, not a udaseg\.models\.Backbone"):
        _build()


def test_a_fault_that_it_reports_itself_stays_as_it_is(install):
    install(
        "from udaseg.errors import CheckpointError\n"
        "def Thin(**_): raise CheckpointError('a file: no such weights file')\n"
    )
    with pytest.raises(CheckpointError, match=r"^a file: no such weights file$"):
        _build()


def test_a_package_that_cannot_be_imported_is_named(install):
    install("import missing_package_of_thin_nets")
    with pytest.raises(EnvironmentFault, match="package thin-nets: cannot import"):
        _build()


def test_two_packages_with_one_name_are_named(install):
    install()
    install(package="other-nets")
    with pytest.raises(EnvironmentFault, match="other-nets, thin-nets"):
        _build()


def test_a_built_in_name_is_not_looked_up(install, monkeypatch):
    monkeypatch.setattr("udaseg.models.backbones.build.find_plugin", lambda *_: 1 / 0)
    build_backbone("resnet18", output_stride=8, weights="random")


def test_a_name_that_nobody_has_is_unknown(install):
    install()
    with pytest.raises(RecipeError, match=r"unknown 'grave'; choose one of resnet18.*timm:NAME"):
        build_backbone("grave", output_stride=8, weights="random")
