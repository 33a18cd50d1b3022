"""Compare file formats for cached training images; run as a script.

    python tests/bench/bench_formats.py

One thread; medians of CPU time over interleaved rounds. The inputs are the first images of
`bench_loading.py`, resized to 1280x720, and their labels at full size.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.bench.bench_loading import ZSTD, milliseconds, rendered_pairs, sample_pairs, say
from udaseg.data.loading.packed import import_zstd, pack, unpack

SIZE = (720, 1280)


def images(path: Path) -> None:
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    image = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
    rows = image.copy()
    rows[1:] -= image[:-1]
    strategy = cv2.IMWRITE_PNG_STRATEGY
    png = {
        "PNG, Huffman strategy (png)": [strategy, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY],
        "PNG, run-length strategy": [strategy, cv2.IMWRITE_PNG_STRATEGY_RLE],
        "PNG, level 1": [cv2.IMWRITE_PNG_COMPRESSION, 1],
    }
    stored = {
        name: cv2.imencode(".png", image, options)[1].tobytes() for name, options in png.items()
    }
    calls: dict[str, Callable[[int], object]] = {
        name: partial(_color, np.frombuffer(data, np.uint8)) for name, data in stored.items()
    }
    name = "zlib 1 of row differences, not undone"
    stored[name] = zlib.compress(rows.tobytes(), 1)
    calls[name] = lambda _: zlib.decompress(stored["zlib 1 of row differences, not undone"])
    if ZSTD:
        stored["zstd 1 of the pixels"] = import_zstd().compress(image.tobytes(), 1)
        calls["zstd 1 of the pixels"] = lambda _: import_zstd().decompress(
            stored["zstd 1 of the pixels"]
        )
        name = "zstd 1 of differences, undone (raw)"
        stored[name] = pack(image)
        calls[name] = lambda _: unpack(Path(), stored["zstd 1 of differences, undone (raw)"])
    say(f"\n{path.name} at {SIZE[1]}x{SIZE[0]}")
    for name, value in milliseconds(5, calls).items():
        say(f"  {name:<40} {value:6.2f} ms {len(stored[name]) / 1e6:6.2f} MB")


def labels(path: Path) -> None:
    ids = np.asarray(Image.open(path))
    level = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    plain = [*level, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    stored = {
        "PNG, level 3": cv2.imencode(".png", ids, level)[1].tobytes(),
        "PNG, level 3 without row filter (ours)": cv2.imencode(".png", ids, plain)[1].tobytes(),
    }
    calls: dict[str, Callable[[int], object]] = {
        name: partial(_gray, np.frombuffer(data, np.uint8)) for name, data in stored.items()
    }
    if ZSTD:
        packed = pack(ids)
        stored["zstd 1 (raw)"] = packed
        calls["zstd 1 (raw)"] = lambda _: unpack(Path(), packed)
    say(f"\n{path.name}, label of {ids.shape[1]}x{ids.shape[0]}")
    for name, value in milliseconds(5, calls).items():
        say(f"  {name:<40} {value:6.2f} ms {len(stored[name]) / 1e3:6.1f} kB")


def _color(data: np.ndarray, _: int) -> object:
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _gray(data: np.ndarray, _: int) -> object:
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def main() -> None:
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        cases = sample_pairs(Path(os.environ.get("UDASEG_TEST_DATA", "nowhere")))
        if not all(cases.values()):
            cases = rendered_pairs(Path(temporary))
        for pairs in cases.values():
            for image in dict.fromkeys([pairs[0][0], pairs[-1][0]]):
                images(image)
            labels(pairs[0][1])


if __name__ == "__main__":
    main()
