"""All problems that `udaseg doctor` can find: code, severity, description and fix."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

MAX_EXAMPLES = 5
"""Examples that a finding keeps."""


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding.

    Attributes:
        severity: error: `prepare` or training stops or is wrong; warning: rarely intended; info: no
            action needed.
        problem: The problem, in a few words.
        fix: What to do, in one line.
    """

    severity: Severity
    problem: str
    fix: str


def _kinds(severity: Severity, *rows: tuple[str, str, str]) -> dict[str, FindingKind]:
    return {code: FindingKind(severity, problem, fix) for code, problem, fix in rows}


KINDS: Mapping[str, FindingKind] = {
    **_kinds(
        "error",
        ("missing-file", "file is missing", "restore it, then run `udaseg prepare` again"),
        ("broken-link", "link target does not exist", "restore the target, or remove the link"),
        ("not-a-file", "folder, pipe or device with an image name", "remove or rename it"),
        ("unreadable", "file or folder cannot be opened", "give yourself read permission"),
        ("empty-file", "file is empty", "copy it again from the original"),
        ("not-an-image", "content is not an image", "remove it, or copy the right file"),
        ("damaged", "file is truncated or corrupt", "copy it again from the original"),
        (
            "too-large",
            "image exceeds the maximum number of pixels",
            "scale it down or cut it into tiles",
        ),
        (
            "image-without-label",
            "image has no label",
            "add the label or remove the image, or exclude it with `prepare --max-bad N`",
        ),
        (
            "label-without-image",
            "label has no image",
            "add the image or remove the label, or exclude it with `prepare --max-bad N`",
        ),
        ("no-labels", "no label matches any image", "correct `labels` and `match` in the YAML"),
        (
            "duplicate-stem",
            "two files have the same name except for the suffix",
            "remove or rename one of them",
        ),
        ("split-list", "list names an image that does not exist", "correct the list"),
        ("empty-split", "declared split has no image", "correct its glob, or remove the split"),
        (
            "size-mismatch",
            "label and image differ in size",
            "fix them; `prepare` excludes them, or scales the label with `--on-mismatch resize`",
        ),
        (
            "label-form",
            "label is stored in an unsupported format",
            "correct `label_format` in the YAML, or write lossless single-channel PNGs",
        ),
        (
            "unknown-id",
            "label has an id that belongs to no class",
            "add the id to a class, or list it in `ignore` of the YAML",
        ),
        ("stale-index", "file has changed since it was prepared", "run `udaseg prepare` again"),
        (
            "leaked-image",
            "held-out image is also used for training",
            "remove it from the training split, or scores will be inflated",
        ),
        ("source-unlabelled", "source has no labels to train on", "use a labelled source"),
        ("no-shared-class", "source and target share no class", "give both the same class names"),
    ),
    **_kinds(
        "warning",
        (
            "exif-orientation",
            "image is stored rotated (EXIF)",
            "rotate the pixels and remove the tag, so that label and image match in every tool",
        ),
        ("wrong-suffix", "content does not match the file suffix", "rename it"),
        ("odd-name", "name that causes problems in other tools", "rename image and label"),
        (
            "name-collision",
            "names differ only in case or in the encoding of accents",
            "rename one of them",
        ),
        (
            "link-outside",
            "link leads out of the data set",
            "copy the file into the data set, or keep both places",
        ),
        ("link-circle", "link leads back to a parent folder", "remove it; the folder is read once"),
        ("no-class", "label contains no class", "check it; it contributes nothing to training"),
        ("one-class", "label contains a single class", "check that this is intended"),
        (
            "mostly-ignored",
            "most label pixels belong to no class",
            "check the label table: `classes` and `ignore` define the meaning of ids",
        ),
        ("blank-image", "image has a single colour", "remove the pair, or exclude it with a rule"),
        (
            "small-image",
            "one side is shorter than 32 pixels",
            "check whether it is a thumbnail, and remove it",
        ),
        ("duplicate-image", "same bytes as another image", "remove one of them"),
        (
            "near-leak",
            "held-out image looks like a training image",
            "split by drive or place, not by frame",
        ),
        (
            "shared-image",
            "image is in both source and target",
            "remove it from one of them, or adaptation looks easier than it is",
        ),
        (
            "tiny-split",
            "split has fewer than 10 images",
            "expect large variation in scores and training",
        ),
        (
            "class-never-seen",
            "class never occurs in the training labels",
            "it cannot be learnt; remove it from `classes`, or expect IoU 0",
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
            "expect IoU 0; use a source with this class",
        ),
        (
            "count-differs",
            "image count differs from the published one",
            "complete the download, unless the subset is intended",
        ),
    ),
    **_kinds(
        "info",
        ("rare-class", "below 0.1 % of the training labels", "`source.sampling=rare_class` helps"),
        (
            "class-not-in-target",
            "source has the class, the target's labels never do",
            "its IoU on the target is n/a",
        ),
        ("near-duplicate", "looks like another image", "usual in video; thin it out if you like"),
        (
            "mixed-sizes",
            "differs from the most common size",
            "`resize` in the recipe makes sizes equal",
        ),
        (
            "image-form",
            "grey, alpha or 16 bits",
            "nothing: grey is converted to RGB, alpha is dropped, 16 bits keep the upper 8",
        ),
        (
            "unused-file",
            "image file that no split uses",
            "correct globs or splits if it should be used",
        ),
        (
            "other-file",
            "file with an unsupported image extension",
            "convert it (HEIC, GIF, frames of a video) if it should be used",
        ),
        ("known-odd", "file that a named rule would exclude", "`prepare --exclude RULE`"),
        ("left-out", "excluded by `prepare`", "nothing, unless it should be used"),
        ("missing-split", "published split is missing", "nothing, unless you need it"),
        (
            "color-shift",
            "source and target differ in colour",
            "nothing: adaptation handles this; `--method fda` brings colours closer",
        ),
        ("scale-shift", "images of one side are twice as high", "check `resize` of both sides"),
        (
            "aspect-shift",
            "source and target differ in aspect ratio",
            "check `resize` of both sides",
        ),
    ),
}


@dataclass(frozen=True)
class Example:
    """One case of a finding.

    Attributes:
        path: The file; None if the case is not about a file.
        note: Details of the case.
    """

    path: Path | None
    note: str


@dataclass
class Finding:
    """All cases of one kind in one set.

    Attributes:
        code: Short stable name, a key of `KINDS`.
        role: The set with the problem: `data`, `source`, `target` or `pair`.
        severity: error, warning or info.
        count: Number of files or, for findings about classes, of classes.
        examples: The first cases.
        amounts: Pixels of each id or class, for findings about ids or classes; otherwise empty.
    """

    code: str
    role: str
    severity: Severity
    count: int = 0
    examples: list[Example] = field(default_factory=list)
    amounts: Counter[str] = field(default_factory=Counter)

    @property
    def problem(self) -> str:
        """The problem, in a few words."""
        return KINDS[self.code].problem

    @property
    def files(self) -> tuple[Path, ...]:
        """The first files with the problem; empty for findings about classes."""
        return tuple(example.path for example in self.examples if example.path is not None)

    @property
    def fix(self) -> str:
        """What to do, in one line."""
        return KINDS[self.code].fix

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "code": self.code,
            "severity": self.severity,
            "where": self.role,
            "what": self.problem,
            "count": self.count,
            "examples": [
                {"path": None if example.path is None else str(example.path), "note": example.note}
                for example in self.examples
            ],
            "amounts": dict(self.amounts),
            "fix": self.fix,
        }


class Findings:
    """Collect findings: one per code and set."""

    def __init__(self) -> None:
        self._by_code_and_role: dict[tuple[str, str], Finding] = {}

    def add(
        self,
        code: str,
        role: str,
        path: Path | None = None,
        note: str = "",
        *,
        severity: Severity | None = None,
        amounts: Mapping[str, int] | None = None,
        count: int = 1,
    ) -> None:
        """Add one case; the first few cases of a finding are kept as examples."""
        finding = self._by_code_and_role.setdefault(
            (code, role), Finding(code, role, severity or KINDS[code].severity)
        )
        finding.count += count
        finding.amounts.update(amounts or {})
        if len(finding.examples) < MAX_EXAMPLES and (path is not None or note):
            finding.examples.append(Example(path, note))

    def ordered(self) -> tuple[Finding, ...]:
        """Return all findings, the most severe first, then in the order of `KINDS`."""
        codes, sets = list(KINDS), ["data", "source", "target", "pair"]

        def rank(finding: Finding) -> tuple[int, int, int]:
            severity = SEVERITIES.index(finding.severity)
            return severity, codes.index(finding.code), sets.index(finding.role)

        return tuple(sorted(self._by_code_and_role.values(), key=rank))
