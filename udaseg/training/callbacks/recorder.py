"""Record a run while it trains: metrics, previews, checkpoints and scores."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from torch.nn.utils import get_total_norm

from udaseg.data.labels.classes import classes_to_dict
from udaseg.display.console import open_console
from udaseg.display.progress import TrainingProgress
from udaseg.display.score_tables import score_table
from udaseg.distributed import all_reduce_mean, on_rank_zero, rank, without_peers, world_size
from udaseg.errors import DivergedError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import score_dataset, write_scores
from udaseg.evaluation.scores import summarise
from udaseg.methods.objectives.objective import LossReport
from udaseg.models.segmenter import evaluation_mode
from udaseg.recipe.load import to_dict
from udaseg.recipe.stages import Stage
from udaseg.runs.checkpoint import newest_checkpoint, save_checkpoint
from udaseg.runs.status import RunStatus
from udaseg.text import format_size
from udaseg.training.callbacks.collapse import CHECK_INTERVAL, Alarm, CollapseMonitor
from udaseg.training.callbacks.cost import CostRecorder
from udaseg.training.callbacks.previews import DEVICE_ERRORS, Previews
from udaseg.training.callbacks.tensorboard import MetricsWriter, uses_tensorboard
from udaseg.training.context import RunContext
from udaseg.training.guards import DroppedStep, Guard
from udaseg.training.memory import OutOfMemory
from udaseg.training.setup import TrainingSetup
from udaseg.training.stage_data import stage_checkpoint_folder

log = logging.getLogger(__name__)


class Recorder:
    """Write the metrics, previews, checkpoints and scores of a run.

    Args:
        context: The run: its recipe, data sets, folder, and what keeps the best checkpoint.
        stage: The stage that is trained.
        setup: Training setup of the stage.
        digests: Digests of files that were made for this stage; stored in each checkpoint.
        status: Status of the run; incidents are counted there.
    """

    def __init__(
        self,
        context: RunContext,
        stage: Stage,
        setup: TrainingSetup,
        digests: Mapping[str, str],
        status: RunStatus,
    ) -> None:
        recipe, folder, classes = context.recipe, context.folder, context.data.classes
        self.recipe, self.folder, self.classes = recipe, folder, classes
        self.validation, self.keep_best = context.data.validation, context.keep_best
        self.stage, self.setup, self.digests, self.status = stage, setup, digests, status
        # all ranks compute the same values; rank 0 writes them
        self.is_writer = rank() == 0
        tensorboard = self.is_writer and uses_tensorboard(recipe.machine.tensorboard)
        self.metrics = MetricsWriter(folder, board=tensorboard)
        self.previews = Previews(recipe, setup, classes, folder)
        self.progress: TrainingProgress | None = None
        self.last_saved_step = -1
        self.guard = Guard(
            setup, counts=status.incident_counts, on_drop=self.on_drop, on_rollback=self.on_rollback
        )
        self.collapse_monitor = CollapseMonitor(classes.names, stage.begin)
        self._dropped: DroppedStep | None = None
        self._shares: dict[str, float] = {}
        batches = setup.batches
        self.images_per_step = (0 if batches.source is None else batches.options.batch_source) + (
            0 if batches.target is None else batches.options.batch_target
        )
        self.cost = CostRecorder(folder, setup.device, self.images_per_step * world_size())

    def rewind_to(self, done: int) -> None:
        """Delete the records of steps after `done`; these steps are run, or run again."""
        if self.is_writer:
            self.metrics.rewind_to(done)
        self.collapse_monitor = CollapseMonitor(self.classes.names, done)
        self._dropped, self._shares = None, {}
        self._consider_best(done)

    def on_rollback(self, done: int) -> None:
        """Delete the records of steps after `done`: a state was not finite, they are run again."""
        self.rewind_to(done)
        self.status.running(step=done)

    def on_drop(self, dropped: DroppedStep) -> None:
        """Note a step with non-finite values; it is logged whatever `log_every` is."""
        self._dropped = dropped
        self.status.running(step=dropped.step)

    def on_step(self, done: int, report: LossReport) -> None:
        """Log, draw, score and save at the intervals of the recipe."""
        self.cost.step()
        machine, last = self.recipe.machine, done == self.recipe.steps
        losses: dict[str, float] | None = None
        event: dict[str, object] = {}
        dropped, self._dropped = self._dropped, None
        if dropped is None:
            self.collapse_monitor.add(report)
        alarms = self._alarms(done) if done % CHECK_INTERVAL == 0 else []
        if done % machine.log_every == 0 or last or dropped is not None or alarms:
            losses = _mean_scalars(report)
            rates = {group["name"]: group["lr"] for group in self.setup.optimizer.param_groups}
            event = {"losses": losses, "lr": rates, "gradient_norm": self.guard.gradient_norm}
            if dropped is not None:
                event["dropped"] = {"in_a_row": dropped.in_a_row, "files": dropped.files}
            if alarms:
                event["alarms"] = {alarm.kind: alarm.text for alarm in alarms}
            if self._shares:
                event["pseudo_labels"], self._shares = self._shares, {}
        interval = machine.validate_every
        if self.validation is not None and interval and done % interval == 0 and not last:
            event["oracle_miou"] = self.score_validation().mean_iou()
        if event:
            self._write(done, event)
        self._draw(done)
        if self.progress is not None:
            finite_losses = None if losses is None else _finite_values(losses)
            self.progress.step(done, finite_losses, images=self.images_per_step * world_size())
        if machine.stop_on_collapse and (collapsed := [a.text for a in alarms if a.collapse]):
            raise DivergedError(f"step {done}: {collapsed[0]} (machine.stop_on_collapse)")
        if machine.checkpoint_every and done % machine.checkpoint_every == 0:
            self.save_checkpoint(done)

    def _draw(self, done: int) -> None:
        if not self.is_writer or not self.previews.is_due(done):
            return
        # a teacher with synchronised batch norm would wait for the images of the other ranks
        with without_peers():
            sheet = self.previews.draw(done)
        if sheet is not None:
            self.metrics.add_preview(done, sheet)

    def _write(self, done: int, event: Mapping[str, object]) -> None:
        stage = {} if self.stage.name is None else {"stage": self.stage.name}
        if self.is_writer:
            self.metrics.write(done, {**stage, **event})

    def _alarms(self, done: int) -> list[Alarm]:
        """Log, count and return the alarms after `done` steps."""
        alarms = self.collapse_monitor.check(done)
        self._shares = self.collapse_monitor.shares
        for alarm in alarms:
            log.warning("step %d: %s", done, alarm.text)
            self.status.incident_counts[f"alarm_{alarm.kind}"] += 1
        if alarms:
            self.status.running(step=done)
        return alarms

    def add_last_checkpoint(self, error: DivergedError) -> DivergedError:
        """Return the error with the last checkpoint added; save one if memory ran out."""
        out_of_memory = isinstance(error, OutOfMemory) and world_size() == 1
        # with several ranks the others are in the middle of a step
        if isinstance(error, OutOfMemory) and out_of_memory:
            self.save_checkpoint(error.done)
        last = newest_checkpoint(self.folder / "checkpoints")
        if last is None:
            return DivergedError(f"{error}\nno checkpoint was written yet")
        text = f"{error}\nthe last good checkpoint is {last.path}, step {last.step}"
        if out_of_memory:
            text += (
                f"; continue with --resume {self.folder} --fit, or on a machine with more memory"
            )
        return DivergedError(text)

    def save_checkpoint(self, done: int, *, force: bool = False) -> None:
        """Save the state after `done` steps, unless saved before; `force` saves it anyway."""
        if done == self.last_saved_step and not force:
            return
        self._check_finite(done)
        if done == self.stage.end and self.stage.name is not None:
            # the next stage starts from this checkpoint, so it is kept and written first
            self._save(stage_checkpoint_folder(self.folder, self.stage), done)
        self._save(self.folder / "checkpoints", done)
        self.last_saved_step = done
        if self.is_writer:
            self.cost.write(done)
        self._consider_best(done, force=force)

    def _consider_best(self, done: int, *, force: bool = False) -> None:
        """Keep the checkpoint of `done` steps if it is the best so far and a criterion is set.

        Called again after a resume, because a kill may have come between writing and comparing. If
        the device is too full, only the comparison is disabled.
        """
        path = self.folder / "checkpoints" / f"step-{done:06d}.pt"
        if self.keep_best is None or self.keep_best.is_disabled or not self.is_writer:
            return
        if (self.keep_best.has_compared(done) and not force) or not path.is_file():
            return
        try:
            with without_peers():
                value = self.keep_best.consider(self.setup, path, done)
        except DEVICE_ERRORS as error:
            message = str(error).strip().partition("\n")[0] or type(error).__name__
            log.warning("%s: no further checkpoints are compared in this run (%s)", path, message)
            self.keep_best.is_disabled = True
            return
        self._write(done, {"select": {self.keep_best.criterion: value}})

    def _save(self, folder: Path, done: int) -> None:
        def write() -> None:
            save_checkpoint(
                folder,
                step=done,
                objective=self.setup.objective,
                optimizer=self.setup.optimizer,
                recipe=to_dict(self.recipe),
                classes=classes_to_dict(self.classes),
                files={**self.setup.batches.digests(), **self.digests},
                keep=self.recipe.machine.keep_checkpoints,
            )

        on_rank_zero(write)

    def _check_finite(self, done: int) -> None:
        """Raise if the weights are not finite, so that no bad state replaces a good checkpoint."""
        weights = [parameter.detach() for parameter in self.setup.objective.student.parameters()]
        if not math.isfinite(float(get_total_norm(weights))):
            raise DivergedError(
                f"step {done}: the weights are not finite, so nothing was saved; the last "
                "checkpoint is unchanged. Lower optimizer.lr, or set optimizer.clip_norm"
            )

    def score_validation(self, *, show_table: bool = False) -> ConfusionMatrix:
        """Score the student on labelled target images; the result is never used for selection.

        Args:
            show_table: Also print the table and write it into the run.
        """
        assert self.validation is not None
        student, spec = self.setup.objective.student, self.recipe.validation
        with evaluation_mode(student):
            matrix = score_dataset(
                student,
                self.classes,
                self.validation,
                spec.split,
                resize=spec.resize,
                device=self.setup.device,
            )
        if show_table and self.is_writer:
            weights = f"student at step {self.recipe.steps}"
            options = {"weights": weights, "input": format_size(spec.resize)}
            scores = summarise(matrix, self.classes, self.validation, spec.split, options)
            write_scores(self.folder / "eval" / f"{self.validation.name}-{spec.split}", scores)
            open_console().print(score_table(scores))
        return matrix


def _mean_scalars(report: LossReport) -> dict[str, float]:
    """Return the scalars of a report as means over ranks; this waits for the device."""
    values = {"total": report.total, **report.parts, **report.figures}
    return {name: float(all_reduce_mean(value.detach())) for name, value in values.items()}


def _finite_values(values: Mapping[str, float]) -> dict[str, float]:
    """Return the finite values."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
