"""Measure what each part of adaptation is worth, and every method; run as a script.

    python -m tests.bench.measure --list
    python -m tests.bench.measure [NAME...] [--at-once 2]
    python -m tests.bench.measure --table [NAME...]

The names of jobs are GROUP/ROW/SEED; NAME is the beginning of one or several, such as `parts` or
`light/rccr`. A finished job is a line in `results.jsonl`, which is never run again: remove the line
to repeat it. A job that was interrupted, or took an hour, goes on with the next call. Each run uses
one thread. Runs and logs are in `runs/measure/`.

Before the first call, with the folder of the pair in UDASEG_SYNSTREET2CAMVID and that of the
weights in UDASEG_WEIGHTS (UDASEG_DATA is where prepared data go, `data/` by default):

    udaseg prepare toyland recipes/datasets/synstreet.yaml recipes/datasets/camvid-drive.yaml
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "measure"
RESULTS = Path(__file__).with_name("results.jsonl")
LIMIT_SECONDS = 3600
RARE = ("bicyclist",)
"""Classes with too few of the scored pixels (0.08 %): a mean without them is shown too."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Jobs of one table.

    Attributes:
        title: Heading of the table.
        words: Words of `udaseg adapt` that all rows have.
        rows: The recipe of each row, and its changes of it, by the name of the row.
        seeds: Seeds of each row.
        chained: Each row has what the one before has, and a part more.
    """

    title: str
    words: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    chained: bool = False


@dataclass(frozen=True)
class Job:
    """One run: its name, and the words of `udaseg adapt` that decide its numbers."""

    name: str
    words: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run folder; a job whose words have changed gets another one."""
        digest = hashlib.sha256(" ".join(self.words).encode()).hexdigest()[:8]
        return RUNS / f"{self.name.replace('/', '-')}-{digest}"


PARTS = {
    "warm_self_training": ("method.warm_up=0.263",),
    "masking": ("method.masking={kind: block, size: 14, ratio: 0.7, weight: 1}",),
    "class_weights": ("method.mixing.share_over=class", "method.teacher.mirror=true"),
    "larger_labels": ("method.teacher.scale=1.5",),
    "prior": ("method.teacher.prior={exponent: 0.25, towards: source, momentum: 0.99}",),
    "rare_class_sampling": (
        "source.sampling=rare_class",
        "source.rare_class={temperature: 0.1, min_pixels: 700, min_crop_pixels: 160}",
    ),
    "regional_contrast": (
        "method.regional={weight: 0.01, ramp: true, start: 0, temperature: 0.1, "
        "min_confidence: 0.75, bank_steps: 3, cells_per_view: 600, region_size: 1, "
        "square_per: image, keep_ignored: false, projector: {channels: 128, trainable: true}}",
    ),
    "frozen_prototypes": (
        "method.prototypes={weight: 0.1, temperature: 0.1, momentum: 0.999, absent: keep, "
        "normalise: true, min_confidence: 0.9, anchor: frozen}",
    ),
    "feature_distance": ("method.feature_distance={kind: cosine, weight: 0.1}",),
}
"""What each part adds to DACS and the parts before it; mirror images come with class weights."""


def chain_of_parts() -> dict[str, tuple[str, ...]]:
    """Return the rows of the parts, the first of which is source-only training.

    The rows after rare-class sampling have what the row before the prior has, because both lost.
    The last two are this row without masking, and with labels of images that are enlarged more but
    not mirrored, which takes about as long.
    """
    rows, words = {"source_only": ("synstreet_camvid/source_only",)}, ("synstreet_camvid/dacs",)
    for name, added in PARTS.items():
        rows[name] = (*words, *added)
        words = rows["larger_labels" if name == "rare_class_sampling" else name]
    best = rows["larger_labels"]
    rows["without_masking"] = tuple(word for word in best if word not in PARTS["masking"])
    smaller = ("method.teacher.mirror=true", *PARTS["larger_labels"])
    kept = (word for word in best if word not in smaller)
    rows["labels_of_twice_the_size"] = (*kept, "method.teacher.scale=2")
    return rows


def recipes(pair: str, *names: str) -> dict[str, tuple[str, ...]]:
    """Return a row for each recipe of a pair."""
    return {name: (f"{pair}/{name}",) for name in names}


def vit(steps: int) -> tuple[str, ...]:
    """Return the words of runs of the ViT."""
    return (
        "--network=dinov2_small",
        f"--steps={steps}",
        "machine.precision=bf16",  # two thirds of the time of fp32 on this kind of CPU
        "model.weights=${UDASEG_WEIGHTS}/vit_small_patch14_dinov2.safetensors",
        "optimizer.lr=5e-4",  # 5e-5, of the network file, is for 40,000 steps: too slow here
        *(f"{part}.resize=[210,280]" for part in ("source", "target", "validation")),
        *(f"{part}.crop=[210,280]" for part in ("source", "target")),
    )


GROUPS = {
    "parts": Group(
        "Parts one at a time: generated streets to CamVid, a DINOv2-like ViT-S/14 (weights from a "
        "local file), 280x210, 950 steps of 2 + 2 images, bf16",
        vit(950),
        chain_of_parts(),
        (0, 1),
        chained=True,
    ),
    "minutes": Group(
        "Source-only training for as many minutes as adaptation takes: 3,300 steps, else as above",
        vit(3300),
        recipes("synstreet_camvid", "source_only"),
        (0, 1),
    ),
    "from_start": Group(
        "Methods without a warm-up on the ViT, 300 steps, else as above: where adaptation may hurt",
        vit(300),
        recipes("synstreet_camvid", "source_only", "dacs", "rccr", "spcl", "sepico", "minent"),
        (0, 1, 2),
    ),
    "light": Group(
        "Methods: generated streets to CamVid, EfficientNet-Lite0, 480x360, 500 steps of 2 + 2 "
        "images",
        ("--network=light", "--steps=500"),
        recipes("synstreet_camvid", "source_only", "dacs", "rccr", "spcl", "sepico", "foundation"),
        (0, 1, 2),
    ),
    "light_1500": Group(
        "Methods: generated streets to CamVid, EfficientNet-Lite0, 480x360, 1,500 steps of 2 + 2 "
        "images",
        ("--network=light", "--steps=1500"),
        recipes("synstreet_camvid", "source_only", "rccr", "foundation"),
        (0,),
    ),
    "toyland": Group(
        "Methods: toyland, MobileNetV2 from random weights, 256x128, 500 steps of 4 + 4 images",
        ("--steps=500",),
        recipes(
            "toyland", "source_only", "foundation", "mic", "daformer", "spcl", "dacs", "minent"
        ),
        (0, 1, 2),
    ),
}


def all_jobs() -> list[Job]:
    """Return the jobs of all groups: in each, all rows of the first seed first."""
    return [
        Job(f"{name}/{row}/{seed}", (*own, *group.words, f"--seed={seed}"))
        for name, group in GROUPS.items()
        for seed in group.seeds
        for row, own in group.rows.items()
    ]


def source_only(job: Job) -> Job:
    """Return the job of source-only training with the group and the seed of a job."""
    group, _, seed = job.name.split("/")
    (found,) = (each for each in all_jobs() if each.name == f"{group}/source_only/{seed}")
    return found


def read_results() -> list[Result]:
    """Return the finished jobs whose words are still those of the list."""
    words = {job.name: list(job.words) for job in all_jobs()}
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    results = [json.loads(line) for line in lines]
    return [each for each in results if words.get(each["name"]) == each["words"]]


class Stopped(Exception):
    """A signal came, or the hour is over."""


class Worker:
    """Runs jobs, each as a few commands one after another, until a signal comes."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.stop = threading.Event()
        self._writing = threading.Lock()

    def finish(self, job: Job) -> None:
        """Train, score and write down one job; say what happened."""
        if self.stop.is_set():
            return
        say(f"{job.name}: starts, log in {job.folder.with_suffix('.log')}")
        try:
            self._train(job)
            line = json.dumps(self._result(job))
            with self._writing, RESULTS.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            for old in sorted((job.folder / "checkpoints").glob("step-*"))[:-2]:
                old.unlink()  # the newest checkpoint and its manifest stay; a ViT's takes 300 MB
            say(f"{job.name}: mIoU {json.loads(line)['miou']:.1f}")
        except Stopped:
            say(f"{job.name}: not finished; run this again to go on")
        except subprocess.CalledProcessError as error:
            say(f"{job.name}: failed with code {error.returncode}; see its log")

    def _train(self, job: Job) -> None:
        state = read(job.folder / "status.json").get("state")
        if state == "done":
            return
        commits = job.folder.with_suffix(".commits")
        commits.parent.mkdir(parents=True, exist_ok=True)
        with commits.open("a", encoding="utf-8") as file:
            file.write(commit() + "\n")
        machine = ("machine.checkpoint_every=50", "machine.preview_every=0", "machine.workers=0")
        words = (*job.words, *machine, "--out", str(job.folder))
        if state is not None:
            words = ("--resume", str(job.folder))
        self._command(job, "adapt", *words)

    def _result(self, job: Job) -> Result:
        """Return the line of a trained job; scores are in percent."""
        folder = job.folder
        document = self._json(job, "select", str(newest(folder / "checkpoints")))
        (criteria,) = document["candidates"]
        (scores,) = (folder / "eval").glob("*-val/scores.json")
        spent = [line.split() for line in folder.with_suffix(".cpu").read_text().splitlines()]
        seconds = sum(float(each) for command, each in spent if command == "adapt")
        result = {
            "name": job.name,
            "words": job.words,
            "commit": ", ".join(dict.fromkeys(folder.with_suffix(".commits").read_text().split())),
            "source": document["source"]["data"],
            "target": document["target"]["data"],
            "scored_on": scores.parent.name,
            "minutes": round(read(folder / "cost.json")["seconds"] / 60, 1),
            "cpu_minutes": round(seconds / 60, 1),
            "threads": read(folder / "environment.json")["threads"],
            "at_once": self.at_once,
            **percents(read(scores)),
            "criteria": {key: criteria[key] for key in (*document["criteria"], "collapsed")},
        }
        if criteria["teacher"] is not None:
            result["teacher"] = percents(self._json(job, "eval", str(folder), "--weights=teacher"))
        warm = newest(folder / "checkpoints" / "warm_up")
        if warm is not None:
            result["warm"] = percents(self._json(job, "eval", str(warm)))
        return result | self._worth(job)

    def _worth(self, job: Job) -> Result:
        """Return the comparisons with the run's own warm network and with source-only training."""
        folder, before = job.folder, source_only(job)
        found = {"worth": read(folder / "worth.json")}
        if before != job and read(before.folder / "status.json").get("state") == "done":
            words = ("--worth-it", str(folder), "--baseline", str(before.folder))
            found["worth_source_only"] = self._json(job, "select", *words)
        for worth in found.values():
            for network in ("adapted", "baseline") if worth else ():
                worth[network]["checkpoint"] = Path(worth[network]["checkpoint"]).name
        return {key: worth for key, worth in found.items() if worth}

    def _json(self, job: Job, *words: str) -> Result:
        with job.folder.with_suffix(".json").open("w+", encoding="utf-8") as file:
            self._command(job, *words, "--format", "json", "-q", output=file)
            file.seek(0)
            document: Result = json.load(file)
        return document

    def _command(self, job: Job, *words: str, output: Any = None) -> None:
        """Run a command of udaseg; end it if a signal comes or it takes too long.

        Raises:
            Stopped: It was ended.
            CalledProcessError: It failed.
        """
        command = [sys.executable, "-m", "udaseg", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with job.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output or log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this script alone, which ends the command
            )
            end = time.monotonic() + LIMIT_SECONDS
            ended, stopped = 0, False
            while not ended:
                if not stopped and (self.stop.is_set() or time.monotonic() > end):
                    process.terminate()
                    stopped = True
                time.sleep(0.2)
                ended, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        with job.folder.with_suffix(".cpu").open("a", encoding="utf-8") as file:
            file.write(f"{words[0]} {used.ru_utime + used.ru_stime:.1f}\n")
        if stopped:
            raise Stopped
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


def read(path: Path) -> Result:
    """Return a JSON file; empty if it is not there."""
    document: Result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return document


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint in a folder, if any."""
    return max(folder.glob("step-*.pt"), default=None)


def percents(scores: Result) -> Result:
    """Return mIoU and IoU of each class, in percent, from `scores.json`."""
    iou = {row["name"]: 100 * row["iou"] for row in scores["classes"] if row["iou"] is not None}
    miou = 100 * next(iter(scores["means"].values()))
    return {"miou": round(miou, 3), "iou": {name: round(each, 3) for name, each in iou.items()}}


def commit() -> str:
    """Return the commit of the code, with `+` if files of the package or its recipes differ."""

    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(
        git("status", "-s", "udaseg", "recipes")
    )


def table(name: str, results: Iterable[Result]) -> str:
    """Return the tables of a group as Markdown: means and spreads over seeds, IoU of classes."""
    rows: dict[str, dict[int, Result]] = {row: {} for row in GROUPS[name].rows}
    for each in results:
        group, row, seed = each["name"].split("/")
        if group == name:
            rows[row][int(seed)] = each
    rows = {row: seeds for row, seeds in rows.items() if seeds}
    if not rows:
        return ""
    lines = [f"### {GROUPS[name].title}", "", *_score_lines(rows, GROUPS[name].chained), ""]
    return "\n".join([*lines, *_class_lines(rows)]) + "\n"


def _score_lines(rows: dict[str, dict[int, Result]], chained: bool) -> list[str]:
    heads = ["", "seeds", "mIoU", "spread", f"without {', '.join(RARE)}", "against the first"]
    heads += ["against the one before"] * chained + [
        "teacher",
        "after warm-up",
        "worth it?",
        "CPU minutes",
    ]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    first = before = next(iter(rows.values()))
    for row, seeds in rows.items():
        mious = [each["miou"] for each in seeds.values()]
        cells = [row, str(len(seeds)), f"{statistics.mean(mious):.1f}"]
        cells.append(f"{statistics.stdev(mious):.1f}" if len(mious) > 1 else "")
        cells.append(_mean(seeds, without_rare))
        cells.append(_difference(seeds, first))
        cells += [_difference(seeds, before)] * chained
        cells += [
            _mean(seeds, lambda each, key=key: each[key]["miou"]) for key in ("teacher", "warm")
        ]
        cells.append(", ".join(verdict for each in seeds.values() if (verdict := _verdict(each))))
        cells.append(_mean(seeds, lambda each: each["cpu_minutes"]))
        lines.append(_line(cells))
        before = seeds
    return lines


def _class_lines(rows: dict[str, dict[int, Result]]) -> list[str]:
    classes = next(iter(next(iter(rows.values())).values()))["iou"]
    lines = [_line(["IoU", *rows]), _line(["---", *["---:"] * len(rows)])]
    for name in classes:
        means = (_mean(seeds, lambda each, name=name: each["iou"][name]) for seeds in rows.values())
        lines.append(_line([name, *means]))
    return lines


def without_rare(result: Result) -> float:
    """Return the mean IoU over all classes but the rare ones."""
    return statistics.mean(iou for name, iou in result["iou"].items() if name not in RARE)


def _mean(seeds: dict[int, Result], value: Callable[[Result], float]) -> str:
    """Return the mean of a value over seeds; empty if a seed lacks it."""
    try:
        return f"{statistics.mean(value(each) for each in seeds.values()):.1f}"
    except KeyError:
        return ""


def _verdict(result: Result) -> str:
    """Return the verdict on a run and its warm network, else source-only training; or nothing."""
    worth = result.get("worth", result.get("worth_source_only", {}))
    return str(worth.get("verdict", ""))


def _difference(seeds: dict[int, Result], others: dict[int, Result]) -> str:
    """Return the mean difference of mIoU over the seeds that both have; empty if there is none."""
    shared = seeds.keys() & others.keys()
    if seeds is others or not shared:
        return ""
    return f"{statistics.mean(seeds[seed]['miou'] - others[seed]['miou'] for seed in shared):+.1f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="what parts and methods are worth")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the beginning of names of jobs")
    parser.add_argument("--list", action="store_true", help="say what is done and what is open")
    parser.add_argument("--table", action="store_true", help="print Markdown tables")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time")
    options = parser.parse_args()
    wanted = tuple(options.names) or ("",)
    jobs = [job for job in all_jobs() if job.name.startswith(wanted)]
    if not jobs:
        parser.error(f"no job begins with {', '.join(wanted)}; see --list")
    results = [each for each in read_results() if each["name"].startswith(wanted)]
    done = {each["name"]: each for each in results}
    if options.table:
        say("\n".join(text for name in GROUPS if (text := table(name, results))))
    elif options.list:
        for job in jobs:
            state = f"mIoU {done[job.name]['miou']:.1f}" if job.name in done else "open"
            say(f"{job.name:<36} {state}")
        say(f"{len(done)} of {len(jobs)} done")
    else:
        work([job for job in jobs if job.name not in done], options.at_once)


def work(jobs: list[Job], at_once: int) -> None:
    """Run jobs until all are finished or a signal comes."""
    worker = Worker(at_once)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop.set())
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(worker.finish, jobs))


if __name__ == "__main__":
    main()
