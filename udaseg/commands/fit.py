"""`udaseg train` and `udaseg adapt`: train a recipe into a run folder."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands import run_folder
from udaseg.commands.keeping import Keeper, open_keeping_sets
from udaseg.commands.legs import Plan, train_to_the_end
from udaseg.commands.memory_plan import say_memory
from udaseg.commands.plan import announce, say_plan
from udaseg.commands.resuming import checkpoint_of
from udaseg.commands.starting import start_of
from udaseg.commands.tensorboard import wants_board
from udaseg.data import PreparedDataset, open_dataset
from udaseg.distributed import by_first_rank, first_of_host_first, rank, session, world_size
from udaseg.engine import Checkpoint, deterministic
from udaseg.errors import UsageError
from udaseg.recipe import Recipe, adapts, dump, load
from udaseg.reporting import log_to_file

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
    folder = resume or run_folder.folder_of(recipe, out)
    with (
        deterministic(recipe.machine.deterministic),
        session(build.device_type(recipe.machine.device)),
    ):
        if fit_memory and world_size() > 1:
            raise UsageError(
                "--fit supports only one process; with several, set machine.micro_batches=2 or "
                "more to split the steps"
            )
        if resume is None and by_first_rank(lambda: run_folder.goes_on(folder)):
            resume, recipe = folder, load(folder / "recipe.yaml")
            log.warning("torchrun restarted: resuming %s from its last checkpoint", folder)
        with first_of_host_first():
            source = open_dataset(recipe.source.data, root=root)
            target = open_dataset(recipe.target.data, root=root) if adapts(recipe) else None
            validation = _validation(recipe, root)
            wants_board(recipe.machine.tensorboard)
            criterion_sets = open_keeping_sets(recipe, root)
        # a resumed run has stored its start checkpoint: a restart by torchrun repeats --init, whose
        # file may have changed since
        start_checkpoint = _start(init) if resume is None else start_of(folder)
        # in a list, so that a later stage can free it: two networks may not fit in memory
        setups = [build.run(recipe, source, target, init=start_checkpoint)]
        assert source.classes is not None
        if rank() == 0:
            say_plan(recipe, recipe_path, setups[0], source, target, validation, folder)
        if dry_run:
            if rank() == 0:
                say_memory(recipe, setups[0], source, target)
                Console(soft_wrap=True, highlight=False).print(Text(dump(recipe).rstrip()))
            return folder
        with contextlib.ExitStack() as stack:
            if resume is None:
                by_first_rank(
                    lambda: run_folder.create(
                        folder, recipe, command, overwrite=overwrite, init=start_checkpoint
                    )
                )
            by_first_rank(lambda: _hold(stack, folder))
            checkpoint = None if resume is None else checkpoint_of(folder, recipe)
            keeper = (
                None
                if criterion_sets is None
                else Keeper(recipe, criterion_sets, source.classes, folder)
            )
            plan = Plan(recipe, source, target, validation, folder, checkpoint, fit_memory, keeper)
            train_to_the_end(plan, setups)
        if rank() == 0:
            announce(folder, recipe)
    return folder


def _start(init: Path | None) -> Checkpoint | None:
    return None if init is None else build.find_checkpoint(init)


def _hold(stack: contextlib.ExitStack, folder: Path) -> None:
    """Hold the run folder's lock and its log until `stack` closes."""
    stack.enter_context(run_folder.writing(folder))
    stack.enter_context(log_to_file(folder / "train.log"))


def _validation(recipe: Recipe, root: Path) -> PreparedDataset | None:
    if recipe.validation.data is None:
        return None
    dataset = open_dataset(recipe.validation.data, root=root)
    dataset.split(recipe.validation.split)
    return dataset
