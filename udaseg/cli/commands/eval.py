"""The `udaseg eval` command: score a run or prediction files, or package predictions."""

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
from udaseg.errors import GateError, UsageError

if TYPE_CHECKING:
    from udaseg import InferenceOptions, Scores, ScoringOptions


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
    factors, window_size = parse_scales(scales), parse_height_width("--window", window)
    set_verbosity(verbose, quiet)
    if predictions is not None:
        _refuse_options(
            "--predictions scores files and runs no network",
            {
                "CHECKPOINT|RUN": run is not None,
                "--weights": weights is not Weights.student,
                "--flip": flip,
                "--scales": factors != (1.0,),
                "--window": window is not None,
                "--batch": batch is not None,
                "--save": save is not None,
                "--submit": submit is not None,
            },
        )
        if data is None:
            raise UsageError("--predictions needs --data DATA, the data set of the predictions")
        scoring = _scoring_options(protocol, convention, out)
        scores = _score_files(predictions, data, split, ids, release, scoring, root)
    elif run is None:
        raise UsageError(
            "Missing argument 'CHECKPOINT|RUN'; give one, or --predictions DIR --data DATA"
        )
    elif submit is not None:
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
        inference = _inference_options(flip, factors, window_size, batch)
        _write_package(run, submit, data, split, weights, inference, out, device, root)
        return
    else:
        scoring = _scoring_options(protocol, convention, out)
        inference = _inference_options(flip, factors, window_size, batch, release=release)
        scores = _score_run(run, data, split, weights, inference, scoring, save, ids, device, root)
    _report(scores, output_format, fail_under)


def _score_run(
    run: Path,
    data: str | None,
    split: str | None,
    weights: Weights,
    inference: "InferenceOptions",
    scoring: "ScoringOptions",
    save: Path | None,
    ids: LabelIds,
    device: str,
    root: Path,
) -> "Scores":
    import udaseg

    options = udaseg.EvaluationOptions(
        weights=weights.value,
        inference=inference,
        scoring=scoring,
        save=save,
        ids=ids.value,
        device=device,
        root=root,
    )
    return udaseg.evaluate(run=run, data=data, split=split or "val", options=options)


def _score_files(
    predictions: Path,
    data: str,
    split: str | None,
    ids: LabelIds,
    release: bool,
    scoring: "ScoringOptions",
    root: Path,
) -> "Scores":
    import udaseg

    return udaseg.score_predictions(
        predictions=predictions,
        data=data,
        split=split or "val",
        ids=ids.value,
        release=release,
        scoring=scoring,
        root=root,
    )


def _write_package(
    run: Path,
    server: TestServer,
    data: str | None,
    split: str | None,
    weights: Weights,
    inference: "InferenceOptions",
    out: Path | None,
    device: str,
    root: Path,
) -> None:
    import udaseg
    from udaseg.cli.printing.scores import print_submission

    options = udaseg.SubmissionOptions(
        weights=weights.value, inference=inference, out=out, device=device, root=root
    )
    print_submission(
        udaseg.submit(run=run, server=server.value, data=data, split=split, options=options)
    )


def _scoring_options(
    protocol: int | None, convention: int | None, out: Path | None
) -> "ScoringOptions":
    import udaseg

    return udaseg.ScoringOptions(protocol=protocol, convention=convention, out=out)


def _inference_options(
    flip: bool,
    scales: tuple[float, ...],
    window: tuple[int, int] | None,
    batch: int | None,
    *,
    release: bool = False,
) -> "InferenceOptions":
    import udaseg

    return udaseg.InferenceOptions(
        flip=flip, scales=scales, window=window, batch=batch, release=release
    )


def _refuse_options(reason: str, given: dict[str, bool]) -> None:
    """Raise `UsageError` if one of these options is given."""
    others = [name for name, is_given in given.items() if is_given]
    if others:
        raise UsageError(f"{reason}; leave out {', '.join(others)}")


def _report(scores: "Scores", output_format: Format, fail_under: float | None) -> None:
    """Print the scores, then check the gate.

    Raises:
        GateError: The first mean is below `fail_under` percent, or was not measured.
    """
    from udaseg.cli.printing.scores import print_scores

    print_scores(scores, output_format)
    if fail_under is not None and not 100 * scores.miou >= fail_under:
        label = next(iter(scores.means))
        raise GateError(f"{label} is {100 * scores.miou:.2f}, below --fail-under {fail_under:g}")
