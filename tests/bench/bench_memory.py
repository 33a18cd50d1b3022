"""Measure a step's memory against what `--dry-run` reckons: growth of the process on a CPU.

python tests/bench/bench_memory.py [KEY=VALUE]...
"""

import gc
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.small import shipped
from tests.support.toy import toy_pair, toy_root
from udaseg.training.footprint import estimate_footprint
from udaseg.training.setup import build_setup
from udaseg.training.step import compute_gradients

_TINY = ["source.resize=null", "target.resize=null", "validation.resize=null"]
_TINY += ["source.crop=[64, 128]", "target.crop=[64, 128]", "machine.device=cpu"]
_CASES = {
    "4 + 4": ["batch.source=4", "batch.target=4"],
    "16 + 16": ["batch.source=16", "batch.target=16"],
    "16 + 16, activations made again": [
        *("batch.source=16", "batch.target=16", "machine.activation_checkpointing=true"),
    ],
}


def megabytes(name: str) -> float:
    """Return a figure of /proc/self/status in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{name}:")[1].split()[0]) / 1000


def one(name: str, words: list[str]) -> None:
    """Print reckoned and measured growth of one step; a process keeps what it once had."""
    source, target = toy_pair(toy_root(Path(tempfile.mkdtemp())))
    run = build_setup(shipped("toyland/rccr", [*_TINY, *_CASES[name], *words]), source, target)
    needs = estimate_footprint(run)
    reckoned = (needs.gradients + needs.activations) / 1e6
    run.objective.train()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = megabytes("VmRSS")
    compute_gradients(run, run.batches[0])
    grew = megabytes("VmHWM") - before
    sys.stdout.write(
        f"{name}: reckoned {reckoned:.0f} MB, the process grew by {grew:.0f} MB "
        f"({100 * (grew / reckoned - 1):+.0f} %)\n"
    )


def main() -> None:
    """Print a line for each case, each from a process of its own."""
    torch.set_num_threads(1)
    given = sys.argv[1:]
    if given and given[0] in _CASES:
        one(given[0], given[1:])
        return
    for name in _CASES:
        subprocess.run([sys.executable, __file__, name, *given], check=True)


if __name__ == "__main__":
    main()
