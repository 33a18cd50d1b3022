"""What every head must do. To test one of your own, subclass it and fill in `make`."""

import copy

import pytest
import torch
from torch import Tensor

from udaseg.models.backbones.backbone import Backbone, at_levels
from udaseg.models.heads.head import Head

CLASSES = 5
IMAGE = (65, 97)
LAYOUTS = {
    "dilated": ((6, 8, 10, 12), (4, 8, 8, 8)),
    "not dilated": ((6, 8, 10, 12), (4, 8, 16, 32)),
    "two maps": ((4, 16), (4, 16)),
    "one stride": ((12, 12, 12, 12), (14, 14, 14, 14)),
    "one map": ((16,), (8,)),
}
"""Channels and strides of the backbones that heads are tested with."""


class Maps(Backbone):
    """A backbone without weights: random maps of given channels and strides."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.strides = channels, strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps that depend only on the size of the images."""
        generator = torch.Generator().manual_seed(0)
        batch, _, height, width = images.shape
        maps = []
        for channels, stride in zip(self.channels, self.strides, strict=True):
            size = (batch, channels, -(-height // stride), -(-width // stride))
            maps.append(torch.randn(size, generator=generator))
        return maps

    def maps(self, batch: int = 2) -> list[Tensor]:
        """Return the maps of a batch of images of an odd size."""
        return self(torch.zeros(batch, 3, *IMAGE))


class HeadContract:
    """Every member passes these tests."""

    def make(self, backbone: Backbone) -> Head:
        """Return a new head for 5 classes with random weights, from torch's global generator."""
        raise NotImplementedError

    @pytest.fixture(params=LAYOUTS)
    def backbone(self, request):
        return Maps(*LAYOUTS[request.param])

    @pytest.fixture
    def head(self, backbone):
        torch.manual_seed(0)
        return self.make(backbone)

    def test_logits_are_on_the_last_grid_or_a_finer_one(self, head, backbone):
        maps = backbone.maps()
        logits = head(maps)
        assert logits.shape[:2] == (2, CLASSES)
        sizes = [each.shape[-2:] for each in maps]
        assert logits.shape[-2] >= sizes[-1][0]
        assert logits.shape[-1] >= sizes[-1][1]

    def test_every_parameter_learns(self, head, backbone):
        logits = head.train()(backbone.maps())
        generator = torch.Generator().manual_seed(1)
        (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
        still = [
            name
            for name, value in head.named_parameters()
            if value.grad is None or not value.grad.isfinite().all() or not value.grad.any()
        ]
        assert still == []

    def test_it_takes_its_maps_by_position_from_a_list_of_any_length(self, head, backbone):
        """It gets all maps, or only those at its levels."""
        layout = (backbone.channels, backbone.strides)
        torch.manual_seed(0)
        other = self.make(Maps(*(at_levels(values, head.levels) for values in layout)))
        maps = backbone.maps()
        assert torch.equal(head.eval()(maps), other.eval()([*at_levels(maps, head.levels)]))

    def test_it_leaves_the_maps_as_they_are(self, head, backbone):
        maps = backbone.maps()
        head.train()(maps)
        assert len(maps) == len(backbone.channels)
        assert all(torch.equal(*pair) for pair in zip(maps, backbone.maps(), strict=True))

    def test_it_trains_on_a_batch_of_one(self, head, backbone):
        assert head.train()(backbone.maps(batch=1)).isfinite().all()

    def test_under_autocast_its_logits_are_float32(self, head, backbone):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert head.eval()(backbone.maps()).dtype == torch.float32

    def test_its_state_dict_is_all_of_it(self, head, backbone):
        torch.manual_seed(1)
        other = self.make(backbone).eval()
        other.load_state_dict(copy.deepcopy(head.state_dict()), strict=True)
        with torch.no_grad():
            assert torch.equal(head.eval()(backbone.maps()), other(backbone.maps()))
