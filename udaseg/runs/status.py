"""The state of a run on disk (`status.json`), its log, and what it cost."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from udaseg.errors import RecipeError
from udaseg.files import read_json, write_json
from udaseg.runs.records import Cost, Status
from udaseg.text import printable


class RunStatus:
    """Writes the state of a run to `status.json`.

    Args:
        path: The file; None writes nothing, for processes of other ranks.

    Attributes:
        incident_counts: Incidents by name, such as dropped steps, summed over all resumes of the
            run; written with every state if there are any.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.incident_counts: Counter[str] = Counter()
        if path is None:
            return
        self.incident_counts.update(read_json(path, Status).get("counts", {}))

    def write(
        self, state: Literal["running", "done", "failed", "interrupted"], **facts: object
    ) -> None:
        """Write the state, with what there is to know about it, if the folder is still there."""
        if self._path is None or not self._path.parent.is_dir():
            return
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        document = {"state": state, "time": when, "unix_time": time.time(), **facts}
        if self.incident_counts:
            document["counts"] = dict(self.incident_counts)
        write_json(self._path, document)


class _Formatter(logging.Formatter):
    """Escapes what a terminal that shows the file must not interpret."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append all log messages of the package to `path`, and the traceback of an error.

    A `RecipeError` is none of the run: it refuses a resume with other settings.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("udaseg")
    with _default_logging(logger):
        logger.addHandler(handler)
        try:
            yield
        except RecipeError:
            raise
        except Exception as error:
            exc_info = (type(error), error, error.__traceback__)
            handler.emit(
                logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (error,), exc_info)
            )
            raise
        finally:
            logger.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def _default_logging(logger: logging.Logger) -> Iterator[None]:
    """Let the file have all messages, and stderr the warnings, if nobody configured logging."""
    fallback, level = logging.lastResort, logger.level
    if logger.hasHandlers() or fallback is None:
        yield
        return
    # Python uses this handler only as long as there is no other
    logger.addHandler(fallback)
    logger.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(fallback)
        logger.setLevel(level)


COST_FILE = "cost.json"


def read_cost(folder: Path) -> dict[str, Any]:
    """Return the contents of a run's `cost.json`; an empty dict if it is missing or damaged."""
    return read_json(folder / COST_FILE, Cost)
