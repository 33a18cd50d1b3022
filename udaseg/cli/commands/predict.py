"""The `udaseg predict` command."""

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from udaseg.cli.options import (
    AnyDevice,
    Flip,
    OutputFormat,
    Overwrite,
    Quiet,
    Verbose,
    Window,
    parse_bands,
    parse_height_width,
    parse_shard,
)
from udaseg.cli.verbosity import set_verbosity
from udaseg.display.console import print_json, print_line
from udaseg.errors import PartialError
from udaseg.text import count_text, percent

if TYPE_CHECKING:
    from udaseg import PredictSummary

_MAX_CLASSES_SHOWN = 5
VideoFormat = Literal["mp4", "webm", "avi", "frames"]


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
    out: Annotated[Path, typer.Option(file_okay=False, help="Output folder.")] = Path("masks"),
    save: Annotated[
        str,
        typer.Option(
            help="Outputs, comma-separated: color, ids, label-ids, overlay, confidence, logits, "
            "and files of tools: coco, labelme, label-studio, cvat, geotiff."
        ),
    ] = "color,ids",
    video: Annotated[
        VideoFormat,
        typer.Option(
            help="Container for color and overlay videos; other outputs are written as frames."
        ),
    ] = "mp4",
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
    weights: Annotated[
        Literal["better", "student", "teacher"],
        typer.Option(
            help="better: the student, or the network before its adaptation if that was found to "
            "be better (`udaseg select --worth-it`); or always the student, or the teacher."
        ),
    ] = "better",
    device: AnyDevice = "auto",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Batch size (of images of equal size). Default: 8 on a GPU, otherwise 1."
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Bits that the values of 16-bit images use, such as 12. Default: those of the "
            "images that the run was trained on, otherwise 16.",
        ),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Three bands of TIFFs with more of them, from 0, such as 3,2,1. Default: those of "
            "the images that the run was trained on.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Predict only every Nth input, from the Ith on, such as 1/4; for job schedulers.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep existing masks and write only the missing ones.")
    ] = False,
    flip: Flip = False,
    window: Window = None,
    output_format: OutputFormat = "table",
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a mask for each image and each video frame."""
    window_px = parse_height_width("--window", window)
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks

    check_networks(checkpoint, device=device, root=Path())
    import udaseg

    options = udaseg.PredictOptions(
        save=save,
        video=video,
        overwrite=overwrite,
        resume=resume,
        weights=weights,
        device=device,
        flip=flip,
        window=window_px,
        abstain=abstain,
        calibrated=not uncalibrated,
        batch=batch,
        bits=bits,
        bands=parse_bands(bands),
        shard=parse_shard(shard),
    )
    summary = udaseg.predict(inputs=inputs, model=checkpoint, out=out, options=options)
    if output_format == "json":
        print_json(_json_of_summary(summary))
    else:
        _print_summary(summary)
    if summary.failures:
        total = summary.image_inputs + summary.video_inputs
        noun = "inputs" if summary.video_inputs else "images"
        raise PartialError(
            f"{len(summary.failures)} of {total} {noun} failed, the others are written; "
            f"see {summary.failures_file} for the reasons"
        )


def _json_of_summary(summary: "PredictSummary") -> dict[str, Any]:
    """Return what was written as a JSON object."""
    return {
        **vars(summary),
        "folders": {kind: str(folder) for kind, folder in summary.folders.items()},
        "failures": {str(path): reason for path, reason in summary.failures.items()},
        "failures_file": str(summary.failures_file),
        "pixels": dict(summary.pixels),
        "shares": summary.shares(),
    }


def _print_summary(summary: "PredictSummary") -> None:
    """Print the output folders and the largest classes."""
    parts = []
    if summary.image_inputs or not summary.video_inputs:
        parts.append(f"{count_text(summary.images, 'image')} predicted")
    if summary.videos:
        frames = count_text(summary.frames, "frame")
        parts.append(f"{count_text(summary.videos, 'video')} of {frames} predicted")
    if summary.kept:
        parts.append(f"{summary.kept} kept from an earlier run")
    folders = ", ".join(shlex.quote(str(folder)) for folder in summary.folders.values())
    print_line(f"{', '.join(parts)}: {folders}")
    if summary.images or summary.videos:
        print_line(f"pixels: {_format_class_shares(summary)}")


def _format_class_shares(summary: "PredictSummary") -> str:
    """Return the largest classes with their pixel shares, and the share of abstained pixels."""
    shares = [item for item in Counter(summary.shares()).most_common() if item[1]]
    listed = [f"{name} {percent(share)} %" for name, share in shares[:_MAX_CLASSES_SHOWN]]
    if len(shares) > len(listed):
        listed.append(f"{len(shares) - len(listed)} more classes")
    if summary.abstained:
        total = sum(summary.pixels.values()) + summary.abstained
        listed.append(f"abstained {percent(summary.abstained / total)} %")
    return ", ".join(listed)
