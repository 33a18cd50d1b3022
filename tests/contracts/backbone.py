"""What every backbone must do. To test one of your own, subclass it and fill in `make`."""

import copy

import pytest
import torch
from torch import Tensor

from udaseg.models.backbones.backbone import Backbone

ODD_SIZE = (65, 97)
ROUNDING = 1e-4


def images(batch: int = 2, size: tuple[int, int] = ODD_SIZE, seed: int = 0) -> Tensor:
    """Return random images, normalised as a backbone gets them."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def _weighted_sum(maps):
    """Return a sum of all maps with random weights, so that no gradient is 0 by symmetry."""
    generator = torch.Generator().manual_seed(1)
    return sum((each * torch.randn(each.shape, generator=generator)).sum() for each in maps)


def _state_and_gradients(backbone):
    gradients = {f"grad {name}": value.grad for name, value in backbone.named_parameters()}
    return {**backbone.state_dict(), **gradients}


class BackboneContract:
    """Every member passes these tests, at each of the output strides in `output_strides`."""

    output_strides = (8, 16, 32)

    def make(self, output_stride: int) -> Backbone:
        """Return a new backbone with random weights, drawn from torch's global generator."""
        raise NotImplementedError

    @pytest.fixture
    def backbone(self):
        torch.manual_seed(0)
        return self.make(self.output_strides[-1])

    def test_it_names_its_maps(self, backbone):
        assert isinstance(backbone, Backbone)
        assert len(backbone.channels) == len(backbone.strides) > 0
        assert all(isinstance(value, int) for value in (*backbone.channels, *backbone.strides))
        assert len(backbone.mean) == len(backbone.std) == 3
        assert min(backbone.std) > 0

    def test_it_returns_the_maps_that_it_names_finest_first(self):
        for output_stride in self.output_strides:
            backbone = self.make(output_stride).eval()
            strides = backbone.strides
            assert list(strides) == sorted(strides)
            assert strides[-1] == output_stride
            with torch.no_grad():
                maps = backbone(images())
            assert isinstance(maps, list)
            assert [tuple(each.shape) for each in maps] == [
                (2, channels, *(-(-side // stride) for side in ODD_SIZE))
                for channels, stride in zip(backbone.channels, strides, strict=True)
            ]

    def test_it_numbers_its_blocks_in_the_order_of_images(self, backbone):
        layers = [backbone.layer_of(name) for name, _ in backbone.named_parameters()]
        assert set(layers) | {0} == {*range(backbone.depth + 1)}
        assert list(backbone.stage_ends) == sorted(backbone.stage_ends)
        assert backbone.stage_ends[-1] == backbone.depth

    def test_it_names_parameters_without_decay(self, backbone):
        assert backbone.undecayed <= {name for name, _ in backbone.named_parameters()}

    def test_every_parameter_learns(self, backbone):
        _weighted_sum(backbone.train()(images())).backward()
        still = [
            name
            for name, value in backbone.named_parameters()
            if value.grad is None or not value.grad.isfinite().all() or not value.grad.any()
        ]
        assert still == []

    def test_checkpointing_changes_no_bit(self, backbone):
        """Neither maps, nor gradients, nor the statistics of batch norms."""
        other = copy.deepcopy(backbone)
        plain = backbone.train()(images())
        checkpointed = other.train().forward_checkpointed(images())
        assert len(plain) == len(checkpointed)
        assert all(torch.equal(one, two) for one, two in zip(plain, checkpointed, strict=True))
        _weighted_sum(plain).backward()
        _weighted_sum(checkpointed).backward()
        ends = _state_and_gradients(backbone), _state_and_gradients(other)
        assert ends[0].keys() == ends[1].keys()
        assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []

    def test_an_evaluated_image_gives_the_same_maps_again_and_in_any_batch(self, backbone):
        backbone.eval()
        state = copy.deepcopy(backbone.state_dict())
        with torch.no_grad():
            first, again, alone = backbone(images()), backbone(images()), backbone(images()[:1])
        for one, two, single in zip(first, again, alone, strict=True):
            assert torch.equal(one, two)
            # kernels may add in another order for another batch
            assert (single - one[:1]).abs().max() <= ROUNDING * one.abs().max()
        assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())

    def test_it_leaves_the_images_as_they_are(self, backbone):
        given = images()
        backbone.train()(given)
        assert torch.equal(given, images())

    def test_it_trains_on_a_batch_of_one(self, backbone):
        assert all(each.isfinite().all() for each in backbone.train()(images(1)))

    def test_its_state_dict_is_all_of_it(self, backbone):
        torch.manual_seed(1)
        other = self.make(self.output_strides[-1]).eval()
        other.load_state_dict(backbone.state_dict(), strict=True)
        with torch.no_grad():
            for one, two in zip(backbone.eval()(images()), other(images()), strict=True):
                assert torch.equal(one, two)

    def test_a_copy_has_weights_of_its_own(self, backbone):
        """The teacher is a copy of the student."""
        other = copy.deepcopy(backbone)
        with torch.no_grad():
            for value in other.parameters():
                value.zero_()
        assert all(value.any() for value in backbone.state_dict().values() if value.ndim > 1)
