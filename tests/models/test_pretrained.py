"""What is said of a network's own weights, and what happens where they cannot be had."""

import socket

import pytest

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.backbones.build import build_backbone


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Close the network, and give the hubs' clients empty caches."""

    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.parametrize("weights", ["pretrained", "imagenet"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth, 45 MB, licence: "),
        ("timm:test_efficientnet", "timm/test_efficientnet.r160_in1k, licence: apache-2.0"),
    ],
)
def test_without_a_network_they_are_named_and_refused_with_advice(
    offline, caplog, name, said, weights
):
    """torchvision states the size, timm the licence."""
    caplog.set_level("INFO", logger="udaseg")
    with pytest.raises(EnvironmentFault, match=rf"of {name} could not be.*model\.weights=FILE"):
        build_backbone(name, output_stride=32, weights=weights)
    assert said in caplog.text


def test_a_network_without_weights_is_refused_before_anything_is_asked():
    with pytest.raises(RecipeError, match=r"has no pretrained weights of timm:efficientnet_lite1"):
        build_backbone("timm:efficientnet_lite1", output_stride=32, weights="pretrained")


@pytest.mark.parametrize(("tag", "mean"), [("augreg_in21k", 0.5), ("dino", 0.485)])
def test_images_are_normalised_as_the_weights_of_a_tag_expect(tag, mean):
    name = f"timm:vit_small_patch16_224.{tag}"
    assert build_backbone(name, output_stride=16, weights="random").mean[0] == mean
