"""Write a small custom dataset for tests of `prepare`."""

import hashlib
from pathlib import Path

import numpy as np

from tests.support import files

SIZE = (6, 8)


def own_set(folder: Path, pairs: int = 5, size: tuple[int, int] = SIZE, form: str = "png") -> Path:
    """Write images and grey labels of ids 0..2 with a YAML; return the path of the YAML."""
    for number in range(pairs):
        image = files.image_png(*size, number)
        if form == "jpg":
            from PIL import Image

            image = files.coded(Image.fromarray(files.noise(*size, number)), "JPEG")
        files.put(folder / f"images/{number}.{form}", image)
        put_label(folder, number, size=size)
    return files.dataset_yaml(
        folder,
        f"name: own\nimages: images/**/*.{form}\nlabels: labels/**/*.png\n"
        "classes: [a, b, c]\nignore: [255]\n",
    )


def put_label(folder: Path, number: int, seed: int | None = None, size=SIZE) -> Path:
    """Write a label of random ids."""
    ids = np.random.default_rng(number if seed is None else seed).choice([0, 1, 2], size)
    return files.put(folder / f"labels/{number}.png", files.gray_png(ids))


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return digest, modification time and mode of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            facts = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(folder).as_posix()] = (digest, facts.st_mtime_ns, facts.st_mode)
    return found


def forms(root: Path) -> dict[str, str]:
    """Write a pair in each of three formats; return `prepare`'s argument for each."""
    ids = np.random.default_rng(0).choice([7, 11], (6, 8))
    files.put(root / "gta5/images/1.png", files.image_png())
    files.put(root / "gta5/labels/1.png", files.palette_png(ids))
    files.put(root / "synthia/RGB/1.png", files.image_png())
    files.put(root / "synthia/GT/LABELS/1.png", files.synthia_png(ids))
    own_set(root / "mine")
    return {"gta5": "gta5", "synthia": "synthia", "mine": str(root / "mine/own.yaml")}
