"""Make truncated, bit-flipped and fake images, and count those that `prepare` misses."""

import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import files
from tests.support.measured import measured
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions

KINDS = ("rgb png", "palette png", "interlaced png", "jpeg", "progressive jpeg")


def image(kind: str, height: int = 30, width: int = 40) -> bytes:
    """Return an image of a kind. It is smooth, so that a JPEG is structured as for a photo."""
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([2, 3, 1])
    pixels = ((ramp + files.noise(height, width) // 8) % 256).astype(np.uint8)
    if kind == "rgb png":
        return files.png([row.tobytes() for row in pixels], width, 8, 2)
    if kind == "palette png":
        return files.palette_png(pixels[..., 0])
    if kind == "interlaced png":
        return files.interlaced_png(pixels, 8, 2)
    progressive = kind == "progressive jpeg"
    return files.coded(Image.fromarray(pixels), "JPEG", quality=90, progressive=progressive)


def suffix(kind: str) -> str:
    """Return the file suffix of a kind of image."""
    return "png" if kind.endswith("png") else "jpg"


def cuts(data: bytes, number: int) -> list[bytes]:
    """Return `number` prefixes of `data`, from one byte to all but one."""
    return [data[:length] for length in np.linspace(1, len(data) - 1, number).astype(int)]


def flips(data: bytes, number: int, seed: int) -> list[bytes]:
    """Return `number` copies of `data`, each with a different bit flipped."""
    rng, found = random.Random(seed), []
    for bit in rng.sample(range(8 * len(data)), number):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        found.append(bytes(damaged))
    return found


def unnoticed(folder: Path, damaged: list[bytes], form: str, *, label: bool, whole: bytes) -> int:
    """Return how many of the damaged files `prepare` does not report.

    Args:
        folder: An empty folder.
        damaged: Contents of the damaged files.
        form: Suffix of the damaged files.
        label: The damaged files are labels, not images.
        whole: Content of the intact file that they are paired with.
    """
    kinds = ("labels", "images") if label else ("images", "labels")
    partner = files.put(folder / "whole.png", whole)
    (folder / kinds[1]).mkdir(parents=True)
    for number, data in enumerate(damaged):
        files.put(folder / kinds[0] / f"{number}.{form}", data)
        (folder / kinds[1] / f"{number}.png").symlink_to(partner)
    # one intact pair, because a split must not be empty
    files.put(folder / "images/sound.png", files.image_png())
    files.put(folder / "labels/sound.png", files.gray_png(np.zeros((6, 8), int)))
    yaml = files.dataset_yaml(
        folder, "name: own\nimages: images/*\nlabels: labels/*\nclasses: [a]\nignore: [1, 2, 3]\n"
    )
    report = prepare_dataset(
        str(yaml),
        root=folder,
        options=PrepareOptions(max_bad=len(damaged), on_mismatch="fail", check_only=True),
    )
    named = {line.split(": ")[0] for line in report.bad}
    wanted = {str(folder / kinds[0] / f"{number}.{form}") for number in range(len(damaged))}
    return len(wanted - named)


def strange(folder: Path) -> dict[str, Path]:
    """Write non-images under image names; return the paths by kind."""
    names = ("empty", "folder", "text", "dangling", "loop", "pipe", "unreadable", "large")
    found = {name: folder / f"{name}.png" for name in names}
    files.put(found["empty"], b"")
    found["folder"].mkdir()
    files.put(found["text"], b"no image\n" * 9)
    found["dangling"].symlink_to("nowhere.png")
    found["loop"].symlink_to("loop.png")
    os.mkfifo(found["pipe"])
    files.put(found["unreadable"], files.image_png()).chmod(0)
    with files.put(found["large"], files.image_png()).open("ab") as file:
        file.truncate(2**31)
    raw = os.fsencode(folder / "caf") + b"\xe9.png"
    with open(raw, "wb") as file:  # noqa: PTH123  # pathlib takes no bytes
        file.write(b"no image")
    found["no UTF-8"] = Path(os.fsdecode(raw))
    return found


def bombs() -> dict[str, bytes]:
    """Return small images whose headers declare more pixels than can be read."""
    import struct
    import zlib

    def png(width: int, height: int) -> bytes:
        head = files.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        rows = zlib.compress(bytes(10_000_000), 9)
        return b"\x89PNG\r\n\x1a\n" + head + files.chunk(b"IDAT", rows) + files.chunk(b"IEND", b"")

    jpeg = bytearray(image("jpeg"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    bmp = bytearray(files.coded(Image.new("RGB", (4, 4)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    return {
        "900 Mpx.png": png(30_000, 30_000),
        "4.3 Gpx.png": png(65_535, 65_535),
        "2^31 squared.png": png(2**31 - 1, 2**31 - 1),
        "1.1 M wide.png": png(1_100_000, 100),
        "4.3 Gpx.jpg": bytes(jpeg),
        "900 Mpx.bmp": bytes(bmp),
    }


def measured_bombs(folder):
    """Write every bomb, and return what converting each of them costs; see `measured`."""
    paths = [files.put(folder / name, data) for name, data in bombs().items()]
    return measured(
        paths,
        "convert_pair(Pair('x', path, None), 'train', SimpleNamespace(bands=None), path.parent, "
        "None, 'exclude').problem or 1 / 0",
        imports="from types import SimpleNamespace\n"
        "from udaseg.data.datasets.pairs import Pair\n"
        "from udaseg.data.prepare.convert import convert_pair",
        warm="from PIL import Image; Image.init()",
    )
