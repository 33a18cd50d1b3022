"""Find identical and similar images: within a split, across splits, across domains."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.images import InspectedImage

MAX_BIT_DIFFERENCE = 10
"""Two images are similar if their fingerprints differ in at most this many of 256 bits."""

_MAX_BUCKET = 2000  # a band shared by more images than this does not tell them apart
_ROWS_PER_BLOCK = 128  # rows of the distance table computed at a time


def add_duplicate_findings(inspected: Sequence[InspectedImage], findings: Findings) -> None:
    """Add findings for copies and near copies among the images of one set or of both domains.

    Images of one colour are left out: they have another finding.
    """
    images = [image for image in inspected if image.hash_bits and not image.is_blank]
    by_digest: dict[str, list[InspectedImage]] = {}
    for image in images:
        by_digest.setdefault(image.digest, []).append(image)
    for group in by_digest.values():
        _add_exact_copies(group, findings)
    distinct = [group[0] for group in by_digest.values()]  # in the order of the images
    if distinct:
        _add_near_copies(distinct, findings)


def _add_exact_copies(group: Sequence[InspectedImage], findings: Findings) -> None:
    """Add the most severe finding for each image of a group with the same bytes."""
    trained = [image for image in group if image.item.is_training]
    held_out = [image for image in group if not image.item.is_training]
    first, *others = trained or held_out
    for image in others:
        code = "duplicate-image" if image.subject is first.subject else "shared-image"
        _add_finding(code, image, "same as", first, findings)
    if trained:
        for image in held_out:
            own = (other for other in trained if other.subject is image.subject)
            _add_finding("leaked-image", image, "same as", next(own, first), findings)


def _add_near_copies(images: Sequence[InspectedImage], findings: Findings) -> None:
    bits = np.frombuffer(b"".join(image.hash_bits for image in images), np.uint8)
    pairs = [
        (images[one], images[other]) for one, other in sorted(near_pairs(bits.reshape(-1, 32)))
    ]
    reported: set[int] = set()
    for one, other in pairs:
        if one.item.is_training != other.item.is_training:
            held_out, trained = (other, one) if one.item.is_training else (one, other)
            if id(held_out) not in reported:
                reported.add(id(held_out))
                _add_finding("near-leak", held_out, "like", trained, findings)
    for one, other in pairs:
        if one.item.is_training == other.item.is_training and id(other) not in reported:
            reported.add(id(other))
            _add_finding("near-duplicate", other, "like", one, findings)


def _add_finding(
    code: str, image: InspectedImage, relation: str, other: InspectedImage, findings: Findings
) -> None:
    role = image.subject.role if image.subject is other.subject else "pair"
    path, folder = other.item.image, other.subject.folder
    name = path.relative_to(folder) if path.is_relative_to(folder) else path
    findings.add(code, role, image.item.image, f"{relation} {name}")


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
    pairs: set[tuple[int, int]] = set()
    selected = bits[rows].astype(np.float32)  # exact, and matrix products are fast
    ones = selected.sum(1)
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        strip = slice(start, start + _ROWS_PER_BLOCK)
        distances = ones[strip, None] + ones[None] - 2 * (selected[strip] @ selected.T)
        for i, j in np.argwhere(distances <= MAX_BIT_DIFFERENCE).tolist():
            if start + i < j:
                one, other = sorted((int(rows[start + i]), int(rows[j])))
                pairs.add((one, other))
    return pairs
