"""Compare adapters with the training of all weights: CPU time, memory and size of a checkpoint.

VIT_WEIGHTS=FILE python tests/bench/bench_adapters.py

FILE has the weights of timm's vit_small_patch14_dinov2. Without it, the start is random; then
checkpoints hold everything.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import udaseg
from tests.bench.peak_memory import resident_peak_mib
from tests.support import toy
from udaseg.training.train import TrainOptions

_STEPS = (2, 5)
_CASES = {
    "all": {},
    "adapters, rank 8": {"model.train": "adapters", "model.adapters": {"rank": 8}},
    "head": {"model.train": "head"},
}
_NETWORK = {
    "source.crop": (266, 350),
    "target.crop": (266, 350),
    "source.resize": None,
    "target.resize": None,
    "validation.data": None,
    "model.backbone": "timm:vit_small_patch14_dinov2",
    "model.weights": os.environ.get("VIT_WEIGHTS", "random"),
    "model.head": "linear",
    "batch": {"source": 2, "target": 2},
    "optimizer.kind": "adamw",
    "optimizer.lr": 1e-4,
    "machine.device": "cpu",
    "machine.preview_every": 0,
    "machine.loggers": [],
}


def one(name: str, root: Path) -> None:
    """Print one line; call it in a new process."""
    torch.set_num_threads(1)
    seconds = []
    for steps in _STEPS:
        begun = time.process_time()
        run = udaseg.adapt(
            "dacs",
            source="toyland",
            target="toyland-target",
            steps=steps,
            overrides={**_NETWORK, **_CASES[name]},
            out=root / f"{name} {steps}",
            options=TrainOptions(root=root),
        )
        seconds.append(time.process_time() - begun)
    step = (seconds[1] - seconds[0]) / (_STEPS[1] - _STEPS[0])
    size = run.checkpoints[-1].stat().st_size / 2**20
    sys.stdout.write(
        f"{name}: {step:.2f} CPU seconds a step, peak {resident_peak_mib():.0f} MiB, "
        f"checkpoint {size:.1f} MiB\n"
    )


def main() -> None:
    """Print a line for each way of training, each measured in a process of its own."""
    toy.SIZE = (272, 360)
    with tempfile.TemporaryDirectory() as folder:
        root = toy.toy_root(Path(folder))
        for name in _CASES:
            process = multiprocessing.get_context("spawn").Process(target=one, args=(name, root))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
