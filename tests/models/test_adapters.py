"""Low-rank adapters: what they compute, what they train, and what a state dict leaves out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.adapted import TinyViT, adapted_segmenter, trained_a_little
from tests.support.small import shipped
from udaseg.errors import RecipeError
from udaseg.methods.build import build_objective
from udaseg.methods.teacher import Teacher
from udaseg.models import segmenter as segmenters
from udaseg.models.adapters import LowRankLinear, add_adapters, merge_adapters
from udaseg.models.backbones.sequential import SequentialBackbone
from udaseg.models.weights import load_into
from udaseg.recipe.schema import Adapters

IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 24).reshape(2, 3, 16, 24)
ADAPTED = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def adapted(**spec):
    torch.manual_seed(0)
    body = TinyViT()
    add_adapters(body, Adapters(**spec))
    return body


def adapted_names(body):
    return [name for name, part in body.named_modules() if isinstance(part, LowRankLinear)]


@pytest.mark.parametrize("training", [False, True])
def test_new_adapters_change_no_output(training):
    torch.manual_seed(0)
    body = TinyViT().train(training)
    before = body(IMAGES)[-1]
    add_adapters(body, Adapters())
    assert torch.equal(body(IMAGES)[-1], before)


@pytest.mark.parametrize(
    ("on", "parts"),
    [(("attention", "mlp"), ADAPTED), (("attention",), ADAPTED[:2]), (("mlp",), ADAPTED[2:])],
)
def test_the_linear_layers_of_the_chosen_parts_get_them_and_no_others(on, parts):
    """`attn.bias.0` is a part of the attention, but no product of its tokens."""
    expected = [f"blocks.{block}.{part}" for block in range(2) for part in parts]
    assert adapted_names(adapted(on=on)) == expected


def test_only_adapters_and_norms_are_trained():
    body = adapted(rank=2)
    trained = {name for name, value in body.named_parameters() if value.requires_grad}
    norms = {
        f"{part}.{kind}"
        for part in ("blocks.0.norm", "blocks.1.norm", "norm")
        for kind in ("weight", "bias")
    }
    lora = {f"{name}.lora_{which}" for name in adapted_names(body) for which in "ab"}
    assert trained == norms | lora


def test_a_layer_computes_w_x_plus_alpha_over_r_b_a_x():
    torch.manual_seed(0)
    body = adapted(rank=2, alpha=6)
    layer = body.blocks[0].mlp.fc1
    nn.init.normal_(layer.lora_b)
    weight = layer.state_dict()["weight"] + 6 / 2 * layer.lora_b @ layer.lora_a
    x = torch.randn(5, layer.in_features)
    expected = F.linear(x, weight, layer.bias)
    torch.testing.assert_close(layer.train()(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)
    torch.testing.assert_close(layer.weight, weight)
    wanted = torch.autograd.grad(expected.square().sum(), [layer.lora_a, layer.lora_b])
    for mode in (True, False):
        given = layer.train(mode)(x).square().sum()
        for one, other in zip(
            torch.autograd.grad(given, [layer.lora_a, layer.lora_b]), wanted, strict=True
        ):
            torch.testing.assert_close(one, other)


def test_all_adapters_learn_also_where_a_network_reads_the_weight_itself():
    body = adapted()
    for name in adapted_names(body):
        nn.init.normal_(body.get_submodule(name).lora_b)
    sum(each.square().sum() for each in body(IMAGES)).backward()
    for name, value in body.named_parameters():
        assert value.requires_grad == (value.grad is not None and bool(value.grad.any())), name


def test_merging_gives_the_plain_network_whose_outputs_are_the_same_to_the_bit():
    body = trained_a_little(adapted()).eval()
    before = body(IMAGES)[-1]
    in_training = body.train()(IMAGES)[-1]
    merge_adapters(body)
    assert torch.equal(body.eval()(IMAGES)[-1], before)
    assert not torch.equal(before, TinyViT().eval()(IMAGES)[-1])
    torch.testing.assert_close(in_training, before)
    assert body.state_dict().keys() == TinyViT().state_dict().keys()
    assert {type(part) for part in body.modules() if isinstance(part, nn.Linear)} == {nn.Linear}


def test_a_backbone_without_such_layers_is_refused():
    low = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1))
    body = SequentialBackbone(low, nn.Sequential(), ends=(0,), channels=(4,), strides=(4,))
    with pytest.raises(RecipeError, match=r"no linear layers in its attention or mlp blocks"):
        add_adapters(body, Adapters())


def with_names_in_file(*missing):
    """Return a backbone whose weights, but some, are from a file."""
    torch.manual_seed(1)
    file = {name: value for name, value in TinyViT().state_dict().items() if name not in missing}
    body = TinyViT()
    load_into(body, file, origin="file")
    return body


def loaded_from_file(*missing):
    body = with_names_in_file(*missing)
    add_adapters(body, Adapters())
    return body


def test_a_state_dict_leaves_out_what_the_file_has_and_training_does_not_change():
    body = loaded_from_file("tokens")
    saved = set(body.state_dict())
    trained = {name for name, value in body.named_parameters() if value.requires_grad}
    assert saved == {*trained, "tokens"}
    assert saved < set(dict(body.named_parameters()))


def test_it_is_loaded_strictly_into_a_network_with_the_same_base():
    body = trained_a_little(loaded_from_file("tokens"))
    other = loaded_from_file("tokens")
    state = body.state_dict()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.eval()(IMAGES)[-1], body.eval()(IMAGES)[-1])
    del state["tokens"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "tokens"'):
        other.load_state_dict(state, strict=True)


def test_a_random_base_is_part_of_the_state_dict():
    body = adapted()
    assert set(body.state_dict()) == set(dict(body.named_parameters()))


def test_teacher_and_student_share_the_base_and_average_the_rest():
    student = adapted_segmenter()
    teacher = Teacher(student, momentum=0.5, batch_statistics=False)
    pairs = list(zip(student.parameters(), teacher.network.parameters(), strict=True))
    for ours, theirs in pairs:
        assert (ours is theirs) == (not ours.requires_grad)
    versions = [ours._version for ours, _ in pairs]
    before = [theirs.clone() for _, theirs in pairs]
    trained_a_little(student)
    teacher.update(student, 9)
    for (ours, theirs), old, version in zip(pairs, before, versions, strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(theirs, 0.5 * old + 0.5 * ours)
        else:
            assert ours._version == version  # nobody wrote to it
    assert not any(theirs.requires_grad for theirs in teacher.network.parameters())


def test_a_copy_loads_the_state_of_its_original():
    """The teacher's copy of the network hides its own base, not that of the student."""
    student = adapted_segmenter()
    twin = copy.deepcopy(student)
    trained_a_little(student)
    twin.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(twin.eval()(IMAGES).logits, student.eval()(IMAGES).logits)


def test_head_and_projector_start_as_they_do_without_adapters():
    def starts(**options):
        state = adapted_segmenter(**options).head.state_dict()
        return torch.cat([value.flatten() for value in state.values()])

    assert torch.equal(starts(), starts(adapters=None))


@pytest.mark.parametrize(("weights", "left_out"), [("random", False), ("file", True)])
def test_a_run_leaves_out_only_what_a_file_that_it_can_name_has(
    monkeypatch, tmp_path, weights, left_out
):
    """Here the weights came from somewhere, but only a file can be named by a checkpoint."""
    (tmp_path / "w.safetensors").write_bytes(b"read by the network itself")
    words = ["model.train=adapters", "model.adapters.rank=2", "model.head=deeplab_v2"]
    words.append(f"model.weights={tmp_path / 'w.safetensors' if left_out else weights}")
    monkeypatch.setattr(segmenters, "build_backbone", lambda *_, **__: with_names_in_file())
    objective = build_objective(shipped("toyland/source_only", words), 5)
    assert (objective.base is not None) == left_out
    assert ("student.backbone.tokens" not in objective.state_dict()) == left_out
