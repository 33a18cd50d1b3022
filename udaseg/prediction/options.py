"""What `predict` writes and how it predicts. Imports nothing heavy: the command line checks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from udaseg.errors import UsageError
from udaseg.inference.options import MASK_KINDS, MaskKind, check_ranges, unknown_kind_message

LabelFile = Literal["coco", "labelme", "label-studio", "cvat", "geotiff"]
LABEL_FILES: tuple[LabelFile, ...] = get_args(LabelFile)
"""Files of annotation tools, and of maps, that masks can be written to."""

_WHOLE_FILES = ("coco", "label-studio", "cvat")
VIDEO_FORMATS = ("mp4", "webm", "avi", "frames")


@dataclass(frozen=True)
class PredictOptions:
    """What `predict` writes, and how it predicts.

    Attributes:
        save: Kinds of mask to write, as names or as one text with commas: `color`, `ids`,
            `label-ids`, `overlay`, `confidence`, `logits`. Files of annotation tools, `coco`,
            `labelme`, `label-studio` and `cvat`, and `geotiff` for images that are GeoTIFFs, are
            written from `ids`, which are saved, too.
        video: Container for `color` and `overlay` of a video: `mp4`, `webm`, `avi` or `frames`.
        overwrite: Overwrite existing masks; all of them are removed before the first is written.
        resume: Keep existing intact masks, if the same network made them with the same options.
        weights: `better` takes the student, or the network that it was compared with if `worth_it`
            found it to be worse; or `student` or `teacher`. A `Model` has its own.
        device: Device to compute on; a `Model` stays where it is.
        flip: Average with the mirrored image.
        window: Sliding window (height, width) over the network's input.
        abstain: Pixels with less confidence become ignore; None keeps all.
        calibrated: Use the temperature saved by `udaseg calibrate`, if there is one.
        batch: Images of one size per batch; None chooses.
        bands: Three bands of TIFFs that are read as red, green and blue, the first is 0; None takes
            those of the run, or gray, RGB or RGBA.
        shard: (I, N): predict only every Nth input, from the Ith on; other commands do the others.
        bits: Bits that the values of 16-bit images use, 8 to 16; None takes those of the run, or 16
            if it has seen no such images.

    Raises:
        UsageError: A kind or container does not exist, `abstain` is not between 0 and 1, options
            contradict each other, or a file of all images is to be written from a shard.

    Example:
        options = udaseg.PredictOptions(save=("ids", "overlay"), flip=True)
        udaseg.predict("photos/", "runs/city-rccr", out="masks", options=options)
    """

    save: str | Sequence[str] = ("color", "ids")
    video: str = "mp4"
    overwrite: bool = False
    resume: bool = False
    weights: str = "better"
    device: str = "auto"
    flip: bool = False
    window: tuple[int, int] | None = None
    abstain: float | None = None
    calibrated: bool = True
    batch: int | None = None
    bits: int | None = None
    bands: tuple[int, int, int] | None = None
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        known = (*MASK_KINDS, *LABEL_FILES)
        for word in self._words:
            if word not in known:
                raise UsageError(unknown_kind_message("--save", word, known))
        if self.video not in VIDEO_FORMATS:
            raise UsageError(f"--video must be any of {', '.join(VIDEO_FORMATS)}, got {self.video}")
        if self.overwrite and self.resume:
            raise UsageError(
                "--overwrite replaces existing masks, --resume keeps them; give only one"
            )
        if self.shard is not None:
            self._check_shard(*self.shard)
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise UsageError(f"--bits must be 8 to 16, got {self.bits}")
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 0):
            raise UsageError(f"--bands must be three whole numbers from 0, got {self.bands}")
        check_ranges(window=self.window, batch=self.batch, abstain=self.abstain)

    def _check_shard(self, number: int, count: int) -> None:
        if not 1 <= number <= count:
            raise UsageError(
                f"--shard must be from 1/{count} to {count}/{count}, got {number}/{count}"
            )
        if self.overwrite:
            raise UsageError(
                "--overwrite replaces the masks of all images, --shard writes those of some; "
                "choose a new --out"
            )
        whole = [kind for kind in self.label_files if kind in _WHOLE_FILES]
        if whole:
            raise UsageError(
                f"--save {','.join(whole)} is one file of all images, which a shard has not; save "
                "ids, and once all shards are done, repeat the command without --shard and with "
                f"--resume --save ids,{','.join(whole)}"
            )

    @property
    def _words(self) -> tuple[str, ...]:
        words = self.save.split(",") if isinstance(self.save, str) else self.save
        return tuple(dict.fromkeys(words))

    @property
    def kinds(self) -> tuple[MaskKind, ...]:
        """The kinds of mask in `save`, without repetitions, and `ids` for label files."""
        words = (*self._words, *(["ids"] if self.label_files else []))
        return tuple(kind for word in dict.fromkeys(words) for kind in MASK_KINDS if kind == word)

    @property
    def label_files(self) -> tuple[LabelFile, ...]:
        """The files of annotation tools in `save`."""
        return tuple(kind for word in self._words for kind in LABEL_FILES if kind == word)
