"""Pseudo-labels on disk: one PNG per target image, in a folder of the run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from udaseg.data.datasets.index import Sample
from udaseg.data.files.images import Pixels, write_png


def pseudo_label_path(folder: Path, sample: Sample) -> Path:
    """Return the path of the pseudo-label of `sample` below `folder`."""
    return folder / f"{sample.image}.png"


def write_pseudo_label(folder: Path, sample: Sample, labels: Pixels) -> None:
    """Write labels (H, W), train ids with `IGNORE`, atomically."""
    write_png(pseudo_label_path(folder, sample), labels)


def pseudo_labels_digest(folder: Path, samples: Sequence[Sample]) -> str | None:
    """Return a digest of names and bytes of all pseudo-labels, or None if one is unreadable."""
    digest = hashlib.sha256()
    for sample in samples:
        try:
            data = pseudo_label_path(folder, sample).read_bytes()
        except OSError:  # missing or not a file; the caller makes it again
            return None
        digest.update(sample.image.encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()
