"""The words of `udaseg eval`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from udaseg.cli.options import (
    AnyDevice,
    Flip,
    Format,
    Quiet,
    Root,
    Verbose,
    Weights,
    WeightsOption,
    Window,
    factors,
    pixels,
)
from udaseg.cli.talk import talk
from udaseg.errors import UsageError

_PROTOCOLS = (19, 16, 13)


class LabelIds(StrEnum):
    """Which ids a prediction PNG holds."""

    train = "train"
    label = "label"


class TestServer(StrEnum):
    """Who is to take a package of predictions."""

    cityscapes = "cityscapes"
    acdc = "acdc"
    dark_zurich = "dark-zurich"


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT|RUN", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Prepared name or dataset YAML; by default the recipe's.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to score; val, or test with --submit.")
    ] = None,
    weights: WeightsOption = Weights.student,
    flip: Flip = False,
    scales: Annotated[str, typer.Option(help="Scales to average over, with commas.")] = "1.0",
    window: Window = None,
    protocol: Annotated[
        int | None, typer.Option(metavar="19|16|13", help="Classes that the mean takes.")
    ] = None,
    convention: Annotated[
        int | None,
        typer.Option(
            metavar="19|16",
            help="Truth of terrain, truck, train: 19 counts it, 16 ignores it (for SYNTHIA).",
        ),
    ] = None,
    release: Annotated[
        bool,
        typer.Option("--release", help="Score at 1024x512, as the code of DACS and RCCR does."),
    ] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time; by default 4 on a GPU, else 1.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this folder of PNGs instead of a run.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also write each prediction as a PNG below this folder.")
    ] = None,
    ids: Annotated[
        LabelIds, typer.Option(help="Ids in those PNGs: train ids or Cityscapes label ids.")
    ] = LabelIds.train,
    submit: Annotated[
        TestServer | None, typer.Option(help="Make a checked package for a test server instead.")
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="Of stdout.")] = Format.table,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit with 7 if mIoU, in percent, is below.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the scores or package; by default in the run.")
    ] = None,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a run, a checkpoint or a folder of predictions on labelled images."""
    if protocol is not None and protocol not in _PROTOCOLS:
        raise UsageError(f"--protocol is 19, 16 or 13, got {protocol}")
    if convention not in (None, 19, 16):
        raise UsageError(f"--convention is 19 or 16, got {convention}")
    scale_factors, window_px = factors(scales), pixels("--window", window)
    talk(verbose, quiet)
    scored: dict[str, Any] = {
        "protocol": protocol,
        "convention": convention,
        "format": output_format.value,
        "fail_under": fail_under,
    }
    looked: dict[str, Any] = {
        "flip": flip,
        "scales": scale_factors,
        "window": window_px,
        "batch": batch,
    }
    odd = {
        "CHECKPOINT|RUN": run is not None,
        "--weights": weights is not Weights.student,
        "--flip": flip,
        "--scales": scale_factors != (1.0,),
        "--window": window_px is not None,
        "--batch": batch is not None,
        "--save": save is not None,
        "--submit": submit is not None,
    }
    from udaseg import commands

    if predictions is not None:
        _refuse("--predictions scores files, no network", odd)
        if data is None:
            raise UsageError("--predictions needs --data: what the files are predictions of")
        commands.evaluate_files(
            predictions=predictions,
            ids=ids.value,
            data=data,
            split=split or "val",
            release=release,
            out=out,
            root=root,
            **scored,
        )
        return
    if run is None:
        raise UsageError("Missing argument 'CHECKPOINT|RUN'; or give --predictions DIR --data DATA")
    where: dict[str, Any] = {"out": out, "device": device, "root": root}
    if submit is not None:
        _refuse(
            "--submit makes a package and scores nothing",
            {
                "--protocol": protocol is not None,
                "--convention": convention is not None,
                "--release": release,
                "--save": save is not None,
                "--ids": ids is not LabelIds.train,
                "--fail-under": fail_under is not None,
            },
        )
        commands.submit(
            run=run,
            server=submit.value,
            data=data,
            split=split,
            weights=weights.value,
            **looked,
            **where,
        )
        return
    commands.evaluate(
        run=run,
        data=data,
        split=split or "val",
        weights=weights.value,
        release=release,
        save=save,
        ids=ids.value,
        **looked,
        **scored,
        **where,
    )


def _refuse(why: str, given: dict[str, bool]) -> None:
    others = [name for name, present in given.items() if present]
    if others:
        raise UsageError(f"{why}; leave out {', '.join(others)}")
