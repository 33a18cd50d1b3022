"""What `udaseg doctor` reports: findings, each with its code, severity, cases and fix."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from udaseg.data.labels.tables import DATASET_YAML
from udaseg.documents import plain_value, read_document

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""error: `prepare` or training stops or is wrong; warning: rarely intended; info: nothing to do."""

MAX_EXAMPLES = 5
"""Examples that a finding keeps."""


class FindingKind(NamedTuple):
    """Severity, problem and fix of a code."""

    severity: Severity
    problem: str
    fix: str


def _read_kinds() -> dict[str, FindingKind]:
    document = read_document(Path(__file__).with_name("kinds.yaml"), DATASET_YAML)
    return {
        code: FindingKind(severity, *description.split(" -> "))
        for severity, descriptions in plain_value(document.root).items()
        for code, description in descriptions.items()
    }


KINDS: Mapping[str, FindingKind] = _read_kinds()


class Example(NamedTuple):
    """One case of a finding, and the file, if the case is about one."""

    path: Path | None
    note: str


@dataclass
class Finding:
    """All cases of one kind in one set.

    Attributes:
        code: Short stable name, a key of `KINDS`.
        role: The set with the problem: `data`, `source`, `target` or `pair`.
        problem: The problem, in a few words.
        fix: What to do, in one line.
        count: Number of files or, for findings about classes, of classes.
        examples: The first cases.
        amounts: Pixels of each id or class, for findings about ids or classes; otherwise empty.
    """

    code: str
    role: str
    severity: Severity
    problem: str
    fix: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)
    amounts: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> tuple[Path, ...]:
        """The first files with the problem; empty for findings about classes."""
        return tuple(example.path for example in self.examples if example.path is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "code": self.code,
            "severity": self.severity,
            "where": self.role,
            "what": self.problem,
            "count": self.count,
            "examples": [
                {"path": None if path is None else str(path), "note": note}
                for path, note in self.examples
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
        amounts: Mapping[str, int] | None = None,
        count: int = 1,
    ) -> None:
        """Add one case; the first few cases of a finding are kept as examples."""
        finding = self._by_code_and_role.setdefault((code, role), Finding(code, role, *KINDS[code]))
        finding.count += count
        finding.amounts.update(amounts or {})
        if len(finding.examples) < MAX_EXAMPLES and (path is not None or note):
            finding.examples.append(Example(path, note))

    def ordered(self) -> tuple[Finding, ...]:
        """Return all findings in the order of `KINDS`: the most severe first."""
        codes, roles = list(KINDS), ["data", "source", "target", "pair"]

        def position(finding: Finding) -> tuple[int, int]:
            return codes.index(finding.code), roles.index(finding.role)

        return tuple(sorted(self._by_code_and_role.values(), key=position))
