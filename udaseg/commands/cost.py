"""What a run costs: time, rate and memory over all its starts, in `cost.json`."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from udaseg.reporting import write_json_atomic

FILE = "cost.json"
_MIB = 2**20


class Cost:
    """Counts what the steps cost, with pictures and scores between them.

    Passes between stages, the scores at the end, and steps that a kill threw away are not in it.

    Args:
        folder: Of the run; what earlier starts cost is read from there.
        device: Where it trains.
        images: Images a step, of all processes.
    """

    def __init__(self, folder: Path, device: torch.device, images: int) -> None:
        self._path, self._device, self._images = folder / FILE, device, images
        self._before = read_cost(folder)
        self._started = time.monotonic()
        self._steps = 0

    def step(self) -> None:
        """Count a step."""
        self._steps += 1

    def write(self, done: int) -> None:
        """Write what the run has cost after `done` steps."""
        seconds = time.monotonic() - self._started
        memory, of = peak_memory(self._device)
        document = {
            "step": done,
            "seconds": round(float(self._before.get("seconds", 0)) + seconds, 1),
            "images": int(self._before.get("images", 0)) + self._steps * self._images,
            "peak_memory_mib": max(int(self._before.get("peak_memory_mib", 0)), memory),
            "peak_memory_of": of,
        }
        write_json_atomic(self._path, document)


def read_cost(folder: Path) -> dict[str, Any]:
    """Return what `cost.json` of a run says; nothing where it says nothing."""
    try:
        document = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {
            "step": int(document["step"]),
            "seconds": float(document["seconds"]),
            "images": int(document["images"]),
            "peak_memory_mib": int(document["peak_memory_mib"]),
            "peak_memory_of": str(document["peak_memory_of"]),
        }
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the most memory in MiB since the process began, and what it was measured of.

    Both are counters that are kept anyway, so nothing waits for the device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // _MIB, "tensors on the GPU"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) // _MIB, "the process"
