"""Compare a step's memory on a CPU, as process growth, with the estimate of `--dry-run`.

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
    """Return a value from /proc/self/status in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{name}:")[1].split()[0]) / 1000


def one(name: str, overrides: list[str]) -> None:
    """Print the estimated and measured growth of one step. Use a new process for each call."""
    source, target = toy_pair(toy_root(Path(tempfile.mkdtemp())))
    run = build_setup(shipped("toyland/rccr", [*_TINY, *_CASES[name], *overrides]), source, target)
    needs = estimate_footprint(run)
    estimated = (needs.gradients + needs.activations) / 1e6
    run.objective.train()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = megabytes("VmRSS")
    compute_gradients(run, run.batches[0])
    growth = megabytes("VmHWM") - before
    sys.stdout.write(
        f"{name}: estimated {estimated:.0f} MB, the process grew by {growth:.0f} MB "
        f"({100 * (growth / estimated - 1):+.0f} %)\n"
    )


def main() -> None:
    """Print one line per case, each measured in a separate process."""
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    if arguments and arguments[0] in _CASES:
        one(arguments[0], arguments[1:])
        return
    for name in _CASES:
        subprocess.run([sys.executable, __file__, name, *arguments], check=True)


if __name__ == "__main__":
    main()
