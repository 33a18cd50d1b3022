"""`cost.json`: time, images and peak memory of a run over all its starts."""

import resource
import sys
import time
from pathlib import Path

import torch

from udaseg.files import write_json
from udaseg.runs.status import COST_FILE, read_cost
from udaseg.training.callbacks.callback import Callback, TrainingState

_MIB = 2**20


class Cost(Callback):
    """Measures the cost of the training steps, including pictures and scores between them.

    Not included: passes between stages, the final scores, and steps lost when a process was killed.
    Written with each checkpoint, so that a resumed run adds only to what its checkpoint has cost.
    """

    ranks = "zero"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()  # a run that resumes after its last step has no `begin`

    def begin(self, state: TrainingState) -> None:
        """Measure from now on."""
        self._start()

    def on_step(self, state: TrainingState) -> None:
        """Count the step."""
        self._images += state.images_per_step

    def on_checkpoint(self, state: TrainingState, path: Path) -> None:
        """Write the cost of the run so far."""
        before, seconds = self._before, time.monotonic() - self._started
        peak, measured_on = _peak_memory(state.setup.device)
        document = {
            "step": state.step,
            "seconds": round(before.get("seconds", 0) + seconds, 1),
            "images": before.get("images", 0) + self._images,
            "peak_memory_mib": max(before.get("peak_memory_mib", 0), peak),
            "peak_memory_of": measured_on,
        }
        write_json(self._folder / COST_FILE, document)

    def _start(self) -> None:
        self._before = read_cost(self._folder)
        self._started = time.monotonic()
        self._images = 0


def _peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the peak memory in MiB since the process began, and what it covers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // _MIB, "tensors on the GPU"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) // _MIB, "the process"
