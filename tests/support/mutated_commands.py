"""Run commands on mutated inputs, and say what is wrong with how each of them ended."""

import contextlib
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tests.support import files, mutations
from tests.support.terminal import forbidden
from udaseg.cli.main import main

CODES = {0, 2, 3, 4, 5, 6, 7}
LONGEST_S = 60
SMALL = [
    *("model.backbone=timm:test_efficientnet", "model.head_channels=8", "model.output_stride=16"),
    *("model.weights=random", "batch.source=2", "batch.target=2", "machine.device=cpu"),
    *("source.crop=[32, 32]", "target.crop=[32, 32]", "source.resize=null", "target.resize=null"),
    *("validation.resize=null", "machine.workers=0", "machine.log_every=1"),
    *("machine.preview_every=0", "machine.loggers=[]"),
]
YAML = """\
name: own
images: {train: images/train/*.png, val: images/val/*.png}
labels: {train: labels/train/*.png, val: labels/val/*.png}
label_format: ids
classes:
  - {name: road, color: [128, 64, 128], ids: [0, 7]}
  - {name: car, color: [0, 0, 142], ids: [1]}
  - {name: sky, color: [70, 130, 180], ids: [2]}
ignore: [255]
"""


def said(*words: object, cwd: Path) -> tuple[int, str]:
    """Run a command in this process; return its code and all that it and C libraries printed."""
    log = cwd / "said.txt"
    kept = [os.dup(1), os.dup(2)]
    with log.open("w", encoding="utf-8", errors="surrogateescape") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            with (
                contextlib.chdir(cwd),
                mock.patch.object(sys, "argv", ["udaseg", *map(str, words)]),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(out),
                _alarm(),
            ):
                main()
        except SystemExit as stopped:
            code = stopped.code or 0
        except TimeoutError:
            code = 124
        finally:
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)
    text = log.read_bytes().decode("utf-8", "surrogateescape")
    assert isinstance(code, int), code
    return code, text


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    try:
        yield
    except _TooLong:
        raise TimeoutError from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Place:
    """A folder with data, a run and predictions, that is restored before each trial."""

    def __init__(self, folder: Path) -> None:
        self.at, self.pristine = folder / "at", folder / "pristine"
        self.at.mkdir(parents=True)
        _write_data(self.at)
        torch.save({"model": {"layer5.conv2d_list.0.weight": torch.zeros(2)}}, self.at / "old.pth")
        for words in _first_commands():
            code, text = said(*words, cwd=self.at)
            assert code == 0, text
        shutil.copytree(self.at / "run", self.at / "half")  # as if killed after the first step
        for path in (self.at / "half/checkpoints").glob("step-000002.*"):
            path.unlink()
        self.at.rename(self.pristine)
        self.restore()

    def restore(self) -> None:
        """Make the folder what it was; files keep their times, which manifests hold."""
        shutil.rmtree(self.at, ignore_errors=True)
        shutil.copytree(self.pristine, self.at, symlinks=True)

    def paths(self, patterns: Sequence[str]) -> list[str]:
        """Return the files that match any of the patterns, relative to the folder."""
        found = [path for each in patterns for path in sorted(self.pristine.glob(each))]
        return [path.relative_to(self.pristine).as_posix() for path in found if path.is_file()]


def _write_data(folder: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            seed = number + 10 * len(split)
            ids = np.random.default_rng(seed).choice([0, 1, 2], (8, 12)).repeat(4, 0).repeat(4, 1)
            files.put(folder / f"images/{split}/{number}.png", files.image_png(32, 48, seed))
            files.put(folder / f"labels/{split}/{number}.png", files.gray_png(ids))
            files.put(folder / f"target/{number}.png", files.image_png(32, 48, 50 + seed))
    files.dataset_yaml(folder, YAML)


def _first_commands() -> list[list[object]]:
    data = ["source.data=own", "target.data=target", "validation.data=own", "validation.split=val"]
    often = ["machine.checkpoint_every=1", "machine.keep_checkpoints=2"]
    return [
        ["prepare", "own.yaml"],
        ["recipes", "cp", "toyland/dacs", "my.yaml"],
        ["recipes", "cp", "toyland/source_only", "base.yaml"],
        ["adapt", "my.yaml", "--out", "run", "--steps", 2, *SMALL, *data, *often],
        ["eval", "run", "--save", "predictions"],
        ["calibrate", "run", "--images", 2],
        ["select", "run", "--images", 2],
        ["features", "run", "--images", 2, "--points", 5],
        ["sweep", "base.yaml", *_SWEEP, "--steps", 1, *SMALL, *data],
    ]


_SWEEP = ["optimizer.momentum=0.5", "--seeds", 0, "--out", "swept"]


@dataclass
class Command:
    """A command, the files that it reads, and those whose digest it knows.

    Attributes:
        words: Its arguments; `{file}` is the path of the mutated file.
        reads: Patterns of the files to mutate.
        covered: Patterns of files that may never be taken when their bytes changed.
    """

    words: list[object]
    reads: list[str]
    covered: list[str] = field(default_factory=list)


@dataclass
class Told:
    """What a campaign found.

    Attributes:
        codes: How often each exit code was returned.
        wrong: Descriptions of trials that did not end as they should.
    """

    codes: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def campaign(place: Place, commands: Sequence[Command], number: int, seed: int) -> Told:
    """Run each of the commands in turn on mutated files, `number` trials in all."""
    told = Told()
    for command in commands:
        place.restore()
        code, text = said(*command.words, cwd=place.at)
        if code and "{file}" not in command.words:
            told.wrong.append(f"{command.words} without mutations: code {code}: {text}")
    for trial in range(number):
        rng = random.Random(f"{seed} {trial}")
        command = commands[trial % len(commands)]
        code, wrong = _trial(place, command, rng)
        told.codes[code] += 1
        if wrong:
            told.wrong.append(f"trial {trial}: {wrong}")
    place.restore()
    return told


def _trial(place: Place, command: Command, rng: random.Random) -> tuple[int, str]:
    place.restore()
    name = rng.choice(place.paths(command.reads))
    what = _mutate(place.at / name, rng)
    words = [str(word).replace("{file}", name) for word in command.words]
    code, text = said(*words, cwd=place.at)
    covered = name in place.paths(command.covered) and "rewritten" not in what
    problems = [
        *(["unknown code"] if code not in CODES else []),
        *(["it hangs"] if code == 124 else []),
        *(["unexpected error"] if "unexpected error" in text else []),
        *(["traceback"] if "Traceback" in text else []),
        *(["raw control characters"] if forbidden(text) else []),
        *(["taken in spite of its digest"] if covered and code == 0 and name not in text else []),
        *(["no message"] if code and not text.strip() else []),
    ]
    ending = text.strip()[-300:]
    description = f"{' '.join(words)}: {name} {what}: {', '.join(problems)}, code {code}: {ending}"
    return code, description if problems else ""


def _mutate(path: Path, rng: random.Random) -> str:
    """Mutate a file by its kind; return what was done."""
    if rng.random() < 0.06:
        return _replace(path, rng)
    if path.suffix == ".pt" and path.with_suffix(".json").is_file() and rng.random() < 0.7:
        return mutations.of_checkpoint(path, rng)
    by_kind: dict[str, Callable[[bytes, random.Random], mutations.Mutation]] = {
        ".json": mutations.of_json,
        ".jsonl": mutations.of_json_lines,
        ".yaml": mutations.of_yaml,
    }
    mutate = by_kind.get(path.suffix, mutations.of_bytes)
    if path.suffix == ".png" and rng.random() < 0.4:
        mutate = mutations.text_png
    data = path.read_bytes()
    for _ in range(9):
        what, changed = mutate(data, rng)
        if changed != data:
            break
    path.write_bytes(changed)
    return what


def _replace(path: Path, rng: random.Random) -> str:
    path.unlink()
    match rng.randrange(4):
        case 0:
            return "is gone"
        case 1:
            path.mkdir()
            return "is a folder"
        case 2:
            path.symlink_to("nowhere")
            return "is a link to nothing"
        case _:
            path.symlink_to(path.name)
            return "is a link to itself"


_DATA = ["own.yaml", "images/*/*.png", "labels/*/*.png"]
_PREPARED = ["data/prepared/own/*.json*", "data/prepared/own/**/*.png"]
_RUN = ["run/*.json*", "run/*.yaml", "run/*.txt", "run/*.log", "run/**/*.json", "run/checkpoints/*"]
_CHECKPOINTS = ["run/checkpoints/*"]
_NEWEST = ["run/checkpoints/step-000002.pt"]
_INIT = ["--init", _NEWEST[0]]
_DOMAINS = ["source.data=own", "target.data=target", "validation.data=null"]
_SWEPT_DATA = ["source.data=own", "target.data=target", "validation.data=own"]
_SWEPT_DATA += ["validation.split=val"]
_ONE_STEP = ["--out", "new", "--steps", 1, *SMALL, *_DOMAINS]

COMMANDS: dict[str, list[Command]] = {
    "prepare": [
        Command(["prepare", "own.yaml"], [*_DATA, *_PREPARED]),
        Command(
            ["prepare", "own.yaml", "--verify"], [*_DATA, *_PREPARED], [*_DATA[1:], *_PREPARED]
        ),
        Command(["prepare", "own.yaml", "--check-only", "--max-bad", 9], _DATA),
    ],
    "doctor": [
        Command(["doctor", "own"], [*_DATA, *_PREPARED]),
        Command(["doctor", "own.yaml", "--target", "target"], [*_DATA, *_PREPARED, "target/*"]),
    ],
    "train": [Command(["train", "base.yaml", *_ONE_STEP], ["base.yaml", *_DATA, *_PREPARED])],
    "adapt": [
        Command(["adapt", "--resume", "half"], [each.replace("run/", "half/") for each in _RUN]),
        Command(
            ["adapt", "my.yaml", *_INIT, *_ONE_STEP],
            [*_CHECKPOINTS, "my.yaml", "target/*"],
            _NEWEST,
        ),
    ],
    "eval": [
        Command(["eval", "run"], [*_RUN, *_PREPARED, *_DATA], _NEWEST),
        Command(
            ["eval", "--predictions", "predictions", "--data", "own"],
            ["predictions/**/*.png", "predictions/*.json", *_PREPARED],
        ),
    ],
    "predict": [
        Command(["predict", "target", "--checkpoint", "run"], [*_RUN, "target/*"], _NEWEST)
    ],
    "select": [Command(["select", "run"], [*_RUN, *_PREPARED, "target/*"], _NEWEST)],
    "calibrate": [
        Command(["calibrate", "run", "--images", 2], [*_RUN, *_PREPARED, *_DATA], _NEWEST)
    ],
    "report": [Command(["report", "run", "--images", 1], [*_RUN, *_PREPARED], _NEWEST)],
    "export": [Command(["export", "run", "--images", 0], _RUN, _NEWEST)],
    "info": [Command(["info", "run"], _RUN, _NEWEST), Command(["info", "{file}"], _CHECKPOINTS)],
    "verify": [Command(["verify", "run"], _RUN, _NEWEST)],
    "grid": [Command(["grid", "run", "--images", 1], [*_RUN, *_PREPARED, *_DATA], _NEWEST)],
    "features": [
        Command(
            ["features", "run", "--images", 1, "--points", 5], [*_RUN, *_PREPARED, *_DATA], _NEWEST
        ),
        Command(["report", "run", "--images", 1], ["run/features/**/*"]),
    ],
    "import": [Command(["import", "{file}"], ["old.pth", *_CHECKPOINTS])],
    "sweep": [
        Command(
            ["sweep", "base.yaml", *_SWEEP, "--steps", 1, *SMALL, *_SWEPT_DATA],
            ["swept/*.json", "swept/**/*.json*", "swept/**/*.csv", "base.yaml"],
        )
    ],
    "table": [
        Command(
            ["table", "swept", "run", "--baseline", "run"],
            ["swept/**/*.json*", "swept/**/*.csv", "swept/**/*.yaml", *_RUN, "run/**/*.csv"],
        )
    ],
}
"""Every command that reads files; `export` needs `without_exporter`."""


@contextlib.contextmanager
def without_exporter() -> Iterator[None]:
    """Leave out torch's exporter, which takes seconds and sees only what was loaded."""

    def write(module: object, path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(repr(metadata).encode())

    with mock.patch("udaseg.inference.export.write_onnx", write):
        yield
