"""What the command line refuses before it imports torch, which takes seconds.

The functions that do the work check the same again; these come first where a user waits.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from udaseg.errors import CheckpointError, UsageError
from udaseg.files import refuse_output
from udaseg.recipe.load import expand_path, load
from udaseg.recipe.requirements import chosen_loggers, refuse_device
from udaseg.recipe.schema import NAMED_WEIGHTS, Recipe
from udaseg.recipe.stages import adapts, refuse_changed_settings
from udaseg.runs import folder as run_folders
from udaseg.runs.base import given_base
from udaseg.runs.folder import with_located_data
from udaseg.runs.groups import (
    SEEDS_FILE,
    SWEEP_FILE,
    refuse_other_folder,
    refuse_other_runs,
    refuse_without_runs,
)
from udaseg.runs.manifests import (
    refuse_missing_run,
    refuse_no_run_folder,
    refuse_without_checkpoint,
    runs_in,
)
from udaseg.runs.records import read_status

log = logging.getLogger(__name__)


def check_runs(*runs: Path | None) -> None:
    """Refuse runs and checkpoints that do not exist.

    Raises:
        CheckpointError: There is nothing of that name.
    """
    _refuse_each(refuse_missing_run, runs)


def check_run_folders(*runs: Path | None) -> None:
    """Refuse what is not a run folder; None is left out.

    Raises:
        CheckpointError: There is no such run folder.
    """
    _refuse_each(refuse_no_run_folder, runs)


def check_run_groups(*folders: Path | None) -> None:
    """Refuse what is neither a run folder, nor one of seeds or of a sweep; None is left out.

    Raises:
        CheckpointError: There is no such folder.
    """
    _refuse_each(refuse_without_runs, folders)


def _refuse_each(refuse: Callable[[Path], None], paths: Iterable[Path | None]) -> None:
    for path in paths:
        if path is not None:
            refuse(path)


def check_networks(
    *runs: Path | None,
    device: str = "auto",
    data: str | None = None,
    split: str | None = None,
    scored: bool = False,
    root: Path,
) -> None:
    """Refuse what a command that runs a network cannot use.

    Args:
        runs: Runs or checkpoints; None is left out.
        device: The value of `--device`.
        data: The data set that is named, if any.
        split: Its split that is named, if any.
        scored: Whether predictions are compared with its labels.
        root: Folder of the prepared data sets.

    Raises:
        CheckpointError: There is no such run, or it has no checkpoint.
        DataError: There is no such data set or split, or it has no labels.
        UsageError: There is no such kind of device.
        EnvironmentFault: The device is a GPU, and there is no driver of one.
    """
    refuse_device(device)
    _refuse_each(refuse_without_checkpoint, runs)
    if data is not None:
        refuse_unknown_data(data, root, split, scored=scored)


def check_output(path: Path, suffix: str, what: str, *, overwrite: bool = True) -> None:
    """Refuse an output file of another kind, or one that exists; see `files.refuse_output`.

    Raises:
        UsageError: The path has another suffix, is a folder, or exists.
    """
    refuse_output(path, suffix, what, overwrite=overwrite)


def check_data(
    *names: str | None, sources: Sequence[str] = (), split: str | None = None, root: Path
) -> None:
    """Refuse data sets that cannot be found, and folders of images as sources.

    Args:
        names: Data sets as the user names them; None is left out.
        sources: Data sets whose labels are trained on.
        split: The split of the sources, if it is known.
        root: Folder of the prepared data sets.

    Raises:
        DataError: There is no data set of that name, or a folder has no images or no labels.
    """
    for name in sources:
        refuse_unknown_data(name, root, split)
    for other in names:
        if other is not None:
            refuse_unknown_data(other, root)
    for name in sources:
        # imported here: a wrong word or recipe is refused before anything that reads images
        from udaseg.data.datasets.index import unlabelled_source
        from udaseg.data.open import is_image_folder

        if is_image_folder(name, root=root):
            raise unlabelled_source(name)


def check_training(
    recipe: Recipe,
    *,
    root: Path,
    out: Path | None = None,
    resume: Path | None = None,
    init: Path | None = None,
    overwrite: bool = False,
    seeds: Sequence[int] | None = None,
) -> None:
    """Refuse a training whose data, weights or run folder cannot be used.

    Args:
        recipe: What is trained.
        root: Folder of the prepared data sets.
        out: The folder of a new run; None takes the default.
        resume: The run that is continued.
        init: The checkpoint to start from.
        overwrite: Whether a run in the folder may be replaced.
        seeds: The seeds, if there are several; `out` is the folder of their runs, which may exist.

    Raises:
        UsageError: The run folder is taken, or what is resumed is no run.
        RecipeError: A resumed run would change its settings.
        CheckpointError: A file of weights or a checkpoint is missing.
        DataError: A data set is missing.
        EnvironmentFault: A logger is not installed.
    """
    if resume is not None:
        _check_resume(recipe, resume)
    else:
        folder = out or run_folders.default_run_folder(recipe)
        if seeds is None:
            check_start(folder, init, overwrite=overwrite)
        else:
            refuse_other_folder(folder, SEEDS_FILE)
            refuse_other_runs(folder, recipe, seeds, init=init, overwrite=overwrite)
        if init is None:
            _check_weights(recipe)
    chosen_loggers(recipe.machine)
    refuse_device(recipe.machine.device)
    located = recipe if resume is None else with_located_data(recipe, resume)
    check_data(sources=located.source.sets, split=located.source.split, root=root)
    for name in located.target.sets if adapts(located) else ():
        refuse_unknown_data(name, root, located.target.split)
    validation = located.validation
    if validation.data is not None:
        refuse_unknown_data(validation.data, root, validation.split, scored=True)


def check_start(out: Path | None, init: Path | None, *, overwrite: bool) -> None:
    """Refuse a folder that a new run must not use, and a checkpoint that it cannot start from.

    Args:
        out: The folder of the run; None if it is not known yet, or one of several runs.
        init: The checkpoint to start from, if any.
        overwrite: Whether a run in the folder may be replaced.

    Raises:
        UsageError: The run folder is taken.
        CheckpointError: There is no checkpoint.
    """
    if out is not None and not run_folders.is_torchrun_restart(out):
        run_folders.refuse_existing_run(out, overwrite=overwrite)
    if init is not None:
        refuse_without_checkpoint(init)


def check_one_run(folder: Path | None) -> None:
    """Refuse to resume a folder of several runs; None is left out.

    Raises:
        UsageError: It is one.
    """
    if folder is not None and any((folder / name).is_file() for name in (SEEDS_FILE, SWEEP_FILE)):
        raise UsageError(
            f"{folder}: holds several runs; repeat the command that began them to continue"
            f"{runs_in(folder)}"
        )


def check_sweep(
    recipes: Sequence[Recipe], words: Sequence[str], each: Sequence[str], out: Path | None
) -> None:
    """Refuse a sweep with a wrong setting, or a folder that it must not use.

    Args:
        recipes: The recipes.
        words: The swept values, as `KEY=VALUE,VALUE`.
        each: Changes that are each tried alone.
        out: Folder of all runs; None takes the default.

    Raises:
        RecipeError: A combination is wrong.
        UsageError: A key is given twice, two settings are equal, or the folder has other files.
    """
    # imported here: needed by this command alone
    from udaseg.experiments.settings import settings_of, split_values

    named = [(recipe, Path(recipe.name)) for recipe in recipes]
    settings_of(named, split_values(words), split_values(each))
    if out is not None:
        refuse_other_folder(out, SWEEP_FILE)


def newest_unfinished_run(folder: Path) -> Path:
    """Return the run below `folder` that was written last and is not done; log its name.

    Raises:
        UsageError: There is none.
    """
    started = []
    for recipe in [*folder.glob("*/recipe.yaml"), *folder.glob("*/*/recipe.yaml")]:
        status = read_status(recipe.parent)
        if status.get("state") != "done" and not run_folders.is_imported(recipe.parent):
            started.append((status.get("unix_time", recipe.stat().st_mtime), recipe.parent))
    if not started:
        raise UsageError(f"{folder}/: no run to resume; name one with --resume RUN")
    newest = max(started)[1]
    log.info("resuming %s", newest)
    return newest


def _check_resume(recipe: Recipe, run: Path) -> None:
    if run_folders.is_imported(run):
        raise UsageError(run_folders.IMPORTED.format(run=run))
    path, now = run / "recipe.yaml", int(os.environ.get("WORLD_SIZE", "1"))
    before = run_folders.read_num_processes(run) or now
    refuse_changed_settings(path, load(path, stored=True), before, recipe, now)


def _check_weights(recipe: Recipe) -> None:
    weights = recipe.model.weights
    if weights in NAMED_WEIGHTS or given_base() is not None:
        return
    path = Path(expand_path(weights))
    if not path.exists():  # what is no weights file is refused where it is read, with advice
        raise CheckpointError(f"{path}: no such weights file")


def refuse_unknown_data(
    name: str, root: Path, split: str | None = None, *, scored: bool = False
) -> None:
    """Refuse a data set, or a split of it, that does not exist, or that cannot be scored.

    Args:
        name: The data set as the user names it.
        root: Folder of the prepared data sets.
        split: The split that is named, if any.
        scored: Whether predictions are compared with its labels.

    Raises:
        DataError: There is no such data set or split, or it has no images, or no labels.
    """
    # imported here: a wrong word or recipe is refused before anything that reads images
    from udaseg.data.open import refuse_unknown, refuse_unscorable

    refuse_unknown(name, root=root)
    refuse_unscorable(name, split, scored=scored, root=root)
