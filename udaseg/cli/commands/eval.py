"""The `udaseg eval` command."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from udaseg import InferenceOptions, ScoringOptions

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
    arguments = _Arguments(
        run=run,
        data=data,
        split=split,
        weights=weights,
        flip=flip,
        scales=parse_scales(scales),
        window=parse_height_width("--window", window),
        protocol=protocol,
        convention=convention,
        release=release,
        batch=batch,
        save=save,
        ids=ids,
        submit=submit,
        format=output_format,
        fail_under=fail_under,
        out=out,
        device=device,
        root=root,
    )
    set_verbosity(verbose, quiet)
    if predictions is not None:
        _score_files(predictions, arguments)
    elif run is None:
        raise UsageError(
            "Missing argument 'CHECKPOINT|RUN'; give one, or --predictions DIR --data DATA"
        )
    elif submit is not None:
        _write_package(run, submit, arguments)
    else:
        _score_run(run, arguments)


@dataclass(frozen=True)
class _Arguments:
    """The arguments of the command; every mode takes some of them."""

    run: Path | None
    data: str | None
    split: str | None
    weights: Weights
    flip: bool
    scales: tuple[float, ...]
    window: tuple[int, int] | None
    protocol: int | None
    convention: int | None
    release: bool
    batch: int | None
    save: Path | None
    ids: LabelIds
    submit: TestServer | None
    format: Format
    fail_under: float | None
    out: Path | None
    device: str
    root: Path


def _score_run(run: Path, arguments: _Arguments) -> None:
    import udaseg

    options = udaseg.EvaluationOptions(
        data=arguments.data,
        split=arguments.split or "val",
        weights=arguments.weights.value,
        inference=_inference_options(arguments),
        scoring=_scoring_options(arguments),
        save=arguments.save,
        ids=arguments.ids.value,
        device=arguments.device,
        root=arguments.root,
    )
    udaseg.evaluate(run=run, options=options)


def _score_files(predictions: Path, arguments: _Arguments) -> None:
    _refuse_options(
        "--predictions scores files and runs no network",
        {
            "CHECKPOINT|RUN": arguments.run is not None,
            "--weights": arguments.weights is not Weights.student,
            "--flip": arguments.flip,
            "--scales": arguments.scales != (1.0,),
            "--window": arguments.window is not None,
            "--batch": arguments.batch is not None,
            "--save": arguments.save is not None,
            "--submit": arguments.submit is not None,
        },
    )
    if arguments.data is None:
        raise UsageError("--predictions needs --data DATA, the data set of the predictions")
    import udaseg

    udaseg.score_predictions(
        predictions=predictions,
        data=arguments.data,
        split=arguments.split or "val",
        ids=arguments.ids.value,
        release=arguments.release,
        scoring=_scoring_options(arguments),
        root=arguments.root,
    )


def _write_package(run: Path, server: TestServer, arguments: _Arguments) -> None:
    _refuse_options(
        "--submit writes a package and computes no scores",
        {
            "--protocol": arguments.protocol is not None,
            "--convention": arguments.convention is not None,
            "--release": arguments.release,
            "--save": arguments.save is not None,
            "--ids": arguments.ids is not LabelIds.train,
            "--fail-under": arguments.fail_under is not None,
        },
    )
    import udaseg

    options = udaseg.SubmissionOptions(
        data=arguments.data,
        split=arguments.split,
        weights=arguments.weights.value,
        inference=_inference_options(arguments),
        out=arguments.out,
        device=arguments.device,
        root=arguments.root,
    )
    udaseg.submit(run=run, server=server.value, options=options)


def _inference_options(arguments: _Arguments) -> "InferenceOptions":
    import udaseg

    return udaseg.InferenceOptions(
        flip=arguments.flip,
        scales=arguments.scales,
        window=arguments.window,
        release=arguments.release,
        batch=arguments.batch,
    )


def _scoring_options(arguments: _Arguments) -> "ScoringOptions":
    import udaseg

    return udaseg.ScoringOptions(
        protocol=arguments.protocol,
        convention=arguments.convention,
        format=arguments.format.value,
        fail_under=arguments.fail_under,
        out=arguments.out,
    )


def _refuse_options(reason: str, given: dict[str, bool]) -> None:
    """Raise `UsageError` if one of these options is given."""
    others = [name for name, is_given in given.items() if is_given]
    if others:
        raise UsageError(f"{reason}; leave out {', '.join(others)}")
