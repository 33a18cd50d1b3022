"""Findings from statistics of one set, or of a source and a target: classes, sizes, colours."""

from collections.abc import Iterable

import numpy as np

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.statistics import SetFacts

TINY = 10
RARE = 0.001
_MOSTLY = 0.5
_COLOR = 20.0  # of 255; a difference of almost a tenth of the range is clearly visible
_SPREAD = 1.5
_ASPECT = 1.1
_SCALE = 2.0


def note_figures(facts: SetFacts, findings: Findings) -> None:
    """Add findings from the statistics of one set."""
    role = facts.role
    for name, split in facts.splits.items():
        if split.images < TINY:
            findings.add("tiny-split", role, None, f"{name}: {split.images}")
        if split.ignored is not None and split.ignored > _MOSTLY:
            findings.add("mostly-ignored", role, None, f"{name}: {100 * split.ignored:.0f} %")
        if len(split.sizes) > 1:
            most_common, _ = split.sizes.most_common(1)[0]
            others = split.sizes.total() - split.sizes[most_common]
            note = f"{name}: {len(split.sizes)} sizes, mostly {most_common[0]}x{most_common[1]}"
            findings.add("mixed-sizes", role, None, note, count=others)
    counts = facts.counts(trained=True)
    if counts is None or role == "target":  # training does not use a target's labels
        return
    pixels, _ = counts
    total = max(1, int(pixels.sum()))
    for name, count in zip(facts.classes, pixels.tolist(), strict=True):
        if not count:
            findings.add("class-never-seen", role, amounts={name: 0})
        elif count / total < RARE:
            findings.add("rare-class", role, amounts={name: count})


def note_difference(source: SetFacts, target: SetFacts, findings: Findings) -> None:
    """Add findings from comparing the statistics of source and target."""
    trained = [split for name, split in source.splits.items() if name.startswith("train")]
    if trained and not any(split.labelled for split in trained):
        findings.add("source-unlabelled", "source", None, source.name)
    if source.classes and target.classes:
        _note_classes(source, target, findings)
    if source.mean is None or target.mean is None:
        return
    assert source.spread is not None
    assert target.spread is not None
    mean_differs = np.abs(np.subtract(source.mean, target.mean)).max() > _COLOR
    spread_differs = _apart(source.spread, target.spread) > _SPREAD
    if mean_differs or spread_differs:
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
    source_pixels, target_pixels = _pixels(source, (True,)), _pixels(target, (True, False))
    for name in source.classes:
        if name in shared and source_pixels and target_pixels:
            if target_pixels[name] and not source_pixels[name]:
                findings.add("class-not-taught", "pair", amounts={name: target_pixels[name]})
            elif source_pixels[name] and not target_pixels[name]:
                findings.add("class-not-in-target", "pair", amounts={name: 0})


def _pixels(facts: SetFacts, trained_values: Iterable[bool]) -> dict[str, int]:
    """Return the pixels of each class over training splits, held-out splits, or both."""
    pixels = [
        counts[0]
        for trained in trained_values
        if (counts := facts.counts(trained=trained)) is not None
    ]
    if not pixels:
        return {}
    return dict(zip(facts.classes, np.sum(pixels, 0).tolist(), strict=True))


def _apart(one: Iterable[float], other: Iterable[float]) -> float:
    """Return the largest ratio between corresponding values, the larger over the smaller."""
    pairs = [(max(a, 1e-6), max(b, 1e-6)) for a, b in zip(one, other, strict=True)]
    return max(max(a / b, b / a) for a, b in pairs)


def _rounded(color: Iterable[float]) -> str:
    return " ".join(str(round(part)) for part in color)
