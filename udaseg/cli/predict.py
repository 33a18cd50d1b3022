"""The words of `udaseg predict`."""

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
    pixels,
    saves,
)
from udaseg.cli.talk import talk
from udaseg.errors import UsageError


class VideoForm(StrEnum):
    """What the coloured masks of a video become."""

    mp4 = "mp4"
    webm = "webm"
    avi = "avi"
    frames = "frames"


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Images, videos, folders, patterns.", show_default=False
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT|RUN", help="By default the newest finished run."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the masks.")] = Path("masks"),
    save: Annotated[
        str, typer.Option(help="Any of color,ids,label-ids,overlay,confidence,logits, with commas.")
    ] = "color,ids",
    video: Annotated[
        VideoForm,
        typer.Option(help="What color and overlay of a video become; the others are frames."),
    ] = VideoForm.mp4,
    abstain: Annotated[
        float | None,
        typer.Option(metavar="P", help="Mark pixels with less confidence, 0 to 1, as ignore: 255."),
    ] = None,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Leave out what `udaseg calibrate` found.")
    ] = False,
    weights: WeightsOption = Weights.student,
    device: AnyDevice = "auto",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images of one size at once; by default 1, on a GPU 8."),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the masks that are done.")] = False,
    flip: Flip = False,
    window: Window = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a mask for each image and each frame of a video."""
    kinds, window_px = saves(save), pixels("--window", window)
    if overwrite and resume:
        raise UsageError("--overwrite makes every mask anew, --resume keeps them; give one of them")
    if abstain is not None and not 0 < abstain < 1:
        raise UsageError(f"--abstain is a confidence between 0 and 1, as 0.5, got {abstain:g}")
    talk(verbose, quiet)
    from udaseg import commands

    commands.predict(
        inputs=inputs,
        checkpoint=checkpoint,
        out=out,
        save=kinds,
        video=video.value,
        abstain=abstain,
        calibrated=not uncalibrated,
        weights=weights.value,
        device=device,
        batch=batch,
        overwrite=overwrite,
        resume=resume,
        flip=flip,
        window=window_px,
    )
