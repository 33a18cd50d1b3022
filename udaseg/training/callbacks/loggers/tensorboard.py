"""Write a run's metrics and previews for TensorBoard, if its package is installed."""

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from udaseg.data.files.images import Pixels
from udaseg.errors import EnvironmentFault
from udaseg.training.callbacks.callback import Callback, TrainingState

log = logging.getLogger(__name__)
FOLDER = "tensorboard"


def uses_tensorboard(mode: Literal["auto", "require", "never"]) -> bool:
    """Return whether a run writes for TensorBoard; raise if it must but cannot."""
    if mode == "never":
        return False
    available = is_installed()
    if mode == "require" and not available:
        raise EnvironmentFault(
            "--tensorboard needs the package `tensorboard`, which is not installed; "
            "run pip install 'udaseg[tensorboard]', or omit the option: metrics.jsonl and "
            "`udaseg report` have the same numbers"
        )
    return available


def is_installed() -> bool:
    """Return whether the tensorboard package is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard(Callback):
    """Writes metrics and previews for TensorBoard; a folder that cannot be written ends no run."""

    ranks = "zero"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._is_disabled = False
        self._writer: Any = None

    def begin(self, state: TrainingState) -> None:
        """Open a writer that hides earlier records of the steps to come."""
        self._close()
        if not self._is_disabled:
            self._writer = _open_writer(self._folder, state.step + 1)
            self._is_disabled = self._writer is None

    on_rewind = begin

    def on_event(self, state: TrainingState, event: Mapping[str, object]) -> None:
        """Write the numbers and alarms of a line of metrics."""
        if self._writer is None:
            return
        for tag, value in scalars(event):
            self._writer.add_scalar(tag, value, state.step)
        alarms = event.get("alarms")
        for kind, text in alarms.items() if isinstance(alarms, Mapping) else ():
            self._writer.add_text(f"alarm/{kind}", text, state.step)

    def on_preview(self, state: TrainingState, picture: Pixels) -> None:
        """Write a preview."""
        if self._writer is not None:
            self._writer.add_image("preview", picture, state.step, dataformats="HWC")

    def end(self, state: TrainingState, error: BaseException | None) -> None:
        """Flush and close the writer."""
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of an event by tag, such as `losses/total`."""
    for name, value in event.items():
        if name == "dropped":
            continue
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, number in parts:
            if isinstance(number, int | float) and math.isfinite(number):
                # TensorBoard groups by the first part
                yield (f"{name}/{part}" if part else f"run/{name}"), float(number)


def _open_writer(folder: Path, purge: int) -> Any:
    """Return a writer that hides earlier records of steps from `purge` on, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of third-party packages
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(folder), purge_step=purge)
    except (ImportError, OSError, AttributeError) as error:
        log.warning(
            "%s: cannot write TensorBoard files (%s); the run continues without", folder, error
        )
        return None
