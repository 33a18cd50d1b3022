"""What loggers write, and a logger whose record cannot be rewound."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from udaseg.data.files.images import Pixels
from udaseg.recipe.choices import Logger
from udaseg.runs.records import parse_event
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.callbacks.previews import preview_path, preview_steps

log = logging.getLogger(__name__)


def scalars(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of an event by tag, such as `losses/total`."""
    for name, value in event.items():
        if name in ("step", "dropped"):
            continue
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, number in parts:
            if isinstance(number, int | float) and math.isfinite(number):
                # the programs group tags by their first part
                yield (f"{name}/{part}" if part else f"run/{name}"), float(number)


class RecordLogger(Callback):
    """Writes the numbers and the preview of each step into a record whose steps only increase.

    A step is written when a later one follows, or the stage ends. A run that resumes, goes back or
    begins another stage continues its record: steps that it has are not written again, and steps
    that it lacks are taken from the run folder. A record that cannot be written ends no run.
    """

    ranks = "zero"
    name: ClassVar[Logger]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_open = self._is_disabled = False
        self._written = -1
        self._step = -1  # a step after those that are written, with its numbers
        self._values: dict[str, float] = {}

    def open(self, state: TrainingState) -> int:
        """Open the record of the run, or a new one; return its last step, or -1."""
        raise NotImplementedError

    def write(self, step: int, values: Mapping[str, float], preview: Path | None) -> None:
        """Write the numbers of a step, and its preview, if there is one."""
        raise NotImplementedError

    def close(self, state: TrainingState, error: BaseException | None) -> None:
        """Close the record."""
        raise NotImplementedError

    def begin(self, state: TrainingState) -> None:
        """Open the record, and write the steps that it lacks."""
        if self._is_disabled:
            return
        self._step, self._values = -1, {}
        with self._without_failure():
            self._written = self.open(state)
            self._is_open = True
        for step, values in _recorded_steps(self.folder, state.step):
            self._add(step, values)

    def on_event(self, state: TrainingState, event: Mapping[str, object]) -> None:
        """Take the numbers of a line of metrics."""
        self._add(state.step, dict(scalars(event)))

    def on_preview(self, state: TrainingState, picture: Pixels) -> None:
        """Take a preview; its file is read when the step is written."""
        self._add(state.step, {})

    def on_rewind(self, state: TrainingState) -> None:
        """Continue the record at the restored step."""
        self._step = -1
        self.end(state, None)
        self.begin(state)

    def end(self, state: TrainingState, error: BaseException | None) -> None:
        """Write the last step, and close the record."""
        self._write()
        if self._is_open:
            self._is_open = False
            with self._without_failure():
                self.close(state, error)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._is_open and step > self._written:
            if step != self._step:
                self._write()
                self._step, self._values = step, {}
            self._values.update(values)

    def _write(self) -> None:
        if self._is_open and self._step > self._written:
            preview = preview_path(self.folder, self._step)
            with self._without_failure():
                self.write(self._step, self._values, preview if preview.is_file() else None)
            self._written = self._step

    @contextlib.contextmanager
    def _without_failure(self) -> Iterator[None]:
        """Say what failed, and write no more."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of third-party packages
                yield
        except Exception as error:  # noqa: BLE001 (of the package, its database or its server)
            log.warning("%s: cannot write (%s); the run continues without", self.name, error)
            self._is_disabled, self._is_open = True, False


def _recorded_steps(folder: Path, last: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each step up to `last` that has a line of metrics or a preview, with its numbers."""
    steps: dict[int, dict[str, float]] = {
        step: {} for step in preview_steps(folder) if step <= last
    }
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        event = parse_event(line)
        steps.setdefault(event["step"], {}).update(scalars(event))
    yield from sorted(steps.items())
