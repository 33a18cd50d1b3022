"""Record a run while it trains: metrics, previews, checkpoints and scores."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from torch.nn.utils import get_total_norm

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import ClassSpace, classes_to_dict
from udaseg.display.progress import TrainingProgress
from udaseg.distributed import all_reduce_mean, on_rank_zero, rank, without_peers, world_size
from udaseg.errors import DivergedError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import print_scores, score_dataset, write_scores
from udaseg.evaluation.scores import summarise
from udaseg.methods.objectives.objective import LossReport
from udaseg.recipe.load import to_dict
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import Stage
from udaseg.runs.checkpoint import newest_checkpoint, save_checkpoint
from udaseg.runs.status import RunStatus
from udaseg.text import format_size
from udaseg.training.callbacks.collapse import CHECK_INTERVAL, Alarm, CollapseMonitor
from udaseg.training.callbacks.cost import CostRecorder
from udaseg.training.callbacks.keep_best import KeepBest
from udaseg.training.callbacks.previews import DEVICE_ERRORS, Previews
from udaseg.training.callbacks.tensorboard import MetricsWriter, uses_tensorboard
from udaseg.training.guards import DroppedStep, Guard
from udaseg.training.memory import OutOfMemory
from udaseg.training.setup import TrainingSetup
from udaseg.training.stage_data import stage_checkpoint_folder

log = logging.getLogger(__name__)


class Recorder:
    """Write the metrics, previews, checkpoints and scores of a run.

    Args:
        recipe: Recipe of the run.
        stage: The stage that is trained.
        setup: Training setup of the stage.
        classes: Classes of the network.
        validation: Labelled images to score, for reporting only; None scores nothing.
        folder: Run folder.
        digests: Digests of files that were made for this stage; stored in each checkpoint.
        status: Status of the run; incidents are counted there.
        keeper: Keeps the best checkpoint; None keeps only the newest ones.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        setup: TrainingSetup,
        classes: ClassSpace,
        validation: PreparedDataset | None,
        folder: Path,
        digests: Mapping[str, str],
        status: RunStatus,
        keeper: KeepBest | None = None,
    ) -> None:
        self.recipe, self.leg, self.made, self.classes = recipe, stage, setup, classes
        self.digests = digests
        self.validation, self.folder = validation, folder
        # all ranks compute the same values; rank 0 writes them
        self.writes = rank() == 0
        tensorboard = self.writes and uses_tensorboard(recipe.machine.tensorboard)
        self.metrics = MetricsWriter(folder, board=tensorboard)
        self.previews, self.keeper = Previews(recipe, setup, classes, folder), keeper
        self.progress: TrainingProgress | None = None
        self.saved = -1
        self.status = status
        self.guard = Guard(
            setup, counts=status.counts, on_drop=self.on_drop, on_return=self.on_return
        )
        self.watch = CollapseMonitor(classes.names, stage.begin)
        self._dropped: DroppedStep | None = None
        self._shares: dict[str, float] = {}
        batches = setup.batches
        self.images = (0 if batches.source is None else batches.batch_source) + (
            0 if batches.target is None else batches.batch_target
        )
        self.cost = CostRecorder(folder, setup.device, self.images * world_size())

    def begin_from(self, done: int) -> None:
        """Delete the records of steps after `done`; these steps are run, or run again."""
        if self.writes:
            self.metrics.begin_from(done)
        self.watch = CollapseMonitor(self.classes.names, done)
        self._dropped, self._shares = None, {}
        self._compare(done)

    def on_return(self, done: int) -> None:
        """Delete the records of steps after `done`: a state was not finite, they are run again."""
        self.begin_from(done)
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
            self.watch.see(report)
        alarms = self._alarms(done) if done % CHECK_INTERVAL == 0 else []
        if done % machine.log_every == 0 or last or dropped is not None or alarms:
            losses = _mean_scalars(report)
            rates = {group["name"]: group["lr"] for group in self.made.optimizer.param_groups}
            event = {"losses": losses, "lr": rates, "gradient_norm": self.guard.gradient_norm}
            if dropped is not None:
                event["dropped"] = {"in_a_row": dropped.in_a_row, "files": dropped.files}
            if alarms:
                event["alarms"] = {alarm.kind: alarm.text for alarm in alarms}
            if self._shares:
                event["pseudo_labels"], self._shares = self._shares, {}
        interval = machine.validate_every
        if self.validation is not None and interval and done % interval == 0 and not last:
            event["oracle_miou"] = self.scored().mean_iou()
        if event:
            self._write(done, event)
        self._draw(done)
        if self.progress is not None:
            finite_losses = None if losses is None else _finite_values(losses)
            self.progress.step(done, finite_losses, images=self.images * world_size())
        if machine.stop_on_collapse and (collapsed := [a.text for a in alarms if a.collapse]):
            raise DivergedError(f"step {done}: {collapsed[0]} (machine.stop_on_collapse)")
        if machine.checkpoint_every and done % machine.checkpoint_every == 0:
            self.checkpoint(done)

    def _draw(self, done: int) -> None:
        if not self.writes or not self.previews.due(done):
            return
        # a teacher with synchronised batch norm would wait for the images of the other ranks
        with without_peers():
            sheet = self.previews.draw(done)
        if sheet is not None:
            self.metrics.picture(done, sheet)

    def _write(self, done: int, event: Mapping[str, object]) -> None:
        stage = {} if self.leg.name is None else {"stage": self.leg.name}
        if self.writes:
            self.metrics.write(done, {**stage, **event})

    def _alarms(self, done: int) -> list[Alarm]:
        """Log, count and return the alarms after `done` steps."""
        alarms = self.watch.look(done)
        self._shares = self.watch.shares
        for alarm in alarms:
            log.warning("step %d: %s", done, alarm.text)
            self.status.counts[f"alarm_{alarm.kind}"] += 1
        if alarms:
            self.status.running(step=done)
        return alarms

    def last_words(self, error: DivergedError) -> DivergedError:
        """Return the error with the last checkpoint added; save one if memory ran out."""
        out_of_memory = isinstance(error, OutOfMemory) and world_size() == 1
        # with several ranks the others are in the middle of a step
        if isinstance(error, OutOfMemory) and out_of_memory:
            self.checkpoint(error.done)
        last = newest_checkpoint(self.folder / "checkpoints")
        if last is None:
            return DivergedError(f"{error}\nno checkpoint was written yet")
        text = f"{error}\nthe last good checkpoint is {last.path}, step {last.step}"
        if out_of_memory:
            text += (
                f"; continue with --resume {self.folder} --fit, or on a machine with more memory"
            )
        return DivergedError(text)

    def checkpoint(self, done: int, *, again: bool = False) -> None:
        """Save the state after `done` steps, unless saved before; `again` saves it anyway."""
        if done == self.saved and not again:
            return
        self._refuse_not_finite(done)
        if done == self.leg.end and self.leg.name is not None:
            # the next stage starts from this checkpoint, so it is kept and written first
            self._save(stage_checkpoint_folder(self.folder, self.leg), done)
        self._save(self.folder / "checkpoints", done)
        self.saved = done
        if self.writes:
            self.cost.write(done)
        self._compare(done, again=again)

    def _compare(self, done: int, *, again: bool = False) -> None:
        """Keep the checkpoint of `done` steps if it is the best so far and a criterion is set.

        Called again after a resume, because a kill may have come between writing and comparing. If
        the device is too full, only the comparison is disabled.
        """
        path = self.folder / "checkpoints" / f"step-{done:06d}.pt"
        if self.keeper is None or self.keeper.gave_up or not self.writes:
            return
        if (self.keeper.knows(done) and not again) or not path.is_file():
            return
        try:
            with without_peers():
                value = self.keeper.look(self.made, path, done)
        except DEVICE_ERRORS as error:
            message = str(error).strip().partition("\n")[0] or type(error).__name__
            log.warning("%s: no further checkpoints are compared in this run (%s)", path, message)
            self.keeper.gave_up = True
            return
        self._write(done, {"select": {self.keeper.criterion: value}})

    def _save(self, folder: Path, done: int) -> None:
        def write() -> None:
            save_checkpoint(
                folder,
                step=done,
                objective=self.made.objective,
                optimizer=self.made.optimizer,
                recipe=to_dict(self.recipe),
                classes=classes_to_dict(self.classes),
                files={**self.made.batches.digests(), **self.digests},
                keep=self.recipe.machine.keep_checkpoints,
            )

        on_rank_zero(write)

    def _refuse_not_finite(self, done: int) -> None:
        """Raise if the weights are not finite, so that no bad state replaces a good checkpoint."""
        weights = [parameter.detach() for parameter in self.made.objective.student.parameters()]
        if not math.isfinite(float(get_total_norm(weights))):
            raise DivergedError(
                f"step {done}: the weights are not finite, so nothing was saved; the last "
                "checkpoint is unchanged. Lower optimizer.lr, or set optimizer.clip_norm"
            )

    def scored(self, *, show_it: bool = False) -> ConfusionMatrix:
        """Score the student on labelled target images; the result is never used for selection.

        Args:
            show_it: Also print the table and write it into the run.
        """
        assert self.validation is not None
        student, spec = self.made.objective.student, self.recipe.validation
        was_training = student.training
        student.eval()
        matrix = score_dataset(
            student,
            self.classes,
            self.validation,
            spec.split,
            resize=spec.resize,
            device=self.made.device,
        )
        student.train(was_training)
        if show_it and self.writes:
            weights = f"student at step {self.recipe.steps}"
            options = {"weights": weights, "input": format_size(spec.resize)}
            scores = summarise(matrix, self.classes, self.validation, spec.split, options)
            write_scores(self.folder / "eval" / f"{self.validation.name}-{spec.split}", scores)
            print_scores(scores, "table")
        return matrix


def _mean_scalars(report: LossReport) -> dict[str, float]:
    """Return the scalars of a report as means over ranks; this waits for the device."""
    values = {"total": report.total, **report.parts, **report.figures}
    return {name: float(all_reduce_mean(value.detach())) for name, value in values.items()}


def _finite_values(values: Mapping[str, float]) -> dict[str, float]:
    """Return the finite values."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
