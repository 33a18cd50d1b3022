"""Send signals at a chosen moment of a training run, to the process or its whole group."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cli.running import udaseg
from tests.cli.test_fit import tensors
from tests.support.toy import TINY

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 6
PHASES = ("import", "first batch", "train", "save", "prune", "eval")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORDS = ["machine.checkpoint_every=2", "machine.log_every=1", "machine.preview_every=0"]

_SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
phase, whole_group, number, again, first = {facts!r}
fired = []
# as in a terminal: processes that a script starts in the background ignore SIGINT
signal.signal(signal.SIGINT, signal.default_int_handler)

def send():
    if whole_group:
        os.killpg(os.getpgrp(), number)
    else:
        os.kill(os.getpid(), number)

def fire():
    if fired:
        return
    fired.append(phase)
    if first:
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        for worker in workers:
            worker.join(20)
    if again:
        def second():
            time.sleep(0.3)
            print("second", time.time(), file=sys.stderr, flush=True)
            os.kill(os.getpid(), number)
        threading.Thread(target=second, daemon=True).start()
    send()
    if again:
        time.sleep(30)

if phase == "import":
    def hook(event, arguments):
        if event == "import" and arguments[0] == "torch.nn":
            fire()
    sys.addaudithook(hook)
else:
    import pathlib
    from udaseg.runs import checkpoint
    from udaseg.training import loop
    from udaseg.training.callbacks import scores
    if phase in ("first batch", "train"):
        real = loop.iterate_batches
        def iterate_batches(*words, **options):
            for batch in real(*words, **options):
                if batch.step == (0 if phase == "first batch" else 3):
                    fire()
                yield batch
        loop.iterate_batches = iterate_batches
    elif phase == "save":
        real = checkpoint.sha256_of
        def digest(path):
            fire()
            return real(path)
        checkpoint.sha256_of = digest
    elif phase == "prune":
        real = pathlib.Path.unlink
        def unlink(path, *words, **options):
            if path.name.startswith("step-") and path.suffix == ".json":
                fire()
            return real(path, *words, **options)
        pathlib.Path.unlink = unlink
    else:
        real = scores.confusion_matrix
        def confusion_matrix(*words, **options):
            fire()
            return real(*words, **options)
        scores.confusion_matrix = confusion_matrix

from udaseg.cli.main import main
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Stop:
    """Describe one trial.

    Attributes:
        phase: When the signal is sent; one of `PHASES`.
        group: Send it to the whole process group, including the loader processes.
        number: The signal number.
        again: Send a second signal 0.3 s later.
        first: Terminate the loader processes before sending the signal.
        workers: Number of loader processes.
    """

    phase: str
    group: bool
    number: int
    again: bool = False
    first: bool = False
    workers: int = 0


def golden(root: Path, out: Path) -> dict[str, object]:
    """Train to `out` without interruption and return all final tensors."""
    udaseg(*_words(root, out), cwd=out.parent)
    return tensors(out)


def problem(stop: Stop, root: Path, out: Path, whole: dict[str, object]) -> str | None:
    """Return what differs from an uninterrupted run after a signal and `--resume`, or None.

    Args:
        stop: The signal, its time and its recipient.
        root: Folder of the prepared data.
        out: Output folder of the run; its parent exists.
        whole: Tensors of the uninterrupted run.
    """
    words = [*_words(root, out), "--workers", stop.workers]
    facts = (stop.phase, stop.group, int(stop.number), stop.again, stop.first)
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(facts=facts), *map(str, words)],
        cwd=out.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    try:
        _, said = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "it hangs"
    ended = time.time()
    wanted = 128 + stop.number
    if stop.phase == "import":
        # no run has started yet: SIGTERM may end the process directly (143 in a shell)
        if process.returncode not in (wanted, -stop.number):
            return f"exit {process.returncode}: {said[-300:]}"
        return "a run was begun" if out.exists() else None
    if process.returncode != wanted:
        return f"exit {process.returncode}: {said[-300:]}"
    if "Traceback" in said:
        return f"a traceback: {said[-300:]}"
    if stop.again:
        sent = float(said.split("second ")[1].split()[0])
        if ended - sent > 5:
            return f"{ended - sent:.1f} s from the second signal to the end"
    elif json.loads((out / "status.json").read_text())["state"] != "interrupted":
        return f"the status is {(out / 'status.json').read_text()}"
    udaseg("adapt", "--resume", out, "--root", root, "--workers", 0, cwd=out.parent)
    if (left := [path.name for path in (out / "checkpoints").glob("*.tmp")]) != []:
        return f"left behind {left}"
    found = tensors(out)
    other = [name for name in whole if not found[name].equal(whole[name])]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    if steps != list(range(1, STEPS + 1)):
        return f"metrics of the steps {steps}"
    return f"{len(other)} tensors differ, first {other[:2]}" if other else None


def _words(root: Path, out: Path) -> list[object]:
    return [
        *("adapt", "toyland/rccr", "--root", root, "--out", out, "--steps", STEPS),
        *(*TINY, *WORDS),
    ]
