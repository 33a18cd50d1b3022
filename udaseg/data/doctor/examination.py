"""`examine`: look at a data set, or at a source and a target, whole, and change nothing."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.doctor.alike import Seen, note_alike
from udaseg.data.doctor.comparison import note_difference, note_figures
from udaseg.data.doctor.files import Looked, id_name, look
from udaseg.data.doctor.findings import SEVERITIES, Finding, Findings, Severity
from udaseg.data.doctor.pairing import accounted, note_pairing
from udaseg.data.doctor.statistics import SetFacts, facts_of
from udaseg.data.doctor.subject import Item, Subject, only_splits, open_subject
from udaseg.data.doctor.tree import note_tree
from udaseg.data.threads import in_threads

DOCUMENT_FORMAT = 1


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        sets: The figures of the one set, or of source and target.
        findings: The gravest first.
        seconds: Wall time.
    """

    sets: tuple[SetFacts, ...]
    findings: tuple[Finding, ...]
    seconds: float

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of this severity."""
        return tuple(found for found in self.findings if found.severity == severity)

    def document(self) -> dict[str, Any]:
        """Return plain JSON values, all numbers finite."""
        return {
            "format": DOCUMENT_FORMAT,
            "ok": not self.of("error"),
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "seconds": round(self.seconds, 3),
            "sets": [facts.document() for facts in self.sets],
            "findings": [found.document() for found in self.findings],
        }


def examine(
    data: str,
    *,
    target: str | None = None,
    root: Path,
    splits: Sequence[str] = (),
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Examination:
    """Look at every image and label of a data set, or of a source and a target; write nothing.

    Args:
        data: A prepared name, a built-in name whose folder is there, a dataset YAML, or a folder
            of images. With a target it is the source.
        target: Likewise.
        root: Where data and prepared sets lie.
        splits: The splits to look at; all of them when empty. A plain folder has none.
        workers: Threads that decode; -1 takes one a core.
        on_progress: Called with the images done and the images in all.

    Raises:
        DataError: Nothing of that name, no image there, or a declaration that is wrong.
    """
    started = time.monotonic()
    subjects = [open_subject(data, "data" if target is None else "source", root)]
    if target is not None:
        subjects.append(open_subject(target, "target", root))
    subjects = [only_splits(subject, splits) for subject in subjects]
    findings = Findings()
    for subject in subjects:
        posing = note_tree(subject, accounted(subject), findings)
        note_pairing(subject, posing, findings)
    looked = _look_at_all(subjects, findings, workers, on_progress)
    _note_copies(subjects, looked, findings)
    sets = tuple(facts_of(*both) for both in zip(subjects, looked, strict=True))
    for facts in sets:
        note_figures(facts, findings)
    if len(sets) > 1:
        note_difference(sets[0], sets[1], findings)
    return Examination(sets, findings.ordered(), time.monotonic() - started)


def _look_at_all(
    subjects: Sequence[Subject],
    findings: Findings,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[list[Looked]]:
    """Read every image and label, note what is wrong with each, and return what was seen."""
    jobs = [(number, item) for number, subject in enumerate(subjects) for item in subject.items]
    looked: list[list[Looked]] = [[] for _ in subjects]

    if on_progress is not None:
        on_progress(0, len(jobs))

    def work(job: tuple[int, Item]) -> Looked:
        return look(job[1], subjects[job[0]])

    for done, ((number, _), one) in enumerate(in_threads(work, jobs, workers), 1):
        subject = subjects[number]
        looked[number].append(one)
        for code, path, note in one.found:
            amounts: Counter[str] = Counter()
            if code == "unknown-id":
                amounts.update({id_name(key, subject): n for key, n in one.unknown.items()})
            findings.add(code, subject.role, path, note, amounts=amounts)
        if on_progress is not None:
            on_progress(done, len(jobs))
    return looked


def _note_copies(
    subjects: Sequence[Subject], looked: Sequence[Sequence[Looked]], findings: Findings
) -> None:
    """Note copies among all images of all sets; those of one colour are noted as such."""
    seen = [
        Seen(subject.role, one.item.image, one.item.trained, one.mark, one.digest)
        for subject, found in zip(subjects, looked, strict=True)
        for one in found
        if one.mark and not one.flat
    ]
    folders: dict[str, Path] = {subject.role: subject.folder for subject in subjects}

    def name(image: Seen) -> str:
        folder = folders[image.role]
        inside = image.path.is_relative_to(folder)
        return str(image.path.relative_to(folder) if inside else image.path)

    note_alike(seen, findings, name)
