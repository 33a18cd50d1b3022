"""Benchmark `prepare` on many files: first, unchanged, one label changed, `--verify`.

    python tests/bench/bench_prepare.py [PAIRS]

10,000 pairs of 96x54, so that the time is spent on file handling and not on decoding. Every file
costs a check of its size and modification time; files where both are unchanged are not read. Wall
time; each command runs in a separate process, as a user would run it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

PAIRS = 10_000
YAML = "name: many\nimages: images/*.png\nlabels: labels/*.png\nclasses: cityscapes19\n"


def write_pairs(folder: Path, pairs: int) -> None:
    """Write small scenes with a few flat areas, and labels with Cityscapes ids."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(pairs):
        image = np.empty((54, 96, 3), np.uint8)
        image[:] = rng.integers(0, 256, 3)
        image[:10, :20] = rng.integers(0, 256, (10, 20, 3))
        ids = rng.choice([7, 8, 11, 21, 23, 26], (6, 12)).astype(np.uint8)
        cv2.imwrite(str(folder / f"images/{number:05d}.png"), image)
        cv2.imwrite(str(folder / f"labels/{number:05d}.png"), ids.repeat(9, 0).repeat(8, 1))
    (folder / "many.yaml").write_text(YAML)


def timed(title: str, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "udaseg", "prepare", "many.yaml", "--quiet", *options]
    started = time.perf_counter()
    process = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    first = process.stdout.split("\n", 1)[0].strip()
    sys.stdout.write(f"  {title:<22} {time.perf_counter() - started:6.1f} s   {first}\n")
    sys.stdout.flush()


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder, pairs)
        sys.stdout.write(f"{pairs:,} pairs of 96x54, {os.cpu_count()} cores\n")
        timed("first", folder)
        timed("unchanged", folder)
        label = folder / f"labels/{pairs // 2:05d}.png"
        label.write_bytes((folder / "labels/00000.png").read_bytes())
        timed("one label changed", folder)
        timed("--verify", folder, "--verify")


if __name__ == "__main__":
    main()
