"""The prediction for an image, as Python users receive it."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.data.files.orientation import to_stored, to_upright
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.display.pictures import color_mask, comparison_sheet, legend
from udaseg.errors import UsageError
from udaseg.inference import masks
from udaseg.inference.input_images import InputImage
from udaseg.inference.options import parse_mask_kind
from udaseg.inference.predictor import ImageLabels
from udaseg.inference.sizes import size_within
from udaseg.text import percent

_PANEL_PX = 640
_MIN_LEGEND_PX = 320
_NUM_CLASSES_IN_REPR = 3


@dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """The class of each pixel of an image.

    The fields have the size and orientation of the stored image, as the masks of `udaseg predict`;
    `color`, `overlay` and `plot` are for people, and upright.

    Attributes:
        ids: (H, W) uint8 class ids, the index of `names`; 255 where the network abstains.
        confidence: (H, W) float32 probability of the class in `ids`.
        classes: Classes of the network.
        image: (H, W, 3) uint8 RGB, the image.
        path: File of the image or video; None if it had none.
        frame: Index of the frame in a video; None for an image.
        orientation: EXIF orientation of the image, 1 to 8.

    Example:
        model = udaseg.load("runs/city-rccr")
        prediction = model.predict("street.jpg")
        prediction.ids[200, 300], prediction.names
        prediction.save("street_classes.png")
        prediction.plot().show()
    """

    ids: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    classes: ClassSpace
    image: NDArray[np.uint8]
    path: Path | None = None
    frame: int | None = None
    orientation: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.classes.names

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """The RGB colour of each class, 0 to 255."""
        return self.classes.colors

    def color(self) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB, upright, in the colour of each class; black without a class.

        Example:
            model.predict("street.jpg").color().shape
        """
        return color_mask(to_upright(self.ids, self.orientation), self.colors)

    def overlay(self, alpha: float = 0.5) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB, upright: the image, under the class colours if it has a class.

        Args:
            alpha: Share of the class colour, 0 to 1.

        Example:
            model.predict("street.jpg").overlay(alpha=0.3)
        """
        image, ids = self._upright()
        return masks.blend_colors(image, ids, self.classes, opacity=alpha)

    def counts(self) -> dict[str, int]:
        """Return the number of pixels of each class.

        Example:
            model.predict("street.jpg").counts()["road"]
        """
        counts = masks.count_ids(self.ids)
        return {name: int(counts[index]) for index, name in enumerate(self.names)}

    def shares(self) -> dict[str, float]:
        """Return the share of each class in the pixels of the image, 0 to 1.

        The shares sum to less than 1 if the network abstains.

        Example:
            model.predict("street.jpg").shares()["road"]
        """
        return {name: count / self.ids.size for name, count in self.counts().items()}

    def plot(self) -> Image.Image:
        """Return a picture of the image, the mask and a legend of its classes, upright.

        Returns:
            A Pillow image: `show()` opens it, `save(path)` writes it, a notebook displays it.

        Example:
            model.predict("street.jpg").plot().save("street.png")
        """
        # shrunk before it is coloured: a large mask in colours would take three times its memory
        image, ids = self._upright()
        size = size_within((ids.shape[0], ids.shape[1]), _PANEL_PX)
        picture, mask = resize_image(image, size), resize_labels(ids, size)
        sheet = comparison_sheet([[picture, color_mask(mask, self.colors)]], ["image", "classes"])
        present = [index for index, count in enumerate(masks.count_ids(self.ids)[:IGNORE]) if count]
        width = max(sheet.shape[1], _MIN_LEGEND_PX)
        names, colors = [self.names[i] for i in present], [self.colors[i] for i in present]
        margin = np.full((sheet.shape[0], width - sheet.shape[1], 3), 255, np.uint8)
        return Image.fromarray(
            np.vstack([np.hstack([sheet, margin]), legend(names, colors, width)])
        )

    def save(self, path: str | os.PathLike[str], kind: str = "color") -> None:
        """Write the mask as a PNG, as `udaseg predict` does; an existing file is replaced.

        Args:
            path: The file, `*.png`; its folder is created.
            kind: `color` (ids with the class colours as palette), `ids`, `label-ids` (those of
                Cityscapes), `overlay`, or `confidence` (0 to 255).

        Raises:
            UsageError: There is no such kind, the classes have no label ids, or the path is not a
                PNG.

        Example:
            model.predict("street.jpg").save("street_ids.png", kind="ids")
        """
        parsed, file = parse_mask_kind("kind", kind), Path(path)
        if parsed == "logits":
            raise UsageError("kind: a prediction holds no logits; call the model itself for them")
        if file.suffix.lower() != ".png":
            raise UsageError(f"{file}: masks are PNG files, other formats change the ids; use .png")
        grey = masks.confidence_to_grey(self.confidence) if parsed == "confidence" else None
        content = masks.MaskContent(self.ids, grey, orientation=self.orientation)
        masks.write_masks({parsed: file}, self.image, content, self.classes)

    def _upright(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image and ids as viewers show them."""
        return to_upright(self.image, self.orientation), to_upright(self.ids, self.orientation)

    def __repr__(self) -> str:
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        listed = [f"{name} {percent(share)} %" for name, share in shares if share]
        source = [] if self.path is None else [repr(str(self.path))]
        frame = [] if self.frame is None else [f"frame {self.frame}"]
        height, width = self.ids.shape
        facts = [*source, *frame, f"{width}x{height}", *listed[:_NUM_CLASSES_IN_REPR]]
        return f"Prediction({', '.join(facts)})"


def make_prediction(labels: ImageLabels, image: InputImage, classes: ClassSpace) -> Prediction:
    """Return the prediction of upright labels, with confidence, for an image as stored."""
    assert labels.confidence is not None
    return Prediction(
        to_stored(labels.labels, image.orientation),
        to_stored(labels.confidence, image.orientation),
        classes,
        image.pixels,
        path=image.path,
        frame=image.frame,
        orientation=image.orientation,
    )
