"""Measure the cost of monitoring a run, as a share of its step time, at the default settings.

    python tests/bench/bench_watching.py

Uses toyland/rccr (MobileNet-V2, four source and four target images of 256x128). Its steps are the
shortest of all shipped recipes, so the added cost has the largest share. One thread; seconds are
process time, so that other load on the machine has little effect. A preview is drawn once in
`machine.preview_every` steps, and a line of metrics with entropy and shares is written once in
`machine.log_every`. The entropy and the sums of the shares are computed in every step.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.support.small import shipped
from tests.support.toy import toy_pair, toy_root
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.training.callbacks.collapse import CHECK_INTERVAL, CollapseMonitor
from udaseg.training.callbacks.metrics import MetricsFile
from udaseg.training.callbacks.previews import Previews
from udaseg.training.setup import build_setup
from udaseg.training.step import compute_gradients

ROUNDS = 7


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Return the process time of one call in seconds, as the median of several rounds."""
    samples = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            call()
        samples.append((time.process_time() - started) / times)
    return statistics.median(samples)


def main() -> int:
    """Measure each cost and print it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = toy_pair(toy_root(folder / "data"))
        overrides = ["source.resize=[128, 256]", "target.resize=[128, 256]", "machine.device=cpu"]
        recipe = shipped("toyland/rccr", overrides)
        setup = build_setup(recipe, *pair)
        classes = pair[0].classes
        assert classes is not None
        batch = setup.batches[0]
        report = compute_gradients(setup, batch)

        def step() -> None:
            setup.objective.after_step(0, compute_gradients(setup, batch))
            setup.optimizer.step()

        step()
        whole = seconds(step)
        with torch.no_grad():
            images = torch.rand(recipe.batch.target, 3, 128, 256)
            logits = setup.objective.student(images).logits.detach()
        monitor = CollapseMonitor(classes.names)
        numbers, state = MetricsFile(folder), SimpleNamespace(step=1)
        shares = dict.fromkeys(classes.names, 1 / len(classes))

        def line() -> None:
            monitor.check(CHECK_INTERVAL)
            monitor.add(report)
            numbers.on_event(state, {"losses": shares, "pseudo_labels": shares})

        previews = Previews(recipe, classes, folder)
        machine = recipe.machine
        parts = Counter(
            {
                "entropy of the pseudo-labels": seconds(
                    lambda: normalised_entropy(logits).mean(), 50
                ),
                "sums of the shares": seconds(lambda: monitor.add(report), 200),
                "a line of metrics": seconds(line, 50) / machine.log_every,
                "a preview": seconds(lambda: previews.draw(setup, 1)) / machine.preview_every,
            }
        )
    write = sys.stdout.write
    write(f"step {1000 * whole:.1f} ms\n")
    for part, cost in [*parts.items(), ("together", parts.total())]:
        write(f"{part:30} {1e6 * cost:8.1f} us a step  {100 * cost / whole:6.3f} %\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
