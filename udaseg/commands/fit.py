"""`udaseg train` and `udaseg adapt`: from a recipe to a finished run folder."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.adaptation import LossReport
from udaseg.commands import run_folder
from udaseg.commands.evaluate import score, show, summarise, write_scores
from udaseg.data import ClassSpace, PreparedDataset, Sample, open_dataset
from udaseg.engine import Checkpoint, Fit, StopSignal, fit, newest, restore, save
from udaseg.errors import (
    Interrupted,
    RecipeError,
    UdasegError,
    UsageError,
)
from udaseg.evaluation import ConfusionMatrix
from udaseg.recipe import Machine, Recipe, dump, from_dict, printable, to_dict
from udaseg.reporting import MetricsLog, RunStatus, TrainingProgress, log_to_file

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
    return _run(
        recipe,
        recipe_path,
        out,
        root,
        resume,
        init,
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
    return _run(
        recipe,
        recipe_path,
        out,
        root,
        resume,
        init,
        overwrite=overwrite,
        dry_run=dry_run,
        command=command,
    )


def _run(
    recipe: Recipe,
    recipe_path: Path,
    out: Path | None,
    root: Path,
    resume: Path | None,
    init: Path | None,
    *,
    overwrite: bool,
    dry_run: bool,
    command: Sequence[str],
) -> Path:
    if resume is not None and (init is not None or overwrite):
        raise UsageError("--resume continues a run; it takes neither --init nor --overwrite")
    source = open_dataset(recipe.source.data, root=root)
    adapts = recipe.method.kind != "source_only"
    target = open_dataset(recipe.target.data, root=root) if adapts else None
    validation = _validation(recipe, root)
    start = None if init is None else build.find_checkpoint(init)
    made = build.run(recipe, source, target, init=start)
    assert source.classes is not None
    folder = resume or run_folder.folder_of(recipe, out)
    _say_plan(recipe, recipe_path, made, source, target, validation, folder)
    if dry_run:
        Console(soft_wrap=True, highlight=False).print(Text(dump(recipe).rstrip()))
        return folder
    if resume is None:
        run_folder.create(folder, recipe, command, overwrite=overwrite)
    with run_folder.writing(folder), log_to_file(folder / "train.log"):
        first = 0 if resume is None else _continue(folder, recipe, made)
        _train_to_the_end(recipe, made, source.classes, validation, folder, first)
    _announce(folder, recipe)
    return folder


def _validation(recipe: Recipe, root: Path) -> PreparedDataset | None:
    if recipe.validation.data is None:
        return None
    dataset = open_dataset(recipe.validation.data, root=root)
    dataset.split(recipe.validation.split)
    return dataset


def _continue(folder: Path, recipe: Recipe, made: Fit) -> int:
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is None:
        log.warning("%s: no checkpoint was written yet; starting at step 0", folder)
        return 0
    _refuse_other_numbers(checkpoint, recipe)
    first = restore(checkpoint, made.objective, made.optimizer)
    log.info("resumed %s at step %d", folder, first)
    return first


def _refuse_other_numbers(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse to continue with a recipe that differs in anything but the machine."""
    before = to_dict(replace(from_dict(checkpoint.recipe), machine=Machine()))
    now = to_dict(replace(recipe, machine=Machine()))
    changed = list(_differences(before, now, ""))
    if changed:
        raise RecipeError(
            f"{checkpoint.path}: --resume continues with the same numbers, but "
            + "; ".join(changed)
            + ". Start a new run with --init instead"
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


def _train_to_the_end(
    recipe: Recipe,
    made: Fit,
    classes: ClassSpace,
    validation: PreparedDataset | None,
    folder: Path,
    first: int,
) -> None:
    machine = recipe.machine
    status = RunStatus(folder / "status.json")
    status.running(step=first)
    document = to_dict(recipe)
    images = recipe.batch.source + (
        recipe.batch.target if recipe.method.kind != "source_only" else 0
    )
    started = time.monotonic()

    def checkpoint(done: int) -> None:
        save(
            folder / "checkpoints",
            step=done,
            objective=made.objective,
            optimizer=made.optimizer,
            recipe=document,
            classes=build.class_document(classes),
            keep=machine.keep_checkpoints,
        )

    try:
        with ExitStack() as stack:
            metrics = stack.enter_context(MetricsLog(folder / "metrics.jsonl"))
            metrics.truncate_after(first)
            stop = stack.enter_context(StopSignal())
            progress = stack.enter_context(
                TrainingProgress(steps=recipe.steps, first=first, every=machine.log_every)
            )

            def on_step(done: int, report: LossReport) -> None:
                losses = None
                if done % machine.log_every == 0 or done == recipe.steps:
                    losses = _floats(report)
                    rates = {group["name"]: group["lr"] for group in made.optimizer.param_groups}
                    metrics.write({"step": done, "losses": losses, "lr": rates})
                progress.step(done, losses, images=images)
                if machine.checkpoint_every and done % machine.checkpoint_every == 0:
                    checkpoint(done)
                every = machine.validate_every
                if validation is not None and every and done % every == 0 and done < recipe.steps:
                    matrix = _validate(recipe, made, classes, validation)
                    metrics.write({"step": done, "oracle_miou": matrix.mean_iou()})

            done = first
            if first < recipe.steps:
                done = fit(made, first=first, on_step=on_step, stop=stop)
            if stop.number is not None and done < recipe.steps:
                checkpoint(done)
                status.interrupted(step=done, signal_number=stop.number)
                raise Interrupted(
                    f"stopped at step {done} and saved; go on with --resume {folder}", stop.number
                )
            if first < recipe.steps:
                checkpoint(done)
        seconds = time.monotonic() - started
        matrix = None
        if validation is not None:
            matrix = _validate(recipe, made, classes, validation, folder)
        status.done(
            step=recipe.steps,
            seconds=seconds,
            miou=None if matrix is None else matrix.mean_iou(),
        )
    except Interrupted:
        raise
    except UdasegError as error:
        status.failed(code=error.exit_code, reason=str(error))
        raise


def _floats(report: LossReport) -> dict[str, float]:
    """Read a report's scalars; the only place of a step that waits for the device."""
    values = {"total": report.total, **report.parts, **report.figures}
    return {name: float(value.detach()) for name, value in values.items()}


def _validate(
    recipe: Recipe,
    made: Fit,
    classes: ClassSpace,
    validation: PreparedDataset,
    folder: Path | None = None,
) -> ConfusionMatrix:
    """Score the student on labelled target images; read by people, used for nothing."""
    student = made.objective.student
    was_training = student.training
    student.eval()
    split, resize = recipe.validation.split, recipe.validation.resize
    matrix = score(student, classes, validation, split, resize=resize, device=made.device)
    student.train(was_training)
    if folder is not None:
        size = "as stored" if resize is None else f"{resize[1]}x{resize[0]}"
        look = {"weights": f"student at step {recipe.steps}", "input": size}
        scores = summarise(matrix, classes, validation, split, look)
        write_scores(folder / "eval" / f"{validation.name}-{split}", scores)
        show(scores, "table")
    return matrix


def _say_plan(
    recipe: Recipe,
    recipe_path: Path,
    made: Fit,
    source: PreparedDataset,
    target: PreparedDataset | None,
    validation: PreparedDataset | None,
    folder: Path,
) -> None:
    """Say on stderr what will happen: data, network, steps, and where it goes."""
    assert source.classes is not None
    student = made.objective.student
    parameters = sum(part.numel() for part in student.parameters())
    rows = {
        "recipe": f"{recipe_path} ({recipe.name}, seed {recipe.seed})",
        "source": f"{source.name}: {len(made.batches.source.samples)} images, "
        f"{len(source.classes)} classes",
    }
    if target is not None and made.batches.target is not None:
        count = len(made.batches.target.samples)
        rows["target"] = f"{target.name}: {count} images, labels are not read"
        _warn_of_shape(recipe, made.batches.target.samples)
    if validation is not None:
        split = recipe.validation.split
        rows["scored on"] = f"{validation.name} {split}: {len(validation.split(split))} images"
    model = recipe.model
    rows["network"] = (
        f"{model.backbone}, {model.head}, stride {model.output_stride}, "
        f"{parameters / 1e6:.2f} M parameters, weights {model.weights}"
    )
    rows["steps"] = f"{recipe.steps} of {recipe.batch.source}"
    if target is not None:
        rows["steps"] += f" + {recipe.batch.target}"
    rows["steps"] += f" images on {made.device}, {recipe.machine.precision}"
    rows["run"] = str(folder)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for key, value in rows.items():
        console.print(Text(f"{key:>10}  {printable(value)}"))


def _warn_of_shape(recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Warn when the recipe's resize squashes the target's images."""
    resize = recipe.target.resize
    if resize is None:
        return
    wanted = resize[1] / resize[0]
    squashed = [s for s in samples if not 0.9 < s.width / s.height / wanted < 1.1]
    if squashed:
        first = squashed[0]
        log.warning(
            "%d of %d target images have another shape than target.resize=[%d, %d] (the first is "
            "%dx%d) and are squashed; choose target.resize=[HEIGHT, WIDTH] to keep their shape",
            *(len(squashed), len(samples), *resize, first.width, first.height),
        )


def _announce(folder: Path, recipe: Recipe) -> None:
    """Say on stdout where the run is and what can be done with it."""
    console = Console(highlight=False, soft_wrap=True)
    where = printable(str(folder))
    console.print(Text(f"{recipe.name}: done, in {where}"))
    console.print(Text(f"  udaseg eval {where}\n  udaseg predict IMAGES --checkpoint {where}"))
