"""What cannot be paired, is left out by a rule, or is not here at all, as findings."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.subject import Subject
from udaseg.data.pairs import Pairs

# how `pairs_of` words what is left over
_LEFT_OVER = {
    code: re.compile(f"(?P<path>.*): {rest}", re.DOTALL)
    for code, rest in (
        ("image-without-label", r"has no label \((?P<note>.*)\)"),
        ("label-without-image", r"label without an image \((?P<note>.*)\)"),
        ("duplicate-stem", r"has (?P<note>the same name as .*)"),
        ("split-list", r"(?P<note>lists .*), which is no image here, or more than one"),
    )
}


def left_over(pairs: Pairs) -> Iterator[tuple[str, Path, str]]:
    """Yield code, file and note of each file that is left over, as `pairs_of` words it."""
    for line in pairs.unpaired:
        for code, form in _LEFT_OVER.items():
            match = form.fullmatch(line)
            if match:
                yield code, Path(match["path"]), match["note"]
                break
        else:
            raise ValueError(f"no finding for what could not be paired: {line}")


def ruled(pairs: Pairs) -> Iterator[tuple[str, Path, str]]:
    """Yield code, file and note of each image that a named rule leaves out, or would."""
    for code, lines in (("known-odd", pairs.known), ("left-out", pairs.excluded)):
        for line in lines:
            path, _, note = line.partition(": rule ")
            yield code, Path(path), f"rule {note}"


def accounted(subject: Subject) -> set[Path]:
    """Return the files that are in a split, looked at or not, or have a finding of their own."""
    pairs = subject.pairs
    if pairs is None:
        return set()
    used = [pair for found in pairs.splits.values() for pair in found]
    files = {path for pair in used for path in (pair.image, pair.label) if path is not None}
    return files | {path for _, path, _ in (*left_over(pairs), *ruled(pairs))}


def note_pairing(subject: Subject, posing: Collection[Path], findings: Findings) -> None:
    """Note what could not be paired.

    Args:
        subject: The set.
        posing: Folders that have an image's name; what only lacks them is not noted twice.
        findings: Where to note.
    """
    role, pairs, declaration = subject.role, subject.pairs, subject.declaration
    for line in subject.left_out:
        findings.add("left-out", role, None, line)
    if pairs is None or declaration is None:
        there = Counter(item.split for item in subject.items)
        _note_counts(subject, there, len(subject.left_out), findings)
        return
    strip = declaration.strip
    stems = {_stem(path, strip) for path in posing}
    for glob in pairs.without_labels:
        findings.add("no-labels", role, None, glob)
    for code, path, note in left_over(pairs):
        alone = code in ("image-without-label", "label-without-image")
        # a glob without any match is one fault, not one for each image
        if alone and (note in pairs.without_labels or _stem(path, strip) in stems):
            continue
        findings.add(code, role, path, "" if alone else note)
    for code, path, note in ruled(pairs):
        findings.add(code, role, path, note)
    own = declaration.root is not None
    for split in pairs.without_files:
        code = "empty-split" if own else "missing-split"
        findings.add(code, role, None, f"{split}: {declaration.images[split]}")
    _note_counts(subject, {name: len(found) for name, found in pairs.splits.items()}, 0, findings)


def _note_counts(
    subject: Subject, there: Mapping[str, int], left_out: int, findings: Findings
) -> None:
    """Note splits with another number of images than was published.

    Args:
        subject: The set.
        there: Images of each split.
        left_out: So many may be fewer, as they have a note of their own.
        findings: Where to note.
    """
    for split, published in subject.expected.items():
        count = there.get(split, 0)
        if count and not published - left_out <= count <= published:
            note = f"{split}: {count:,} of {published:,}"
            findings.add("count-differs", subject.role, None, note)


def _stem(path: Path, strip: tuple[str, ...]) -> str:
    stem = path.stem
    for ending in strip:
        stem = stem.removesuffix(ending)
    return stem
