"""Reading images and labels from bytes, and writing PNGs: exact ids, true reasons, atomic files."""

import io
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from udaseg.errors import DataError

LabelFormat = Literal["ids", "rgb", "synthia"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file, or say why there is none.

    Raises:
        DataError: Missing, a folder, a pipe, unreadable, or empty.
    """
    try:
        if not path.is_file():
            what = "no such file"
            if path.is_dir():
                what = "is a folder"
            elif path.is_symlink():
                what = "a link to nothing"
            elif path.exists():
                what = "is no regular file"
            raise DataError(f"{path}: {what}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{path}: is empty")
    return data


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header, without decoding.

    Raises:
        DataError: No image, or more than 100 million pixels.
    """
    return _checked_size(path, read_bytes(path))


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB in its stored orientation.

    Grey becomes three equal channels, alpha is dropped, 16 bits keep the upper 8.

    Raises:
        DataError: Unreadable, damaged, no image, or too large; names the file.
    """
    data = read_bytes(path)
    _checked_size(path, data)
    _refuse_damaged(path, data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        raise DataError(f"{path}: cannot be decoded as an image")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_train_ids(path: Path) -> NDArray[np.uint8]:
    """Return a prepared label, (H, W) uint8 train ids.

    Raises:
        DataError: Unreadable, or not an 8-bit single-channel PNG.
    """
    data = read_bytes(path)
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise DataError(f"{path}: cannot be decoded; run `udaseg prepare` again")
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{path}: is no prepared label (8-bit, one channel)")
    return np.asarray(labels, np.uint8)


def read_label_ids(path: Path, label_format: LabelFormat) -> NDArray[np.int32]:
    """Return the raw ids of a label file, (H, W) int32; RGB colours as r << 16 | g << 8 | b.

    Palette images give their indices, which OpenCV would turn into colours; SYNTHIA's 16-bit
    images give their first RGB channel, which Pillow would read as zeros.

    Raises:
        DataError: Unreadable, damaged, or of a form that cannot hold ids.
    """
    data = read_bytes(path)
    _checked_size(path, data)
    _refuse_damaged(path, data)
    if label_format == "ids":
        return _ids(path, data)
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    if label_format == "synthia":
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if raw is None or raw.ndim != 3:
            raise DataError(f"{path}: label_format synthia needs a 3-channel PNG")
        return np.asarray(raw[..., 2], np.int32)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode not in ("RGB", "RGBA", "P"):
                raise DataError(f"{path}: label_format rgb, but the image is {opened.mode}")
            rgb = np.asarray(opened.convert("RGB"), np.int32)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _ids(path: Path, data: bytes) -> NDArray[np.int32]:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode in ("P", "L", "1", "I;16", "I"):
                if opened.mode == "1":
                    return np.asarray(opened.convert("L"), np.int32) // 255
                return np.asarray(opened, np.int32)
            mode = opened.mode
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    raise DataError(
        f"{path}: label_format ids needs one channel, but the image is {mode}; "
        "use label_format rgb for colour-coded labels"
    )


def write_png(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    palette: tuple[tuple[int, int, int], ...] | None = None,
) -> None:
    """Write (H, W) or (H, W, 3) RGB uint8 as a PNG, whole or not at all.

    Args:
        path: The file; its folder is made.
        pixels: What to write.
        palette: Colours of the values 0, 1, …; the PNG keeps the values and shows the colours.

    Raises:
        ValueError: Another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(
            f"a PNG takes uint8 (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    if palette is not None:
        height, width = pixels.shape[:2]
        colored = Image.frombytes("P", (width, height), np.ascontiguousarray(pixels).tobytes())
        colored.putpalette([part for color in palette for part in color])
        buffer = io.BytesIO()
        colored.save(buffer, format="PNG")
        write_atomic(path, buffer.getvalue())
        return
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    # the Huffman strategy is faster to write and to read than deflate's levels, and smaller here
    options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    if pixels.ndim == 2:
        options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    ok, encoded = cv2.imencode(".png", stored, options)
    if not ok:
        raise ValueError(f"{path}: could not be encoded as a PNG")
    write_atomic(path, encoded.tobytes())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _checked_size(path: Path, data: bytes) -> tuple[int, int]:
    """Return (height, width) from the header bytes."""
    try:
        if data.startswith(_PNG) and len(data) >= 24:
            width, height = struct.unpack(">II", data[16:24])
        else:
            with Image.open(io.BytesIO(data)) as opened:
                width, height = opened.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: is no image that can be read") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels") from error
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} is more than {MAX_PIXELS:,} pixels")
    if width < 1 or height < 1:
        raise DataError(f"{path}: is {width}x{height}")
    return height, width


def _refuse_damaged(path: Path, data: bytes) -> None:
    """Refuse what decoders would let pass: a PNG whose checksums fail, a JPEG without its end."""
    if data.startswith(_PNG):
        _check_png(path, data)
    elif data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]:
        raise DataError(f"{path}: damaged: the JPEG has no end")


def _check_png(path: Path, data: bytes) -> None:
    position, kind = len(_PNG), b""
    while position + 12 <= len(data) and kind != b"IEND":
        length = struct.unpack(">I", data[position : position + 4])[0]
        end = position + 12 + length
        if end > len(data):
            break
        kind = data[position + 4 : position + 8]
        stored = struct.unpack(">I", data[end - 4 : end])[0]
        if zlib.crc32(data[position + 4 : end - 4]) != stored:
            raise DataError(f"{path}: damaged: the checksum of PNG chunk {kind!r} fails")
        position = end
    if kind != b"IEND":
        raise DataError(f"{path}: damaged: the PNG is cut off")
