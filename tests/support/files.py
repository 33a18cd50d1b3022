"""Make files in the formats of public datasets, without the package's own code."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def put(path: Path, data: bytes) -> Path:
    """Write bytes and create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: list[bytes], width: int, depth: int, color: int, *more: bytes) -> bytes:
    """Return a PNG of packed rows; `more` holds chunks to put between header and pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


def palette_png(ids: np.ndarray, seed: int = 0, colors: int = 256) -> bytes:
    """Return a label in GTA5's format: 8-bit indices with a palette (random colours here)."""
    palette = np.random.default_rng(seed).bytes(3 * colors)
    rows = [row.tobytes() for row in ids.astype(np.uint8)]
    return png(rows, ids.shape[1], 8, 3, chunk(b"PLTE", palette))


def synthia_png(ids: np.ndarray, seed: int = 0) -> bytes:
    """Return a label in SYNTHIA's format: 16-bit RGB, class in red, instance in green."""
    instance = np.random.default_rng(seed).integers(0, 2**16, ids.shape)
    stacked = np.stack([ids, instance, np.zeros_like(instance)], 2)
    return png([row.astype(">u2").tobytes() for row in stacked], ids.shape[1], 16, 2)


def gray_png(ids: np.ndarray, depth: int = 8) -> bytes:
    """Return a grey label in Cityscapes' format, or with 1, 2, 4 or 16 bits."""
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in ids]
    else:
        bits = (ids[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits.astype(np.uint8)]
    return png(rows, ids.shape[1], depth, 0)


def deep_png(values: np.ndarray) -> bytes:
    """Return a 16-bit PNG of (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA values."""
    color = 0 if values.ndim == 2 else {3: 2, 4: 6}[values.shape[2]]
    return png([row.astype(">u2").tobytes() for row in values], values.shape[1], 16, color)


def tiff(values: np.ndarray, photometric: int, **tags: int) -> bytes:
    """Return an uncompressed TIFF of (H, W, bands) values; more tags by names such as `t274`."""
    height, width, bands = values.shape
    body = np.ascontiguousarray(values).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    numbers = {256: width, 257: height, 258: [values.itemsize * 8] * bands, 259: 1}
    numbers |= {262: photometric, 273: 8, 277: bands, 278: height, 279: len(body)}
    numbers |= {339: [kind] * bands} | {int(name[1:]): value for name, value in tags.items()}
    start = 8 + len(body) + len(body) % 2
    beyond, entries = start + 6 + 12 * len(numbers), b""
    more = b""
    for tag, value in sorted(numbers.items()):
        listed = value if isinstance(value, list) else [value]
        data = struct.pack(f"<{len(listed)}I", *listed)
        if len(data) > 4:
            data, more = struct.pack("<I", beyond + len(more)), more + data
        entries += struct.pack("<HHI", tag, 4, len(listed)) + data
    head = b"II*\0" + struct.pack("<I", start) + body + bytes(len(body) % 2)
    return head + struct.pack("<H", len(numbers)) + entries + bytes(4) + more


def coded(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **how)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a random RGB image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image_png(height: int = 6, width: int = 8, seed: int = 0) -> bytes:
    return png([row.tobytes() for row in noise(height, width, seed)], width, 8, 2)


def dataset_yaml(folder: Path, text: str, name: str = "own.yaml") -> Path:
    """Write a dataset YAML to `folder`."""
    return put(folder / name, text.encode())


# the passes of Adam7: first row, first column, row step, column step
_PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
_PASSES += [(1, 0, 2, 1)]


def interlaced_png(pixels: np.ndarray, depth: int, color: int, *more: bytes) -> bytes:
    """Return an Adam7 PNG with (H, W) or (H, W, C) values of 8 or 16 bits."""
    kind = ">u2" if depth == 16 else "u1"
    parts = [pixels[top::down, left::right] for top, left, down, right in _PASSES]
    rows = [b"\0" + row.astype(kind).tobytes() for part in parts if part.size for row in part]
    height, width = pixels.shape[:2]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 1))
    body = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


def palette_chunk(seed: int = 0) -> bytes:
    """Return a palette chunk of 256 random colours."""
    return chunk(b"PLTE", np.random.default_rng(seed).bytes(768))
