"""Measure the time, rate and memory of a run over all its starts, in `cost.json`."""

import resource
import sys
import time
from pathlib import Path

import torch

from udaseg.files import write_json
from udaseg.runs.status import COST_FILE, read_cost

_MIB = 2**20


class CostRecorder:
    """Measures the cost of the training steps, including pictures and scores between them.

    Not included: passes between stages, the final scores, and steps lost when a process was killed.

    Args:
        folder: Run folder; the cost of earlier starts is read from there.
        device: Training device.
        images: Images per step, over all processes.
    """

    def __init__(self, folder: Path, device: torch.device, images: int) -> None:
        self._path, self._device, self._images = folder / COST_FILE, device, images
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
        write_json(self._path, document)


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the peak memory in MiB since the process began, and a description of what it covers.

    Both counters are maintained anyway, so reading them does not wait for the device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // _MIB, "tensors on the GPU"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) // _MIB, "the process"
