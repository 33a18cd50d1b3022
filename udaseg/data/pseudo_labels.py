"""Pseudo-labels on disk: one PNG for each target image, in a folder of the run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udaseg.data.images import write_png
from udaseg.data.index import Sample


def pseudo_label_path(folder: Path, sample: Sample) -> Path:
    """Return where the pseudo-label of `sample` lies below `folder`."""
    return folder / f"{sample.image}.png"


def write_pseudo_label(folder: Path, sample: Sample, labels: NDArray[np.uint8]) -> None:
    """Write labels (H, W), train ids with `IGNORE`, whole or not at all."""
    write_png(pseudo_label_path(folder, sample), labels)


def pseudo_labels_digest(folder: Path, samples: Sequence[Sample]) -> str | None:
    """Return a digest over names and bytes of all pseudo-labels; None when one cannot be read."""
    digest = hashlib.sha256()
    for sample in samples:
        try:
            data = pseudo_label_path(folder, sample).read_bytes()
        except OSError:  # missing, or something else in its place: it will be made again
            return None
        digest.update(sample.image.encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()
