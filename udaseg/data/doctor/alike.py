"""Images that are the same or look the same: within a split, across splits, across domains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.doctor.findings import Findings

_SIDE = 16
_BITS = _SIDE * _SIDE
NEAR = 10
"""Two images whose marks differ in at most so many of 256 bits look the same."""
_CROWD = 2000  # more images than this in one band are too alike to be told by it
_STRIP = 128  # rows of a table of distances at a time


@dataclass(frozen=True)
class Seen:
    """An image that could be read.

    Attributes:
        role: The set that it is of: data, source or target.
        path: Its file.
        trained: Training reads it; else it is held out.
        mark: Bits that say how it looks.
        digest: SHA-256 of its file.
    """

    role: str
    path: Path
    trained: bool
    mark: bytes
    digest: str


def fingerprint(image: NDArray[np.uint8]) -> bytes:
    """Return 256 bits that say how an image looks: where it grows brighter from left to right.

    Another size, another compression or another brightness change few of them.

    Args:
        image: (H, W, 3) RGB.

    Reference:
        The difference hash of Neal Krawetz ("Kind of Like That", 2013). Differs: 16x16 instead of
        8x8 bits, so that frames of one street are told apart.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def note_alike(seen: Sequence[Seen], findings: Findings, name: Callable[[Seen], str]) -> None:
    """Note copies and near copies among the images of one set or of a source and a target.

    Args:
        seen: Images that are not of a single colour.
        findings: Where to note.
        name: How a note calls another image.
    """
    same = _same_bytes(seen)
    for group in same:
        _note_copies([seen[number] for number in group], findings, name)
    # of copies the first stands for all
    others = {number for group in same for number in group[1:]}
    marks = np.array([np.frombuffer(image.mark, np.uint8) for image in seen], np.uint8)
    near = sorted(near_pairs(marks.reshape(len(seen), _BITS // 8)))
    near = [pair for pair in near if not others.intersection(pair)]
    leaks = [pair for pair in near if seen[pair[0]].trained != seen[pair[1]].trained]
    told: set[int] = set()
    for one, other in leaks:
        held, trained = (other, one) if seen[one].trained else (one, other)
        if held not in told:
            told.add(held)
            _note("near-leak", seen[held], f"like {name(seen[trained])}", seen[trained], findings)
    for one, other in near:
        if other not in told and seen[one].trained == seen[other].trained:
            told.add(other)
            _note("near-duplicate", seen[other], f"like {name(seen[one])}", seen[one], findings)


def _note_copies(group: Sequence[Seen], findings: Findings, name: Callable[[Seen], str]) -> None:
    """Note the images of a group with the same bytes, each once, by what is gravest about it."""
    trained = [image for image in group if image.trained]
    held = [image for image in group if not image.trained]
    if trained:
        for image in held:
            first = next((other for other in trained if other.role == image.role), trained[0])
            _note("leaked-image", image, f"same as {name(first)}", first, findings)
    for image in trained[1:] or ([] if trained else held[1:]):
        first = (trained or held)[0]
        code = "duplicate-image" if image.role == first.role else "shared-image"
        _note(code, image, f"same as {name(first)}", first, findings)


def _note(code: str, image: Seen, note: str, other: Seen, findings: Findings) -> None:
    findings.add(code, image.role if image.role == other.role else "pair", image.path, note)


def _same_bytes(seen: Sequence[Seen]) -> list[list[int]]:
    """Return groups of images with the same bytes."""
    groups: dict[str, list[int]] = {}
    for number, image in enumerate(seen):
        groups.setdefault(image.digest, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(marks: NDArray[np.uint8]) -> set[tuple[int, int]]:
    """Return the pairs of rows that differ in at most `NEAR` bits, the smaller number first.

    The bits are dealt to NEAR + 1 bands; rows that differ in NEAR bits agree in a whole band, so
    only rows that share a band are compared.

    Args:
        marks: (N, 32) uint8.
    """
    found: set[tuple[int, int]] = set()
    bits = np.unpackbits(marks, axis=1)
    # dealt out at random: neighbouring bits are alike, such as those of the sky
    order = np.random.default_rng(0).permutation(bits.shape[1])
    for band in np.array_split(order, NEAR + 1):
        values = bits[:, band] @ (1 << np.arange(len(band), dtype=np.int64))
        by_value = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[by_value])) + 1
        for crowd in np.split(by_value, starts):
            if 1 < len(crowd) <= _CROWD:
                found |= _close(crowd, bits)
    return found


def _close(rows: NDArray[np.int64], bits: NDArray[np.uint8]) -> set[tuple[int, int]]:
    """Return the pairs among `rows` that differ in few bits."""
    found = set()
    own = bits[rows].astype(np.float32)  # exact, and a product of matrices is fast
    ones = own.sum(1)
    for start in range(0, len(rows), _STRIP):
        part = slice(start, start + _STRIP)
        differ = ones[part, None] + ones[None] - 2 * (own[part] @ own.T)
        for i, j in np.argwhere(differ <= NEAR).tolist():
            if start + i < j:
                pair = sorted((int(rows[start + i]), int(rows[j])))
                found.add((pair[0], pair[1]))
    return found
