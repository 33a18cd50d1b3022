"""Provide a vision transformer of milliseconds, and networks with adapters on it."""

import dataclasses
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models import segmenter as segmenters
from udaseg.models.backbones.backbone import Backbone
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.recipe.schema import Adapters, Model

_WIDTH = 8


class _Attention(nn.Module):
    """Reads the weight of `qkv`, as EVA and BEiT do, rather than calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.bias = nn.Sequential(nn.Linear(1, 1))
        self.proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        values = F.linear(tokens, weight=self.qkv.weight, bias=self.qkv.bias)
        query, key, value = values.chunk(3, -1)
        offset = self.bias(torch.ones(1))
        scores = query @ key.mT + offset * torch.eye(query.shape[1])
        mixed: Tensor = self.proj(scores.softmax(-1) @ value)
        return mixed


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.fc2 = nn.Linear(2 * _WIDTH, _WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        changed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return changed


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.attn = _Attention()
        self.mlp = _Mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm(tokens))
        changed: Tensor = tokens + self.mlp(tokens)
        return changed


class TinyViT(Backbone):
    """Two blocks on patches of 8 px, with a token added to every patch."""

    channels, strides = (_WIDTH,), (8,)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, 8, 8)
        self.tokens = nn.Parameter(torch.randn(1, 1, _WIDTH))
        self.blocks = nn.ModuleList([_Block(), _Block()])
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map of (B, 3, H, W) images."""
        grid = self.patches(images)
        tokens = grid.flatten(2).mT + self.tokens
        for block in self.blocks:
            tokens = block(tokens)
        return [self.norm(tokens).mT.unflatten(2, grid.shape[2:])]


def adapted_segmenter(**changes: Any) -> Segmenter:
    """Return a network with adapters on `TinyViT`, of the same start each time."""
    spec = Model(
        backbone="tiny",
        output_stride=8,
        weights="random",
        batch_norm="train",
        head="deeplab_v2",
        aspp_dilations=(1,),
        train="adapters",
        adapters=Adapters(),
    )
    torch.manual_seed(0)
    with mock.patch.object(segmenters, "build_backbone", lambda *_, **__: TinyViT()):
        return build_segmenter(dataclasses.replace(spec, **changes), 5)


def trained_a_little(network: nn.Module) -> nn.Module:
    """Return the network after a change of everything that is trained."""
    with torch.no_grad():
        for part in network.parameters():
            if part.requires_grad:
                part.add_(torch.linspace(-0.1, 0.2, part.numel()).reshape(part.shape))
    return network
