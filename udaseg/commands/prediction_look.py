"""Run the network for `udaseg predict`: input size, flip, confidence and abstention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg import build
from udaseg.commands.calibration_file import read_temperature
from udaseg.commands.masks import Kept, as_stored, grey
from udaseg.commands.scoring import trained_size
from udaseg.data import IGNORE, resize_image
from udaseg.errors import DataError
from udaseg.evaluation import label_images, network_size, seen_in_tiles

_ON_A_GPU = 8


@dataclass(frozen=True)
class Looker:
    """A network with the settings that decide its prediction.

    Attributes:
        loaded: The network.
        kinds: Requested kinds of mask.
        window: Sliding window (height, width) over the network's input.
        flip: Average with the mirrored image.
        temperature: Temperature of the confidence; None if not calibrated.
        abstain: Pixels with less confidence are ignored.
        batch: Images of one size per batch.
    """

    loaded: build.LoadedRun
    kinds: Sequence[str]
    window: tuple[int, int] | None
    flip: bool
    temperature: float | None
    abstain: float | None
    batch: int

    def facts(self) -> dict[str, Any]:
        """Return the settings that the masks depend on, as JSON values."""
        loaded = self.loaded
        return {
            "checkpoint": str(loaded.checkpoint.resolve()),
            "step": loaded.step,
            "checkpoint_sha256": loaded.sha256,
            "flip": self.flip,
            "window": None if self.window is None else list(self.window),
            "temperature": self.temperature,
            "abstain": self.abstain,
            "classes": build.class_document(loaded.classes),
        }

    def prepared(self, name: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an upright image resized to the network's input size.

        Raises:
            DataError: Logits are requested, but an image of this size is predicted in tiles, which
                do not return logits.
        """
        size = network_size((image.shape[0], image.shape[1]), trained_size(self.loaded.recipe))
        if "logits" in self.kinds and seen_in_tiles(size):
            raise DataError(
                f"{name}: {size[1]}x{size[0]} pixels are predicted in tiles, without logits; "
                "leave logits out of --save"
            )
        return resize_image(image, size)

    def look(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Kept]:
        """Return the predictions of prepared images of one size.

        Args:
            images: From `prepared`.
            sizes: Original (height, width) of each image, upright.
        """
        predictions = label_images(
            self.loaded.segmenter,
            images,
            sizes,
            device=self.loaded.device,
            window=self.window,
            flip=self.flip,
            confidence="confidence" in self.kinds or self.abstain is not None,
            logits="logits" in self.kinds,
            temperature=self.temperature or 1.0,
        )
        results = []
        while predictions:  # pop one by one, so that each large confidence map is freed early
            prediction = predictions.pop(0)
            gray = None
            if prediction.confidence is not None:
                if self.abstain is not None:
                    # `not >=`, so that NaN counts as no confidence
                    prediction.labels[~(prediction.confidence >= self.abstain)] = IGNORE
                gray = grey(prediction.confidence) if "confidence" in self.kinds else None
            results.append(Kept(prediction.labels, gray, prediction.logits))
        return results


def looker(
    loaded: build.LoadedRun,
    kinds: Sequence[str],
    *,
    weights: str,
    window: tuple[int, int] | None,
    flip: bool,
    abstain: float | None,
    calibrated: bool,
    batch: int | None,
) -> Looker:
    """Return the predictor; the temperature is read only if confidence is needed.

    Raises:
        DataError: The run's calibration is damaged, or belongs to another checkpoint.
    """
    needs_confidence = "confidence" in kinds or abstain is not None
    temperature = None
    if needs_confidence and calibrated:
        temperature = read_temperature(loaded.checkpoint, weights)
    if batch is None:
        batch = _ON_A_GPU if loaded.device.type == "cuda" else 1
    return Looker(loaded, kinds, window, flip, temperature, abstain, batch)


def lying_as_stored(prediction: Kept, orientation: int) -> Kept:
    """Rotate the prediction of an upright image back to the orientation of the stored file."""
    if orientation == 1:
        return prediction
    turned = replace(prediction, labels=as_stored(prediction.labels, orientation))
    if prediction.grey is not None:
        turned = replace(turned, grey=as_stored(prediction.grey, orientation))
    if prediction.logits is not None:
        planes = as_stored(prediction.logits.transpose(1, 2, 0), orientation).transpose(2, 0, 1)
        turned = replace(turned, logits=np.ascontiguousarray(planes))
    return turned
