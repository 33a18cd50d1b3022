"""What watching a run costs, as a share of its steps, at the default settings.

    python tests/bench/bench_watching.py

toyland/rccr (MobileNet-V2, four source and four target images of 256x128), whose steps are the
shortest of all shipped recipes, so that what is added to them weighs most. One thread; seconds are
the process's own, so that other work on the machine counts for little. A preview comes once in
`machine.preview_every` steps, a line of metrics with entropy and shares once in
`machine.log_every`; the entropy and the sums of the shares are formed in every step.
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

import torch

from tests.support.small import shipped
from tests.support.toy import toy_pair, toy_root
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.training.callbacks.collapse import CHECK_INTERVAL, CollapseMonitor
from udaseg.training.callbacks.previews import Previews
from udaseg.training.callbacks.tensorboard import MetricsWriter
from udaseg.training.setup import build_setup
from udaseg.training.step import compute_gradients

ROUNDS = 7


def seconds(act: Callable[[], object], times: int = 1) -> float:
    """Return the process's seconds for one call, the median of some rounds."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            act()
        found.append((time.process_time() - started) / times)
    return statistics.median(found)


def main() -> int:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = toy_pair(toy_root(folder / "data"))
        words = ["source.resize=[128, 256]", "target.resize=[128, 256]", "machine.device=cpu"]
        recipe = shipped("toyland/rccr", words)
        made = build_setup(recipe, *pair)
        classes = pair[0].classes
        assert classes is not None
        batch = made.batches[0]
        report = compute_gradients(made, batch)

        def step() -> None:
            made.objective.after_step(0, compute_gradients(made, batch))
            made.optimizer.step()

        step()
        whole = seconds(step)
        with torch.no_grad():
            images = torch.rand(recipe.batch.target, 3, 128, 256)
            logits = made.objective.student(images).logits.detach()
        watch = CollapseMonitor(classes.names)
        numbers = MetricsWriter(folder, board=False)
        shares = dict.fromkeys(classes.names, 1 / len(classes))

        def line() -> None:
            watch.check(CHECK_INTERVAL)
            watch.add(report)
            numbers.write(1, {"losses": shares, "pseudo_labels": shares})

        previews = Previews(recipe, made, classes, folder)
        machine = recipe.machine
        parts = Counter(
            {
                "entropy of the pseudo-labels": seconds(
                    lambda: normalised_entropy(logits).mean(), 50
                ),
                "sums of the shares": seconds(lambda: watch.add(report), 200),
                "a line of metrics": seconds(line, 50) / machine.log_every,
                "a preview": seconds(lambda: previews.draw(1)) / machine.preview_every,
            }
        )
    say = sys.stdout.write
    say(f"step {1000 * whole:.1f} ms\n")
    for part, cost in [*parts.items(), ("together", parts.total())]:
        say(f"{part:30} {1e6 * cost:8.1f} us a step  {100 * cost / whole:6.3f} %\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
