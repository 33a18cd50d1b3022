"""Which weights files are taken, and as what."""

import pytest
import torch
from safetensors.torch import save_file

from udaseg.errors import CheckpointError
from udaseg.models.backbones.backbone import BackboneOptions
from udaseg.models.backbones.build import build_backbone


@pytest.fixture(scope="module")
def resnet18():
    """Return the tensors of a ResNet-18 classifier by torchvision's names."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


def load(path, name="resnet18", **options):
    return build_backbone(
        name, output_stride=8, weights=str(path), options=BackboneOptions(**options)
    )


def saved(tensors, path):
    torch.save(tensors, path)
    return path


def is_loaded(backbone, tensors):
    return torch.equal(backbone.state_dict()["low.0.weight"], tensors["conv1.weight"])


@pytest.mark.parametrize(
    ("prefix", "container"),
    [
        ("module.", None),
        ("backbone.", None),
        ("module.encoder.", "state_dict"),
        ("model.", "model"),
        ("Scale.", None),
        ("state_dict.module.backbone.", None),
    ],
)
def test_wrappers_of_names_are_seen_through(tmp_path, resnet18, prefix, container):
    """torchvision's own segmentation networks have `backbone.` and a classifier beside it."""
    tensors = {f"{prefix}{name}": value for name, value in resnet18.items()}
    tensors |= {f"aux_classifier.{number}.weight": torch.zeros(1) for number in range(200)}
    path = saved({container: tensors} if container else tensors, tmp_path / "w.pth")
    assert is_loaded(load(path), resnet18)


def test_a_file_is_read_once(tmp_path, resnet18, monkeypatch):
    reads = []
    original = torch.load

    def load_and_note(path, **kwargs):
        reads.append(path)
        return original(path, **kwargs)

    monkeypatch.setattr(torch, "load", load_and_note)
    path = saved(resnet18, tmp_path / "w.pth")
    assert is_loaded(load(path), resnet18)
    assert reads == [path]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02"])
def test_a_file_that_is_empty_or_text_is_told_to_be_so(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"it is empty, damaged, or was not written by torch"):
        load(tmp_path / "w.pth")


def test_a_file_without_the_counters_of_batch_norms_is_whole(tmp_path, resnet18):
    old = {name: value for name, value in resnet18.items() if "num_batches" not in name}
    assert is_loaded(load(saved(old, tmp_path / "w.pth")), resnet18)


@pytest.mark.parametrize("keep", ["half", "more"])
def test_a_file_of_another_network_needs_a_word(tmp_path, resnet18, keep):
    """100 tensors count in a ResNet-18: 20 convolutions, and 20 norms with 4 tensors each."""
    counted = [n for n in resnet18 if "num_batches" not in n and not n.startswith("fc.")]
    assert len(counted) == 100
    if keep == "half":
        tensors = {name: resnet18[name] for name in counted[:89]}
        shown = "11% of it would keep random values, 0% of the file"
    else:
        others = {f"layer9.{number}.weight": torch.zeros(1) for number in range(12)}
        tensors = {**resnet18, **others}
        shown = "0% of it would keep random values, 11% of the file"
    path = saved(tensors, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"{shown}.*model\.weights_partial=true"):
        load(path)
    assert is_loaded(load(path, weights_partial=True), resnet18)


def test_ten_percent_may_be_missing(tmp_path, resnet18):
    left_out = [n for n in resnet18 if "num_batches" not in n and not n.startswith("fc.")][-10:]
    tensors = {name: value for name, value in resnet18.items() if name not in left_out}
    assert is_loaded(load(saved(tensors, tmp_path / "w.pth")), resnet18)


def test_a_network_of_adaptsegnets_kind_is_no_plain_backbone(tmp_path):
    """Its images, strides and pooling are other ones, so the file needs all of them, or import."""
    import torchvision

    tensors = torchvision.models.resnet50().state_dict()
    del tensors["fc.weight"], tensors["fc.bias"]
    tensors |= {f"layer5.conv2d_list.{n}.bias": torch.zeros(19) for n in range(4)}
    path = saved({"model": tensors, "ema_model": tensors, "iteration": 7}, tmp_path / "dacs.pth")
    for options in ({}, {"input": "caffe"}, {"stride_in": "1x1"}, {"weights_partial": True}):
        with pytest.raises(CheckpointError, match=r"`udaseg import .*dacs\.pth`.*input=caffe"):
            load(path, "resnet50", **options)
    network = load(path, "resnet50", input="caffe", stride_in="1x1", ceil_pool=True)
    assert is_loaded(network, tensors)


def test_a_checkpoint_of_spcl_is_refused_with_what_to_do(tmp_path):
    content = {"feature_extractor": {"backbone.conv1.weight": torch.zeros(1)}, "classifier": {}}
    path = saved(content, tmp_path / "model_iter040000.pth")
    with pytest.raises(CheckpointError, match=r"SPCL's release; `udaseg import "):
        load(path)


@pytest.mark.parametrize("written", ["imagenet", "caffe"])
def test_an_exported_network_keeps_its_images(tmp_path, written):
    """The state dict of a network has the range that it expects."""
    backbone = build_backbone(
        "resnet18", output_stride=8, weights="random", options=BackboneOptions(input=written)
    )
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    tensors["mean"] = torch.tensor(backbone.mean).view(1, 3, 1, 1)
    tensors["std"] = torch.tensor(backbone.std).view(1, 3, 1, 1)
    path = tmp_path / "own.safetensors"
    save_file(tensors, path)
    other = {"imagenet": "caffe", "caffe": "imagenet"}[written]
    loaded = load(path, input=written)
    assert torch.equal(loaded.low[0].weight, backbone.low[0].weight)
    with pytest.raises(CheckpointError, match=f"another range; set model.input={written}"):
        load(path, input=other)


def test_an_exported_network_brings_its_normalisation(tmp_path):
    """That of timm's weights differs from tag to tag, for the same network."""
    backbone = build_backbone("resnet18", output_stride=8, weights="random")
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    tensors |= {name: torch.full((1, 3, 1, 1), 0.5) for name in ("mean", "std")}
    save_file(tensors, tmp_path / "own.safetensors")
    loaded = load(tmp_path / "own.safetensors")
    assert loaded.mean == loaded.std == (0.5, 0.5, 0.5)
