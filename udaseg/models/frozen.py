"""A backbone that never changes, beside the student that began with the same weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.errors import CheckpointError
from udaseg.models.backbones.backbone import Backbone
from udaseg.models.segmenter import Segmenter
from udaseg.models.weights import state_digest

_NETWORK = "network."


class _LastMap(nn.Module):
    """Stands in for a head."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[-1]


def frozen_segmenter(backbone: Backbone) -> Segmenter:
    """Return a network that stays as it is and whose logits are the last map of a backbone."""
    return Segmenter(backbone, _LastMap()).requires_grad_(False).eval()


class FrozenBackbone(nn.Module):
    """A backbone that stays in evaluation mode, learns nothing, and is in no checkpoint.

    Its weights come from the recipe again when a run is resumed. The state has their digest.

    Args:
        network: Of `frozen_segmenter`.

    Attributes:
        digest: (32,) uint8, the SHA-256 of its weights and buffers.

    Raises:
        CheckpointError: From `load_state_dict`, if the state has another digest.

    Example:
        >>> import torch
        >>> from udaseg.models import build_backbone
        >>> from udaseg.models.frozen import FrozenBackbone, frozen_segmenter
        >>> body = build_backbone("resnet18", output_stride=8, weights="random")
        >>> frozen = FrozenBackbone(frozen_segmenter(body))
        >>> tuple(frozen(torch.rand(1, 3, 64, 96)).shape), list(frozen.state_dict())
        ((1, 512, 8, 12), ['digest'])
    """

    digest: Tensor

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        digest = bytearray.fromhex(state_digest(network))
        self.register_buffer("digest", torch.frombuffer(digest, dtype=torch.uint8))
        self.network = network
        hooked: Any = self  # torch has no types for these two
        hooked.register_state_dict_post_hook(_leave_out_network)
        hooked.register_load_state_dict_pre_hook(_fill_in_network)
        self.train()

    def train(self, mode: bool = True) -> "FrozenBackbone":  # noqa: ARG002 (torch's signature)
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the last map (B, C, h, w) of (B, 3, H, W) images in [0, 1]."""
        features: Tensor = self.network(images).features
        return features

    def share(self, student: Backbone) -> None:
        """Hold the base weights of a student with adapters instead of copies of them.

        They must be those of the weights file, as long as `student.base_names` names them.
        """
        theirs = dict(student.named_parameters())
        for name in student.base_names:
            owner, _, leaf = name.rpartition(".")
            setattr(self.network.backbone.get_submodule(owner), leaf, theirs[name])

    def unshare(self) -> None:
        """Hold copies again, before the student is given other base weights."""
        for part in self.network.modules():
            for name, value in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(value.detach().clone(), requires_grad=False))


def _leave_out_network(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    for name in [name for name in state if name.startswith(prefix + _NETWORK)]:
        del state[name]


def _fill_in_network(
    frozen: FrozenBackbone, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Let a state dict without the network be loaded strictly, if it belongs to the same one."""
    saved = state.get(f"{prefix}digest")
    if saved is not None and not torch.equal(saved.cpu(), frozen.digest.cpu()):
        raise CheckpointError(
            "the frozen backbone has other weights than when the run began; restore the weights "
            "that model.weights names, or start a new run"
        )
    state |= frozen.network.state_dict(prefix=prefix + _NETWORK)
