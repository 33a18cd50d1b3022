"""What `udaseg doctor` can find: a short code, how grave it is, what it means, and what helps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
SHOWN = 5
"""Examples that a finding keeps."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: error: `prepare` or training would stop or be wrong; warning: look at it;
            info: worth knowing.
        what: What is so, in a few words.
        fix: What to do, in one line.
    """

    severity: Severity
    what: str
    fix: str


def _kinds(severity: Severity, *rows: tuple[str, str, str]) -> dict[str, Kind]:
    return {code: Kind(severity, what, fix) for code, what, fix in rows}


KINDS: Mapping[str, Kind] = {
    **_kinds(
        "error",
        ("missing-file", "file is not there", "restore it, then run `udaseg prepare` again"),
        ("broken-link", "link leads nowhere", "restore what it links to, or remove the link"),
        ("not-a-file", "folder, pipe or device with an image's name", "remove or rename it"),
        ("unreadable", "file or folder cannot be opened", "give yourself the right to read it"),
        ("empty-file", "file has no bytes", "copy it again from where it came"),
        ("not-an-image", "content is no image", "remove it, or copy the right file"),
        ("damaged", "file is cut off or corrupt", "copy it again from where it came"),
        ("too-large", "more pixels than are read", "scale it down or cut it into tiles"),
        (
            "image-without-label",
            "image has no label",
            "add the label or remove the image; else `prepare --max-bad N` leaves it out",
        ),
        (
            "label-without-image",
            "label has no image",
            "add the image or remove the label; else `prepare --max-bad N` leaves it out",
        ),
        ("no-labels", "no label matches at all", "correct `labels` and `match` in the YAML"),
        ("duplicate-stem", "two files with the same name but suffix", "remove or rename one"),
        ("split-list", "list names an image that is not here", "correct the list"),
        ("empty-split", "declared split has no image", "correct its glob, or drop the split"),
        (
            "size-mismatch",
            "label and image differ in size",
            "mend them; `prepare` leaves them out, or `--on-mismatch resize` scales the label",
        ),
        (
            "label-form",
            "label is stored in a form that does not fit",
            "correct `label_format` in the YAML, or write one-channel PNGs without loss",
        ),
        (
            "unknown-id",
            "label has an id that means nothing",
            "name the id in a class, or list it in `ignore` of the YAML",
        ),
        ("stale-index", "file is not what was prepared", "run `udaseg prepare` again"),
        (
            "leaked-image",
            "held-out image is also trained on",
            "take it out of the training split, or scores will flatter",
        ),
        ("source-unlabelled", "source has no labels to train on", "take a labelled source"),
        ("no-shared-class", "source and target share no class", "give both the same class names"),
    ),
    **_kinds(
        "warning",
        (
            "exif-orientation",
            "image is stored turned (EXIF)",
            "turn the pixels and drop the tag, so that label and image match everywhere",
        ),
        ("wrong-suffix", "content is of another type than its name", "rename it"),
        ("odd-name", "name that other tools stumble over", "rename image and label"),
        ("name-collision", "names differ only in case or accents' coding", "rename one"),
        ("link-outside", "link leads out of the data set", "copy the file in, or keep both places"),
        ("link-circle", "link leads back to a folder above", "remove it; it is read once"),
        ("no-class", "label has no class at all", "look at it; it teaches nothing"),
        ("one-class", "label has a single class", "look at it; is it really so?"),
        (
            "mostly-ignored",
            "most label pixels mean no class",
            "is it the right table? `classes` and `ignore` say what ids mean",
        ),
        ("blank-image", "image has one colour", "remove the pair, or leave it out by a rule"),
        ("small-image", "a side below 32 pixels", "is it a thumbnail? remove it"),
        ("duplicate-image", "same bytes as another image", "remove one"),
        (
            "near-leak",
            "held-out image looks like a training image",
            "split by drive or place, not by frame",
        ),
        (
            "shared-image",
            "image is in source and target",
            "take it out of one, or adaptation looks easier than it is",
        ),
        ("tiny-split", "split has fewer than 10 images", "scores and training on it vary much"),
        (
            "class-never-seen",
            "class is never in the training labels",
            "nothing can teach it; drop it from `classes`, or expect IoU 0",
        ),
        (
            "class-only-in-source",
            "target's class list lacks the class",
            "it is trained but not scored; give it the same name on both sides",
        ),
        (
            "class-only-in-target",
            "source's class list lacks the class",
            "it cannot be learnt or scored; give it the same name on both sides",
        ),
        (
            "class-not-taught",
            "target has the class, the source's labels never do",
            "expect IoU 0; a source with this class would help",
        ),
        (
            "count-differs",
            "not as many images as were published",
            "complete the download, unless it is a part on purpose",
        ),
    ),
    **_kinds(
        "info",
        ("rare-class", "below 0.1 % of the training labels", "`source.sampling=rare_class` helps"),
        (
            "class-not-in-target",
            "source has the class, the target's labels never do",
            "its IoU in the target is n/a",
        ),
        ("near-duplicate", "looks like another image", "usual in video; thin it out if you like"),
        ("mixed-sizes", "not of the commonest size", "`resize` in the recipe makes them equal"),
        (
            "image-form",
            "grey, alpha or 16 bits",
            "nothing: grey is made RGB, alpha dropped, 16 bits keep the upper 8",
        ),
        ("unused-file", "image file that no split uses", "correct globs or splits if it should be"),
        (
            "other-file",
            "file that is no image by its name",
            "convert it (HEIC, GIF, frames of a video) if it should be used",
        ),
        ("known-odd", "file that a named rule would leave out", "`prepare --exclude RULE`"),
        ("left-out", "left out when it was prepared", "nothing, unless it should be used"),
        ("missing-split", "published split is not here", "nothing, unless you need it"),
        (
            "color-shift",
            "source and target differ in colour",
            "nothing: adaptation is for that; `--method fda` brings colours nearer",
        ),
        ("scale-shift", "images of one side are twice as high", "check `resize` of both sides"),
        ("aspect-shift", "source and target differ in shape", "check `resize` of both sides"),
    ),
}


@dataclass(frozen=True)
class Example:
    """One case of a finding.

    Attributes:
        path: The file; None where it is of none.
        note: What is so with it.
    """

    path: Path | None
    note: str


@dataclass
class Finding:
    """All cases of one kind in one set.

    Attributes:
        code: Short stable name, a key of `KINDS`.
        where: `data`, `source`, `target` or `pair`.
        severity: error, warning or info.
        count: How many files, or classes where it is about classes.
        examples: The first of them.
        amounts: Pixels of each id or class where it is about them; empty otherwise.
    """

    code: str
    where: str
    severity: Severity
    count: int = 0
    examples: list[Example] = field(default_factory=list)
    amounts: Counter[str] = field(default_factory=Counter)

    @property
    def what(self) -> str:
        """What is so, in a few words."""
        return KINDS[self.code].what

    @property
    def fix(self) -> str:
        """What to do, in one line."""
        return KINDS[self.code].fix

    def document(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "code": self.code,
            "severity": self.severity,
            "where": self.where,
            "what": self.what,
            "count": self.count,
            "examples": [
                {"path": None if shown.path is None else str(shown.path), "note": shown.note}
                for shown in self.examples
            ],
            "amounts": dict(self.amounts),
            "fix": self.fix,
        }


class Findings:
    """What was found so far, a finding for each code and set."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(
        self,
        code: str,
        where: str,
        path: Path | None = None,
        note: str = "",
        *,
        severity: Severity | None = None,
        amounts: Mapping[str, int] | None = None,
        count: int = 1,
    ) -> None:
        """Note one case; the first few of a kind are kept as examples."""
        found = self._found.setdefault(
            (code, where), Finding(code, where, severity or KINDS[code].severity)
        )
        found.count += count
        found.amounts.update(amounts or {})
        if len(found.examples) < SHOWN and (path is not None or note):
            found.examples.append(Example(path, note))

    def ordered(self) -> tuple[Finding, ...]:
        """Return all findings, the gravest first, then as `KINDS` lists them."""
        codes, sets = list(KINDS), ["data", "source", "target", "pair"]

        def rank(found: Finding) -> tuple[int, int, int]:
            grave = SEVERITIES.index(found.severity)
            return grave, codes.index(found.code), sets.index(found.where)

        return tuple(sorted(self._found.values(), key=rank))
