"""The `udaseg features` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, OutputFormat, Quiet, Root, Run, Verbose, WeightsOption
from udaseg.cli.verbosity import set_verbosity


def features(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(
            help="Target: prepared data set, dataset YAML or folder of images. Default: the "
            "recipe's validation data, else its target."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the target. Default: that of the recipe, or val.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Maximum number of images of each domain.")
    ] = 50,
    points: Annotated[
        int, typer.Option(min=1, help="Maximum number of points of each class and domain.")
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of the files. Default: in the run folder."),
    ] = None,
    weights: WeightsOption = "student",
    output_format: OutputFormat = "table",
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw features of both domains (PCA, t-SNE) and measure distances of classes."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks

    check_networks(run, device=device, data=data, split=split, root=root)
    import udaseg
    from udaseg.cli.printing.features import print_features
    from udaseg.display.console import print_json

    options = udaseg.FeatureOptions(
        images=images, points=points, weights=weights, out=out, device=device, root=root
    )
    seen = udaseg.features(run, data=data, split=split, options=options)
    if output_format == "json":
        print_json(seen.to_json())
    else:
        print_features(seen)
