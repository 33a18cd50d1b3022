"""`udaseg train` and `udaseg adapt`: from a recipe to a finished run folder."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands import run_folder
from udaseg.commands.plan import announce, say_plan
from udaseg.commands.recording import Recorder
from udaseg.commands.stages import open_leg
from udaseg.data import ClassSpace, PreparedDataset, open_dataset
from udaseg.engine import Checkpoint, Fit, StopSignal, fit, newest, restore
from udaseg.errors import (
    DataError,
    EnvironmentFault,
    Interrupted,
    RecipeError,
    UdasegError,
    UsageError,
)
from udaseg.recipe import Machine, Recipe, adapts, dump, from_dict, leg_at, legs, load, to_dict
from udaseg.reporting import RunStatus, TrainingProgress, log_to_file

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
) -> Path:
    """Train on the source alone, and return the run folder.

    Raises:
        UsageError: The recipe adapts, or the run folder is taken.
    """
    if recipe.method.kind != "source_only":
        raise UsageError(
            f"{recipe_path}: its method is {recipe.method.kind}; `udaseg adapt` runs it, "
            "`udaseg train` is for source_only"
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
) -> Path:
    """Adapt from the source to the unlabelled target, and return the run folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training in several processes is not there yet; start one process")
    if resume is not None and (init is not None or overwrite):
        raise UsageError("--resume continues a run; it takes neither --init nor --overwrite")
    source = open_dataset(recipe.source.data, root=root)
    target = open_dataset(recipe.target.data, root=root) if adapts(recipe) else None
    validation = _validation(recipe, root)
    start = None if init is None else build.find_checkpoint(init)
    made = build.run(recipe, source, target, init=start)
    assert source.classes is not None
    folder = resume or run_folder.folder_of(recipe, out)
    say_plan(recipe, recipe_path, made, source, target, validation, folder)
    if dry_run:
        Console(soft_wrap=True, highlight=False).print(Text(dump(recipe).rstrip()))
        return folder
    if resume is None:
        run_folder.create(folder, recipe, command, overwrite=overwrite)
    with run_folder.writing(folder), log_to_file(folder / "train.log"):
        checkpoint = None if resume is None else _checkpoint_of(folder, recipe)
        plan = _Plan(recipe, source, target, validation, folder, checkpoint)
        _train_to_the_end(plan, made)
    announce(folder, recipe)
    return folder


def _validation(recipe: Recipe, root: Path) -> PreparedDataset | None:
    if recipe.validation.data is None:
        return None
    dataset = open_dataset(recipe.validation.data, root=root)
    dataset.split(recipe.validation.split)
    return dataset


@dataclass(frozen=True)
class _Plan:
    """What a run needs while it trains."""

    recipe: Recipe
    source: PreparedDataset
    target: PreparedDataset | None
    validation: PreparedDataset | None
    folder: Path
    checkpoint: Checkpoint | None

    @property
    def done(self) -> int:
        """Steps that the checkpoint has behind it."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def classes(self) -> ClassSpace:
        assert self.source.classes is not None
        return self.source.classes


def _checkpoint_of(folder: Path, recipe: Recipe) -> Checkpoint | None:
    """Return the newest checkpoint of a run to continue; None when there is none yet."""
    _refuse_other_numbers(folder / "recipe.yaml", load(folder / "recipe.yaml"), recipe)
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is None:
        log.warning("%s: no checkpoint was written yet; starting at step 0", folder)
        return None
    _refuse_other_numbers(checkpoint.path, from_dict(checkpoint.recipe), recipe)
    return checkpoint


def _continue(plan: _Plan, made: Fit, extra: Mapping[str, str]) -> None:
    """Restore the checkpoint into the leg that it is of."""
    assert plan.checkpoint is not None
    _refuse_other_data(plan.checkpoint, made, plan.classes, extra)
    restore(plan.checkpoint, made.objective, made.optimizer)
    log.info("resumed %s at step %d", plan.folder, plan.done)


def _refuse_other_numbers(where: Path, before: Recipe, now: Recipe) -> None:
    """Refuse to continue with a recipe that differs in anything but the machine."""

    def numbers(recipe: Recipe) -> dict[str, object]:
        # the precision belongs to the machine, but it changes every number
        return to_dict(replace(recipe, machine=Machine(precision=recipe.machine.precision)))

    changed = _differences(numbers(before), numbers(now), "")
    if changed:
        raise RecipeError(
            f"{where}: --resume continues with the same numbers, but "
            + "; ".join(changed)
            + ". Start a new run with --init instead"
        )


def _refuse_other_data(
    checkpoint: Checkpoint, made: Fit, classes: ClassSpace, extra: Mapping[str, str]
) -> None:
    """Refuse to continue with other classes or other files; each batch hangs on both."""
    if checkpoint.classes != build.class_document(classes):
        raise DataError(
            f"{checkpoint.path}: was trained on the classes {checkpoint.classes['names']}, but the "
            f"source has {list(classes.names)}; start a new run with --init instead"
        )
    now = {**made.batches.digests(), **extra}
    other = [domain for domain in now if checkpoint.files.get(domain) != now[domain]]
    if other:
        raise DataError(
            f"{checkpoint.path}: the files of {' and '.join(other)} are others than before, so the "
            "run could not go on exactly; restore them, or start a new run with --init"
        )


def _differences(before: object, now: object, where: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        found = []
        for key in keys:
            inner = f"{where}.{key}" if where else str(key)
            found += _differences(before.get(key), now.get(key), inner)
        return found
    return [] if before == now else [f"{where} was {before} and is now {now}"]


def _train_to_the_end(plan: _Plan, made: Fit) -> None:
    """Train all legs, score at the end, and leave word of how it went in `status.json`.

    Args:
        plan: Of the run.
        made: The first leg, built; others are built when their turn comes.

    Raises:
        Interrupted: A signal came; the last step is saved.
    """
    recipe, folder = plan.recipe, plan.folder
    status = RunStatus(folder / "status.json")
    status.running(step=plan.done)
    started = time.monotonic()
    miou = None
    try:
        with StopSignal() as stop:
            recorder = _all_legs(plan, made, status, stop)
            if plan.validation is not None:
                miou = recorder.scored(show_it=True).mean_iou()
    except Interrupted:
        raise
    except UdasegError as error:
        status.failed(code=error.exit_code, reason=str(error))
        raise
    except torch.OutOfMemoryError as error:
        reason = (
            f"out of memory on {made.device}: {recipe.batch.source} + {recipe.batch.target} images "
            f"of {recipe.source.crop[1]}x{recipe.source.crop[0]}; take --batch 1, a smaller "
            "source.crop and target.crop, or --precision bf16"
        )
        status.failed(code=EnvironmentFault.exit_code, reason=reason)
        raise EnvironmentFault(reason) from error
    except BaseException as error:
        # whatever it was, the folder must not say for ever that the run goes on
        status.failed(code=1, reason=f"{type(error).__name__}: {error}")
        raise
    status.done(step=recipe.steps, seconds=time.monotonic() - started, miou=miou)


def _all_legs(plan: _Plan, made: Fit, status: RunStatus, stop: StopSignal) -> Recorder:
    """Train the legs that are left, each from the student of the one before."""
    recipe, folder, done = plan.recipe, plan.folder, plan.done
    for leg in legs(recipe)[leg_at(recipe, done).number :]:
        # a checkpoint of the very step that a stage begins with is of the stage before
        fresh = done <= leg.begin
        extra: dict[str, str] = {}
        if leg.number > 0:
            log.info("stage %d: %s, steps %d to %d", leg.number + 1, leg.name, leg.begin, leg.end)
            try:
                made, extra = open_leg(
                    *(recipe, leg, plan.source, plan.target, folder), fresh=fresh, stop=stop
                )
            except Interrupted:
                assert stop.number is not None
                status.interrupted(step=done, signal_number=stop.number)
                raise
        if plan.checkpoint is not None and plan.done > leg.begin:
            _continue(plan, made, extra)
        recorder = Recorder(recipe, leg, made, plan.classes, plan.validation, folder, extra)
        first = max(done, leg.begin)
        if first < leg.end:
            _steps(recorder, first, status, stop)
        done = leg.end
    return recorder


def _steps(recorder: Recorder, first: int, status: RunStatus, stop: StopSignal) -> None:
    recipe, folder = recorder.recipe, recorder.folder
    progress = TrainingProgress(steps=recipe.steps, first=first, every=recipe.machine.log_every)
    with recorder.metrics, progress:
        recorder.metrics.truncate_after(first)
        recorder.progress = progress
        done = fit(recorder.made, first=first, on_step=recorder.on_step, stop=stop)
        recorder.checkpoint(done)
    if stop.number is not None and done < recipe.steps:
        status.interrupted(step=done, signal_number=stop.number)
        raise Interrupted(
            f"stopped at step {done} and saved; go on with --resume {folder}", stop.number
        )
