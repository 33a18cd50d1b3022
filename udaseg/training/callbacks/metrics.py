"""The numbers of a step as a line of metrics, and `metrics.jsonl`."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from udaseg.files import plain_json, write_text
from udaseg.runs.records import parse_event
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.scalars import mean_scalars


class Metrics(Callback):
    """Gives the loggers a line of metrics whenever a step has something to say.

    At a step that wants a line, the line has the losses, the learning rates and the gradient norm;
    otherwise only what other callbacks added to `state.event`.
    """

    def on_step(self, state: TrainingState) -> None:
        """Give the loggers the line of the step, if it has one."""
        numbers: dict[str, object] = {}
        if state.wants_line:
            assert state.report is not None
            numbers = {
                "losses": mean_scalars(state.report),
                "lr": {group["name"]: group["lr"] for group in state.setup.optimizer.param_groups},
                "gradient_norm": state.gradient_norm,
            }
            if (dropped := state.dropped) is not None:
                numbers["dropped"] = {"in_a_row": dropped.in_a_row, "files": dropped.files}
        if event := {**numbers, **state.event}:
            state.write_event(event)


class MetricsFile(Callback):
    """Appends each line of metrics to `metrics.jsonl`; null for numbers that are not finite."""

    ranks = "zero"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"

    def begin(self, state: TrainingState) -> None:
        """Drop incomplete lines, and those of steps that are run again, so that steps increase."""
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if parse_event(line)["step"] <= state.step:
                    kept.append(f"{line}\n")
        write_text(self._path, "".join(kept))

    on_rewind = begin

    def on_event(self, state: TrainingState, event: Mapping[str, object]) -> None:
        """Append a line."""
        line = json.dumps(plain_json({"step": state.step, **event}), allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
