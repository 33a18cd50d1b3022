"""Start real runs of several processes with torchrun, inspect them and kill their ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.toy import TINY

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 600
ONE_EACH = ["batch.source=1", "batch.target=1", "machine.log_every=1", "validation.data=null"]
"""One source and one target image on each rank; no validation."""
FROZEN = ["model.batch_norm=frozen", "model.head=deeplab_v2"]
"""No trainable batch norm: the ranks synchronise a few times a step, not at a hundred norms."""


def started(*words, cwd, ranks=2, restarts=0, program=("-m", "udaseg")):
    """Start `torchrun ... -m udaseg`, or another program, and return the torchrun process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", *program]
    return subprocess.Popen(
        [*launcher, *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
    )


def ended(process, expect=0):
    """Wait for torchrun and return stdout and stderr of all processes."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate(timeout=60)
        raise AssertionError(f"still running after {LIMIT_S} s\n{out}\n{err}") from None
    assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def adapt_words(root, out, *words, method="rccr", steps=4):
    """Return the arguments of a tiny run with one image per domain on each rank."""
    base = ("adapt", f"toyland/{method}", "--root", root, "--out", out, "--steps", steps)
    tiny = [word for word in TINY if not word.startswith(("batch", "validation.data"))]
    return [*base, *tiny, *ONE_EACH, *FROZEN, *words]


def torchrun(*words, cwd, expect=0, **settings):
    """Run to the end; return stdout and stderr."""
    return ended(started(*words, cwd=cwd, **settings), expect)


def pid_of(process, rank):
    """Return the process id of a rank, or None if the rank is not running."""
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"RANK=%d" % rank in words:
                return int(pid)
    return None


def lines(run):
    """Return the lines of a run's metrics."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def wait_for_step(process, run, step):
    """Wait until a run has finished `step` steps."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        if any(line["step"] >= step for line in lines(run)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


def kill(process, rank, number=signal.SIGKILL):
    """Send a signal to a rank."""
    pid = pid_of(process, rank)
    assert pid is not None, f"there is no rank {rank}"
    os.kill(pid, number)


def status(run):
    return json.loads((run / "status.json").read_text())
