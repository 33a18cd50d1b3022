"""The `udaseg eval` command: score a run or prediction files, or package predictions."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from udaseg.cli import options
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import GateError, UsageError

LabelIds = Literal["train", "label"]
TestServer = Literal["cityscapes", "acdc", "dark-zurich"]


def evaluate(
    run: options.OptionalRun = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Name of a prepared data set, or dataset YAML; several, separated by commas, give "
            "a table of them. Default: the recipe's validation data, else its target."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to score. Default: val; with --submit: test.")
    ] = None,
    weights: options.WeightsOption = "student",
    flip: options.Flip = False,
    scales: Annotated[str, typer.Option(help="Comma-separated scales to average over.")] = "1.0",
    window: options.Window = None,
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
        Path | None,
        typer.Option(file_okay=False, help="Score the PNG files in this folder instead of a run."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Also write each prediction as a PNG to this folder."),
    ] = None,
    ids: Annotated[
        LabelIds,
        typer.Option(
            help="Train ids or Cityscapes label ids in the PNGs of --predictions, --save."
        ),
    ] = "train",
    submit: Annotated[
        TestServer | None,
        typer.Option(help="Write a package for this test server instead of scoring."),
    ] = None,
    output_format: Annotated[
        options.ScoreFormat, typer.Option("--format", help="Output format.")
    ] = "table",
    fail_under: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Exit with code 7 if mIoU is below this percentage."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder of the scores or the package. Default: in the run folder.",
        ),
    ] = None,
    device: options.AnyDevice = "auto",
    root: options.Root = Path("data"),
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a run, a checkpoint or predictions on labelled images."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and (predictions or submit):
        raise UsageError("--predictions and --submit need one process; run them without torchrun")
    factors = options.parse_scales(scales)
    window_size = options.parse_height_width("--window", window)
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks
    from udaseg.recipe.choices import check_scoring

    check_scoring(protocol, convention)
    for name in data.split(",") if data else [None]:
        check_networks(run, device=device, data=name, split=split, scored=submit is None, root=root)
    import udaseg
    from udaseg.cli.printing.scores import print_matrix, print_scores, print_submission

    if predictions is not None:
        options.refuse_options(
            "--predictions scores files and runs no network",
            {
                "CHECKPOINT|RUN": run is not None,
                "--weights": weights != "student",
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
        scores = udaseg.score_predictions(
            predictions=predictions,
            data=data,
            split=split or "val",
            ids=ids,
            release=release,
            scoring=udaseg.ScoringOptions(protocol, convention, out),
            root=root,
        )
    elif run is None:
        raise UsageError(
            "Missing argument 'CHECKPOINT|RUN'; give one, or --predictions DIR --data DATA"
        )
    elif submit is not None:
        options.refuse_options(
            "--submit writes a package and computes no scores",
            {
                "--protocol": protocol is not None,
                "--convention": convention is not None,
                "--release": release,
                "--save": save is not None,
                "--ids": ids != "train",
                "--fail-under": fail_under is not None,
            },
        )
        inference = udaseg.InferenceOptions(
            flip=flip, scales=factors, window=window_size, batch=batch
        )
        packaging = udaseg.SubmissionOptions(weights, inference, out, device, root)
        package = udaseg.submit(run=run, server=submit, data=data, split=split, options=packaging)
        print_submission(package)
        return
    else:
        evaluation = udaseg.EvaluationOptions(
            weights=weights,
            inference=udaseg.InferenceOptions(
                flip=flip, scales=factors, window=window_size, release=release, batch=batch
            ),
            scoring=udaseg.ScoringOptions(protocol, convention, out),
            save=save,
            ids=ids,
            device=device,
            root=root,
        )
        if data is not None and "," in data:
            names = options.parse_names("--data", data)
            matrix = udaseg.evaluate_each(run, names, split=split or "val", options=evaluation)
            print_matrix(matrix, output_format)
            _check_gate(matrix.average, fail_under)
            return
        scores = udaseg.evaluate(run=run, data=data, split=split or "val", options=evaluation)
    print_scores(scores, output_format)
    _check_gate(scores.means, fail_under)


def _check_gate(means: Mapping[str, float], fail_under: float | None) -> None:
    """Fail if the first mean is below `fail_under` percent, or was not measured."""
    if fail_under is None:
        return
    label, miou = next(iter(means.items()))
    if not 100 * miou >= fail_under:
        raise GateError(f"{label} is {100 * miou:.2f}, below --fail-under {fail_under:g}")
