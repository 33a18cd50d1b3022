"""`udaseg train` and `udaseg adapt`: train a recipe into a run folder."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.open import open_dataset
from udaseg.distributed import device_type, local_rank_zero_first, on_rank_zero, rank, world_size
from udaseg.errors import UsageError
from udaseg.failures import process_group
from udaseg.recipe.load import dump, load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import adapts
from udaseg.runs import folder as folder_module
from udaseg.runs.checkpoint import Checkpoint, find_checkpoint
from udaseg.runs.status import log_to_file
from udaseg.training.callbacks.keep_best import KeepBest, open_criterion_sets
from udaseg.training.callbacks.tensorboard import uses_tensorboard
from udaseg.training.plan import print_finished, print_memory_plan, print_plan
from udaseg.training.resume import find_resume_checkpoint, load_start_checkpoint
from udaseg.training.setup import build_setup, deterministic_kernels
from udaseg.training.stages import RunContext, train_all_stages

log = logging.getLogger(__name__)


def train(
    *,
    recipe: Recipe,
    recipe_path: Path,
    out: Path | None,
    root: Path,
    resume: Path | None,
    init: Path | None,
    overwrite: bool,
    dry_run: bool,
    command: Sequence[str],
    fit_memory: bool = False,
) -> Path:
    """Train on the source alone, and return the run folder.

    Raises:
        UsageError: The recipe adapts, or the run folder already exists.
    """
    if recipe.method.kind != "source_only" or adapts(recipe):
        raise UsageError(
            f"{recipe_path}: the recipe uses target images; run it with `udaseg adapt`, since "
            "`udaseg train` supports only source_only"
        )
    return adapt(
        recipe=recipe,
        recipe_path=recipe_path,
        out=out,
        root=root,
        resume=resume,
        init=init,
        overwrite=overwrite,
        dry_run=dry_run,
        command=command,
        fit_memory=fit_memory,
    )


def adapt(
    *,
    recipe: Recipe,
    recipe_path: Path,
    out: Path | None,
    root: Path,
    resume: Path | None,
    init: Path | None,
    overwrite: bool,
    dry_run: bool,
    command: Sequence[str],
    fit_memory: bool = False,
) -> Path:
    """Adapt to the unlabelled target and return the run folder.

    `fit_memory` splits steps into micro-batches until they fit in memory. Under torchrun this runs
    in each process; only rank 0 writes files and logs.
    """
    if resume is not None and (init is not None or overwrite):
        raise UsageError("--resume cannot be combined with --init or --overwrite")
    folder = resume or folder_module.default_run_folder(recipe, out)
    with (
        deterministic_kernels(recipe.machine.deterministic),
        process_group(device_type(recipe.machine.device)),
    ):
        if fit_memory and world_size() > 1:
            raise UsageError(
                "--fit supports only one process; with several, set machine.micro_batches=2 or "
                "more to split the steps"
            )
        if resume is None and on_rank_zero(lambda: folder_module.is_torchrun_restart(folder)):
            resume, recipe = folder, load(folder / "recipe.yaml")
            log.warning("torchrun restarted: resuming %s from its last checkpoint", folder)
        with local_rank_zero_first():
            source = open_dataset(recipe.source.data, root=root)
            target = open_dataset(recipe.target.data, root=root) if adapts(recipe) else None
            validation = _open_validation(recipe, root)
            uses_tensorboard(recipe.machine.tensorboard)
            criterion_sets = open_criterion_sets(recipe, root)
        # a resumed run has stored its start checkpoint: a restart by torchrun repeats --init, whose
        # file may have changed since
        start_checkpoint = (
            _start_checkpoint(init) if resume is None else load_start_checkpoint(folder)
        )
        # in a list, so that a later stage can free it: two networks may not fit in memory
        setups = [build_setup(recipe, source, target, init=start_checkpoint)]
        assert source.classes is not None
        if rank() == 0:
            print_plan(recipe, recipe_path, setups[0], source, target, validation, folder)
        if dry_run:
            if rank() == 0:
                print_memory_plan(recipe, setups[0], source, target)
                Console(soft_wrap=True, highlight=False).print(Text(dump(recipe).rstrip()))
            return folder
        with contextlib.ExitStack() as stack:
            if resume is None:
                on_rank_zero(
                    lambda: folder_module.create_run_folder(
                        folder, recipe, command, overwrite=overwrite, init=start_checkpoint
                    )
                )
            on_rank_zero(lambda: _lock_and_log(stack, folder))
            checkpoint = None if resume is None else find_resume_checkpoint(folder, recipe)
            keeper = (
                None
                if criterion_sets is None
                else KeepBest(recipe, criterion_sets, source.classes, folder)
            )
            plan = RunContext(
                recipe, source, target, validation, folder, checkpoint, fit_memory, keeper
            )
            train_all_stages(plan, setups)
        if rank() == 0:
            print_finished(folder, recipe)
    return folder


def _start_checkpoint(init: Path | None) -> Checkpoint | None:
    return None if init is None else find_checkpoint(init)


def _lock_and_log(stack: contextlib.ExitStack, folder: Path) -> None:
    """Hold the run folder's lock and its log until `stack` closes."""
    stack.enter_context(folder_module.writer_lock(folder))
    stack.enter_context(log_to_file(folder / "train.log"))


def _open_validation(recipe: Recipe, root: Path) -> PreparedDataset | None:
    if recipe.validation.data is None:
        return None
    dataset = open_dataset(recipe.validation.data, root=root)
    dataset.split(recipe.validation.split)
    return dataset
