"""One self-contained HTML page about a run, or a comparison of runs."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from udaseg import __version__
from udaseg.errors import CheckpointError, DataError, NotFiniteError, UdasegError, UsageError
from udaseg.files import one_or_more, refuse_output, write_text
from udaseg.inference import trained_model
from udaseg.inference.run_data import open_run_data
from udaseg.inference.trained_model import Model
from udaseg.inspection.record import read_run
from udaseg.inspection.report_content import Color, PageContent, RunContent
from udaseg.inspection.report_images import ReportImages, render_report_images
from udaseg.inspection.report_page import report_page
from udaseg.inspection.summary import WITHOUT_ADAPTATION
from udaseg.runs.folder import names_of_runs
from udaseg.runs.leftovers import writing_in_run
from udaseg.runs.scores import find_score_files

log = logging.getLogger(__name__)
_PREDICTION, _ADAPTED = "prediction", "adapted"


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
        CheckpointError: A path is not a run folder.
        RecipeError: The recipe of a run cannot be loaded, or needs a package that is missing.

    Example:
        page = udaseg.report("runs/city-rccr", baseline="runs/city-source_only")
        webbrowser.open(page.absolute().as_uri())
    """
    given = [Path(run) for run in one_or_more(runs)]
    if not given:
        raise UsageError("report needs at least one run")
    folders = given if baseline is None else [Path(baseline), *given]
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: is not a run folder; a report takes run folders, not checkpoints"
            )
    folders = list({folder.resolve(): folder for folder in folders}.values())
    path = given[0] / "report.html" if out is None else Path(out)
    refuse_output(path, ".html", "the report is a page")
    names = names_of_runs(folders)
    contents = list(map(read_run, folders, names, _shown_evaluations(folders)))
    warnings: list[str] = []
    loaded = _load_networks(names, folders, device, warnings)
    shown = _shown_networks(loaded, contents, warnings) if images else loaded
    pictures = _render_images(shown, images, scan, Path(root), warnings)
    colors: dict[str, Color] = {}
    for model in loaded.values():  # if networks disagree, the colour of the first one counts
        colors = dict(zip(model.classes.names, model.classes.colors, strict=True)) | colors
    page = PageContent(
        title=" and ".join(names) if len(names) < 3 else f"{len(names)} runs",
        runs=_with_results(contents, pictures),
        has_baseline=baseline is not None and len(names) > 1,
        colors=colors,
        examples=pictures.examples,
        examples_note=pictures.caption,
        warnings=warnings,
        created=f"Written {time.strftime('%Y-%m-%d %H:%M %z')} by udaseg {__version__}.",
    )
    with writing_in_run(given[0]):
        write_text(path, report_page(page))
    return path


def _shown_evaluations(folders: Sequence[Path]) -> list[str | None]:
    """Return the evaluation to show of each run: the newest common one, or each run's newest."""
    evaluations = [list(find_score_files(folder)) for folder in folders]
    for name in evaluations[-1]:
        if all(name in names for names in evaluations):
            return [name] * len(folders)
    return [names[0] if names else None for names in evaluations]


def _load_networks(
    names: Sequence[str], folders: Sequence[Path], device: str, warnings: list[str]
) -> dict[str, Model]:
    """Return the networks of the runs with a readable checkpoint."""
    loaded = {}
    for name, folder in zip(names, folders, strict=True):
        try:
            loaded[name] = trained_model.load(folder, device=device)
        except UdasegError as error:
            log.warning("%s", error)
            warnings.append(f"no images of {name}: {error}")
    return loaded


def _shown_networks(
    loaded: dict[str, Model], contents: Sequence[RunContent], warnings: list[str]
) -> dict[str, Model]:
    """Return the networks by the name to show; for one run also the one it was compared with."""
    if len(contents) > 1 or not loaded:
        return loaded
    (model,) = loaded.values()
    worth = contents[0].worth
    if worth is not None and worth.baseline is not None:
        try:
            return {WITHOUT_ADAPTATION: trained_model.load_baseline(worth, model), _ADAPTED: model}
        except UdasegError as error:
            log.warning("%s", error)
            warnings.append(f"no comparison with the network {WITHOUT_ADAPTATION}: {error}")
    return {_PREDICTION: model}


def _with_results(contents: Sequence[RunContent], pictures: ReportImages) -> list[RunContent]:
    """Return the runs with what their networks did on the evaluated images."""
    if len(contents) > 1:
        return [
            replace(content, reliability=pictures.reliability.get(content.name))
            for content in contents
        ]
    own = next(reversed(pictures.reliability), "")
    before, after = map(pictures.scores.get, (WITHOUT_ADAPTATION, own))
    reliability = pictures.reliability.get(own)
    return [replace(contents[0], reliability=reliability, before=before, after=after)]


def _render_images(
    loaded: dict[str, Model], images: int, scan: int, root: Path, warnings: list[str]
) -> ReportImages:
    """Predict the last run's validation images, or its unlabelled target without any."""
    if not images or not loaded:
        return ReportImages()
    recipe = list(loaded.values())[-1].recipe
    domain = recipe.target if recipe.validation.data is None else recipe.validation
    assert domain.data is not None
    try:
        dataset = open_run_data(recipe, domain.data, root=root)
        return render_report_images(
            loaded, dataset, domain.split, show=images, scan=max(scan, images)
        )
    except (DataError, NotFiniteError) as error:
        log.warning("%s", error)
        warnings.append(f"no images: {error}")
        return ReportImages()
