"""One self-contained HTML page about a run, or a comparison of runs."""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from udaseg import __version__
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.open import open_dataset
from udaseg.errors import DataError, UdasegError, UsageError
from udaseg.files import one_or_more, write_text
from udaseg.inference import trained_model
from udaseg.inference.trained_model import Model
from udaseg.inspection.record import read_run
from udaseg.inspection.report_content import Color, PageContent
from udaseg.inspection.report_images import ReportImages, render_report_images
from udaseg.inspection.report_page import report_page
from udaseg.recipe.schema import Recipe
from udaseg.runs.scores import find_score_files

log = logging.getLogger(__name__)


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    baseline: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    images: int = 8,
    scan: int = 60,
    device: str = "auto",
    root: str | os.PathLike[str] = "data",
) -> Path:
    """Write an HTML page about runs: settings, scores, images, confidence, curves and cost.

    The page lists what is not available (a checkpoint, images, scores) and shows everything else.

    Args:
        runs: One run folder, or several to compare, with one column each.
        baseline: Run that the others are compared with; its column is the first.
        out: Output file; None is `report.html` in the first run.
        images: Number of images to show; 0 runs no network.
        scan: Maximum number of images to evaluate.
        device: Device to compute on.
        root: Folder of the prepared data.

    Returns:
        The page, one file that loads nothing.

    Raises:
        UsageError: A path is not a run folder.
        RecipeError: The recipe of a run cannot be loaded, or needs a package that is missing.

    Example:
        page = udaseg.report("runs/city-rccr", baseline="runs/city-source_only")
        webbrowser.open(page.absolute().as_uri())
    """
    given = [Path(run) for run in one_or_more(runs)]
    if not given:
        raise UsageError("report needs at least one run")
    folders = _unique_run_folders([*([] if baseline is None else [Path(baseline)]), *given])
    columns = dict(zip(_column_names(folders), folders, strict=True))
    evaluations = _shown_evaluations(folders)
    contents = [
        read_run(folder, name, evaluation)
        for (name, folder), evaluation in zip(columns.items(), evaluations, strict=True)
    ]
    warnings: list[str] = []
    loaded = _load_networks(columns, device, warnings)
    pictures = _render_images(loaded, images, scan, Path(root), warnings)
    page = PageContent(
        title=" and ".join(columns) if len(columns) < 3 else f"{len(columns)} runs",
        runs=[
            replace(content, reliability=pictures.reliability.get(content.name))
            for content in contents
        ],
        has_baseline=baseline is not None and len(columns) > 1,
        colors=_class_colors(loaded.values()),
        examples=pictures.examples,
        examples_note=pictures.caption,
        warnings=warnings,
        created=f"Written {time.strftime('%Y-%m-%d %H:%M %z')} by udaseg {__version__}.",
    )
    path = given[0] / "report.html" if out is None else Path(out)
    write_text(path, report_page(page))
    return path


def _unique_run_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders without duplicates.

    Raises:
        UsageError: A path is not a folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"{folder}: is not a run folder; a report takes run folders, not checkpoints"
            )
    return list({folder.resolve(): folder for folder in folders}.values())


def _column_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, with parent folders if names repeat."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _shown_evaluations(folders: Sequence[Path]) -> list[str | None]:
    """Return the evaluation to show of each run: the newest common one, or each run's newest."""
    evaluations = [list(find_score_files(folder)) for folder in folders]
    for name in evaluations[-1]:
        if all(name in names for names in evaluations):
            return [name] * len(folders)
    return [names[0] if names else None for names in evaluations]


def _load_networks(
    columns: Mapping[str, Path], device: str, warnings: list[str]
) -> dict[str, Model]:
    """Return the networks of the runs with a readable checkpoint."""
    loaded = {}
    for name, folder in columns.items():
        try:
            loaded[name] = trained_model.load(folder, device=device)
        except UdasegError as error:
            log.warning("%s", error)
            warnings.append(f"no images of {name}: {error}")
    return loaded


def _render_images(
    loaded: Mapping[str, Model],
    images: int,
    scan: int,
    root: Path,
    warnings: list[str],
) -> ReportImages:
    """Predict the last run's validation images, or its unlabelled target without any."""
    if not images or not loaded:
        return ReportImages()
    try:
        dataset, split = _image_dataset(list(loaded.values())[-1].recipe, root)
        return render_report_images(loaded, dataset, split, show=images, scan=max(scan, images))
    except DataError as error:
        log.warning("%s", error)
        warnings.append(f"no images: {error}")
        return ReportImages()


def _class_colors(loaded: Iterable[Model]) -> dict[str, Color]:
    """Return the colour of each class; if networks disagree, that of the first one."""
    colors: dict[str, Color] = {}
    for run in loaded:
        colors = dict(zip(run.classes.names, run.classes.colors, strict=True)) | colors
    return colors


def _image_dataset(recipe: Recipe, root: Path) -> tuple[PreparedDataset, str]:
    if recipe.validation.data is not None:
        return open_dataset(recipe.validation.data, root=root), recipe.validation.split
    return open_dataset(recipe.target.data, root=root), recipe.target.split
