"""Checkpoints of released code as networks: AdaptSegNet's kind (DACS, RCCR, ...) and SPCL's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from udaseg.errors import CheckpointError
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.models.weights import read_weights_file, without_wrappers
from udaseg.recipe.contrast import Projector
from udaseg.recipe.schema import Model

_BACKBONES = {6: "resnet50", 23: "resnet101"}
"""Backbones by the number of blocks in their third layer."""

_PLACES = {
    "conv1.": "backbone.low.0.",
    "bn1.": "backbone.low.1.",
    "layer1.": "backbone.low.4.",
    "layer2.": "backbone.rest.0.",
    "layer3.": "backbone.rest.1.",
    "layer4.": "backbone.rest.2.",
    "conv2d_list.": "head.branches.",
    "proj_head.project.": "projector.layers.",
}
"""What names of tensors begin with there, and in a `Segmenter`."""

_OWN = ("mean", "std", "num_batches_tracked")
"""Ends of the names of tensors that a checkpoint may lack."""

_SHOWN = 8


@dataclass(frozen=True)
class ReleasedNetwork:
    """The networks of a released checkpoint.

    Attributes:
        kind: `AdaptSegNet` or `SPCL`.
        model: How the networks are computed; its `weights` is the checkpoint.
        num_classes: Number of outputs.
        student: The trained network.
        teacher: The averaged one; None if the file has none.
        step: Number of training steps; 0 if the file does not say.
    """

    kind: str
    model: Model
    num_classes: int
    student: Segmenter
    teacher: Segmenter | None
    step: int


def read_released(path: Path, dilations: Sequence[int] | None = None) -> ReleasedNetwork:
    """Return the networks of a checkpoint of released code.

    Args:
        path: A state dict, a dictionary with `model` and perhaps `ema_model` (DACS, RCCR), or one
            with `feature_extractor` and `classifier` (SPCL).
        dilations: Rates of the classifier's convolutions that are added; None is (6, 12) for
            AdaptSegNet's kind, whose code returns after the second one, and all four for SPCL's.

    Raises:
        CheckpointError: The file is unreadable, or of another network.
    """
    content = read_weights_file(path)
    content = content if isinstance(content, dict) else {}
    if {"feature_extractor", "classifier"} <= content.keys():
        parts = {**_tensors(content["feature_extractor"]), **_tensors(content["classifier"])}
        kind, states = "SPCL", [_with_epsilon(parts)]
    else:
        found = [content[key] for key in ("model", "ema_model") if key in content]
        kind, states = "AdaptSegNet", [_tensors(state) for state in found or [content]]
    if dilations is None:
        dilations = (6, 12) if kind == "AdaptSegNet" else (6, 12, 18, 24)
    model = _model(kind, path, states[0], dilations)
    student, *averaged = [_network(path, model, state) for state in states]
    step = content.get("iteration")
    return ReleasedNetwork(
        kind,
        model,
        len(states[0]["conv2d_list.0.bias"]),
        student,
        averaged[0] if averaged else None,
        step if isinstance(step, int) else 0,
    )


def _tensors(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict, the classifier of the last layer as `conv2d_list`.

    A network with a second classifier, of the third layer, has that one as `layer5`.
    """
    state = state if isinstance(state, Mapping) else {}
    plain = {
        without_wrappers(str(name)): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    last = "layer6." if any(name.startswith("layer6.") for name in plain) else "layer5."
    return {name.removeprefix(last): value for name, value in plain.items()}


def _with_epsilon(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose frozen norms, which add no epsilon, are the same with torch's."""
    scaled, epsilon = dict(state), nn.BatchNorm2d(1).eps
    for name, variance in state.items():
        norm = name.removesuffix("running_var")
        if norm != name and f"{norm}num_batches_tracked" not in state:
            scaled[f"{norm}weight"] = state[f"{norm}weight"] * (1 + epsilon / variance).sqrt()
    return scaled


def _model(kind: str, path: Path, state: Mapping[str, Tensor], dilations: Sequence[int]) -> Model:
    """Return how the network of a state dict is computed.

    Raises:
        CheckpointError: It is none of the known ones.
    """
    blocks = {match[1] for name in state if (match := re.match(r"layer3\.(\d+)\.", name))}
    if len(blocks) not in _BACKBONES or "conv2d_list.0.bias" not in state:
        shown = ", ".join(list(state)[:_SHOWN]) or "no tensors"
        raise CheckpointError(
            f"{path}: is no checkpoint of AdaptSegNet, DACS, RCCR or SPCL with ResNet-50 or -101; "
            f"it holds {shown}. `model.weights` can take backbones of other networks"
        )
    caffe = kind == "AdaptSegNet"
    return Model(
        backbone=_BACKBONES[len(blocks)],
        output_stride=8,
        weights=str(path.absolute()),
        batch_norm="affine_frozen" if caffe else "frozen",
        head="deeplab_v2",
        aspp_dilations=tuple(dilations),
        align_corners=True,
        input="caffe" if caffe else "imagenet",
        stride_in="1x1" if caffe else "3x3",
        ceil_pool=caffe,
        first_dilation="own" if caffe else "previous",
    )


def _network(path: Path, model: Model, state: Mapping[str, Tensor]) -> Segmenter:
    """Return the network of a state dict.

    Raises:
        CheckpointError: Tensors are missing, have other shapes, or hold NaN or infinite values.
    """
    given = {
        own + name.removeprefix(theirs): value
        for theirs, own in _PLACES.items()
        for name, value in state.items()
        if name.startswith(theirs)
    }
    embedding, head = given.get("projector.layers.2.bias"), None
    if embedding is not None:
        head = Projector(channels=len(embedding), trainable=False)
    network = build_segmenter(
        replace(model, weights="random"),
        len(state["conv2d_list.0.bias"]),
        projector=head,
    )
    tensors = network.state_dict()
    wrong = [
        name
        for name, value in tensors.items()
        if (name in given or not name.endswith(_OWN))
        and (name not in given or given[name].shape != value.shape)
    ]
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (", …" if len(wrong) > _SHOWN else "")
        raise CheckpointError(f"{path}: lacks tensors of its network, or their shape: {shown}")
    if broken := [name for name, value in given.items() if not bool(value.isfinite().all())]:
        shown = ", ".join(broken[:_SHOWN])
        raise CheckpointError(f"{path}: holds values that are not finite: {shown}")
    network.load_state_dict({name: given.get(name, value) for name, value in tensors.items()})
    return network
