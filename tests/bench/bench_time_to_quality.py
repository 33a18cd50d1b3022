"""Mean IoU over training time, of runs that were scored while they trained.

    python tests/bench/bench_time_to_quality.py NAME=RUN... [--picture FILE.svg]

Each run is one of `udaseg train ... machine.validate_every=N`. A step's time is the CPU time of
one thread, the difference of two short trainings with the recipe of the run; scoring and the start
do not count. Runs of one name, such as two seeds, make one row. The picture wants matplotlib.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

FEW, MORE = 4, 24
MINUTES = (3, 6, 9, 12, 15, 20)
Points = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves")
    options = parser.parse_args()
    runs: dict[str, list[Path]] = defaultdict(list)
    for word in options.runs:
        name, _, folder = word.partition("=")
        runs[name].append(Path(folder))
    seconds = {name: step_seconds(folders[0]) for name, folders in runs.items()}
    curves = {name: [scores(folder) for folder in folders] for name, folders in runs.items()}
    show(curves, seconds)
    if options.picture:
        draw(options.picture, curves, seconds)


def scores(run: Path) -> Points:
    """Return mIoU in percent by step: those of the training, and the final one."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: 100 * line["oracle_miou"] for line in lines if "oracle_miou" in line}
    (final,) = (run / "eval").glob("*-val/scores.json")
    last = json.loads((run / "cost.json").read_text())["step"]
    found[last] = 100 * next(iter(json.loads(final.read_text())["means"].values()))
    return found


def step_seconds(run: Path) -> float:
    """Return the CPU seconds of a step of a run, measured now."""
    few, more = (training_seconds(run, steps) for steps in (FEW, MORE))
    return (more - few) / (MORE - FEW)


def training_seconds(run: Path, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", run / "recipe.yaml", "--steps", steps, "--out", Path(folder) / "run"]
        words += ["validation.data=null", "machine.workers=0", "machine.preview_every=0", "-q"]
        command = [sys.executable, "-m", "udaseg", *map(str, words)]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return used.ru_utime + used.ru_stime


def reached(curve: Points, minutes: float, step: float) -> float | None:
    """Return the last score that a run has within some minutes; None before it has one."""
    steps = [number for number in curve if number * step <= minutes * 60]
    return curve[max(steps)] if steps else None


def show(curves: dict[str, list[Points]], seconds: dict[str, float]) -> None:
    heads = ["", "steps", "CPU s a step", *(f"{minutes} min" for minutes in MINUTES), "end"]
    sys.stdout.write("| " + " | ".join(heads) + " |\n")
    sys.stdout.write("|---|" + "---:|" * (len(heads) - 1) + "\n")
    for name, runs in curves.items():
        step, last = seconds[name], max(runs[0])
        cells = [name, f"{last:,}", f"{step:.2f}"]
        for minutes in MINUTES:
            found = [reached(curve, minutes, step) for curve in runs]
            cells.append("" if None in found else f"{statistics.mean(found):.1f}")
        ends = ", ".join(f"{curve[last]:.1f}" for curve in runs)
        cells.append(f"{ends} ({last * step / 60:.0f} min)")
        sys.stdout.write("| " + " | ".join(cells) + " |\n")


def draw(file: Path, curves: dict[str, list[Points]], seconds: dict[str, float]) -> None:
    """Draw mIoU over minutes; runs of one name have one colour."""
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "udaseg"
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for number, (name, runs) in enumerate(curves.items()):
        for curve in runs:
            steps = sorted(curve)
            minutes = [step * seconds[name] / 60 for step in steps]
            label = name if curve is runs[0] else None
            axes.plot(minutes, [curve[step] for step in steps], f"C{number}.-", label=label)
    axes.set(xlabel="minutes of one CPU core", ylabel="mIoU (%)", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
