"""Benchmark loading training samples from disk against a plain pipeline; run as a script.

    python tests/bench/bench_loading.py

One thread and one process; medians of CPU time over interleaved rounds, files in the page cache. A
sample is a labelled image, resized to training resolution and cropped to 512x512: 1914x1052 with a
palette label to 1280x720, and 2048x1024 with a grey label to 1024x512. The images are real if
$UDASEG_TEST_DATA has them, otherwise rendered. The plain pipeline is written from the description
of published loaders: Pillow decodes and resizes, one pass over the label per class id, mean
subtracted in float32, the crop last. It returns float32 images and int64 labels. Our pipeline
returns bytes; the device computes the network's input from them.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.bench.ready_batches import ReadyBatches
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.files.images import keep_freed_memory
from udaseg.data.loading.batches import Batch, BatchOptions, TrainingBatches
from udaseg.data.loading.cache import open_cache
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.rare_class import rare_class_corner
from udaseg.data.loading.workers import iterate_batches
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.toyland.render import render

ROUNDS = 7
BATCHES = 400
ZSTD = sys.version_info >= (3, 14) or importlib.util.find_spec("backports.zstd") is not None
CROP = (512, 512)
# raw id of each train id, for Cityscapes and GTA5
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
MEAN = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
CASES = {"1914x1052, palette label": (720, 1280), "2048x1024, grey label": (512, 1024)}

Pairs = list[tuple[Path, Path]]


def sample_pairs(folder: Path) -> dict[str, Pairs]:
    """Return real pairs for both cases; a list is empty if its files are missing."""
    gta = folder / "layouts/generated/gta5"
    pairs = [(path, gta / "labels" / path.name) for path in sorted((gta / "images").glob("*.png"))]
    if single := sorted((folder / "layouts/real/gta5/images").glob("*.png")):
        pairs += [(single[0], pairs[0][1])] if pairs else []
    city = folder / "layouts/real/cityscapes"
    grey = [
        (path, label)
        for path in sorted((city / "leftImg8bit").rglob("*_leftImg8bit.png"))
        for label in (city / "gtFine").rglob(path.name.replace("leftImg8bit", "gtFine_labelIds"))
        if Image.open(path).size == (2048, 1024)
    ]
    return dict(zip(CASES, (pairs, grey), strict=True))


def rendered_pairs(folder: Path) -> dict[str, Pairs]:
    """Write rendered pairs for both cases (flatter than photos, so easier for any decoder)."""
    cases: dict[str, Pairs] = {name: [] for name in CASES}
    table = np.array([*IDS, *[0] * (256 - len(IDS))], np.uint8)
    for name, size in zip(CASES, ((1052, 1914), (1024, 2048)), strict=True):
        for index in range(2):
            image, labels = render("source", seed=0, split="train", index=index, size=size)
            stem = folder / f"{name[:4]}-{index}"
            Image.fromarray(image).save(stem.with_suffix(".image.png"))
            ids = Image.fromarray(table[labels])
            if "palette" in name:
                ids.putpalette(np.random.default_rng(0).bytes(768))
            ids.save(stem.with_suffix(".label.png"))
            cases[name].append((stem.with_suffix(".image.png"), stem.with_suffix(".label.png")))
    return cases


def prepared(pairs: Pairs, folder: Path) -> PreparedDataset:
    """Prepare pairs with a dataset YAML, as a user would."""
    for number, (image, label) in enumerate(pairs):
        for kind, path in (("images", image), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{number}.png").symlink_to(path.resolve())
    yaml = folder / f"{folder.name}.yaml"
    yaml.write_text(
        f"name: {folder.name}\nimages: images/*.png\nlabels: labels/*.png\nlabel_format: ids\n"
        "classes: cityscapes19\nsplits: {train: 1.0}\n"
    )
    return prepare_dataset(str(yaml), root=folder / "data").dataset


def plain(pair: tuple[Path, Path], size: tuple[int, int], rng: np.random.Generator) -> object:
    """Return a sample as published loaders make it."""
    height, width = size
    image = Image.open(pair[0]).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    label = Image.open(pair[1]).resize((width, height), Image.Resampling.NEAREST)
    pixels, ids = np.asarray(image, np.float32), np.asarray(label, np.float32)
    labels = 255 * np.ones(ids.shape, np.float32)
    for train_id, number in enumerate(IDS):
        labels[ids == number] = train_id
    pixels = pixels[:, :, ::-1] - MEAN
    pixels = pixels.transpose(2, 0, 1)
    top = rng.integers(height - CROP[0] + 1)
    left = rng.integers(width - CROP[1] + 1)
    rows, columns = slice(top, top + CROP[0]), slice(left, left + CROP[1])
    return (
        torch.from_numpy(pixels[:, rows, columns].copy()),
        torch.from_numpy(labels[rows, columns].astype(np.int64)),
    )


def decoded(pair: tuple[Path, Path]) -> object:
    """Decode the image and nothing else: the lower bound for the original files."""
    return cv2.imdecode(np.frombuffer(pair[0].read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)


def batches(dataset: PreparedDataset, size: tuple[int, int], *, cached: bool) -> TrainingBatches:
    cache = open_cache(dataset, "train", size, labelled=True) if cached else None
    assert cached == (cache is not None)
    crops = CropSource(dataset, "train", size, CROP, flip=True, labelled=True, cache=cache)
    return TrainingBatches(crops, None, BatchOptions(1, 1, steps=10**6, seed=0))


def milliseconds(count: int, calls: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Return the median CPU time per sample of each call, over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    for turn in range(ROUNDS):
        for name, call in calls.items():
            started = time.process_time()
            for number in range(count):  # whole epochs, so that each form reads each file
                call(turn * count + number)
            times[name].append((time.process_time() - started) / count)
    return {name: 1e3 * statistics.median(samples) for name, samples in times.items()}


def measure(name: str, pairs: Pairs, size: tuple[int, int], folder: Path) -> PreparedDataset:
    dataset = prepared(pairs, folder)
    rng = np.random.default_rng(0)
    original = batches(dataset, size, cached=False)
    calls: dict[str, Callable[[int], object]] = {
        "plain": lambda number: plain(pairs[number % len(pairs)], size, rng),
        "decode of the image alone": lambda number: decoded(pairs[number % len(pairs)]),
        "ours, original files": lambda number: original[number],
    }
    sizes = {"ours, original files": sum(path.stat().st_size for pair in pairs for path in pair)}
    forms = ["png", *(["raw"] if ZSTD else [])]
    copies = []
    for form in forms:
        # a separate folder for each form, because a new cache replaces the previous one
        copy = prepared(pairs, folder / form)
        report = write_cache(copy, size, form, workers=1)  # type: ignore[arg-type]
        cached = batches(copy, size, cached=True)
        copies.append(cached)
        calls[f"ours, {form} cache"] = cached.__getitem__
        sizes[f"ours, {form} cache"] = report.size_bytes
    for step in range(2 * len(pairs)):
        for cached in copies:
            assert torch.equal(original[step].source_images, cached[step].source_images)
            assert torch.equal(original[step].source_labels, cached[step].source_labels)
    times = milliseconds(len(pairs), calls)
    say(f"\n{name} -> {size[1]}x{size[0]}, crop {CROP[1]}x{CROP[0]}, {len(pairs)} pairs")
    for form, value in times.items():
        ratio = "" if form.startswith("decode") else f"{times['plain'] / value:6.2f}x"
        stored = f"{sizes[form] / len(pairs) / 1e6:6.2f} MB a pair" if form in sizes else ""
        say(f"  {form:<26} {value:7.2f} ms {ratio:>8} {stored}")
    floor = times["decode of the image alone"]
    left, ours = times["plain"] - floor, times["ours, original files"] - floor
    say(f"  beside the decode: plain {left:.1f} ms, ours {ours:.1f} ms, {left / ours:.1f}x")
    return dataset


def window(pairs: Pairs, size: tuple[int, int]) -> None:
    """Time the rare-class window against up to ten random tries, excluding decoding."""
    labels = cv2.resize(
        np.asarray(Image.open(pairs[0][1])), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    )
    counts = np.bincount(labels.ravel(), minlength=256)
    train_id = int(np.argmin(np.where(counts > 1500, counts, counts.max() + 1)))

    def tries(number: int) -> object:
        rng = np.random.default_rng(number)
        for _ in range(10):
            top = int(rng.integers(labels.shape[0] - CROP[0] + 1))
            left = int(rng.integers(labels.shape[1] - CROP[1] + 1))
            crop = labels[top : top + CROP[0], left : left + CROP[1]]
            if np.sum(crop == train_id) > 1500:
                break
        return top, left

    def exact(number: int) -> object:
        return rare_class_corner(labels, train_id, CROP, 1500, np.random.default_rng(number))

    times = milliseconds(40, {"tries": tries, "exact": exact})
    say(
        f"\nwindow with 1500 px of a rare class of {int(counts[train_id])} px: one integral image "
        f"{times['exact']:.2f} ms; up to ten tries in memory {times['tries']:.2f} ms (published "
        "code reads the file again for each)"
    )


class Wide(Dataset[tuple[Tensor, Tensor]]):
    """Ready-made batches in the published loaders' form, so that only transport is timed."""

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, _: int) -> tuple[Tensor, Tensor]:
        return torch.zeros((2, 3, *CROP)), torch.zeros((2, *CROP), dtype=torch.int64)


def transport(dataset: PreparedDataset) -> None:
    """Time the transport of a batch from one worker: torch's loader (floats) and ours (bytes)."""
    crops = CropSource(dataset, "train", None, CROP, flip=True, labelled=True)
    ours = ReadyBatches(crops, None, BatchOptions(2, 2, steps=BATCHES, seed=0))
    wide = iter(DataLoader(Wide(), batch_size=None, num_workers=1))
    narrow = iterate_batches(ours, 0, workers=1, pin=False)

    def taken(batches: Iterator[object]) -> tuple[float, int]:
        for _ in range(BATCHES // 4):
            next(batches)
        started = time.perf_counter()
        for _ in range(BATCHES // 2):
            batch = next(batches)
        elapsed = time.perf_counter() - started
        parts = [batch.source_images, batch.source_labels] if isinstance(batch, Batch) else batch
        size = sum(part.numel() * part.element_size() for part in parts)
        return 1e3 * elapsed / (BATCHES // 2), size

    (slow, many), (fast, few) = taken(wide), taken(narrow)
    say(
        f"\nthrough a worker, a batch of 2: float32 and int64 {many / 1e6:.1f} MB, {slow:.1f} ms; "
        f"uint8 {few / 1e6:.1f} MB, {fast:.1f} ms: {few / many:.2f} of the bytes, "
        f"{slow / fast:.1f}x"
    )


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()  # as in every loading process
    folder = Path(os.environ.get("UDASEG_TEST_DATA", "nowhere"))
    versions = f"OpenCV {cv2.__version__}, Pillow {Image.__version__}, 1 thread"
    with tempfile.TemporaryDirectory() as temporary:
        pairs = sample_pairs(folder)
        real = all(pairs.values())
        say(f"{versions}, {'sample files' if real else 'rendered images'}")
        if not real:
            pairs = rendered_pairs(Path(temporary))
        for number, (name, size) in enumerate(CASES.items()):
            dataset = measure(name, pairs[name], size, Path(temporary) / f"set{number}")
        window(next(iter(pairs.values())), next(iter(CASES.values())))
        transport(dataset)


if __name__ == "__main__":
    main()
