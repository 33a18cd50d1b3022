"""Write the mask files of one image."""

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.images import Pixels, write_png
from udaseg.data.files.orientation import to_stored, to_upright
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.tables import stored_id_table
from udaseg.display.pictures import color_mask, confidence_image, overlay
from udaseg.files import write_atomic
from udaseg.inference.labels import bands
from udaseg.inference.options import MaskKind
from udaseg.inference.predictor import ImageLabels

_BAND_ROWS = 256


@dataclass(frozen=True)
class MaskContent:
    """The parts of an image's prediction that are written to disk, as the image is stored.

    Attributes:
        labels: (H, W) train ids, `IGNORE` where the network abstains.
        grey: (H, W) confidence as 0..255; None if not requested.
        logits: (K, h, w); None if not requested.
        orientation: EXIF orientation of the image, 1 to 8.
    """

    labels: Pixels
    grey: Pixels | None = None
    logits: NDArray[np.float32] | None = None
    orientation: int = 1


def mask_content(
    prediction: ImageLabels, kinds: Collection[MaskKind], orientation: int = 1
) -> MaskContent:
    """Return what masks of an image need, as stored, from the prediction of the upright image."""
    grey = logits = None
    if "confidence" in kinds:
        assert prediction.confidence is not None
        grey = to_stored(confidence_to_grey(prediction.confidence), orientation)
    if prediction.logits is not None:
        logits = np.stack([to_stored(plane, orientation) for plane in prediction.logits])
    return MaskContent(to_stored(prediction.labels, orientation), grey, logits, orientation)


def blend_colors(
    image: Pixels, labels: Pixels, classes: ClassSpace, *, opacity: float = 0.5
) -> Pixels:
    """Return an RGB image with the class colours over it; ignored pixels stay unchanged."""
    blend = np.empty_like(image)
    for rows in bands(len(image), _BAND_ROWS):
        blend[rows] = overlay(
            image[rows], color_mask(labels[rows], classes.colors), opacity=opacity
        )
        np.copyto(blend[rows], image[rows], where=(labels[rows] == IGNORE)[..., None])
    return blend


def confidence_to_grey(confidence: NDArray[np.float32]) -> Pixels:
    """Convert (H, W) confidence in [0, 1] to grey values 0..255."""
    picture = np.empty(confidence.shape, np.uint8)
    for rows in bands(len(confidence), _BAND_ROWS):
        picture[rows] = confidence_image(confidence[rows])
    return picture


def count_ids(labels: Pixels) -> NDArray[np.int64]:
    """Return (256,) pixel counts, one per id."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for rows in bands(len(labels), _BAND_ROWS):  # np.bincount makes a copy eight times as large
        counts += np.bincount(labels[rows].ravel(), minlength=IGNORE + 1)
    return counts


def write_masks(
    masks: Mapping[MaskKind, Path], image: Pixels, prediction: MaskContent, classes: ClassSpace
) -> None:
    """Write each kind of mask of an image; each file is written atomically.

    The kinds: `ids` (train ids, 255 where the network abstains), `label-ids` (those of Cityscapes,
    0 where it abstains), `color` (train ids with the class colours as palette), `overlay` (colours
    over the image), `confidence` (0..255), `logits` (K, h, w) float32. Those for people
    (`UPRIGHT_KINDS`) are upright, the others have the stored orientation.
    """
    labels = prediction.labels
    for kind, path in masks.items():
        match kind:
            case "ids":
                write_png(path, labels)
            case "label-ids":
                table = np.frombuffer(stored_id_table(classes, "label"), np.uint8)
                write_png(path, np.asarray(cv2.LUT(labels, table), np.uint8))
            case "color":
                upright = to_upright(labels, prediction.orientation)
                write_png(path, upright, palette=_palette(labels, classes))
            case "overlay":
                upright = to_upright(labels, prediction.orientation)
                blend = blend_colors(to_upright(image, prediction.orientation), upright, classes)
                cv2.cvtColor(blend, cv2.COLOR_RGB2BGR, dst=blend)
                write_png(path, blend, bgr=True)
            case "confidence":
                assert prediction.grey is not None
                write_png(path, prediction.grey)
            case "logits":
                assert prediction.logits is not None
                buffer = io.BytesIO()
                np.save(buffer, prediction.logits, allow_pickle=False)
                write_atomic(path, buffer.getvalue())
            case _:
                assert_never(kind)


def _palette(labels: Pixels, classes: ClassSpace) -> tuple[tuple[int, int, int], ...]:
    """Return the class colours; padded with black to 255 if `IGNORE` occurs, as PNG requires."""
    padding = IGNORE + 1 - len(classes) if (labels == IGNORE).any() else 0
    return (*classes.colors, *[(0, 0, 0)] * padding)
