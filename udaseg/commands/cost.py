"""Measure the time, rate and memory of a run over all its starts, in `cost.json`."""

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
    """Measures the cost of the training steps, including pictures and scores between them.

    Not included: passes between stages, the final scores, and steps lost when a process was killed.

    Args:
        folder: Run folder; the cost of earlier starts is read from there.
        device: Training device.
        images: Images per step, over all processes.
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
        """Write the cost of the run after `done` steps."""
        seconds = time.monotonic() - self._started
        peak, measured_on = peak_memory(self._device)
        document = {
            "step": done,
            "seconds": round(float(self._before.get("seconds", 0)) + seconds, 1),
            "images": int(self._before.get("images", 0)) + self._steps * self._images,
            "peak_memory_mib": max(int(self._before.get("peak_memory_mib", 0)), peak),
            "peak_memory_of": measured_on,
        }
        write_json_atomic(self._path, document)


def read_cost(folder: Path) -> dict[str, Any]:
    """Return the contents of a run's `cost.json`; an empty dict if it is missing or damaged."""
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
    """Return the peak memory in MiB since the process began, and a description of what it covers.

    Both counters are maintained anyway, so reading them does not wait for the device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // _MIB, "tensors on the GPU"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) // _MIB, "the process"
