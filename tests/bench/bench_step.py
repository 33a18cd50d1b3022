"""Compare whole training steps of a commit with those of the working tree.

    python -m tests.bench.bench_step --before COMMIT [--rounds 3] [method ...]

For each method, on toyland at the size of its recipe and with one thread, before and after: CPU
seconds of a step; peak memory of the process and of the step's tensors, in MiB; the difference of
the first step's gradients; and the cosine of gradients in bfloat16 to those in float32. Both sides
run in processes of their own, in turn. With UDASEG_TEST_DATA the backbone has its ImageNet
weights: gradients of a random one are badly conditioned.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = os.environ.get("UDASEG_TEST_DATA")
WEIGHTS = f"{DATA}/weights/mobilenet_v2_features.safetensors" if DATA else "random"
METHODS = ("dacs", "rccr", "spcl", "sepico")

MAKE_DATA = """
import sys
from pathlib import Path
import tests.support.toy as toy
toy.SIZE = (128, 256)
toy.COUNTS.update({"source/train": 8, "target/train": 8})
toy.toy_root(Path(sys.argv[1]))
"""

CHILD = """
import contextlib, json, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import torch
from tests.support.small import shipped
from tests.support.toy import toy_pair
from udaseg.recipe.stages import stages_of
from udaseg.training.footprint import estimate_footprint
from udaseg.training.optimizer import set_learning_rate
from udaseg.training.setup import build_setup
from udaseg.training.step import compute_gradients

method, root, precision, steps, saved, weights = sys.argv[1:]
torch.set_num_threads(1)
with contextlib.suppress(TypeError):  # as the training loop does, where it can take a number
    from udaseg.data.files.images import keep_freed_memory
    keep_freed_memory(2**31 - 1)
words = ["machine.device=cpu", f"machine.precision={precision}", f"model.weights={weights}"]
recipe = shipped(f"toyland/{method}", words)
# the stage of SPCL that contrasts; other methods have one stage
stage = stages_of(recipe)[1 if method == "spcl" else 0]
setup = build_setup(recipe, *toy_pair(Path(root)), stage=stage)
activations = estimate_footprint(replace(setup, stage=stage)).activations if method != "spcl" else 0
setup.objective.train()
set_learning_rate(setup.optimizer, 1.0)
times = []
for step in range(int(steps)):
    batch = setup.batches[step]
    if method == "spcl":
        batch = replace(batch, pseudo_labels=batch.source_labels)
    started = time.process_time()
    torch.manual_seed(batch.seed)
    report = compute_gradients(setup, batch)
    if step == 0:
        torch.save([p.grad for p in setup.objective.parameters() if p.grad is not None], saved)
    setup.optimizer.step()
    setup.objective.after_step(step, report)
    del report
    if step > 1:
        times.append(time.process_time() - started)
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"times": times, "peak": peak, "activations": activations / 2**20}))
"""


def run(tree: Path, method: str, root: Path, *, precision: str, steps: int, saved: Path) -> dict:
    """Return what a process of one side measured."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CHILD,
            method,
            str(root),
            precision,
            str(steps),
            str(saved),
            WEIGHTS,
        ],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compared(one: Path, other: Path) -> tuple[float, float]:
    """Return the relative difference and the cosine of two sets of gradients."""
    first, second = (
        torch.cat([grad.double().flatten() for grad in torch.load(path)]) for path in (one, other)
    )
    cosine = first @ second / (first.norm() * second.norm())
    return float((first - second).norm() / first.norm()), float(cosine)


def main() -> None:
    """Print a table row for each method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("methods", nargs="*", default=METHODS)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    subprocess.run(
        ["git", "worktree", "add", "--detach", str(folder / "before"), given.before],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    trees = {"before": folder / "before", "after": REPOSITORY}
    # by the older side: the newer one reads its format
    make = [sys.executable, "-c", MAKE_DATA, str(folder / "data")]
    environment = {**os.environ, "PYTHONPATH": str(trees["before"])}
    subprocess.run(make, env=environment, cwd=trees["before"], check=True)
    try:
        for method in given.methods:
            print_row(method, trees, folder, rounds=given.rounds, steps=given.steps)
    finally:
        command = ["git", "worktree", "remove", "--force", str(folder / "before")]
        subprocess.run(command, cwd=REPOSITORY, check=True)


def print_row(
    method: str, trees: dict[str, Path], folder: Path, *, rounds: int, steps: int
) -> None:
    """Measure one method on both sides and print its row."""
    found: dict[str, list[dict]] = {side: [] for side in trees}
    for _ in range(rounds):
        for side, tree in trees.items():
            saved = folder / f"{side}-fp32.pt"
            found[side].append(
                run(tree, method, folder / "data", precision="fp32", steps=steps, saved=saved)
            )
    for side, tree in trees.items():
        saved = folder / f"{side}-bf16.pt"
        run(tree, method, folder / "data", precision="bf16", steps=1, saved=saved)
    seconds = {
        side: statistics.median(time for one in runs for time in one["times"])
        for side, runs in found.items()
    }
    peaks = {side: min(one["peak"] for one in runs) for side, runs in found.items()}
    tensors = {side: runs[0]["activations"] for side, runs in found.items()}
    sys.stdout.write(
        f"| {method} | {seconds['before']:.3f} | {seconds['after']:.3f} | "
        f"{peaks['before']:.0f} | {peaks['after']:.0f} | "
        f"{tensors['before']:.0f} | {tensors['after']:.0f} | "
        f"{compared(folder / 'before-fp32.pt', folder / 'after-fp32.pt')[0]:.1e} | "
        + " | ".join(
            f"{compared(folder / f'{side}-fp32.pt', folder / f'{side}-bf16.pt')[1]:.4f}"
            for side in trees
        )
        + " |\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
