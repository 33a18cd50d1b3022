"""The `udaseg export` and `udaseg import` commands: networks to and from other software."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from udaseg.cli.options import (
    Overwrite,
    Quiet,
    Root,
    Run,
    Verbose,
    WeightsOption,
    parse_dilations,
    refuse_options,
)
from udaseg.cli.verbosity import set_verbosity


def export(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Output file. Default: model.onnx or model.safetensors in the run folder.",
        ),
    ] = None,
    form: Annotated[
        Literal["onnx", "state-dict"],
        typer.Option("--format", help="ONNX, or the weights alone, which model.weights takes."),
    ] = "onnx",
    argmax: Annotated[
        bool, typer.Option("--argmax", help="Output labels (uint8) instead of logits.")
    ] = False,
    pixels: Annotated[
        Literal["uint8", "float"],
        typer.Option("--input", help="RGB input as uint8 0..255 or float 0..1."),
    ] = "uint8",
    weights: WeightsOption = "student",
    images: Annotated[
        int,
        typer.Option(min=0, help="Number of target images to check the file with (0: no check)."),
    ] = 3,
    overwrite: Overwrite = False,
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export the network to ONNX for any image size and check it, or export its weights."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks, check_output

    if form == "state-dict":
        given = {"--argmax": argmax, "--input": pixels != "uint8", "--images": images != 3}
        refuse_options("--format state-dict writes the weights alone", given)
    if out is not None:
        suffix = ".onnx" if form == "onnx" else ".safetensors"
        check_output(out, suffix, f"--format {form} writes {suffix} files", overwrite=overwrite)
    check_networks(run, root=root)
    import udaseg
    from udaseg.display.console import open_console, safe_text

    console = open_console(soft_wrap=True)
    if form == "state-dict":
        path = udaseg.export_state_dict(run, out=out, weights=weights, overwrite=overwrite)
        console.print(safe_text(f"{path}: {path.stat().st_size / 1e6:.1f} MB"))
        return
    exported = udaseg.export(
        run,
        out=out,
        argmax=argmax,
        pixels=pixels,
        weights=weights,
        images=images,
        overwrite=overwrite,
        root=root,
    )
    megabytes = exported.path.stat().st_size / 1e6
    signature = f"{exported.input} -> {exported.output}"
    console.print(safe_text(f"{exported.path}: {megabytes:.1f} MB, {signature}"))
    if exported.comparison is not None:
        console.print(safe_text(exported.comparison.summary()))


def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Checkpoint of the released code of RCCR, DACS, AdaptSegNet, ADVENT, FDA or SPCL.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Run folder. Default: runs/imported-FILE."),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="Recipe of what the network was trained on and how large images are."),
    ] = "gta5_cityscapes/source_only",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data set, or dataset YAML, with the classes of the outputs. Default: cityscapes "
            "for 19, synthia for 16.",
        ),
    ] = None,
    dilations: Annotated[
        str | None,
        typer.Option(
            metavar="6,12",
            help="Dilations of the classifier that are added. Default: 6,12, for SPCL 6,12,18,24; "
            "give 6,12,18,24 for ADVENT and FDA.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Make a run of a checkpoint of released code, for eval, predict and --init."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_runs

    chosen = None if dilations is None else parse_dilations(dilations)
    check_runs(checkpoint)
    import udaseg
    from udaseg.display.console import open_console, safe_text

    run = udaseg.import_checkpoint(
        checkpoint,
        out=out,
        recipe=recipe,
        classes=classes,
        dilations=chosen,
        overwrite=overwrite,
    )
    model = run.recipe.model
    facts = f"{model.backbone}, {model.input} images, dilations {list(model.aspp_dilations)}"
    open_console(soft_wrap=True).print(safe_text(f"{run.path}: {facts}"))
