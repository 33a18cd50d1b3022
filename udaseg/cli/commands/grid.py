"""The `udaseg grid` command."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import AnyDevice, Quiet, Root, Verbose, WeightsOption, parse_names
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import UsageError


def grid(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders or checkpoints, one column each: a baseline first.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Prepared data set, dataset YAML or folder of images. Default: the validation "
            "data of the last run, else its target."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to show. Default: that of the recipe, or val.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Number of images, evenly spaced over the split.")
    ] = 4,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Show these images instead: a part of each one's name."
        ),
    ] = None,
    titles: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Titles of the runs. Default: the names of their folders."
        ),
    ] = None,
    width: Annotated[int, typer.Option(min=16, help="Width of each picture in pixels.")] = 480,
    out: Annotated[Path, typer.Option(metavar="FILE", dir_okay=False, help="Output file.")] = Path(
        "grid.png"
    ),
    weights: WeightsOption = "student",
    device: AnyDevice = "auto",
    root: Root = Path("data"),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write images, the masks of runs and the truth, side by side, as one PNG."""
    set_verbosity(verbose, quiet)
    from udaseg.preflight import check_networks, check_output

    check_output(out, ".png", "the picture is a PNG")
    named = titles.split(",") if titles else None
    if named is not None and len(named) != len(runs):
        raise UsageError(f"{len(runs)} runs need as many titles, got {len(named)}")
    check_networks(*runs, device=device, data=data, split=split, root=root)
    import udaseg
    from udaseg.display.console import print_line

    options = udaseg.GridOptions(
        images=images,
        pick=parse_names("--pick", pick) if pick else (),
        titles=tuple(named) if named else None,
        width=width,
        weights=weights,
        device=device,
        root=root,
    )
    path = udaseg.grid(runs, data=data, split=split, out=out, options=options)
    print_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
