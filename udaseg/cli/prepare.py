"""The words of `udaseg prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.options import (
    CacheFormat,
    OnMismatch,
    Quiet,
    Root,
    Verbose,
    pixels,
    width_by_height,
)
from udaseg.cli.talk import talk
from udaseg.errors import UsageError


def prepare(
    names: Annotated[list[str], typer.Argument(metavar="NAME", show_default=False)],
    root: Root = Path("data"),
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Look at everything, write nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say which files changed since, write nothing.")
    ] = False,
    max_bad: Annotated[int, typer.Option(min=0, help="Damaged files to leave out.")] = 0,
    on_mismatch: Annotated[
        OnMismatch, typer.Option(help="When a label has another size than its image.")
    ] = OnMismatch.exclude,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Leave out the files of a named rule, as gta5 has."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of toyland.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of toyland's images.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads; -1 takes one a core.")] = -1,
    cache: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Also keep training images at this size (resize)."),
    ] = None,
    cache_format: Annotated[
        CacheFormat, typer.Option(help="raw is read faster and needs zstd.")
    ] = CacheFormat.png,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check and index datasets: known names or YAML files."""
    size_px, cache_px = pixels("--size", size), width_by_height("--cache", cache)
    if check_only and cache is not None:
        raise UsageError("--check-only writes nothing, so it takes no --cache")
    if verify and (check_only or cache is not None):
        raise UsageError("--verify goes without --check-only and --cache")
    talk(verbose, quiet)
    from udaseg import commands

    if verify:
        commands.verify(names=names, root=root, workers=workers)
        return
    commands.prepare(
        names=names,
        root=root,
        check_only=check_only,
        max_bad=max_bad,
        on_mismatch=on_mismatch.value,
        exclude=exclude or [],
        seed=seed,
        size=size_px,
        workers=workers,
        cache=cache_px,
        cache_format=cache_format.value,
    )
