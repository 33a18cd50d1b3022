"""Options that several commands have, each written once, and the words they are made of."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from udaseg.errors import UsageError
from udaseg.recipe import close

_SAVES = ("color", "ids", "label-ids", "overlay", "confidence", "logits")


class OnMismatch(StrEnum):
    """What to do with a label of another size than its image."""

    exclude = "exclude"
    resize = "resize"
    fail = "fail"


class CacheFormat(StrEnum):
    """How cached images are stored."""

    png = "png"
    raw = "raw"


class Weights(StrEnum):
    """Whose weights of a checkpoint."""

    student = "student"
    teacher = "teacher"


class Format(StrEnum):
    """How scores are printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


class Precision(StrEnum):
    """Arithmetic of the network."""

    fp32 = "fp32"
    bf16 = "bf16"


class Criterion(StrEnum):
    """By which checkpoints are compared without target labels."""

    entropy = "entropy"
    infomax = "infomax"
    snd = "snd"
    teacher = "teacher"
    flip = "flip"
    source = "source"
    drift = "drift"


Root = Annotated[
    Path, typer.Option("--root", envvar="UDASEG_DATA", help="Folder of the prepared data.")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="A recipe file or a shipped one (`udaseg recipes ls`); changes, with dots in the key.",
        show_default=False,
    ),
]
Source = Annotated[str | None, typer.Option(help="A prepared name or a dataset YAML.")]
Target = Annotated[
    str | None, typer.Option(help="A prepared name, a dataset YAML, or a folder of images.")
]
Out = Annotated[Path | None, typer.Option(help="Run folder; else one below runs/.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.")]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="0,1,2", help="Several seeds, one after another; again goes on where it stopped."
    ),
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="torch.compile the networks.")
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic", help="The same bits each time, or a warning."
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[Precision | None, typer.Option(help="Arithmetic of the network.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Batch = Annotated[int | None, typer.Option(help="Images a step from each domain.")]
Workers = Annotated[int | None, typer.Option(help="Loader processes; -1 chooses.")]
Resume = Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run exactly.")]
Init = Annotated[
    Path | None, typer.Option(metavar="CHECKPOINT", help="Start from these weights only.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over what is there.")]
FitMemory = Annotated[
    bool, typer.Option("--fit", help="Make a step that does not fit in memory in smaller parts.")
]
TensorBoard = Annotated[
    bool | None,
    typer.Option(
        "--tensorboard/--no-tensorboard",
        help="Write for TensorBoard; by default where its package is installed.",
        show_default=False,
    ),
]
KeepBest = Annotated[
    Criterion | None,
    typer.Option(help="Also keep the best checkpoint by this, without target labels."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print recipe and plan, then stop.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say only what went wrong.")]
WeightsOption = Annotated[Weights, typer.Option(help="Whose weights to use.")]
AnyDevice = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")]
Window = Annotated[
    str | None, typer.Option(metavar="HxW", help="Slide a window of this size in pixels.")
]
Run = Annotated[Path, typer.Argument(metavar="CHECKPOINT|RUN", show_default=False)]


def pixels(option: str, text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of an option written `HxW`."""
    if text is None:
        return None
    match = re.fullmatch("([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if match is None:
        raise UsageError(f"{option} is HEIGHTxWIDTH in pixels, as 512x1024, got {text}")
    return int(match[1]), int(match[2])


def width_by_height(option: str, text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of an option written `WxH`, as sizes of images are spoken."""
    if text is None:
        return None
    match = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise UsageError(f"{option} is WIDTHxHEIGHT in pixels, as 1280x720, got {text}")
    return int(match[2]), int(match[1])


def factors(text: str) -> tuple[float, ...]:
    """Return the scales written with commas."""
    words = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", factor) for factor in words):
        raise UsageError(f"--scales is numbers with commas, as 0.75,1.0,1.25, got {text}")
    if not all(0.1 <= float(factor) <= 10 for factor in words):
        raise UsageError(f"--scales is between 0.1 and 10, got {text}")
    return tuple(map(float, words))


def seeds(text: str) -> tuple[int, ...]:
    """Return the seeds written with commas, each once."""
    words = text.split(",")
    if not all(re.fullmatch("[0-9]{1,10}", word) for word in words) or len(set(words)) < len(words):
        raise UsageError(f"--seeds is different whole numbers with commas, as 0,1,2, got {text}")
    return tuple(map(int, words))


def saves(text: str) -> tuple[str, ...]:
    """Return the kinds of output written with commas, each once."""
    words = tuple(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in _SAVES:
            hint = close(word, _SAVES)
            instead = f"; did you mean '{hint}'?" if hint else ""
            raise UsageError(f"--save is any of {', '.join(_SAVES)}, got '{word}'{instead}")
    return words
