"""The `udaseg predict` command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import (
    AnyDevice,
    Flip,
    Overwrite,
    Quiet,
    Verbose,
    Weights,
    WeightsOption,
    Window,
    parse_height_width,
    parse_outputs,
)
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import UsageError


class VideoFormat(StrEnum):
    """Container of the color and overlay output of a video."""

    mp4 = "mp4"
    webm = "webm"
    avi = "avi"
    frames = "frames"


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Images, videos, folders or glob patterns.", show_default=False
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT|RUN",
            help="Checkpoint file or run folder. Default: the newest finished run.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("masks"),
    save: Annotated[
        str,
        typer.Option(
            help="Outputs, comma-separated: color, ids, label-ids, overlay, confidence, logits."
        ),
    ] = "color,ids",
    video: Annotated[
        VideoFormat,
        typer.Option(
            help="Container for color and overlay videos; other outputs are written as frames."
        ),
    ] = VideoFormat.mp4,
    abstain: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Mark pixels with a confidence below P (0 to 1) as ignore (255).",
        ),
    ] = None,
    uncalibrated: Annotated[
        bool,
        typer.Option("--uncalibrated", help="Ignore the calibration saved by `udaseg calibrate`."),
    ] = False,
    weights: WeightsOption = Weights.student,
    device: AnyDevice = "auto",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Batch size (of images of equal size). Default: 8 on a GPU, otherwise 1."
        ),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep existing masks and write only the missing ones.")
    ] = False,
    flip: Flip = False,
    window: Window = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a mask for each image and each video frame."""
    kinds, window_px = parse_outputs(save), parse_height_width("--window", window)
    if overwrite and resume:
        raise UsageError("--overwrite replaces existing masks, --resume keeps them; give only one")
    if abstain is not None and not 0 < abstain < 1:
        raise UsageError(f"--abstain must be a confidence between 0 and 1, as 0.5, got {abstain:g}")
    set_verbosity(verbose, quiet)
    import udaseg

    udaseg.predict(
        inputs=inputs,
        checkpoint=checkpoint,
        out=out,
        options=udaseg.PredictOptions(
            save=kinds,
            video=video.value,
            overwrite=overwrite,
            resume=resume,
            weights=weights.value,
            device=device,
            flip=flip,
            window=window_px,
            abstain=abstain,
            calibrated=not uncalibrated,
            batch=batch,
        ),
    )
