"""Take over one stale lock of a run folder in many processes at once."""

import json
import os
import platform
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from udaseg.errors import UsageError
from udaseg.runs.folder import writer_lock

STALE = {"pid": 2**22 - 1, "host": platform.node(), "launch": None}


def _take_over(folder: Path, rounds: int, barrier, told) -> None:
    first = barrier.wait() == 0
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        if first:
            (folder / "writer.lock").write_text(json.dumps(STALE))
        barrier.wait()
        try:
            with writer_lock(folder):
                counts["held"] += 1
                try:
                    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    counts["two holders"] += 1
                    continue
                time.sleep(0.001)  # long enough for another one to come in
                (folder / "inside").unlink()
        except UsageError:
            counts["refused"] += 1
        finally:
            barrier.wait()
    told.put(counts)


def holders(folder: Path, rounds: int, processes: int = 6) -> Counter[str]:
    """Return how often the lock was `held`, `refused`, and held by `two holders` at once."""
    context = get_context("fork")
    barrier, told = context.Barrier(processes), context.Queue()
    facts = (folder, rounds, barrier, told)
    found = [context.Process(target=_take_over, args=facts) for _ in range(processes)]
    for process in found:
        process.start()
    counts = sum((told.get(timeout=1800) for _ in found), Counter())
    for process in found:
        process.join()
    return counts
