"""Read pretrained weights and report what matched, so that no random start goes unnoticed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from udaseg.errors import CheckpointError

log = logging.getLogger(__name__)
_MIN_MATCHED_SHARE = 0.5


@dataclass(frozen=True)
class LoadReport:
    """The tensors of a file that were and were not loaded into a network.

    Attributes:
        matched: Names that were loaded.
        missing: Names that only the network has; they keep their random initialisation.
        unexpected: Names that only the file has.
        mismatched: Names whose shapes differ, with both shapes.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        def first_few(names: tuple[str, ...]) -> str:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            return f"{len(names)}" + (f" ({shown})" if names else "")

        text = (
            f"matched {len(self.matched)}, missing {first_few(self.missing)}, "
            f"unexpected {first_few(self.unexpected)}"
        )
        return text + (
            f", of different shape {first_few(self.mismatched)}" if self.mismatched else ""
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a saved state dict.

    Raises:
        CheckpointError: The file is missing, unreadable, or contains anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (a reader)
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        EOFError,
        UnpicklingError,
        AttributeError,
        TypeError,
        SafetensorError,
    ) as error:
        raise CheckpointError(f"{path}: not readable as weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path}: contains no state dict")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if len(tensors) != len(loaded):
        raise CheckpointError(f"{path}: contains values that are not tensors; export a state dict")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> LoadReport:
    """Load the tensors that match by name and shape into `network`; return a report.

    Half-precision tensors are converted to the type of the network.

    Raises:
        CheckpointError: Less than half of the network's tensors matched, so the file belongs to
            another model.
    """
    state = network.state_dict()
    matched, mismatched = [], []
    for name, value in tensors.items():
        if name not in state:
            continue
        if state[name].shape == value.shape:
            state[name].copy_(value)
            matched.append(name)
        else:
            mismatched.append(f"{name} {tuple(value.shape)} for {tuple(state[name].shape)}")
    report = LoadReport(
        matched=tuple(matched),
        missing=tuple(sorted(set(state) - set(tensors))),
        unexpected=tuple(sorted(set(tensors) - set(state))),
        mismatched=tuple(mismatched),
    )
    if len(matched) < _MIN_MATCHED_SHARE * len(state):
        raise CheckpointError(
            f"{origin}: not weights of this network: {report}. "
            "Check model.backbone, or set model.weights=random to train from scratch"
        )
    log.info("weights %s: %s", origin, report)
    return report
