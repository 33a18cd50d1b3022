"""`udaseg train` and `udaseg adapt`: train a recipe into a run folder."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.data.open import open_dataset
from udaseg.display.console import open_console, safe_text
from udaseg.distributed import device_type, local_rank_zero_first, on_rank_zero, rank, world_size
from udaseg.errors import UsageError
from udaseg.failures import process_group
from udaseg.recipe.load import dump, load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import adapts
from udaseg.runs import folder as folder_module
from udaseg.runs.checkpoint import Checkpoint, find_checkpoint
from udaseg.runs.status import log_to_file
from udaseg.selection.candidates import EvaluationSets
from udaseg.training.callbacks.keep_best import KeepBest, open_criterion_sets
from udaseg.training.callbacks.tensorboard import uses_tensorboard
from udaseg.training.context import RunContext, RunData
from udaseg.training.plan import print_finished, print_memory_plan, print_plan
from udaseg.training.resume import find_resume_checkpoint, load_start_checkpoint
from udaseg.training.setup import TrainingSetup, build_setup, deterministic_kernels
from udaseg.training.stages import train_all_stages

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a run is trained from and where it is written.

    Attributes:
        recipe: Recipe of the run.
        recipe_path: File of the recipe, for messages.
        root: Folder of the prepared data sets.
        command: Command line of the user, stored in the run.
        out: Run folder; None takes one below `runs/`.
        resume: Continue the run in this folder.
        init: Start from the student of this run or checkpoint.
        overwrite: Replace an existing run.
        dry_run: Print only the plan, the memory estimate and the recipe.
        fit_memory: Split steps into micro-batches until they fit in memory.
    """

    recipe: Recipe
    recipe_path: Path
    root: Path
    command: Sequence[str]
    out: Path | None = None
    resume: Path | None = None
    init: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    fit_memory: bool = False


def train(options: TrainOptions) -> Path:
    """Train on the source alone, and return the run folder.

    Raises:
        UsageError: The recipe adapts, or the run folder already exists.
    """
    recipe = options.recipe
    if recipe.method.kind != "source_only" or adapts(recipe):
        raise UsageError(
            f"{options.recipe_path}: the recipe uses target images; run it with `udaseg adapt`, "
            "since `udaseg train` supports only source_only"
        )
    return adapt(options)


def adapt(options: TrainOptions) -> Path:
    """Adapt to the unlabelled target and return the run folder.

    Under torchrun this runs in each process; only rank 0 writes files and logs.

    Raises:
        UsageError: Options contradict each other, or the run folder already exists.
    """
    if options.resume is not None and (options.init is not None or options.overwrite):
        raise UsageError("--resume cannot be combined with --init or --overwrite")
    folder = options.resume or folder_module.default_run_folder(options.recipe, options.out)
    machine = options.recipe.machine
    with (
        deterministic_kernels(machine.deterministic),
        process_group(device_type(machine.device)),
    ):
        if options.fit_memory and world_size() > 1:
            raise UsageError(
                "--fit supports only one process; with several, set machine.micro_batches=2 or "
                "more to split the steps"
            )
        options = _resume_after_restart(options, folder)
        data, criterion_sets = _open_data(options.recipe, options.root)
        start_checkpoint = _start_checkpoint(options, folder)
        # in a list, so that a later stage can free it: two networks may not fit in memory
        setups = [build_setup(options.recipe, data.source, data.target, init=start_checkpoint)]
        if rank() == 0:
            print_plan(options.recipe, options.recipe_path, setups[0], data, folder)
        if options.dry_run:
            _print_dry_run(options.recipe, setups[0], data)
            return folder
        with contextlib.ExitStack() as stack:
            _claim_folder(options, folder, start_checkpoint, stack)
            train_all_stages(_run_context(options, folder, data, criterion_sets), setups)
        if rank() == 0:
            print_finished(folder, options.recipe)
    return folder


def _resume_after_restart(options: TrainOptions, folder: Path) -> TrainOptions:
    """Return options that resume the run if torchrun restarted the command that created it."""
    if options.resume is not None or not on_rank_zero(
        lambda: folder_module.is_torchrun_restart(folder)
    ):
        return options
    resumed = replace(options, resume=folder, recipe=load(folder / "recipe.yaml"))
    log.warning("torchrun restarted: resuming %s from its last checkpoint", folder)
    return resumed


def _open_data(recipe: Recipe, root: Path) -> tuple[RunData, EvaluationSets | None]:
    """Return the data sets of a run, and the images that checkpoints are compared on, if any."""
    with local_rank_zero_first():
        source = open_dataset(recipe.source.data, root=root)
        target = open_dataset(recipe.target.data, root=root) if adapts(recipe) else None
        validation = None
        if recipe.validation.data is not None:
            validation = open_dataset(recipe.validation.data, root=root)
            validation.split(recipe.validation.split)  # an error if it does not exist
        uses_tensorboard(recipe.machine.tensorboard)  # an error if required but not installed
        criterion_sets = open_criterion_sets(recipe, root)
    return RunData(source, target, validation), criterion_sets


def _start_checkpoint(options: TrainOptions, folder: Path) -> Checkpoint | None:
    """Return the checkpoint that the first stage starts from, if any.

    A resumed run has stored it: torchrun repeats `--init` when it restarts a run, and the file may
    have changed since.
    """
    if options.resume is not None:
        return load_start_checkpoint(folder)
    return None if options.init is None else find_checkpoint(options.init)


def _print_dry_run(recipe: Recipe, setup: TrainingSetup, data: RunData) -> None:
    if rank() == 0:
        print_memory_plan(recipe, setup, data)
        open_console(soft_wrap=True).print(safe_text(dump(recipe).rstrip()))


def _claim_folder(
    options: TrainOptions,
    folder: Path,
    start_checkpoint: Checkpoint | None,
    stack: contextlib.ExitStack,
) -> None:
    """Create the run folder unless the run resumes; hold its lock and log until `stack` closes."""

    def create() -> None:
        folder_module.create_run_folder(
            folder,
            options.recipe,
            options.command,
            overwrite=options.overwrite,
            init=start_checkpoint,
        )

    def lock_and_log() -> None:
        stack.enter_context(folder_module.writer_lock(folder))
        stack.enter_context(log_to_file(folder / "train.log"))

    if options.resume is None:
        on_rank_zero(create)
    on_rank_zero(lock_and_log)


def _run_context(
    options: TrainOptions, folder: Path, data: RunData, criterion_sets: EvaluationSets | None
) -> RunContext:
    recipe = options.recipe
    checkpoint = None if options.resume is None else find_resume_checkpoint(folder, recipe)
    keep_best = (
        None if criterion_sets is None else KeepBest(recipe, criterion_sets, data.classes, folder)
    )
    return RunContext(recipe, data, folder, checkpoint, options.fit_memory, keep_best)
