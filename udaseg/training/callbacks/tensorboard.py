"""Write a run's metrics and previews for TensorBoard, if its package is installed."""

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
from udaseg.runs.metrics_log import MetricsLog

log = logging.getLogger(__name__)
FOLDER = "tensorboard"


def uses_tensorboard(mode: Literal["auto", "require", "never"]) -> bool:
    """Return whether a run writes for TensorBoard.

    Raises:
        EnvironmentFault: It is required but not installed.
    """
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


class MetricsWriter:
    """Write metrics to `metrics.jsonl`, and to TensorBoard.

    Args:
        folder: Run folder.
        board: Also write for TensorBoard.
    """

    def __init__(self, folder: Path, *, board: bool) -> None:
        self.log = MetricsLog(folder / "metrics.jsonl")
        self._folder, self._enabled = folder / FOLDER, board
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close the TensorBoard writer."""
        self._close()

    def rewind_to(self, done: int) -> None:
        """Delete the metrics of steps after `done`; TensorBoard hides these steps."""
        self.log.truncate_after(done)
        self._close()
        if self._enabled:
            self._writer = _open_writer(self._folder, done + 1)
            self._enabled = self._writer is not None

    def write(self, step: int, event: Mapping[str, Any]) -> None:
        """Append the metrics after `step` steps."""
        self.log.write({"step": step, **event})
        if self._writer is not None:
            for tag, value in scalars(event):
                self._writer.add_scalar(tag, value, step)
            alarms = event.get("alarms")
            for kind, text in alarms.items() if isinstance(alarms, Mapping) else ():
                self._writer.add_text(f"alarm/{kind}", text, step)

    def add_preview(self, step: int, pixels: NDArray[np.uint8]) -> None:
        """Add a preview, (H, W, 3) RGB."""
        if self._writer is not None:
            self._writer.add_image("preview", pixels, step, dataformats="HWC")

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
