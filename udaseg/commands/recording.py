"""What a run writes down while it trains: metrics, checkpoints, and scores for people."""

import math
from pathlib import Path

from torch.nn.utils import get_total_norm

from udaseg import build
from udaseg.adaptation import LossReport
from udaseg.commands.scoring import score, show, shown_size, summarise, write_scores
from udaseg.data import ClassSpace, PreparedDataset
from udaseg.engine import Fit, save
from udaseg.errors import DivergedError
from udaseg.evaluation import ConfusionMatrix
from udaseg.recipe import Recipe, to_dict
from udaseg.reporting import MetricsLog, TrainingProgress


class Recorder:
    """What is written down while a run trains.

    Args:
        recipe: Of the run.
        made: What trains.
        classes: Outputs of the network.
        validation: Labelled images to score, for people to read; None scores nothing.
        folder: Of the run.
    """

    def __init__(
        self,
        recipe: Recipe,
        made: Fit,
        classes: ClassSpace,
        validation: PreparedDataset | None,
        folder: Path,
    ) -> None:
        self.recipe, self.made, self.classes = recipe, made, classes
        self.validation, self.folder = validation, folder
        self.metrics = MetricsLog(folder / "metrics.jsonl")
        self.progress: TrainingProgress | None = None
        self.saved = -1
        adapts = recipe.method.kind != "source_only"
        self.images = recipe.batch.source + (recipe.batch.target if adapts else 0)

    def on_step(self, done: int, report: LossReport) -> None:
        """Log, score and save as often as the recipe says; between logs nothing waits."""
        machine, last = self.recipe.machine, done == self.recipe.steps
        losses: dict[str, float] | None = None
        event: dict[str, object] = {}
        if done % machine.log_every == 0 or last:
            losses = _floats(report)
            rates = {group["name"]: group["lr"] for group in self.made.optimizer.param_groups}
            event = {"losses": losses, "lr": rates}
        every = machine.validate_every
        if self.validation is not None and every and done % every == 0 and not last:
            event["oracle_miou"] = self.scored().mean_iou()
        if event:
            self.metrics.write({"step": done, **event})
        if self.progress is not None:
            self.progress.step(done, losses, images=self.images)
        if machine.checkpoint_every and done % machine.checkpoint_every == 0:
            self.checkpoint(done)

    def checkpoint(self, done: int) -> None:
        """Save the state after `done` steps, unless it is saved already."""
        if done == self.saved:
            return
        self._refuse_not_finite(done)
        save(
            self.folder / "checkpoints",
            step=done,
            objective=self.made.objective,
            optimizer=self.made.optimizer,
            recipe=to_dict(self.recipe),
            classes=build.class_document(self.classes),
            files=self.made.batches.digests(),
            keep=self.recipe.machine.keep_checkpoints,
        )
        self.saved = done

    def _refuse_not_finite(self, done: int) -> None:
        """Keep a state that is not finite from taking the place of a good checkpoint."""
        weights = [part.detach() for part in self.made.objective.student.parameters()]
        if not math.isfinite(float(get_total_norm(weights))):
            raise DivergedError(
                f"step {done}: the weights are not finite, so nothing was saved; the last "
                "checkpoint stands. Lower optimizer.lr, or set optimizer.clip_norm"
            )

    def scored(self, *, show_it: bool = False) -> ConfusionMatrix:
        """Score the student on labelled target images, which chooses nothing.

        Args:
            show_it: Also print the table and write it into the run.
        """
        assert self.validation is not None
        student, spec = self.made.objective.student, self.recipe.validation
        was_training = student.training
        student.eval()
        matrix = score(
            *(student, self.classes, self.validation, spec.split),
            resize=spec.resize,
            device=self.made.device,
        )
        student.train(was_training)
        if show_it:
            weights = f"student at step {self.recipe.steps}"
            look = {"weights": weights, "input": shown_size(spec.resize)}
            scores = summarise(matrix, self.classes, self.validation, spec.split, look)
            write_scores(self.folder / "eval" / f"{self.validation.name}-{spec.split}", scores)
            show(scores, "table")
        return matrix


def _floats(report: LossReport) -> dict[str, float]:
    """Read a report's scalars; the only place of a step that waits for the device."""
    values = {"total": report.total, **report.parts, **report.figures}
    return {name: float(value.detach()) for name, value in values.items()}
