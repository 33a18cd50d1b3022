"""Read pretrained weights and report what matched, so that no random start goes unnoticed."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from udaseg.errors import UNREADABLE_TENSORS, CheckpointError, EnvironmentFault, why_unreadable

log = logging.getLogger(__name__)
_MIN_MATCHED_SHARE = 0.5


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a saved state dict."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, not a weights file; {_advice(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (a reader)
    except (*UNREADABLE_TENSORS, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not readable as weights: {why_unreadable(error)}"
        ) from error
    if isinstance(loaded, dict) and {"objective", "optimizer"} <= loaded.keys():
        raise CheckpointError(f"{path}: is a checkpoint, not a weights file; {_advice(path)}")
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path}: contains no state dict")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if len(tensors) != len(loaded):
        raise CheckpointError(f"{path}: contains values that are not tensors; save a state dict")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _advice(path: Path) -> str:
    return (
        f"for a run of udaseg, `udaseg export {shlex.quote(str(path))} --format state-dict` writes "
        "such a file; or start from backbone and head with --init"
    )


def read_own_backbone(path: Path) -> dict[str, Tensor] | None:
    """Return the backbone's tensors in the state dict of a `Segmenter`.

    None for any other file.
    """
    try:
        tensors = read_state_dict(path)
    except CheckpointError:
        return None
    own = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    return own if own and {"mean", "std"} <= tensors.keys() else None


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> str:
    """Load the tensors that match by name and shape into `network`; log and return a report.

    Half-precision tensors are converted to the type of the network. Less than half of the network's
    tensors are those of another model.
    """
    state = network.state_dict()
    matched, mismatched = 0, []
    for name in [name for name in tensors if name in state]:
        if state[name].shape == tensors[name].shape:
            state[name].copy_(tensors[name])
            matched += 1
        else:
            shapes = f"{tuple(tensors[name].shape)} for {tuple(state[name].shape)}"
            mismatched.append(f"{name} {shapes}")
    report = (
        f"matched {matched}, missing {_first_few(sorted(state.keys() - tensors.keys()))}, "
        f"unexpected {_first_few(sorted(tensors.keys() - state.keys()))}"
    )
    if mismatched:
        report += f", of different shape {_first_few(mismatched)}"
    if matched < _MIN_MATCHED_SHARE * len(state):
        raise CheckpointError(
            f"{origin}: not weights of this network: {report}. "
            "Check model.backbone, or set model.weights=random to train from scratch"
        )
    log.info("weights %s: %s", origin, report)
    return report


def _first_few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "0"


def download_fault(name: str, error: OSError) -> EnvironmentFault:
    """Return the fault of ImageNet weights that could not be downloaded."""
    return EnvironmentFault(
        f"model.weights: imagenet for {name} could not be downloaded ({error}); "
        "copy the file to this machine and set model.weights=FILE"
    )
