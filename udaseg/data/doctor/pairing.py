"""Findings about files that cannot be paired, are excluded by a rule, or are missing."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.subject import Subject
from udaseg.data.pairs import Pairs

# the lines of `pairs_of` about unpaired files
_LEFT_OVER = {
    code: re.compile(f"(?P<path>.*): {pattern}", re.DOTALL)
    for code, pattern in (
        ("image-without-label", r"has no label \((?P<note>.*)\)"),
        ("label-without-image", r"label without an image \((?P<note>.*)\)"),
        ("duplicate-stem", r"has (?P<note>the same name as .*)"),
        ("split-list", r"(?P<note>lists .*), which matches no image or more than one"),
    )
}


def left_over(pairs: Pairs) -> Iterator[tuple[str, Path, str]]:
    """Yield code, file and note of each unpaired file, parsed from the lines of `pairs_of`."""
    for line in pairs.unpaired:
        for code, pattern in _LEFT_OVER.items():
            match = pattern.fullmatch(line)
            if match:
                yield code, Path(match["path"]), match["note"]
                break
        else:
            raise ValueError(f"no finding matches this line about an unpaired file: {line}")


def ruled(pairs: Pairs) -> Iterator[tuple[str, Path, str]]:
    """Yield code, file and note of each image that a named rule excludes or would exclude."""
    for code, lines in (("known-odd", pairs.known), ("left-out", pairs.excluded)):
        for line in lines:
            path, _, note = line.partition(": rule ")
            yield code, Path(path), f"rule {note}"


def accounted(subject: Subject) -> set[Path]:
    """Return the files that are in a split, checked or not, or that have their own finding."""
    pairs = subject.pairs
    if pairs is None:
        return set()
    known_pairs = [pair for split_pairs in pairs.splits.values() for pair in split_pairs]
    files = {path for pair in known_pairs for path in (pair.image, pair.label) if path is not None}
    return files | {path for _, path, _ in (*left_over(pairs), *ruled(pairs))}


def note_pairing(
    subject: Subject, folders_named_as_images: Collection[Path], findings: Findings
) -> None:
    """Add findings for the files that could not be paired.

    Args:
        subject: The data set.
        folders_named_as_images: These folders have their own finding, so files that only lack them
            are not listed again.
        findings: The findings are added here.
    """
    role, pairs, declaration = subject.role, subject.pairs, subject.declaration
    for line in subject.left_out:
        findings.add("left-out", role, None, line)
    if pairs is None or declaration is None:
        counts = Counter(item.split for item in subject.items)
        _note_counts(subject, counts, len(subject.left_out), findings)
        return
    strip = declaration.strip
    stems = {_stem(path, strip) for path in folders_named_as_images}
    for glob in pairs.without_labels:
        findings.add("no-labels", role, None, glob)
    for code, path, note in left_over(pairs):
        is_unmatched = code in ("image-without-label", "label-without-image")
        # a glob without any match is one fault, not one per image
        if is_unmatched and (note in pairs.without_labels or _stem(path, strip) in stems):
            continue
        findings.add(code, role, path, "" if is_unmatched else note)
    for code, path, note in ruled(pairs):
        findings.add(code, role, path, note)
    user_defined = declaration.root is not None
    for split in pairs.without_files:
        code = "empty-split" if user_defined else "missing-split"
        findings.add(code, role, None, f"{split}: {declaration.images[split]}")
    _note_counts(
        subject, {name: len(split_pairs) for name, split_pairs in pairs.splits.items()}, 0, findings
    )


def _note_counts(
    subject: Subject, counts: Mapping[str, int], left_out: int, findings: Findings
) -> None:
    """Add findings for splits whose number of images differs from the published one.

    Args:
        subject: The data set.
        counts: Number of images of each split.
        left_out: Number of images that may be missing, because they have their own finding.
        findings: The findings are added here.
    """
    for split, published in subject.expected.items():
        count = counts.get(split, 0)
        if count and not published - left_out <= count <= published:
            note = f"{split}: {count:,} of {published:,}"
            findings.add("count-differs", subject.role, None, note)


def _stem(path: Path, strip: tuple[str, ...]) -> str:
    stem = path.stem
    for ending in strip:
        stem = stem.removesuffix(ending)
    return stem
