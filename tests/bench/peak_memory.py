"""Peak memory of work in a fresh process."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch


def resident_peak_mib() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def reset_peak() -> float:
    """Forget the peak of this process, and return the one from now on, in MiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_peak_mib()


def in_fresh_process(measure: Callable[[str], float], name: str) -> float:
    """Return what a function of a module returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_put, args=(measure, name, queue))
    process.start()
    process.join()
    return queue.get()


def _put(measure: Callable[[str], float], name: str, queue: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    queue.put(measure(name))
