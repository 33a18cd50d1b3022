"""A run's numbers and previews for TensorBoard, where its package is installed."""

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from udaseg.errors import EnvironmentFault
from udaseg.reporting import MetricsLog

log = logging.getLogger(__name__)

FOLDER = "tensorboard"


def wants_board(wanted: Literal["auto", "require", "never"]) -> bool:
    """Return whether a run writes for TensorBoard.

    Raises:
        EnvironmentFault: It is required and not installed.
    """
    if wanted == "never":
        return False
    found = installed()
    if wanted == "require" and not found:
        raise EnvironmentFault(
            "--tensorboard needs the package `tensorboard`, which is not installed; "
            "pip install 'udaseg[tensorboard]', or leave the option out: metrics.jsonl and "
            "`udaseg report` have the same numbers"
        )
    return found


def installed() -> bool:
    """Return whether the package is there."""
    return importlib.util.find_spec("tensorboard") is not None


class Numbers:
    """What is written down in numbers: `metrics.jsonl`, and the same for TensorBoard.

    Args:
        folder: Of the run.
        board: Also write for TensorBoard.
    """

    def __init__(self, folder: Path, *, board: bool) -> None:
        self.log = MetricsLog(folder / "metrics.jsonl")
        self._folder, self._wanted = folder / FOLDER, board
        self._board: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let TensorBoard have what was not written yet."""
        self._close()

    def begin_from(self, done: int) -> None:
        """Forget what was written of steps after `done`; TensorBoard hides it."""
        self.log.truncate_after(done)
        self._close()
        if self._wanted:
            self._board = _opened(self._folder, done + 1)
            self._wanted = self._board is not None

    def write(self, step: int, event: Mapping[str, Any]) -> None:
        """Append what is known after `step` steps."""
        self.log.write({"step": step, **event})
        if self._board is not None:
            for tag, value in scalars(event):
                self._board.add_scalar(tag, value, step)
            alarms = event.get("alarms")
            for kind, text in alarms.items() if isinstance(alarms, Mapping) else ():
                self._board.add_text(f"alarm/{kind}", text, step)

    def picture(self, step: int, pixels: NDArray[np.uint8]) -> None:
        """Show a preview, (H, W, 3) RGB."""
        if self._board is not None:
            self._board.add_image("preview", pixels, step, dataformats="HWC")

    def _close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None


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


def _opened(folder: Path, purge: int) -> Any:
    """Return a writer that hides steps from `purge` on which were written before, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that are not ours
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(folder), purge_step=purge)
    except (ImportError, OSError, AttributeError) as error:
        log.warning("%s: TensorBoard cannot be written (%s); the run goes on", folder, error)
        return None
