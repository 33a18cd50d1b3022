"""Make the folder `tests/fixtures`: files as this version writes them, for later versions to read.

    python -m tests.make_fixtures OUT

It works in `WORKPLACE`, so that no file names a folder of the machine. `tests/fixtures/README.md`
says what each file is.
"""

import argparse
import hashlib
import json
import logging
import lzma
import os
import platform
import re
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import torch

from tests.cli.running import udaseg
from tests.compare_commits import FIXTURES, MADE_IN, leaves, tiny_words, verb_of
from tests.support.toy import toy_root
from udaseg.data.open import open_dataset
from udaseg.data.toyland.render import render
from udaseg.recipe.library import OWN_FOLDER, find_recipe, list_recipes
from udaseg.recipe.load import dump, load
from udaseg.training.setup import build_setup as build_run

REPOSITORY = Path(__file__).resolve().parents[1]
WORKPLACE = Path(MADE_IN)
"""Folder where fixtures are created. The stamp of a prepared set includes its absolute path."""

GOLDEN_STEPS = 5
BATCHES = 20
FRAMES = [
    (domain, seed, split, index, size)
    for seed, size in ((0, (128, 256)), (1, (64, 128)), (7, (96, 160)))
    for domain in ("source", "target")
    for split, index in (("train", 0), ("train", 3), ("val", 1))
]
RCCR = ["optimizer.lr=0.01", "optimizer.warmup=0", "method.target_statistics=4"]
SGD = ["optimizer.kind=sgd", "optimizer.lr=0.05", "optimizer.warmup=0"]
MANY = 60_000
"""Numbers in a tensor that only a discriminator has. They are repeated: see `_repeat`."""

OWN_SET = """\
# What `udaseg prepare streets.yaml` prepared here: the source of toyland as a set of one's own.
name: streets
root: toyland/source
images:
  train: train/images/*.png
  val: val/images/*.png
labels:
  train: train/labels/*.png
  val: val/labels/*.png
match: stem
label_format: ids
classes:
  - {name: road, color: [128, 64, 128], ids: [0]}
  - {name: rest, color: [70, 70, 70], ids: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}
ignore: [255]
"""


def frame_digests() -> dict[str, dict[str, str]]:
    """Return the digests of image and label of some toyland frames."""
    found = {}
    for domain, seed, split, index, size in FRAMES:
        image, label = render(domain, seed=seed, split=split, index=index, size=size)
        name = f"{domain}/{split}/{index:05d} seed {seed} size {size[0]}x{size[1]}"
        found[name] = {"image": _digest(image), "label": _digest(label)}
    return found


def batch_digests(root: Path) -> list[dict[str, str]]:
    """Return the digests of the first batches of toyland/rccr, at its own size."""
    words = ["model.backbone=timm:test_efficientnet", "machine.device=cpu", "machine.workers=0"]
    recipe = load(find_recipe("toyland/rccr"), overrides=words)
    made = build_run(
        recipe, open_dataset("toyland", root=root), open_dataset("toyland-target", root=root)
    )
    found = []
    for step in range(BATCHES):
        batch = made.batches[step]
        parts = {
            "source_images": batch.source_images,
            "source_labels": batch.source_labels,
            "target_images": batch.target_images,
        }
        digests = {name: _digest(value.numpy()) for name, value in parts.items()}
        found.append({**digests, "seed": batch.seed})
    return found


def golden_losses(
    name: str, root: Path, out: Path, stored: Path | None = None
) -> list[dict[str, float]]:
    """Return every loss term of the first steps of a shipped recipe, made tiny.

    `stored` is the file of the recipe as it was shipped once.
    """
    path = find_recipe(name)
    words = [verb_of(path), stored or name, "--root", root, "--out", out, "--steps", GOLDEN_STEPS]
    udaseg(*words, *tiny_words(path), "validation.data=null", cwd=out.parent)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["losses"] for line in lines]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's newest checkpoint by dotted name, the optimiser's too."""
    path = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    payload = torch.load(path, weights_only=True)
    found = leaves({key: payload[key] for key in ("objective", "optimizer")})
    return {name: value for name, value in found if isinstance(value, torch.Tensor)}


def end_of(run: Path) -> dict[str, dict[str, object]]:
    """Return the shape, the mean size and a few values of each tensor where a run ended."""
    found = {}
    for name, tensor in tensors_of(run).items():
        flat = tensor.double().flatten()
        places = torch.linspace(0, max(0, len(flat) - 1), min(4, len(flat))).long()
        found[name] = {
            "shape": list(tensor.shape),
            "mean_size": float(f"{float(flat.abs().mean()) if len(flat) else 0.0:.7g}"),
            "values": [float(f"{float(flat[place]):.7g}") for place in places],
        }
    return found


def machine() -> dict[str, object]:
    """Return what the golden numbers depend on."""
    return {
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "cpu": _cpu(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def unpack_run(name: str, out: Path) -> Path:
    """Copy the run `name` of the fixtures to `out`, with its checkpoints unpacked."""
    shutil.copytree(FIXTURES / "runs" / name, out)
    for packed in out.rglob("*.pt.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    for named in out.rglob("*.pt.same"):
        shutil.copy(named.parent / named.read_text(encoding="utf-8").strip(), named.with_suffix(""))
        named.unlink()
    return out


def _digest(pixels: np.ndarray) -> str:
    head = f"{pixels.shape} {pixels.dtype} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _make_runs(root: Path, runs: Path) -> None:
    """Make the runs: two whole ones, and three that a signal ended."""
    runs.mkdir()
    ends = {}
    for name, more in (("rccr", RCCR), ("sepico", SGD)):
        out = runs / name
        udaseg(*_words(name, root, out, 4, more), cwd=runs)
        ends[name] = end_of(out)
        _interrupt(runs / f"{name}_interrupted", name, root, 4, more)
    shutil.rmtree(runs / "sepico")
    _interrupt(runs / "advent_interrupted", "advent", root, 4, SGD)
    _shrink(runs / "advent_interrupted")
    out = runs / "advent"
    shutil.copytree(runs / "advent_interrupted", out)
    udaseg("adapt", "--resume", out, "--root", root, cwd=runs)
    ends["advent"] = end_of(out)
    shutil.rmtree(out)
    out = runs / "spcl"
    every = ["machine.checkpoint_every=3", "machine.keep_checkpoints=9"]
    udaseg(*_words("spcl", root, out, 6, [*SGD, *every]), cwd=runs)
    ends["spcl"] = end_of(out)
    _shrink(out)
    for path in out.glob("checkpoints/step-*"):
        if path.stem not in ("step-000003", "step-000006"):
            path.unlink()
    (runs / "ends.json").write_text(_json_lines(ends), encoding="utf-8")


def _words(method: str, root: Path, out: Path, steps: int, more: list[str]) -> list[object]:
    path = find_recipe(f"toyland/{method}")
    return [
        *("adapt", f"toyland/{method}", "--root", root, "--out", out, "--steps", steps),
        *(*tiny_words(path), *more),
    ]


def _interrupt(out: Path, method: str, root: Path, steps: int, more: list[str]) -> None:
    """Leave a run that SIGINT ended after two of its steps."""
    after = _SignalAfter(f"step 2/{steps} ")
    logging.getLogger().addHandler(after)
    try:
        udaseg(*_words(method, root, out, steps, more), cwd=out.parent, expect=130)
    finally:
        logging.getLogger().removeHandler(after)


class _SignalAfter(logging.Handler):
    """Send SIGINT to this process when a step is logged."""

    def __init__(self, begin: str) -> None:
        super().__init__()
        self.begin = begin

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.begin):
            os.kill(os.getpid(), signal.SIGINT)


def _shrink(run: Path) -> None:
    """Repeat a few numbers throughout each large tensor, so that a checkpoint packs well.

    Only a discriminator has such tensors. The run goes on from what is written here.
    """
    for path in run.rglob("step-*.pt"):
        payload = torch.load(path, weights_only=True)
        large = [
            part
            for _, part in leaves(payload)
            if isinstance(part, torch.Tensor) and part.numel() > MANY
        ]
        for tensor in large:
            flat = tensor.view(-1)
            flat.copy_(flat[:4099].repeat(len(flat) // 4099 + 1)[: len(flat)].clone())
        if not large:
            continue
        torch.save(payload, path)
        manifest_path = path.with_suffix(".json")
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        manifest["size"] = path.stat().st_size
        manifest["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest_path.write_text(json.dumps(manifest), encoding="utf-8")


def _pack(runs: Path) -> None:
    """Pack each checkpoint once, and let the runs not name this machine."""
    packed: dict[bytes, Path] = {}
    for path in sorted(runs.rglob("*.pt")):
        data = path.read_bytes()
        path.unlink()
        if (same := packed.get(data)) is not None:
            text = os.path.relpath(same, path.parent)
            path.with_suffix(".pt.same").write_text(f"{text}\n", encoding="utf-8")
            continue
        packed[data] = path
        # four bytes a number
        how = {"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 2}
        path.with_suffix(".pt.xz").write_bytes(lzma.compress(data, filters=[how]))
    for path in runs.rglob("environment.json"):
        known = json.loads(path.read_text(encoding="utf-8"))
        known["platform"] = "Linux"
        path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    for path in runs.rglob("train.log"):
        text = path.read_text(encoding="utf-8").replace(str(REPOSITORY), "/udaseg")
        path.write_text(text, encoding="utf-8")


def _make_masks(root: Path, runs: Path, images: Path, masks: Path) -> None:
    images.mkdir()
    for name, frame in (
        ("a.png", "source/val/images/00000.png"),
        ("b.png", "target/val/images/00000.png"),
        ("c.png", "target/val/images/00001.png"),
    ):
        shutil.copy(root / "toyland" / frame, images / name)
    words = ["--checkpoint", runs / "rccr", "--out", masks, "--device", "cpu"]
    udaseg("predict", images, *words, "--save", "color,ids,confidence", cwd=runs)


def _make_recipes(folder: Path) -> None:
    for entry in list_recipes():
        if entry.folder == OWN_FOLDER:  # they name no data
            continue
        path = folder / f"{entry.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(load(entry.path)), encoding="utf-8")


def _make_golden(root: Path, scratch: Path) -> dict[str, object]:
    scratch.mkdir()
    names = [entry.name for entry in list_recipes() if entry.folder == "toyland"]
    return {
        "machine": machine(),
        "frames": frame_digests(),
        "batches": batch_digests(root),
        "losses": {
            name: golden_losses(name, root, scratch / name.rpartition("/")[2]) for name in names
        },
    }


def _json_lines(values: dict[str, dict[str, object]]) -> str:
    """Return two levels of JSON with a line for each inner value."""
    outer = []
    for name, inner in values.items():
        lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(inner[key])}" for key in inner)
        outer.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    return "{\n" + ",\n".join(outer) + "\n}\n"


def make(out: Path) -> None:
    """Make all fixtures in `out`; files of the same names are replaced."""
    torch.set_num_threads(1)
    # what a script starts in the background ignores SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(WORKPLACE, ignore_errors=True)
    root = WORKPLACE / "data"
    toy_root(root)
    (root / "streets.yaml").write_text(OWN_SET, encoding="utf-8")
    udaseg("prepare", root / "streets.yaml", "--root", root, cwd=WORKPLACE)
    runs = WORKPLACE / "runs"
    _make_runs(root, runs)
    _make_masks(root, runs, WORKPLACE / "images", WORKPLACE / "masks")
    _make_recipes(WORKPLACE / "recipes_resolved")
    golden = _make_golden(root, WORKPLACE / "scratch")
    (WORKPLACE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    _pack(runs)
    for lock in WORKPLACE.rglob("*.lock"):
        lock.unlink()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("data", "runs", "images", "masks", "recipes_resolved"):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(WORKPLACE / name, out / name)
    shutil.copy(WORKPLACE / "golden.json", out / "golden.json")
    shutil.rmtree(WORKPLACE)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("out", type=Path, help="folder of the fixtures")
    make(words.parse_args().out.resolve())
