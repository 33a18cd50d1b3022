"""Check a whole data set, or a source and a target, and change nothing."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.doctor.duplicates import add_duplicate_findings
from udaseg.data.doctor.findings import SEVERITIES, Finding, Findings, Severity
from udaseg.data.doctor.images import InspectedImage, inspect_image
from udaseg.data.doctor.names import add_name_findings
from udaseg.data.doctor.statistics import (
    SetStatistics,
    add_domain_findings,
    add_set_findings,
    compute_statistics,
)
from udaseg.data.doctor.subject import (
    add_pairing_findings,
    known_paths,
    open_subject,
    select_splits,
)
from udaseg.data.files.bit_depth import FULL_BITS, bits_of_values
from udaseg.data.files.parallel import map_in_threads
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
    jobs = [(item, subject) for subject in subjects for item in subject.items]
    with LazyProgress("doctor") as on_progress:
        outcomes = map_in_threads(lambda job: inspect_image(*job), jobs, workers, on_progress)
        images = [image for _, image in outcomes]
    for image in images:
        _add_image_findings(image, findings)
    for subject in subjects:
        _add_bits_findings([image for image in images if image.subject is subject], findings)
    add_duplicate_findings(images, findings)
    sets = tuple(
        compute_statistics(subject, [image for image in images if image.subject is subject])
        for subject in subjects
    )
    for facts in sets:
        add_set_findings(facts, findings)
    if len(sets) > 1:
        add_domain_findings(sets[0], sets[1], findings)
    return Diagnosis(sets, findings.ordered(), time.monotonic() - started)


def _add_bits_findings(images: Sequence[InspectedImage], findings: Findings) -> None:
    """Add a finding for each 16-bit image if no image of the set uses all bits."""
    deep = [image for image in images if image.peak is not None and image.subject.bits is None]
    bits = bits_of_values(image.peak for image in deep if image.peak is not None)
    if bits != FULL_BITS:
        for image in deep:
            note = f"values up to {image.peak}"
            findings.add("fewer-bits", image.subject.role, image.item.image, note)


def _add_image_findings(image: InspectedImage, findings: Findings) -> None:
    subject = image.subject
    pixels = {subject.id_name(number): count for number, count in image.unknown_ids.items()}
    for code, path, note in image.faults:
        amounts = pixels if code == "unknown-id" else None
        findings.add(code, subject.role, path, note, amounts=amounts)
