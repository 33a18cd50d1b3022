"""The numbers of a step as a line of metrics, and `metrics.jsonl`."""

from collections.abc import Mapping
from pathlib import Path

from udaseg.distributed import all_reduce_mean
from udaseg.methods.objectives.objective import LossReport
from udaseg.runs.metrics_log import MetricsLog
from udaseg.training.callbacks.callback import Callback, TrainingState


class Metrics(Callback):
    """Gives the loggers a line of metrics whenever a step has something to say.

    At a step that wants a line, the line has the losses, the learning rates and the gradient norm;
    otherwise only what other callbacks added to `state.event`.
    """

    def on_step(self, state: TrainingState) -> None:
        """Give the loggers the line of the step, if it has one."""
        event = {**self._numbers(state), **state.event} if state.wants_line else state.event
        if event:
            state.write_event(event)

    @staticmethod
    def _numbers(state: TrainingState) -> dict[str, object]:
        assert state.report is not None
        numbers: dict[str, object] = {
            "losses": _mean_scalars(state.report),
            "lr": {group["name"]: group["lr"] for group in state.setup.optimizer.param_groups},
            "gradient_norm": state.gradient_norm,
        }
        if (dropped := state.dropped) is not None:
            numbers["dropped"] = {"in_a_row": dropped.in_a_row, "files": dropped.files}
        return numbers


class MetricsFile(Callback):
    """Writes the lines of metrics into `metrics.jsonl`.

    Args:
        folder: Run folder.
    """

    ranks = "zero"

    def __init__(self, folder: Path) -> None:
        self._log = MetricsLog(folder / "metrics.jsonl")

    def begin(self, state: TrainingState) -> None:
        """Delete the lines of steps that are run again."""
        self._log.truncate_after(state.step)

    def on_rewind(self, state: TrainingState) -> None:
        """Delete the lines of steps that are run again."""
        self._log.truncate_after(state.step)

    def on_event(self, state: TrainingState, event: Mapping[str, object]) -> None:
        """Append a line."""
        self._log.write({"step": state.step, **event})


def _mean_scalars(report: LossReport) -> dict[str, float]:
    """Return the scalars of a report as means over ranks; this waits for the device."""
    values = {"total": report.total, **report.parts, **report.figures}
    return {name: float(all_reduce_mean(value.detach())) for name, value in values.items()}
