"""Groups, rates and weight decay of the optimiser, by the rules that recipes give."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.injections import plain_objective, tiny_fit, trained
from tests.support.small import shipped
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.projector import Projector
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.recipe.stages import stages_of
from udaseg.runs.checkpoint import Checkpoint
from udaseg.training import optimizer as optimizers
from udaseg.training.optimizer import (
    build_optimizer,
    learning_rate_factor,
    make_optimizer,
    parameter_group,
    set_learning_rate,
)
from udaseg.training.resume import restore

RATES = ["optimizer.lr=0.01", "optimizer.head_lr_mult=10", "optimizer.backbone_lr_mult=0.5"]
DECAYED = ["optimizer.kind=adamw", "optimizer.weight_decay=0.1", "optimizer.momentum=0.9"]


class Blocks(Backbone):
    """A ViT's names and shapes: positions and a token, a patch embedding, 12 blocks, a norm."""

    channels, strides = (4,), (8,)
    depth, stage_ends = 12, (3, 6, 9, 12)
    undecayed = frozenset({"positions", "token"})

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.ones(1, 5, 4))
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.patches = nn.Conv2d(3, 4, 8, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(4)

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth if name.startswith("norm.") else 0

    def forward(self, images):
        cells = self.patches(images).movedim(1, -1)
        for block in self.blocks:
            cells = cells + block(cells)
        return [self.norm(cells).movedim(-1, 1)]


def source_only(*overrides):
    """Return a network of 12 blocks, with the optimiser of a recipe for it."""
    torch.manual_seed(0)
    network = Segmenter(Blocks(), DeepLabV2((4,), 3, (1,)), projector=Projector(4, 4))
    objective = SourceOnly(network)
    return objective, build_optimizer(shipped("toyland/source_only", overrides), objective)


def rate_of_each(objective, optimizer):
    """Return the base rate of each parameter by its name in the network."""
    names = {id(part): name for name, part in objective.student.named_parameters()}
    return {
        names[id(part)]: group["base_lr"]
        for group in optimizer.param_groups
        for part in group["params"]
    }


def test_layer_decay_counts_blocks_from_the_top():
    objective, optimizer = source_only(*RATES, "optimizer.layer_decay=0.9")
    rates = rate_of_each(objective, optimizer)
    assert set(rates) == {name for name, _ in objective.student.named_parameters()}
    top = 0.01 * 0.5
    for block in range(12):
        for part in ("0.weight", "0.bias", "1.weight", "1.bias"):
            rate = rates[f"backbone.blocks.{block}.{part}"]
            assert rate == pytest.approx(top * 0.9 ** (11 - block))
    for stem in ("positions", "token", "patches.weight", "patches.bias"):
        assert rates[f"backbone.{stem}"] == pytest.approx(top * 0.9**12)
    assert rates["backbone.norm.weight"] == pytest.approx(top)
    others = {rate for name, rate in rates.items() if not name.startswith("backbone.")}
    assert list(others) == pytest.approx([0.01 * 10])


def test_of_decay_on_matrices_weight_decay_moves_nothing_else():
    objective, optimizer = source_only(
        *DECAYED, *RATES, "optimizer.layer_decay=0.9", "optimizer.decay_on=matrices"
    )
    rates = rate_of_each(objective, optimizer)
    before = {name: part.clone() for name, part in objective.student.named_parameters()}
    set_learning_rate(optimizer, 1.0)
    for part in objective.student.parameters():
        part.grad = torch.zeros_like(part)
    optimizer.step()
    for name, part in objective.student.named_parameters():
        is_matrix = before[name].ndim > 1 and name not in ("backbone.positions", "backbone.token")
        kept = 1 - 0.1 * rates[name] if is_matrix else 1
        torch.testing.assert_close(part, kept * before[name], rtol=1e-6, atol=0), name


def test_groups_that_differ_in_weight_decay_alone_log_one_rate():
    _, optimizer = source_only("optimizer.layer_decay=0.9", "optimizer.decay_on=matrices")
    by_name = {}
    for group in optimizer.param_groups:
        by_name.setdefault(group["name"], set()).add(group["base_lr"])
    layers = [f"backbone_layer_{layer}" for layer in range(13)]
    assert list(by_name) == [*layers, "head"]
    assert all(len(rates) == 1 for rates in by_name.values())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_by_default_the_groups_are_those_of_old_checkpoints(kind):
    objective, optimizer = source_only(f"optimizer.kind={kind}", *RATES)
    named = list(objective.student.named_parameters())
    old = make_optimizer(
        kind,
        [
            parameter_group(
                "backbone", 0.005, [item for item in named if item[0].startswith("backbone.")]
            ),
            parameter_group(
                "head", 0.1, [item for item in named if not item[0].startswith("backbone.")]
            ),
        ],
        momentum=0.9,
        weight_decay=0.0005,
    )
    for part in objective.student.parameters():
        part.grad = torch.ones_like(part)
    old.step()
    saved = copy.deepcopy(old.state_dict())
    checkpoint = Checkpoint(
        path=None,
        sha256="",
        recipe={},
        classes={},
        files={},
        step=1,
        objective=copy.deepcopy(objective.state_dict()),
        optimizer=saved,
    )
    assert restore(checkpoint, objective, optimizer) == 1
    now = optimizer.state_dict()
    assert [group.keys() for group in now["param_groups"]] == [
        group.keys() for group in saved["param_groups"]
    ]
    moments = {"sgd": "momentum_buffer", "adamw": "exp_avg"}[kind]
    for number, values in saved["state"].items():
        assert torch.equal(now["state"][number][moments], values[moments])


@pytest.mark.parametrize(
    ("floor", "step", "expected"),
    [
        (0.0, 0, 1 / 5),
        (0.0, 2, 3 / 5),
        (0.0, 4, 1.0),
        (0.1, 0, 0.1),
        (0.1, 1, 0.325),
        (0.1, 2, 0.55),
        (0.1, 4, 1.0),
        (0.1, 9, 1.0),
    ],
)
def test_warm_up_rises_from_its_floor(floor, step, expected):
    assert learning_rate_factor(step, 10, power=0, warmup=4, floor=floor) == pytest.approx(expected)


def test_a_power_of_1_falls_on_a_straight_line_after_warm_up():
    rates = [learning_rate_factor(step, 40, power=1, warmup=4, floor=0.5) for step in range(40)]
    assert rates[4:] == pytest.approx([1 - step / 40 for step in range(4, 40)])
    assert rates[:4] == pytest.approx([(0.5 + 0.125 * step) * (1 - step / 40) for step in range(4)])


def test_the_loop_sets_the_rate_of_each_step():
    run = tiny_fit(objective=plain_objective(), steps=3, lr=2.0)
    changes = {"warmup": 2, "warmup_floor": 0.25, "power": 1.0}
    recipe = replace(run.recipe, optimizer=replace(run.recipe.optimizer, **changes))
    rates = []
    trained(
        replace(run, recipe=recipe),
        on_step=lambda *_: rates.append(run.optimizer.param_groups[0]["lr"]),
    )
    assert rates == pytest.approx([2 * 0.25, 2 * 0.625 * 2 / 3, 2 / 3])


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 6**0.5), ("linear", 6)])
def test_rates_follow_the_labelled_images_of_all_processes(rule, factor, monkeypatch):
    monkeypatch.setattr(optimizers, "world_size", lambda: 3)
    batch = ["batch.source=2", "batch.target=4", f"optimizer.scale_lr={rule}"]
    _, optimizer = source_only(*RATES, *batch)
    rates = [group["base_lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01 * 0.5 * factor, 0.01 * 10 * factor])


def test_a_stage_has_its_factor_on_all_layers():
    words = [*RATES, "optimizer.layer_decay=0.9", "optimizer.scale_lr=sqrt", "batch.source=4"]
    recipe = shipped("toyland/spcl", words)
    stage = stages_of(recipe)[-1]
    objective, _ = source_only()
    optimizer = build_optimizer(recipe, objective, replace(stage, lr_mult=3.0))
    rates = rate_of_each(objective, optimizer)
    assert rates["backbone.blocks.10.1.weight"] == pytest.approx(3 * 2 * 0.01 * 0.5 * 0.9)
    assert rates["head.branches.0.weight"] == pytest.approx(3 * 2 * 0.01 * 10)


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "backbone",
    [
        "mobilenet_v2",
        "timm:vit_tiny_patch16_224",
        slow("resnet18"),
        slow("efficientnet_lite0"),
        slow("mobilenet_v3_large"),
        slow("timm:convnext_atto"),
        slow("timm:pvt_v2_b0"),
        slow("timm:swin_tiny_patch4_window7_224"),
        slow("timm:eva02_tiny_patch14_224"),
        slow("timm:vit_small_patch14_reg4_dinov2"),
        slow("timm:vgg11_bn"),
    ],
)
def test_each_parameter_of_a_network_is_trained_once_at_the_rate_of_its_layer(backbone):
    words = [f"model.backbone={backbone}", "model.weights=random", "model.output_stride=32"]
    words += ["optimizer.layer_decay=0.5", "optimizer.decay_on=matrices", "model.frozen_stages=1"]
    recipe = shipped("toyland/source_only", [*words, "model.head=deeplab_v2", *RATES])
    network = build_segmenter(recipe.model, 3)
    body = network.backbone
    rates = rate_of_each(SourceOnly(network), build_optimizer(recipe, SourceOnly(network)))
    first = body.stage_ends[0]
    assert 0 < first < body.depth == body.stage_ends[-1]
    layers = {name: body.layer_of(name) for name, _ in body.named_parameters()}
    assert set(layers.values()) | {0} == set(range(body.depth + 1))  # a VGG has no stem
    for name, layer in layers.items():
        rate = None if layer <= first else pytest.approx(0.005 * 0.5 ** (body.depth - layer))
        assert rates.get(f"backbone.{name}") == rate, name
    assert body.undecayed <= set(layers)


def test_a_parameter_whose_first_gradient_comes_late_starts_its_momentum_then():
    """As in torch's SGD of single tensors: the first momentum is the first gradient."""
    early, late = (torch.nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0))
    twins = [torch.nn.Parameter(part.detach().clone()) for part in (early, late)]
    groups = [parameter_group("all", 0.1, [("early", early), ("late", late)])]
    fused = make_optimizer("sgd", groups, momentum=0.9, weight_decay=0.01)
    plain = torch.optim.SGD(twins, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    set_learning_rate(fused, 1.0)
    for step in range(4):
        early.grad = torch.full((3,), 0.5)
        late.grad = None if step < 2 else torch.full((3,), -0.25)
        for twin, part in zip(twins, (early, late), strict=True):
            twin.grad = part.grad
        fused.step()
        plain.step()
        for twin, part in zip(twins, (early, late), strict=True):
            torch.testing.assert_close(part, twin, rtol=1e-6, atol=0)
