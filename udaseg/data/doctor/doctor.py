"""Check a whole data set, or a source and a target, and change nothing."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.doctor.duplicates import CheckedImage, add_duplicate_findings
from udaseg.data.doctor.findings import SEVERITIES, Finding, Findings, Severity
from udaseg.data.doctor.images import InspectedImage, id_name, inspect_image
from udaseg.data.doctor.names import add_name_findings
from udaseg.data.doctor.statistics import (
    SetStatistics,
    add_domain_findings,
    add_set_findings,
    compute_statistics,
)
from udaseg.data.doctor.subject import (
    Subject,
    SubjectImage,
    add_pairing_findings,
    known_paths,
    open_subject,
    select_splits,
)
from udaseg.data.files.threads import map_in_threads
from udaseg.display.progress import LazyProgress

DOCUMENT_FORMAT = 1


@dataclass(frozen=True)
class Diagnosis:
    """The result of checking a data set, or a source and a target.

    Attributes:
        sets: Statistics of the one set, or of source and target.
        findings: All findings, the most severe first.
        seconds: Wall time.
    """

    sets: tuple[SetStatistics, ...]
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there are no errors; there may be warnings."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop `prepare` or training, or make scores wrong."""
        return self.with_severity("error")

    def with_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings with this severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, all numbers finite."""
        return {
            "format": DOCUMENT_FORMAT,
            "ok": self.ok,
            "counts": {severity: len(self.with_severity(severity)) for severity in SEVERITIES},
            "seconds": round(self.seconds, 3),
            "sets": [facts.to_dict() for facts in self.sets],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def doctor(
    data: str | os.PathLike[str],
    *,
    target: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] = "data",
    splits: str | Sequence[str] = (),
    workers: int = -1,
) -> Diagnosis:
    """Check every image and label of a data set, or of a source and a target; write nothing.

    Problems in the data are findings of the result, not errors.

    Args:
        data: A prepared name, a built-in name whose folder exists, a dataset YAML, or a folder of
            images. With a target, this is the source.
        target: The target, named in the same ways.
        root: The folder of data and prepared data sets.
        splits: The split or splits to check; all if empty. A plain folder has no splits.
        workers: Threads that decode; -1 uses one per core.

    Raises:
        DataError: There is no data set of that name, it has no image, or its declaration is wrong.

    Example:
        diagnosis = udaseg.doctor("my_city.yaml")
        for finding in diagnosis.errors:
            print(finding.code, finding.count, finding.files, finding.fix)
    """
    started, root = time.monotonic(), Path(root)
    subjects = [open_subject(os.fspath(data), "data" if target is None else "source", root)]
    if target is not None:
        subjects.append(open_subject(os.fspath(target), "target", root))
    chosen = [splits] if isinstance(splits, str) else splits
    subjects = [select_splits(subject, chosen) for subject in subjects]
    findings = Findings()
    for subject in subjects:
        folders_named_as_images = add_name_findings(subject, known_paths(subject), findings)
        add_pairing_findings(subject, folders_named_as_images, findings)
    with LazyProgress("doctor") as on_progress:
        inspected = _inspect_all(subjects, findings, workers, on_progress)
    _add_copy_findings(subjects, inspected, findings)
    sets = tuple(
        compute_statistics(*set_and_images)
        for set_and_images in zip(subjects, inspected, strict=True)
    )
    for facts in sets:
        add_set_findings(facts, findings)
    if len(sets) > 1:
        add_domain_findings(sets[0], sets[1], findings)
    return Diagnosis(sets, findings.ordered(), time.monotonic() - started)


def _inspect_all(
    subjects: Sequence[Subject],
    findings: Findings,
    workers: int,
    on_progress: Callable[[int, int], None],
) -> list[list[InspectedImage]]:
    """Read every image and label, add a finding per fault, and return what was read."""
    jobs = [
        (set_index, item) for set_index, subject in enumerate(subjects) for item in subject.items
    ]
    inspected: list[list[InspectedImage]] = [[] for _ in subjects]
    on_progress(0, len(jobs))

    def work(job: tuple[int, SubjectImage]) -> InspectedImage:
        return inspect_image(job[1], subjects[job[0]])

    for done, ((set_index, _), image) in enumerate(map_in_threads(work, jobs, workers), 1):
        subject = subjects[set_index]
        inspected[set_index].append(image)
        for code, path, note in image.faults:
            amounts: Counter[str] = Counter()
            if code == "unknown-id":
                amounts.update(
                    {id_name(key, subject): count for key, count in image.unknown_ids.items()}
                )
            findings.add(code, subject.role, path, note, amounts=amounts)
        on_progress(done, len(jobs))
    return inspected


def _add_copy_findings(
    subjects: Sequence[Subject], inspected: Sequence[Sequence[InspectedImage]], findings: Findings
) -> None:
    """Add findings for copies among all images; images of one colour have another finding."""
    images = [
        CheckedImage(
            subject.role, entry.item.image, entry.item.is_training, entry.hash_bits, entry.digest
        )
        for subject, members in zip(subjects, inspected, strict=True)
        for entry in members
        if entry.hash_bits and not entry.is_blank
    ]
    folders: dict[str, Path] = {subject.role: subject.folder for subject in subjects}

    def name(image: CheckedImage) -> str:
        folder = folders[image.role]
        inside = image.path.is_relative_to(folder)
        return str(image.path.relative_to(folder) if inside else image.path)

    add_duplicate_findings(images, findings, name)
