"""How `udaseg predict` looks at images: size, flips, confidence, and where it abstains."""

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
    """A network and all that decides what it says of an image.

    Attributes:
        loaded: The network.
        kinds: Of mask that are wanted.
        window: Sliding window (height, width) over the network's input.
        flip: Average with the mirrored image.
        temperature: Of the confidence; None where nobody fitted one.
        abstain: Confidence below which a pixel is ignored.
        batch: Images of one size to look at together.
    """

    loaded: build.LoadedRun
    kinds: Sequence[str]
    window: tuple[int, int] | None
    flip: bool
    temperature: float | None
    abstain: float | None
    batch: int

    def facts(self) -> dict[str, Any]:
        """Return what masks depend on, as JSON values."""
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
        """Return an upright image at the size that the network sees.

        Raises:
            DataError: Its logits are wanted, but it is seen in tiles, which have none of their own.
        """
        size = network_size((image.shape[0], image.shape[1]), trained_size(self.loaded.recipe))
        if "logits" in self.kinds and seen_in_tiles(size):
            raise DataError(
                f"{name}: {size[1]}x{size[0]} pixels are seen in tiles, whose logits are not kept; "
                "leave logits out of --save"
            )
        return resize_image(image, size)

    def look(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Kept]:
        """Return what is kept of what the network says of prepared images of one size.

        Args:
            images: From `prepared`.
            sizes: (height, width) of each as it came, upright.
        """
        said = label_images(
            *(self.loaded.segmenter, images, sizes),
            device=self.loaded.device,
            window=self.window,
            flip=self.flip,
            confidence="confidence" in self.kinds or self.abstain is not None,
            logits="logits" in self.kinds,
            temperature=self.temperature or 1.0,
        )
        kept = []
        while said:  # one after another: a large confidence is let go of as soon as can be
            each = said.pop(0)
            shade = None
            if each.confidence is not None:
                if self.abstain is not None:
                    # a confidence that is not a number is none
                    each.labels[~(each.confidence >= self.abstain)] = IGNORE
                shade = grey(each.confidence) if "confidence" in self.kinds else None
            kept.append(Kept(each.labels, shade, each.logits))
        return kept


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
    """Return how to look; a temperature is read only where confidence is asked for.

    Raises:
        DataError: The run's calibration is damaged, or of another checkpoint.
    """
    confident = "confidence" in kinds or abstain is not None
    temperature = None
    if confident and calibrated:
        temperature = read_temperature(loaded.checkpoint, weights)
    if batch is None:
        batch = _ON_A_GPU if loaded.device.type == "cuda" else 1
    return Looker(loaded, kinds, window, flip, temperature, abstain, batch)


def lying_as_stored(said: Kept, orientation: int) -> Kept:
    """Return what was said of an upright image as the file stores it."""
    if orientation == 1:
        return said
    turned = replace(said, labels=as_stored(said.labels, orientation))
    if said.grey is not None:
        turned = replace(turned, grey=as_stored(said.grey, orientation))
    if said.logits is not None:
        planes = as_stored(said.logits.transpose(1, 2, 0), orientation).transpose(2, 0, 1)
        turned = replace(turned, logits=np.ascontiguousarray(planes))
    return turned
