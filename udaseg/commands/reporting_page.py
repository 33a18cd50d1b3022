"""`udaseg report`: one self-contained HTML page about a run, or comparing runs."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg import __version__, build
from udaseg.commands.page_pictures import Looked, look
from udaseg.commands.run_record import read_run, score_files
from udaseg.data import PreparedDataset, open_dataset
from udaseg.errors import DataError, UdasegError, UsageError
from udaseg.recipe import Recipe, printable
from udaseg.reporting import PageContent, report_page, write_text_atomic

log = logging.getLogger(__name__)


def report(
    *,
    runs: Sequence[Path],
    baseline: Path | None,
    out: Path | None,
    images: int,
    scan: int,
    device: str,
    root: Path,
) -> None:
    """Write a page about runs: what was run, scores, pictures, confidence, curves, cost.

    What cannot be had (a checkpoint, images, scores) is named on the page; the rest is shown.

    Args:
        runs: Run folders, one column each.
        baseline: A run that the others are compared with; its column is the first.
        out: The file; None is `report.html` in the first run.
        images: Images to show; 0 runs no network.
        scan: Most images to look at.
        device: Where to compute.
        root: Where prepared data lie.

    Raises:
        UsageError: A run is no run folder.
    """
    folders = _unique([*([] if baseline is None else [baseline]), *runs])
    columns = dict(zip(_names(folders), folders, strict=True))
    compared = _compared(folders)
    contents = [
        read_run(folder, name, scored)
        for (name, folder), scored in zip(columns.items(), compared, strict=True)
    ]
    warnings: list[str] = []
    loaded = _load(columns, device, warnings)
    looked = _look(loaded, images, scan, root, warnings) if images and loaded else Looked()
    colors: dict[str, tuple[int, int, int]] = {}
    for run in loaded.values():
        colors = dict(zip(run.classes.names, run.classes.colors, strict=True)) | colors
    page = PageContent(
        title=" and ".join(columns) if len(columns) < 3 else f"{len(columns)} runs",
        runs=[replace(each, reliability=looked.reliability.get(each.name)) for each in contents],
        baseline=baseline is not None and len(columns) > 1,
        colors=colors,
        shots=looked.shots,
        looked=looked.words,
        warnings=warnings,
        made=f"Written {time.strftime('%Y-%m-%d %H:%M %z')} by udaseg {__version__}.",
    )
    text = report_page(page)
    path = out or runs[0] / "report.html"
    write_text_atomic(path, text)
    size = len(text.encode()) / 1e6
    Console(highlight=False, soft_wrap=True).print(Text(f"{printable(str(path))}: {size:.2f} MB"))


def _unique(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders, each once.

    Raises:
        UsageError: One is no folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such run folder; a report is of runs, not checkpoints")
    return list({folder.resolve(): folder for folder in folders}.values())


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, or with its parents where names repeat."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _compared(folders: Sequence[Path]) -> list[str | None]:
    """Return which evaluation of each run is shown: the newest that all have, or each's newest."""
    found = [list(score_files(folder)) for folder in folders]
    for name in found[-1]:
        if all(name in names for names in found):
            return [name] * len(folders)
    return [names[0] if names else None for names in found]


def _load(
    columns: Mapping[str, Path], device: str, warnings: list[str]
) -> dict[str, build.LoadedRun]:
    """Return the networks of the runs that have a readable checkpoint."""
    loaded = {}
    for name, folder in columns.items():
        try:
            loaded[name] = build.load_run(folder, device=device)
        except UdasegError as error:
            log.warning("%s", error)
            warnings.append(f"{name} has no pictures: {error}")
    return loaded


def _look(
    loaded: Mapping[str, build.LoadedRun],
    images: int,
    scan: int,
    root: Path,
    warnings: list[str],
) -> Looked:
    """Look at the last run's validation images, or at its unlabelled target without any."""
    try:
        dataset, split = _images(list(loaded.values())[-1].recipe, root)
        return look(loaded, dataset, split, show=images, scan=max(scan, images))
    except DataError as error:
        log.warning("%s", error)
        warnings.append(f"no pictures: {error}")
        return Looked()


def _images(recipe: Recipe, root: Path) -> tuple[PreparedDataset, str]:
    if recipe.validation.data is not None:
        return open_dataset(recipe.validation.data, root=root), recipe.validation.split
    return open_dataset(recipe.target.data, root=root), recipe.target.split
