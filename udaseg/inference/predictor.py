"""Predict images of any size: resize them for the network, and label them at full size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.transforms import resize_image
from udaseg.inference.pipeline import ImageLabels, infer_batch
from udaseg.inference.sizes import Size, input_size
from udaseg.inference.tiles import TileOptions
from udaseg.models.segmenter import evaluation_mode


@dataclass(frozen=True)
class Predictor:
    """A network with the options that decide its predictions.

    Attributes:
        network: On the device of `options`.
        trained_size: (height, width) of training and validation; None if images kept their size.
        options: How to predict one image.
        abstain: Pixels with less confidence are ignored; needs confidence.
    """

    network: nn.Module
    trained_size: Size | None
    options: TileOptions
    abstain: float | None = None

    def input_size(self, upright: NDArray[np.uint8]) -> Size:
        """Return the (height, width) at which the network gets an upright image."""
        return input_size((upright.shape[0], upright.shape[1]), self.trained_size)

    def resize(self, upright: Pixels) -> Pixels:
        """Return an upright image at the network's input size."""
        return resize_image(upright, self.input_size(upright))

    def predict(
        self, images: Sequence[Pixels], sizes: Sequence[Size], *, logits: bool = False
    ) -> list[ImageLabels]:
        """Return the predictions of resized images of one size.

        Args:
            images: From `resize`.
            sizes: (height, width) of each upright image; its labels have this size.
            logits: Also return the logits.
        """
        with evaluation_mode(self.network):
            predictions = infer_batch(self.network, images, sizes, self.options, logits=logits)
        if self.abstain is not None:
            for prediction in predictions:
                assert prediction.confidence is not None
                # `not >=`, so that NaN counts as no confidence
                prediction.labels[~(prediction.confidence >= self.abstain)] = IGNORE
        return predictions
