"""Write files that are not readable images or videos, one of each kind."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.colors import painted, random_labels
from tests.support.films import write_film


def png_header(width: int, height: int) -> bytes:
    """Return the start of a PNG of this size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk


def write_image(path: Path, seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Write an image for the colour network and return its labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = random_labels(*size, seed=seed)
    Image.fromarray(painted(labels)).save(path)
    return labels


def write_bad(folder: Path, seed: int) -> list[str]:
    """Write one bad input of each of 20 kinds to `folder`; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("whole.png", "whole.jpg", "whole.tif", "whole.webp", "whole.bmp"):
        write_image(folder / name, seed)
    write_film(folder / "whole.mp4", 3)
    whole = {path.suffix: path.read_bytes() for path in folder.glob("whole.*")}
    for path in folder.glob("whole.*"):
        path.unlink()
    rng = np.random.default_rng(seed)

    def cut(suffix: str) -> bytes:
        data = whole[suffix]
        return data[: int(rng.integers(len(data) // 4, 3 * len(data) // 4))]

    flipped = bytearray(whole[".png"])
    flipped[int(rng.integers(40, len(flipped) - 16))] ^= 16
    contents = {
        "empty.png": b"",
        "cut.png": cut(".png"),
        "cut.jpg": cut(".jpg"),
        "cut.tif": cut(".tif")[:60],
        "cut.webp": cut(".webp"),
        "cut.bmp": whole[".bmp"][:40],
        "flipped.png": bytes(flipped),
        "text.png": b"this is no image\n",
        "noise.jpg": rng.bytes(400),
        "bomb.png": png_header(40_000, 40_000),
        "wide.png": png_header(1_100_000, 200),
        "zero.png": png_header(0, 10),
        "film.png": whole[".mp4"],
        "cut.mp4": cut(".mp4"),
        "text.avi": b"no film\n",
        "list.mkv": b"#EXTM3U\n/etc/passwd\n",
        "empty.mov": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "nothing.png").symlink_to("not there")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    return sorted([*contents, "nothing.png", "circle.png", "pipe.png"])
