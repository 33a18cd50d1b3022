"""Find identical and similar images: within a split, across splits, across domains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.doctor.findings import Findings

_GRID = 16
_BITS = _GRID * _GRID

MAX_BIT_DIFFERENCE = 10
"""Two images are similar if their fingerprints differ in at most this many of 256 bits."""

_MAX_BUCKET = 2000  # a band shared by more images than this does not tell them apart
_ROWS_PER_BLOCK = 128  # rows of the distance table computed at a time


@dataclass(frozen=True)
class CheckedImage:
    """An image that could be read.

    Attributes:
        role: The set that it belongs to: data, source or target.
        path: The image file.
        trained: Whether training uses it; otherwise it is held out.
        hash_bits: The image's fingerprint.
        digest: SHA-256 of the file.
    """

    role: str
    path: Path
    trained: bool
    hash_bits: bytes
    digest: str


def fingerprint(image: NDArray[np.uint8]) -> bytes:
    """Return 256 bits that describe an image: where brightness increases from left to right.

    Another size, compression or brightness changes few of them.

    Args:
        image: (H, W, 3) RGB.

    Reference:
        The difference hash of Neal Krawetz ("Kind of Like That", 2013). Differs: 16x16 instead of
        8x8 bits, so that frames of one street differ.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_GRID + 1, _GRID), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def add_duplicate_findings(
    images: Sequence[CheckedImage], findings: Findings, name: Callable[[CheckedImage], str]
) -> None:
    """Add findings for copies and near copies among the images of one set or of both domains.

    Args:
        images: Images that have more than one colour.
        findings: The findings are added here.
        name: Returns the name of another image for a note.
    """
    copies = _group_by_digest(images)
    for group in copies:
        _add_exact_copies([images[index] for index in group], findings, name)
    # compare only the first of several copies
    others = {index for group in copies for index in group[1:]}
    marks = np.array([np.frombuffer(image.hash_bits, np.uint8) for image in images], np.uint8)
    near_copies = sorted(near_pairs(marks.reshape(len(images), _BITS // 8)))
    near_copies = [pair for pair in near_copies if not others.intersection(pair)]
    leaks = [pair for pair in near_copies if images[pair[0]].trained != images[pair[1]].trained]
    reported: set[int] = set()
    for one, other in leaks:
        held_out, trained = (other, one) if images[one].trained else (one, other)
        if held_out not in reported:
            reported.add(held_out)
            _add_finding(
                "near-leak",
                images[held_out],
                f"like {name(images[trained])}",
                images[trained],
                findings,
            )
    for one, other in near_copies:
        if other not in reported and images[one].trained == images[other].trained:
            reported.add(other)
            _add_finding(
                "near-duplicate", images[other], f"like {name(images[one])}", images[one], findings
            )


def _add_exact_copies(
    group: Sequence[CheckedImage], findings: Findings, name: Callable[[CheckedImage], str]
) -> None:
    """Add the most severe finding for each image of a group with the same bytes."""
    trained = [image for image in group if image.trained]
    held_out = [image for image in group if not image.trained]
    if trained:
        for image in held_out:
            first = next((other for other in trained if other.role == image.role), trained[0])
            _add_finding("leaked-image", image, f"same as {name(first)}", first, findings)
    for image in trained[1:] or ([] if trained else held_out[1:]):
        first = (trained or held_out)[0]
        code = "duplicate-image" if image.role == first.role else "shared-image"
        _add_finding(code, image, f"same as {name(first)}", first, findings)


def _add_finding(
    code: str, image: CheckedImage, note: str, other: CheckedImage, findings: Findings
) -> None:
    findings.add(code, image.role if image.role == other.role else "pair", image.path, note)


def _group_by_digest(images: Sequence[CheckedImage]) -> list[list[int]]:
    """Return groups of images with the same bytes."""
    groups: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(marks: NDArray[np.uint8]) -> set[tuple[int, int]]:
    """Return the pairs of rows that differ in few bits, the smaller index first.

    At most `MAX_BIT_DIFFERENCE` bits may differ. The bits are divided into one more band than that,
    so such rows agree in at least one whole band, and only rows that share a band are compared.

    Args:
        marks: (N, 32) uint8.
    """
    pairs: set[tuple[int, int]] = set()
    bits = np.unpackbits(marks, axis=1)
    # in random order, because neighbouring bits are correlated, such as those of the sky
    order = np.random.default_rng(0).permutation(bits.shape[1])
    for band in np.array_split(order, MAX_BIT_DIFFERENCE + 1):
        values = bits[:, band] @ (1 << np.arange(len(band), dtype=np.int64))
        by_value = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[by_value])) + 1
        for bucket in np.split(by_value, starts):
            if 1 < len(bucket) <= _MAX_BUCKET:
                pairs |= _near_pairs_among(bucket, bits)
    return pairs


def _near_pairs_among(rows: NDArray[np.int64], bits: NDArray[np.uint8]) -> set[tuple[int, int]]:
    """Return the pairs among `rows` that differ in few bits."""
    pairs = set()
    selected = bits[rows].astype(np.float32)  # exact, and matrix products are fast
    ones = selected.sum(1)
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        strip = slice(start, start + _ROWS_PER_BLOCK)
        distances = ones[strip, None] + ones[None] - 2 * (selected[strip] @ selected.T)
        for i, j in np.argwhere(distances <= MAX_BIT_DIFFERENCE).tolist():
            if start + i < j:
                pair = sorted((int(rows[start + i]), int(rows[j])))
                pairs.add((pair[0], pair[1]))
    return pairs
