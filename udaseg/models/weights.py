"""Read pretrained weights and report what matched, so that no random start goes unnoticed."""

import hashlib
import logging
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from udaseg.errors import UNREADABLE_TENSORS, CheckpointError, why_unreadable

log = logging.getLogger(__name__)
_MAX_SHARE = 0.1
"""Share of a network that a file may leave as it is, and share of a file that may stay unused."""

_WRAPPERS = ("module", "state_dict", "model", "backbone", "encoder", "Scale")
"""First parts of names that other tools add to those of a backbone."""

_CLASSIFIERS = {
    *("fc", "classifier", "aux_classifier", "head", "pre_logits", "last_linear"),
    *("layer5", "layer6", "decode_head", "auxiliary_head", "proj_head"),
}
"""Parts of the names of heads and classifiers, which no backbone needs."""

_COUNTER = "num_batches_tracked"
"""Counters of batch norms, which older files lack."""


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a weights file, which is read once.

    Attributes:
        path: The file, as the recipe names it.
        tensors: Its tensors by name.
        partial: Accept a file that lacks many of the network's tensors, or has many others.
    """

    path: str
    tensors: Mapping[str, Tensor]
    partial: bool = False

    def load_into(self, network: nn.Module) -> str:
        """Load the tensors into a network and return the report; see `load_into`."""
        return load_into(network, self.tensors, origin=self.path, partial=self.partial)


def read_weights_file(path: Path) -> Any:
    """Return what a safetensors file, or a file of `torch.save`, holds: tensors and plain values.

    Raises:
        CheckpointError: It is missing, unreadable, or holds other things.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, not a weights file; {_advice(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (a reader)
    except (*UNREADABLE_TENSORS, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not readable as weights: {why_unreadable(error)}"
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a saved state dict."""
    loaded = read_weights_file(path)
    if isinstance(loaded, dict) and {"objective", "optimizer"} <= loaded.keys():
        raise CheckpointError(f"{path}: is a checkpoint, not a weights file; {_advice(path)}")
    if isinstance(loaded, dict) and {"feature_extractor", "classifier"} <= loaded.keys():
        raise CheckpointError(
            f"{path}: is a checkpoint of SPCL's release; `udaseg import {shlex.quote(str(path))}` "
            "makes a run of it, from which --init can start"
        )
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path}: contains no state dict")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if len(tensors) != len(loaded):
        raise CheckpointError(f"{path}: contains values that are not tensors; save a state dict")
    return tensors


def _advice(path: Path) -> str:
    return (
        f"for a run of udaseg, `udaseg export {shlex.quote(str(path))} --format state-dict` writes "
        "such a file; or start from backbone and head with --init"
    )


def has_caffe_form(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the names of AdaptSegNet's network."""
    return any("layer5.conv2d_list." in name or "layer6.conv2d_list." in name for name in tensors)


def caffe_form_refusal(path: str) -> CheckpointError:
    """Return the error of such a file for a network with other images and strides."""
    return CheckpointError(
        f"{path}: is a network of AdaptSegNet's kind (layer5.conv2d_list), as DACS and RCCR use, "
        "with BGR images and its strides in the 1x1 convolutions. To evaluate it, make a run of "
        f"it: `udaseg import {shlex.quote(path)}`. To start from its backbone, set "
        "model.input=caffe model.stride_in=1x1 model.ceil_pool=true"
    )


def own_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the backbone's tensors in the state dict of a `Segmenter`; None for any other."""
    own = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    return own if own and {"mean", "std"} <= tensors.keys() else None


def load_into(
    network: nn.Module, tensors: Mapping[str, Tensor], *, origin: str, partial: bool = False
) -> str:
    """Load the tensors that match by name and shape into `network`; log and return a report.

    What other tools put before a name, such as `module.` or `backbone.`, is left out where that
    finds the tensors of the network. Half-precision tensors are converted to the network's type.
    The network's attribute `names_in_file` has the names that matched, for adapters.

    Args:
        network: The network to change.
        tensors: Tensors by name.
        origin: The file, for messages.
        partial: Accept any file with a matching tensor.

    Raises:
        CheckpointError: More than 10 % of the network would keep its values, or more than 10 % of
            the file would be unused. Classifiers and counters of batch norms do not count.
    """
    state = network.state_dict()
    tensors = _unwrapped(tensors, state)
    shared = [name for name in tensors if name in state]
    mismatched = [name for name in shared if state[name].shape != tensors[name].shape]
    matched = set(shared) - set(mismatched)
    report = (
        f"matched {len(matched)}, missing {_first_few(sorted(state.keys() - tensors.keys()))}, "
        f"unexpected {_first_few(sorted(tensors.keys() - state.keys()))}"
    )
    if mismatched:
        shapes = [
            f"{name} {tuple(tensors[name].shape)} for {tuple(state[name].shape)}"
            for name in mismatched
        ]
        report += f", of different shape {_first_few(shapes)}"
    unset, unused = _share_without(state, matched), _share_without(tensors, matched)
    if not matched or (max(unset, unused) > _MAX_SHARE and not partial):
        raise CheckpointError(
            f"{origin}: not weights of this network: {unset:.0%} of it would keep random values, "
            f"{unused:.0%} of the file would be unused: {report}. Check model.backbone, or set "
            + ("model.weights_partial=true" if matched else "model.weights=random")
            + (" to use what matches" if matched else " to train from scratch")
        )
    for name in matched:
        state[name].copy_(tensors[name])
    network.names_in_file = frozenset(matched)  # type: ignore[assignment]  # no tensor or module
    log.info("weights %s: %s", origin, report)
    return report


def _unwrapped(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors by names without wrappers, if more of these are names of the network."""
    plain = plainly_named(tensors)
    is_better = len(plain.keys() & state.keys()) > len(tensors.keys() & state.keys())
    return plain if is_better else tensors


def plainly_named(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors by names without what other tools put before them, if these still differ."""
    plain = {without_wrappers(name): value for name, value in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def without_wrappers(name: str) -> str:
    """Return the name of a tensor without what other tools put before it."""
    first, _, rest = name.partition(".")
    return without_wrappers(rest) if first in _WRAPPERS and rest else name


def _share_without(names: Iterable[str], matched: Collection[str]) -> float:
    """Return the share of names that did not match, without classifiers and counters."""
    counted = [
        name
        for name in names
        if not name.endswith(_COUNTER) and not _CLASSIFIERS & set(name.split("."))
    ]
    return sum(name not in matched for name in counted) / max(1, len(counted))


def _first_few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "0"


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
