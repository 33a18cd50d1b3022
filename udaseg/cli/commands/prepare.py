"""The commands `udaseg prepare`, `udaseg init` and `udaseg tile`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli import options
from udaseg.cli.verbosity import set_verbosity
from udaseg.errors import DataError, UsageError
from udaseg.text import count_text


def prepare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Names of built-in data sets, or dataset YAML files.",
            show_default=False,
        ),
    ],
    root: options.Root = Path("data"),
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Check all files without writing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="List files changed since the last prepare.")
    ] = False,
    max_bad: Annotated[
        int, typer.Option(min=0, help="Maximum number of damaged files to leave out.")
    ] = 0,
    on_mismatch: Annotated[
        options.OnMismatch, typer.Option(help="What to do when label and image sizes differ.")
    ] = "exclude",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Leave out the files that this rule of the data set lists; repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of toyland.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="[H,W]", help="Height and width of the toyland images.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of threads (-1: one per core).")] = -1,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="WxH|N",
            help="Also cache the training images, of this size or with this short side.",
        ),
    ] = None,
    cache_format: Annotated[
        options.CacheFormat, typer.Option(help="raw loads faster and needs zstd.")
    ] = "png",
    cache_resampling: Annotated[
        options.Resampling, typer.Option(help="How the cache is resized, as in the recipe.")
    ] = "area",
    output_format: options.OutputFormat = "table",
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Check and index data sets for training."""
    size_px = options.parse_height_width("--size", size)
    cache_px = options.parse_resize("--cache", cache)
    if check_only and cache is not None:
        raise UsageError("--check-only writes nothing; leave out --cache")
    if verify and (check_only or cache is not None):
        raise UsageError("--verify cannot be combined with --check-only or --cache")
    set_verbosity(verbose, quiet)
    import udaseg

    if verify:
        _verify(names, root, workers, output_format)
        return
    prepare_options = udaseg.PrepareOptions(
        max_bad=max_bad,
        on_mismatch=on_mismatch,
        exclude=tuple(exclude or ()),
        check_only=check_only,
        seed=seed,
        size=size_px,
        workers=workers,
        cache=None
        if cache_px is None
        else udaseg.CacheOptions(cache_px, cache_format, cache_resampling),
    )
    failure = None
    try:
        reports = udaseg.prepare(names=names, root=root, options=prepare_options)
    except udaseg.SomeDataFailed as error:
        failure, reports = error, error.finished
    from udaseg.cli.printing.prepare import print_reports

    print_reports(reports, output_format)
    if failure is not None:
        raise failure


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the data set.", show_default=False)
    ],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of the images.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Argument(
            metavar="LABELS",
            help="Folder of the labels, or the file of all labels. Without it, there are none.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The YAML. Default: NAME.yaml."),
    ] = None,
    overwrite: options.Overwrite = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a dataset YAML for your images and labels, to be checked."""
    set_verbosity(verbose, quiet)
    import udaseg

    report = udaseg.init_dataset(
        name=name, images=images, labels=labels, out=out, overwrite=overwrite
    )
    from udaseg.display.console import print_line

    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    found = "without labels"
    if report.label_format is not None:
        found = f"labels {report.label_format}, {count_text(report.classes, 'class', 'classes')}"
    print_line(f"{report.path}: images {counts}; {found}")
    if report.unpaired:
        files = count_text(report.unpaired, "image or label", "images and labels")
        print_line(f"{files} without a partner; `udaseg prepare` names them")
    file = shlex.quote(str(report.path))
    check = "" if report.label_format is None else f"check the classes in {file}, then "
    print_line(f"next: {check}udaseg prepare {file}")


def tile(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Name of a prepared data set, dataset YAML, or image folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", file_okay=False, help="A new folder for the tiles.", show_default=False
        ),
    ],
    size: Annotated[int, typer.Option(min=16, help="Side of a tile in pixels.")] = 512,
    root: options.Root = Path("data"),
    workers: Annotated[int, typer.Option(help="Number of threads (-1: one per core).")] = -1,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Cut large images and their labels into tiles, which load faster."""
    set_verbosity(verbose, quiet)
    import udaseg

    tiles = udaseg.tile(data, out, size=size, root=root, workers=workers)
    from udaseg.display.console import print_line

    counts = ", ".join(f"{split} {count:,}" for split, count in tiles.counts.items())
    print_line(f"{tiles.path}: tiles {counts}")
    print_line(f"next: udaseg prepare {shlex.quote(str(tiles.path))}")


def _verify(names: list[str], root: Path, workers: int, output_format: str) -> None:
    import udaseg

    faults = []
    try:
        results = udaseg.verify_data(names=names, root=root, workers=workers)
    except udaseg.SomeDataFailed as error:
        results = error.finished
        faults.append(str(error))
    from udaseg.cli.printing.prepare import format_changes, json_of_verification, print_unchanged
    from udaseg.display.console import print_json

    if output_format == "json":
        print_json([json_of_verification(result) for result in results])
    else:
        for result in results:
            if result.ok:
                print_unchanged(result)
    faults = [*(format_changes(result) for result in results if not result.ok), *faults]
    if faults:
        raise DataError("\n\n".join(faults))
