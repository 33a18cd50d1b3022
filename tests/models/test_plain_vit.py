"""What an exported plain ViT computes in another way than one in training."""

import pytest
import torch

from udaseg.models.backbones.build import build_backbone


@pytest.mark.parametrize("size", [(64, 96), (33, 50)])
def test_positions_of_dinov3_are_the_same_bits_in_an_exported_graph(monkeypatch, size):
    """`vit_small_patch16_dinov3` has no other positions than these."""
    torch.manual_seed(0)
    body = build_backbone("timm:vit_small_patch16_dinov3", output_stride=16, weights="random")
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = body.eval()(images)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        maps = body(images)
    assert all(torch.equal(one, two) for one, two in zip(maps, expected, strict=True))
