"""`metrics.jsonl`: one JSON object a line."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from udaseg.files import plain_json, write_text


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
            file.write(json.dumps(plain_json(event), allow_nan=False) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop incomplete lines and lines after `step`, so that steps increase after a resume."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if int(json.loads(line)["step"]) <= step:
                    kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))
