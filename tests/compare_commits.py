"""Train a few tiny steps at a commit and in the working tree, and compare all that is written.

    python -m tests.compare_commits [--before COMMIT] [--recipes toyland/rccr ...] [--steps 5]

Every tensor of every last checkpoint must be the same to the bit, the optimiser's too, and so must
every line of the metrics but for its times. Prints a line a recipe, and exits with 1 when anything
differs. Nothing of udaseg is imported here, so both sides may have moved as they like.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
FIXTURES = Path(__file__).resolve().parent / "fixtures"
MADE_IN = "/tmp/udaseg-fixtures"
"""The folder in which the fixtures were made; their indexes name it."""

TINY = [
    *("source.crop=[64, 64]", "target.crop=[64, 64]", "source.resize=null", "target.resize=null"),
    *("validation.resize=null", "model.backbone=timm:test_efficientnet", "model.output_stride=16"),
    *("model.weights=random", "model.head_channels=16", "batch.source=2", "batch.target=2"),
    *("machine.device=cpu", "machine.workers=0", "machine.preview_every=0", "machine.log_every=1"),
    "machine.tensorboard=never",
]
TOYLAND = [
    *("source.data=toyland", "source.split=train"),
    *("target.data=toyland-target", "target.split=train"),
    *("validation.data=toyland-target", "validation.split=val"),
]
SHOWN = 3


def tiny_words(path: Path) -> list[str]:
    """Return overrides that make a recipe tiny, and no loss term of it 0 from the start.

    The file is read as plain YAML, so a recipe of any version will do.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    method, words = values["method"], list(TINY)
    if values["source"].get("sampling") == "rare_class":
        words += ["source.rare_class.min_pixels=30", "source.rare_class.min_crop_pixels=10"]
    if "mixing" in method:
        words.append("method.mixing.confidence=0.1")
    if "regional" in method:
        words += ["method.regional.cells_per_view=64", "method.regional.min_confidence=0"]
        words.append("method.regional.projector.channels=16")
    if "semantic" in method:
        words += ["method.semantic.channels=16", "method.semantic.bank_rows=4"]
    return words


def verb_of(path: Path) -> str:
    """Return the command that the first line of a recipe names: train or adapt."""
    return path.read_text(encoding="utf-8").split()[2]


def unpack_data(root: Path) -> Path:
    """Copy the prepared data of the fixtures to `root`, and let their indexes name it."""
    shutil.copytree(FIXTURES / "data", root)
    for index in root.glob("prepared/*/index.json"):
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace(f"{MADE_IN}/data", str(root)), encoding="utf-8")
    return root


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield every tensor and plain value inside `value` with its dotted name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{name}[{number}]")
    else:
        yield name, value


def checkpoints_of(run: Path) -> dict[str, Path]:
    """Return the last checkpoint of a run, and the one that each of its stages ended with."""
    found = {}
    for folder in (run / "checkpoints", *sorted(run.glob("stages/*/checkpoint"))):
        paths = sorted(folder.glob("step-*.pt"))
        if paths:
            found[folder.relative_to(run).as_posix()] = paths[-1]
    return found


def _content(run: Path) -> dict[str, object]:
    """Return by name all that two runs must have in common."""
    found: dict[str, object] = {}
    for where, path in checkpoints_of(run).items():
        payload = torch.load(path, weights_only=True)
        found.update({f"{where} {name}": value for name, value in leaves(payload)})
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        for name, value in leaves(json.loads(line)):
            if "time" not in name and "seconds" not in name:
                found[f"metrics line {number} {name}"] = value
    return found


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        # as bytes: a zero keeps its sign, and one NaN is like another
        pair = [part.detach().contiguous().view(-1).view(torch.uint8) for part in (one, other)]
        return torch.equal(*pair)
    return type(one) is type(other) and repr(one) == repr(other)


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return the names of what is not the same on both sides."""
    found = [f"{name} is gone" for name in before if name not in after]
    found += [f"{name} is new" for name in after if name not in before]
    shared = [name for name in before if name in after]
    return found + [name for name in shared if not _same(before[name], after[name])]


def _train(tree: Path, name: str, root: Path, out: Path, steps: int) -> str | None:
    """Train in a process with the code of `tree`; return what went wrong, if anything did."""
    path = tree / "recipes" / f"{name}.yaml"
    words = [
        *(verb_of(path), str(path), "--root", str(root), "--out", str(out), "--steps", str(steps)),
        *tiny_words(path),
        *(() if name.startswith("toyland/") else TOYLAND),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "udaseg", *words],
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"exit {done.returncode}: {done.stderr[-500:].strip()}"


def _compared(trees: dict[str, Path], name: str, root: Path, scratch: Path, steps: int) -> str:
    """Return what differs in one recipe; empty when nothing does."""
    content = {}
    for side, tree in trees.items():
        out = scratch / side
        shutil.rmtree(out, ignore_errors=True)
        trouble = _train(tree, name, root, out, steps)
        if trouble is not None:
            return f"{side}: {trouble}"
        content[side] = _content(out)
    found = differences(content["before"], content["after"])
    if not found:
        tensors = sum(isinstance(value, torch.Tensor) for value in content["after"].values())
        _say(f"{name}: {tensors} tensors, {len(content['after'])} values, all the same")
        return ""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)} differ: {', '.join(found[:SHOWN])}{more}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(REPOSITORY), *words], check=True, capture_output=True)


def compare(before: str, recipes: list[str], steps: int) -> int:
    """Print how each recipe does, and return how many differ."""
    different = 0
    with tempfile.TemporaryDirectory(prefix="udaseg-compare-") as folder:
        scratch = Path(folder).resolve()
        trees = {"before": scratch / "tree", "after": REPOSITORY}
        _git("worktree", "add", "--detach", str(trees["before"]), before)
        try:
            root = unpack_data(scratch / "data")
            for name in recipes:
                trouble = _compared(trees, name, root, scratch, steps)
                if trouble:
                    different += 1
                    _say(f"{name}: {trouble}")
        finally:
            _git("worktree", "remove", "--force", str(trees["before"]))
    return different


def main() -> None:
    """Read the command line, compare, and exit with 1 when anything differs."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--before", default="HEAD~1", help="the commit; by default HEAD~1")
    words.add_argument("--recipes", nargs="+", help="by default all of toyland")
    words.add_argument("--steps", type=int, default=5, help="optimiser steps; by default 5")
    given = words.parse_args()
    # the worktree is removed after SIGTERM too
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    toyland = sorted((REPOSITORY / "recipes" / "toyland").glob("*.yaml"))
    recipes = given.recipes or [f"toyland/{path.stem}" for path in toyland]
    sys.exit(1 if compare(given.before, recipes, given.steps) else 0)


if __name__ == "__main__":
    main()
