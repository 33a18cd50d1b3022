"""`udaseg predict`: the classes of images and videos in files, folders and patterns."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

from udaseg.data.files.bands import require_rasterio
from udaseg.files import one_or_more
from udaseg.prediction.inputs import refuse_other_files, resolve_inputs
from udaseg.prediction.options import PredictOptions
from udaseg.prediction.outputs import refuse_existing
from udaseg.prediction.plan import plan_outputs
from udaseg.runs.folder import newest_finished_run
from udaseg.runs.manifests import refuse_without_checkpoint

if TYPE_CHECKING:
    from udaseg.inference.prediction import Prediction
    from udaseg.inference.trained_model import Model

_Path: TypeAlias = str | os.PathLike[str]
_Inputs: TypeAlias = _Path | Sequence[_Path]
_Network: TypeAlias = "Model | _Path | None"
_Options: TypeAlias = PredictOptions | None


@dataclass(frozen=True)
class PredictSummary:
    """What `predict` has written.

    Attributes:
        folders: Folder of each kind of mask, and the file, or folder, of each annotation tool.
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


@overload
def predict(
    inputs: _Inputs, model: _Network = None, *, out: None = None, options: _Options = None
) -> "Iterator[Prediction]": ...


@overload
def predict(
    inputs: _Inputs, model: _Network = None, *, out: _Path, options: _Options = None
) -> PredictSummary: ...


def predict(
    inputs: _Inputs, model: _Network = None, *, out: _Path | None = None, options: _Options = None
) -> "Iterator[Prediction] | PredictSummary":
    """Predict images and videos: yield the predictions, or write masks to `out`.

    Without `out`, nothing is written. Predictions come in the order of the inputs, one for each
    image and one for each frame of a video; they are computed while you iterate. Inputs that cannot
    be read are skipped with a logged warning. The options of writing (`save`, `video`, `overwrite`,
    `resume`) do not apply.

    With `out`, masks have the size and orientation of the stored image; those of a video have the
    size and orientation of its displayed frames. Inputs that cannot be read are listed in
    `failures.csv` and in the result. The processes of torchrun share the inputs, and each returns
    the result of all.

    The network sees everything upright, at its training resolution.

    Args:
        inputs: A file, folder (searched recursively) or pattern, or several.
        model: A `Model`, or a run or checkpoint to load; None takes the newest finished run below
            `runs/`.
        out: Output folder of the masks, `<out>/<kind>/<path>.png`; None writes nothing.
        options: What to write, and how to predict; None uses the defaults.

    Returns:
        Without `out`, an iterator over predictions; their confidence uses the run's temperature.
        With `out`, what was written.

    Raises:
        UsageError: Masks exist already, or would overwrite the inputs; nothing is written.
        DataError: An input does not exist, or none is readable; the iterator raises the latter at
            its end.
        CheckpointError: The run has no readable checkpoint.
        EnvironmentFault: A mask cannot be written; the masks before it are complete.
        Interrupted: SIGINT, SIGTERM or SIGHUP was received while writing; the masks written so far
            are complete.

    Example:
        for prediction in udaseg.predict("photos/", "runs/city-rccr"):
            print(prediction.path, prediction.shares()["road"])
        summary = udaseg.predict("photos/", "runs/city-rccr", out="masks")
        print(summary.images, summary.failures)
    """
    options = options or PredictOptions()
    resolved = resolve_inputs(one_or_more(inputs))
    plan = None
    if out is not None:
        if "geotiff" in options.label_files:
            require_rasterio("--save geotiff")
        plan = plan_outputs(resolved, Path(out), options.kinds, video=options.video)
        if options.shard is not None:
            number, count = options.shard
            plan = plan[number - 1 :: count]
        if not (options.overwrite or options.resume):
            refuse_existing(plan)
    if model is None:
        model = newest_finished_run(Path("runs"))
    if isinstance(model, str | os.PathLike):
        refuse_without_checkpoint(Path(model))
    refuse_other_files(resolved.images)
    # what is wrong so far is refused before torch is imported, which takes seconds
    from udaseg.prediction.predictions import stream, write_all

    if plan is None:
        return stream(resolved.images, model, options)
    return PredictSummary(**write_all(plan, model, options))
