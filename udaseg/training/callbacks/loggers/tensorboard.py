"""TensorBoard: its files in the run folder."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udaseg.data.files.images import Pixels
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.callbacks.loggers.record import scalars

log = logging.getLogger(__name__)
FOLDER = "tensorboard"


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
