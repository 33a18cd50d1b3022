"""The `udaseg eval` command."""

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
    parse_height_width,
    parse_scales,
)
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import UsageError

_PROTOCOLS = (19, 16, 13)


class LabelIds(StrEnum):
    """Kind of class ids in a prediction PNG."""

    train = "train"
    label = "label"


class TestServer(StrEnum):
    """Test server that a package of predictions is for."""

    cityscapes = "cityscapes"
    acdc = "acdc"
    dark_zurich = "dark-zurich"


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT|RUN", help="Checkpoint file or run folder.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Name of a prepared data set, or dataset YAML. Default: the recipe's validation "
            "data, else its target."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to score. Default: val; with --submit: test.")
    ] = None,
    weights: WeightsOption = Weights.student,
    flip: Flip = False,
    scales: Annotated[str, typer.Option(help="Comma-separated scales to average over.")] = "1.0",
    window: Window = None,
    protocol: Annotated[
        int | None, typer.Option(metavar="19|16|13", help="Classes included in mIoU.")
    ] = None,
    convention: Annotated[
        int | None,
        typer.Option(
            metavar="19|16",
            help="Count (19) or ignore (16) the labels of terrain, truck and train (for SYNTHIA).",
        ),
    ] = None,
    release: Annotated[
        bool,
        typer.Option(
            "--release", help="Score at 1024x512, as the released DACS and RCCR code does."
        ),
    ] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Batch size. Default: 4 on a GPU, otherwise 1.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score the PNG files in this folder instead of a run.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also write each prediction as a PNG to this folder.")
    ] = None,
    ids: Annotated[
        LabelIds,
        typer.Option(
            help="Train ids or Cityscapes label ids in the PNGs of --predictions, --save."
        ),
    ] = LabelIds.train,
    submit: Annotated[
        TestServer | None,
        typer.Option(help="Write a package for this test server instead of scoring."),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="Output format.")
    ] = Format.table,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit with code 7 if mIoU is below this percentage.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the scores or the package. Default: in the run folder."),
    ] = None,
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a run, a checkpoint or predictions on labelled images."""
    if protocol is not None and protocol not in _PROTOCOLS:
        raise UsageError(f"--protocol must be 19, 16 or 13, got {protocol}")
    if convention not in (None, 19, 16):
        raise UsageError(f"--convention must be 19 or 16, got {convention}")
    scale_factors, window_px = parse_scales(scales), parse_height_width("--window", window)
    set_verbosity(verbose, quiet)
    scoring_options: dict[str, Any] = {
        "protocol": protocol,
        "convention": convention,
        "format": output_format.value,
        "fail_under": fail_under,
    }
    inference_options: dict[str, Any] = {
        "flip": flip,
        "scales": scale_factors,
        "window": window_px,
        "batch": batch,
    }
    needs_network = {
        "CHECKPOINT|RUN": run is not None,
        "--weights": weights is not Weights.student,
        "--flip": flip,
        "--scales": scale_factors != (1.0,),
        "--window": window_px is not None,
        "--batch": batch is not None,
        "--save": save is not None,
        "--submit": submit is not None,
    }
    import udaseg

    if predictions is not None:
        _refuse_options("--predictions scores files and runs no network", needs_network)
        if data is None:
            raise UsageError("--predictions needs --data DATA, the data set of the predictions")
        udaseg.score_predictions(
            predictions=predictions,
            ids=ids.value,
            data=data,
            split=split or "val",
            release=release,
            out=out,
            root=root,
            **scoring_options,
        )
        return
    if run is None:
        raise UsageError(
            "Missing argument 'CHECKPOINT|RUN'; give one, or --predictions DIR --data DATA"
        )
    places: dict[str, Any] = {"out": out, "device": device, "root": root}
    if submit is not None:
        _refuse_options(
            "--submit writes a package and computes no scores",
            {
                "--protocol": protocol is not None,
                "--convention": convention is not None,
                "--release": release,
                "--save": save is not None,
                "--ids": ids is not LabelIds.train,
                "--fail-under": fail_under is not None,
            },
        )
        udaseg.submit(
            run=run,
            server=submit.value,
            data=data,
            split=split,
            weights=weights.value,
            **inference_options,
            **places,
        )
        return
    udaseg.evaluate(
        run=run,
        data=data,
        split=split or "val",
        weights=weights.value,
        release=release,
        save=save,
        ids=ids.value,
        **inference_options,
        **scoring_options,
        **places,
    )


def _refuse_options(reason: str, given: dict[str, bool]) -> None:
    others = [name for name, present in given.items() if present]
    if others:
        raise UsageError(f"{reason}; leave out {', '.join(others)}")
