"""What the figures of a set, or of a source and a target, say: classes, sizes, colours."""

from collections.abc import Iterable

import numpy as np

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.statistics import SetFacts

TINY = 10
RARE = 0.001
_MOSTLY = 0.5
_COLOR = 20.0  # of 255; a tenth of what a channel spans is seen at once
_SPREAD = 1.5
_ASPECT = 1.1
_SCALE = 2.0


def note_figures(facts: SetFacts, findings: Findings) -> None:
    """Note what the figures of one set say."""
    role = facts.role
    for name, split in facts.splits.items():
        if split.images < TINY:
            findings.add("tiny-split", role, None, f"{name}: {split.images}")
        if split.ignored is not None and split.ignored > _MOSTLY:
            findings.add("mostly-ignored", role, None, f"{name}: {100 * split.ignored:.0f} %")
        if len(split.sizes) > 1:
            commonest, _ = split.sizes.most_common(1)[0]
            others = split.sizes.total() - split.sizes[commonest]
            note = f"{name}: {len(split.sizes)} sizes, mostly {commonest[0]}x{commonest[1]}"
            findings.add("mixed-sizes", role, None, note, count=others)
    counts = facts.counts(trained=True)
    if counts is None or role == "target":  # training never sees a target's labels
        return
    pixels, _ = counts
    every = max(1, int(pixels.sum()))
    for name, count in zip(facts.classes, pixels.tolist(), strict=True):
        if not count:
            findings.add("class-never-seen", role, amounts={name: 0})
        elif count / every < RARE:
            findings.add("rare-class", role, amounts={name: count})


def note_difference(source: SetFacts, target: SetFacts, findings: Findings) -> None:
    """Note what the figures of source and target say beside each other."""
    trained = [split for name, split in source.splits.items() if name.startswith("train")]
    if trained and not any(split.labelled for split in trained):
        findings.add("source-unlabelled", "source", None, source.name)
    if source.classes and target.classes:
        _note_classes(source, target, findings)
    if source.mean is None or target.mean is None:
        return
    assert source.spread is not None
    assert target.spread is not None
    far = np.abs(np.subtract(source.mean, target.mean)).max() > _COLOR
    wide = _apart(source.spread, target.spread) > _SPREAD
    if far or wide:
        note = (
            f"mean RGB {_rounded(source.mean)} against {_rounded(target.mean)}, "
            f"spread {_rounded(source.spread)} against {_rounded(target.spread)}"
        )
        findings.add("color-shift", "pair", None, note)
    assert source.aspect is not None
    assert target.aspect is not None
    if _apart([source.aspect], [target.aspect]) > _ASPECT:
        note = f"width / height {source.aspect:.2f} against {target.aspect:.2f}"
        findings.add("aspect-shift", "pair", None, note)
    assert source.height is not None
    assert target.height is not None
    if _apart([source.height], [target.height]) >= _SCALE:
        note = f"height {source.height:.0f} against {target.height:.0f} px"
        findings.add("scale-shift", "pair", None, note)


def _note_classes(source: SetFacts, target: SetFacts, findings: Findings) -> None:
    shared = set(source.classes) & set(target.classes)
    if not shared:
        findings.add("no-shared-class", "pair", None, f"{source.name}, {target.name}")
        return
    for name in source.classes:
        if name not in shared:
            findings.add("class-only-in-source", "pair", amounts={name: 0})
    for name in target.classes:
        if name not in shared:
            findings.add("class-only-in-target", "pair", amounts={name: 0})
    taught, there = _pixels(source, (True,)), _pixels(target, (True, False))
    for name in source.classes:
        if name in shared and taught and there:
            if there[name] and not taught[name]:
                findings.add("class-not-taught", "pair", amounts={name: there[name]})
            elif taught[name] and not there[name]:
                findings.add("class-not-in-target", "pair", amounts={name: 0})


def _pixels(facts: SetFacts, kinds: Iterable[bool]) -> dict[str, int]:
    """Return the pixels of each class over training, held-out, or both kinds of splits."""
    found = [counts[0] for kind in kinds if (counts := facts.counts(trained=kind)) is not None]
    if not found:
        return {}
    return dict(zip(facts.classes, np.sum(found, 0).tolist(), strict=True))


def _apart(one: Iterable[float], other: Iterable[float]) -> float:
    """Return the largest ratio between values of both, the larger over the smaller."""
    pairs = [(max(a, 1e-6), max(b, 1e-6)) for a, b in zip(one, other, strict=True)]
    return max(max(a / b, b / a) for a, b in pairs)


def _rounded(color: Iterable[float]) -> str:
    return " ".join(str(round(part)) for part in color)
