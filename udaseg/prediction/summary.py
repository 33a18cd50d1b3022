"""The result of writing masks, as Python users receive it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PredictSummary:
    """What `predict` has written.

    Attributes:
        folders: Folder of each kind of mask.
        image_inputs: Number of images that the inputs name.
        video_inputs: Number of videos that the inputs name.
        images: Number of images predicted.
        videos: Number of videos predicted.
        frames: Number of frames of these videos.
        kept: Number of inputs whose masks existed already.
        failures: The reason for each input that could not be predicted.
        failures_file: Table of the failures.
        pixels: Number of newly predicted pixels of each class.
        abstained: Number of newly predicted pixels without a class.

    Example:
        summary = udaseg.predict("photos/", "runs/city-rccr", out="masks")
        summary.images, summary.failures, summary.shares()["road"]
    """

    folders: Mapping[str, Path]
    image_inputs: int
    video_inputs: int
    images: int
    videos: int
    frames: int
    kept: int
    failures: Mapping[Path, str]
    failures_file: Path
    pixels: Mapping[str, int]
    abstained: int

    def shares(self) -> dict[str, float]:
        """Return the share of each class in the newly predicted pixels, 0 to 1.

        The shares sum to less than 1 if the network abstains; they are 0 if nothing was predicted.

        Example:
            summary.shares()["road"]
        """
        total = sum(self.pixels.values()) + self.abstained
        return {name: count / max(1, total) for name, count in self.pixels.items()}
