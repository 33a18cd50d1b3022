"""Call the function of `udaseg predict`, and write and read the images around it."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.colors import painted
from udaseg.cli.commands.predict import predict as predict_command


def predict(
    *words,
    checkpoint=Path("runs/colors"),
    out=Path("masks"),
    save=("ids",),
    video="mp4",
    weights="student",
    window=None,
    calibrated=True,
    **options,
):
    """Predict the inputs `words` with the network that `load` is patched to return."""
    predict_command(
        [str(word) for word in words],
        checkpoint,
        out,
        ",".join(save),
        video,
        uncalibrated=not calibrated,
        weights=weights,
        window=None if window is None else f"[{window[0]}, {window[1]}]",
        **{"device": "cpu", **options},
    )


def write_image(path, labels, **how):
    """Write the image that the colour network labels so, and return the labels."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted(labels)).save(path, **how)
    return labels


def ids_of(path):
    """Return the pixels of a mask."""
    with Image.open(path) as opened:
        return np.asarray(opened)


def digests(folder):
    """Return the SHA-256 of every file below a folder."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
