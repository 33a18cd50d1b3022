"""Weights files for networks of timm: by timm's names, and by those of a release."""

import re

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from udaseg.errors import CheckpointError
from udaseg.models.backbones.build import build_backbone
from udaseg.models.backbones.timm_files import load_timm_file
from udaseg.models.weights import WeightsFile, read_state_dict


def network_of_timm(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options)


def load(tensors, name, **options):
    torch.manual_seed(1)
    network = timm.create_model(name, **options)
    state = torch.get_rng_state()
    report = load_timm_file(network, name, WeightsFile("w.pth", tensors))
    assert torch.equal(torch.get_rng_state(), state)
    return network, report


def is_same(network, tensors):
    state = network.state_dict()
    return all(torch.equal(state[name], tensors[name]) for name in state)


def test_timms_own_names_fit_what_features_only_makes_of_a_network():
    """It calls stages.0 stages_0, and leaves out the last norm and the classifier."""
    whole = network_of_timm("test_convnext")
    network, report = load(whole.state_dict(), "test_convnext", features_only=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps, expected = network(images), whole.forward_intermediates(images)[1]
    assert all(torch.equal(one, two) for one, two in zip(maps, expected, strict=True))
    assert "unexpected 2 (head.norm.bias, head.norm.weight)" in report


def convnext_release(tensors):
    """Return tensors by the names of ConvNeXt's release."""
    released = {}
    for name, value in tensors.items():
        name = name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv")
        name = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        name = name.replace(".blocks.", ".").replace("mlp.fc", "pwconv")
        released[name.replace("head.norm", "norm")] = value
    return released


def test_names_of_a_convnext_release_are_converted():
    tensors = network_of_timm("convnext_atto", conv_mlp=False).state_dict()
    released = convnext_release(tensors)
    assert "stages.0.0.dwconv.weight" in released
    network, report = load(released, "convnext_atto", features_only=True)
    state = network.state_dict()
    assert report.startswith(f"matched {len(state)}, missing 0, ")
    expected = tensors["stages.2.blocks.1.mlp.fc1.weight"]
    assert torch.equal(state["stages_2.blocks.1.mlp.fc1.weight"].flatten(), expected.flatten())


@pytest.mark.parametrize("chunked", [False, True])
def test_names_of_a_dinov2_release_are_converted(chunked):
    """Its training code writes blocks.0.3 for block 3; its files have a mask token."""
    options = {"img_size": 56, "depth": 2, "embed_dim": 64, "num_heads": 2}
    tensors = network_of_timm("vit_small_patch14_dinov2", **options).state_dict()
    released = {**tensors, "mask_token": torch.zeros(1, 64)}
    if chunked:
        released = {re.sub(r"^blocks\.", "blocks.0.", name): t for name, t in released.items()}
    network, report = load(released, "vit_small_patch14_dinov2", num_classes=0, **options)
    assert is_same(network, tensors)
    assert report == f"matched {len(tensors)}, missing 0, unexpected 1 (mask_token)"


def test_registers_of_a_dinov2_release_become_those_of_timm():
    """The release adds a position to the class token; timm keeps the sum as the token."""
    options = {"img_size": 56, "depth": 2, "embed_dim": 64, "num_heads": 2}
    name = "vit_small_patch14_reg4_dinov2"
    tensors = network_of_timm(name, **options).state_dict()
    released = dict(tensors)
    position = torch.full((1, 1, 64), 0.25)
    released["register_tokens"] = released.pop("reg_token")
    released["cls_token"] = tensors["cls_token"] - 0.25
    released["pos_embed"] = torch.cat([position, tensors["pos_embed"]], 1)
    released["mask_token"] = torch.zeros(1, 64)
    network, _ = load(released, name, num_classes=0, **options)
    state = network.state_dict()
    assert torch.allclose(state.pop("cls_token"), tensors.pop("cls_token"), atol=1e-6)
    assert all(torch.equal(value, tensors[key]) for key, value in state.items())


def test_positions_of_another_grid_are_resampled_as_timm_does_it():
    small = {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_classes": 0}
    given = network_of_timm(
        "vit_small_patch14_dinov2", img_size=70, depth=2, embed_dim=64, num_heads=2
    )
    tensors = given.state_dict()
    network, _ = load(tensors, "vit_small_patch14_dinov2", img_size=98, **small)
    expected = resample_abs_pos_embed(tensors["pos_embed"], [7, 7], [5, 5], num_prefix_tokens=1)
    assert torch.equal(network.state_dict()["pos_embed"], expected)
    assert torch.equal(network.blocks[1].mlp.fc2.weight, tensors["blocks.1.mlp.fc2.weight"])


def test_names_of_wrappers_are_seen_through_before_a_release_is_recognised():
    tensors = network_of_timm("convnext_atto", conv_mlp=False).state_dict()
    released = {f"module.{name}": value for name, value in convnext_release(tensors).items()}
    _, report = load(released, "convnext_atto", features_only=True)
    assert ", missing 0, " in report


@pytest.mark.parametrize("other", ["test_vit", "test_resnet"])
def test_a_file_of_another_network_is_refused(other):
    tensors = network_of_timm(other).state_dict()
    with pytest.raises(CheckpointError, match=r"w\.pth: not weights of this network: 100% of it"):
        load(tensors, "test_convnext", features_only=True)


def test_a_backbone_starts_from_a_file_of_timm(tmp_path):
    whole = network_of_timm("test_convnext").eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    body = build_backbone("timm:test_convnext", output_stride=32, weights=weights).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(body(images)[-1], whole.forward_features(images))


def test_the_vit_at_hand_loads_without_a_gap(sample_data, caplog):
    """Its half-precision tensors are converted."""
    caplog.set_level("INFO", logger="udaseg")
    path = sample_data / "weights" / "vit_small_patch14_dinov2.safetensors"
    body = build_backbone("timm:vit_small_patch14_dinov2", output_stride=32, weights=str(path))
    assert f"{path}: matched 174, missing 0, unexpected 0" in caplog.text
    expected = read_state_dict(path)["blocks.11.mlp.fc2.weight"].float()
    assert torch.equal(body.network.blocks[11].mlp.fc2.weight, expected)
