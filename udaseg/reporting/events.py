"""Write the files of a run in progress: metrics, status and log."""

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it cannot be read or is not an object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def write_json_atomic(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as JSON, atomically; non-finite numbers become null."""
    text = json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"
    write_text_atomic(path, text)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` to a temporary file next to `path`, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class MetricsLog:
    """Append events to `metrics.jsonl`, one JSON object per line; null for non-finite numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing; the file is closed after each line."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(event), allow_nan=False) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop incomplete lines and lines after `step`, so that steps increase after a resume."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if int(json.loads(line)["step"]) <= step:
                    kept.append(line)
        write_text_atomic(self.path, "".join(f"{line}\n" for line in kept))


class RunStatus:
    """Write the state of a run to `status.json`: running, done, failed or interrupted.

    Args:
        path: The file; None writes nothing, for processes of other ranks.

    Attributes:
        counts: Incidents by name, such as dropped steps, summed over all resumes of the run;
            written with every state if there are any.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        if path is None:
            return
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            saved = read_json(path).get("counts", {})
            self.counts.update({str(name): int(count) for name, count in saved.items()})

    def running(self, *, step: int) -> None:
        """Record that the run continues from `step`."""
        self._write("running", step=step)

    def done(self, *, step: int, seconds: float, miou: float | None) -> None:
        """Record that the run is finished."""
        self._write("done", step=step, seconds=round(seconds, 1), miou=miou)

    def failed(self, *, code: int, reason: str) -> None:
        """Record why the run failed."""
        self._write("failed", code=code, reason=reason)

    def interrupted(self, *, step: int, signal_number: int) -> None:
        """Record that a signal stopped the run after `step`, which is saved."""
        self._write("interrupted", step=step, signal=signal_number)

    def _write(self, state: str, **facts: Any) -> None:
        if self.path is None:
            return
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        document = {"state": state, "time": when, "unix_time": time.time(), **facts}
        if self.counts:
            document["counts"] = dict(self.counts)
        write_json_atomic(self.path, document)


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append all log messages of the package to `path` while the context is open.

    An error that leaves the context is appended with its traceback; the terminal shows only its
    message.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("udaseg")
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        exc_info = (type(error), error, error.__traceback__)
        handler.emit(
            logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (error,), exc_info)
        )
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
