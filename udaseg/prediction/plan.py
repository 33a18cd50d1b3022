"""Plan the masks of `predict`: the files that each image and video becomes.

Paths are texts here: 100,000 of them are handled in a second, and take little memory.
"""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Self, overload

from udaseg.errors import UsageError
from udaseg.files import sha256
from udaseg.inference.options import MaskKind
from udaseg.prediction.inputs import Inputs, is_video, sort_key

log = logging.getLogger(__name__)

_FRAMES_SUFFIX = ".frames"
_RECORD_FOLDER = "videos"
_COLOR_KINDS = ("color", "overlay")


@dataclass(frozen=True)
class Job:
    """One image or video and its masks.

    Attributes:
        image: Its path.
        masks: File of each kind of mask; for some kinds of a video, a folder of frames.
        record: For a video, the list of outputs written; it is written last.
    """

    image: Path
    masks: dict[MaskKind, Path]
    record: Path | None = None

    def writes_frames(self, kind: MaskKind) -> bool:
        """Return whether this kind of mask is written as a folder of video frames."""
        return self.record is not None and self.masks[kind].suffix == _FRAMES_SUFFIX


@dataclass(frozen=True)
class Plan(Sequence[Job]):
    """The jobs of all inputs, or a slice of them; each job is made when it is taken.

    Attributes:
        inputs: Absolute paths, those of images before those of videos, each sorted.
        base: The deepest folder that all inputs of the command share.
        out: Folder of the masks.
        kinds: Kinds of mask.
        video: Suffix of colour videos, or `frames` to write frames there too.
        videos: Those of the inputs that are videos.
        with_suffix: Inputs whose masks keep their suffix, because another has the same stem.
        tags: What the names of the masks of some inputs end in, because another has the same name.
    """

    inputs: Sequence[str]
    base: str
    out: Path
    kinds: Sequence[MaskKind]
    video: str
    videos: Set[str] = frozenset()
    with_suffix: Set[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Job | Self:
        if isinstance(index, slice):
            return replace(self, inputs=self.inputs[index])
        return self.job(self.inputs[index])

    def job(self, image: str) -> Job:
        """Return the job of an input."""
        outputs = [*map(Path, self.outputs(image))]
        masks = dict(zip(self.kinds, outputs, strict=False))
        return Job(Path(image), masks, outputs[-1] if image in self.videos else None)

    def outputs(self, image: str) -> list[str]:
        """Return the path of each kind of mask of an input; for a video, its record is last."""
        name, tag = self._relative(image), self.tags.get(image, "")
        stem = name if image in self.with_suffix else os.path.splitext(name)[0]
        if image not in self.videos:
            return [f"{start}{stem}{tag}{end}" for start, end in self._image_outputs]
        return [
            *(
                f"{start}{stem}{tag}.{self.video}"
                if self.video != "frames" and kind in _COLOR_KINDS
                else f"{start}{name}{tag}{_FRAMES_SUFFIX}"
                for kind, (start, _) in zip(self.kinds, self._image_outputs, strict=True)
            ),
            os.path.join(self.out, _RECORD_FOLDER, f"{name}{tag}.json"),
        ]

    def _relative(self, path: str) -> str:
        return path[len(self.base) :].lstrip(os.sep)

    @cached_property
    def _image_outputs(self) -> list[tuple[str, str]]:
        """The start and end of the path of each kind of mask of an image."""
        return [(os.path.join(self.out, kind, ""), file_suffix(kind)) for kind in self.kinds]

    def all_outputs(self) -> Iterator[str]:
        """Yield the outputs of all inputs."""
        for image in self.inputs:
            yield from self.outputs(image)

    def folders(self) -> set[str]:
        """Return the folders of all outputs."""
        inputs = {self._relative(folder) for folder in map(os.path.dirname, self.inputs)}
        return {
            os.path.join(self.out, kind, folder)
            for kind in (*self.kinds, _RECORD_FOLDER)
            for folder in inputs
        }

    def split(self) -> tuple[Self, Self]:
        """Return the plans of the images and of the videos."""
        images = [path for path in self.inputs if path not in self.videos]
        videos = [path for path in self.inputs if path in self.videos]
        return replace(self, inputs=images), replace(self, inputs=videos)

    def existing(self) -> list[str]:
        """Return the outputs that exist, also as links to nothing."""
        if not os.path.lexists(self.out):
            return []
        return [path for path in self.all_outputs() if os.path.lexists(path)]

    def missing_first(self) -> Self:
        """Return the same jobs, those with all of their outputs last."""
        found = set(self.existing())
        order = sorted(self.inputs, key=lambda image: found.issuperset(self.outputs(image)))
        return replace(self, inputs=order)


def file_suffix(kind: MaskKind) -> str:
    """Return the file suffix of a kind of mask."""
    return ".npy" if kind == "logits" else ".png"


def plan_outputs(
    inputs: Inputs, out: Path, kinds: Sequence[MaskKind], *, video: str = "mp4"
) -> Plan:
    """Return one job per input: `<out>/<kind>/<path of the image>.png`, logits as `.npy`.

    The path is relative to the deepest folder shared by all inputs, so folders of equal names stay
    apart. `a.jpg` becomes `a.png`; if `a.png` is another input next to it, both keep their suffix:
    `a.jpg.png` and `a.png.png`. Of names that differ only in case or Unicode form, which some file
    systems hold for one, all but the first get a digest, and a warning says so. For a video
    `a.mov`, colour kinds become the video `a.mp4`; all other kinds would be changed by a codec and
    become frames `a.mov.frames/000000.png` and so on.

    An output in an input folder or that would overwrite an input, and an input in `out`, are
    refused.

    Args:
        inputs: The inputs.
        out: Folder of the masks.
        kinds: Kinds of mask.
        video: Suffix of colour videos, or `frames` to write frames there too.
    """
    videos = set(filter(is_video, inputs.images))
    images = sorted(inputs.images, key=lambda path: (path in videos, sort_key(path)))
    stems = {path: (path in videos, _fold_case(os.path.splitext(path)[0])) for path in images}
    # of names that differ only in case, all but the first get a digest
    counts = Counter({_fold_case(path): stem for path, stem in stems.items()}.values())
    with_suffix = {path for path, stem in stems.items() if counts[stem] > 1}
    plan = Plan(images, _shared_folder(inputs), out, kinds, video, videos, with_suffix)
    plan = replace(plan, tags=_tags_of_equal_names(plan))
    _refuse_mixing_with_inputs(plan, inputs)
    return plan


def _shared_folder(inputs: Inputs) -> str:
    """Return the deepest folder that all inputs are in."""
    parents = {*map(os.path.dirname, inputs.images), *map(str, inputs.folders)}
    return os.path.commonpath(parents)


def _fold_case(path: str) -> str:
    """Return a path folded as on a file system that ignores case and Unicode normal form."""
    return unicodedata.normalize("NFC", path).casefold()


def _tags_of_equal_names(plan: Plan) -> dict[str, str]:
    """Return a digest of the image's name for each input whose outputs are taken by another.

    The digest does not depend on other images, so that a later command gives the same names. The
    inputs stand in the order of their right to a name.
    """
    folders = {parent for folder in plan.folders() for parent in _and_parents(folder)}
    taken, tags = set(map(_fold_case, folders)), dict[str, str]()
    tagged = replace(plan, tags=tags)
    for image in plan.inputs:
        attempts = 0
        while not taken.isdisjoint(folded := [*map(_fold_case, tagged.outputs(image))]):
            attempts += 1
            digest = sha256(os.fsencode(os.path.basename(image)) + b" %d" % attempts)
            tags[image] = f"-{digest[:6]}"
        taken.update(folded)
    if tags:
        first = next(iter(tags))
        log.warning(
            "%d of the inputs get masks with a digest in the name, such as %s for %s: where case "
            "and Unicode form do not count, the name alone is that of another mask",
            len(tags),
            tagged.outputs(first)[0],
            first,
        )
    return tags


def _and_parents(folder: str) -> Iterator[str]:
    yield folder
    yield from map(str, Path(folder).parents)


def _refuse_mixing_with_inputs(plan: Plan, inputs: Inputs) -> None:
    """Refuse outputs below an input folder, inputs below `out`, and outputs that are inputs."""
    # realpath, because Path.resolve raises on a link to itself
    target = os.path.realpath(plan.out)
    for folder in inputs.folders:
        if Path(target).is_relative_to(folder.resolve()):
            raise UsageError(
                f"{plan.out}: lies in the input folder {folder}, so the "
                "next prediction would read the masks as images; choose another --out"
            )
    existing = plan.existing()
    files = set(map(_file_identity, plan.inputs if existing else ())) - {None}
    for mask in existing:
        if _file_identity(mask) in files:  # even under another name, case or link
            raise UsageError(
                f"{mask}: is also an input and would be overwritten; choose another --out"
            )
    if not os.path.lexists(target):  # then no input is in it
        return
    inside = os.path.join(target, "")
    for image, real in zip(plan.inputs, _real_paths(plan.inputs), strict=True):
        if real.startswith(inside):
            raise UsageError(
                f"{image}: this input is inside the output folder {plan.out}; choose another --out"
            )


def _real_paths(paths: Sequence[str]) -> Iterator[str]:
    """Yield the paths without links; each folder is resolved once."""
    real_folder = cache(os.path.realpath)
    for path in paths:
        if os.path.islink(path):
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        folder, name = os.path.split(path)
        real = os.path.join(real_folder(folder), name)
        yield os.path.realpath(real) if os.path.islink(real) else real


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
