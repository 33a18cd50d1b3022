"""A backbone of three convolutions."""

from torch import Tensor, nn

from udaseg.models import Backbone


class SampleNet(Backbone):
    """Feature maps at stride 4 and at the output stride.

    Args:
        output_stride: 8, 16 or 32.
        weights: Only `random`.
    """

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, *, output_stride: int, weights: str) -> None:
        super().__init__()
        if weights != "random":
            raise ValueError(f"SampleNet has no weights '{weights}'; use random")
        self.channels, self.strides = (8, 16), (4, output_stride)
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.BatchNorm2d(8), nn.ReLU())
        step = output_stride // 4
        self.coarse = nn.Sequential(nn.Conv2d(8, 16, step + 1, step, step // 2), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of (B, 3, H, W) images, finest first."""
        fine = self.fine(images)
        return [fine, self.coarse(fine)]
