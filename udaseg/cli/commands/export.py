"""The `udaseg export` command."""

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
    refuse_options,
)
from udaseg.cli.verbosity import set_verbosity


def export(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
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
    import udaseg
    from udaseg.display.console import open_console, safe_text

    console = open_console(soft_wrap=True)
    if form == "state-dict":
        given = {"--argmax": argmax, "--input": pixels != "uint8", "--images": images != 3}
        refuse_options("--format state-dict writes the weights alone", given)
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
