"""What is said of a network's own weights, and what happens where they cannot be had."""

import io
import socket
import ssl
import urllib.error

import pytest
import torch
import torchvision

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.backbones.build import build_backbone
from udaseg.models.pretrained import _answers


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Close the network, and give the hubs' clients empty caches."""

    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a client tries again"))
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
def test_without_a_network_they_are_named_and_refused_with_advice_at_once(
    offline, caplog, capfd, name, said, weights
):
    """torchvision states the size, timm the licence."""
    caplog.set_level("INFO")
    host = "huggingface.co" if name.startswith("timm:") else "download.pytorch.org"
    why = rf"of {name} could not be downloaded \({host} cannot be reached\); .*model\.weights=FILE"
    with pytest.raises(EnvironmentFault, match=why):
        build_backbone(name, output_stride=32, weights=weights)
    assert said in caplog.text
    assert [each for each in caplog.records if each.levelname != "INFO"] == []
    own = "weights of "  # seen here too if a command ran before in this process
    said_by_others = capfd.readouterr().err.splitlines()
    assert [line for line in said_by_others if not line.startswith(own)] == []


def test_without_a_network_what_was_fetched_before_is_taken(offline, tmp_path):
    before = build_backbone("resnet18", output_stride=32, weights="random")
    network = torchvision.models.resnet18()
    kept = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    kept.parent.mkdir(parents=True)
    torch.save(network.state_dict(), kept)
    after = build_backbone("resnet18", output_stride=32, weights="pretrained")
    assert torch.equal(after.low[0].weight, network.conv1.weight)
    assert not torch.equal(before.low[0].weight, network.conv1.weight)


@pytest.mark.parametrize(
    ("failure", "answers"),
    [
        (None, True),
        (urllib.error.HTTPError("https://x", 405, "no HEAD", {}, None), True),
        (urllib.error.URLError(ssl.SSLCertVerificationError("another certificate")), True),
        (urllib.error.URLError(socket.gaierror(-2, "Name or service not known")), False),
        (TimeoutError("timed out"), False),
    ],
)
def test_a_server_answers_if_it_says_anything(monkeypatch, failure, answers):
    def ask(request, timeout):
        assert (request.method, timeout) == ("HEAD", 5)
        if failure is not None:
            raise failure
        return io.BytesIO()

    monkeypatch.setattr("urllib.request.urlopen", ask)
    assert _answers("https://x") is answers


def test_a_network_without_weights_is_refused_before_anything_is_asked():
    with pytest.raises(RecipeError, match=r"has no pretrained weights of timm:efficientnet_lite1"):
        build_backbone("timm:efficientnet_lite1", output_stride=32, weights="pretrained")


@pytest.mark.parametrize(("tag", "mean"), [("augreg_in21k", 0.5), ("dino", 0.485)])
def test_images_are_normalised_as_the_weights_of_a_tag_expect(tag, mean):
    name = f"timm:vit_small_patch16_224.{tag}"
    assert build_backbone(name, output_stride=16, weights="random").mean[0] == mean
