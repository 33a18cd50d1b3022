"""What happens between two stages of a run: first prototypes, thresholds, and pseudo-labels.

All of it is a function of the student that the stage before ended with, so a run that is killed
here begins the same passes again; pseudo-labels that are whole are kept.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from udaseg import build
from udaseg.adaptation import (
    PrototypeAlignment,
    prototype_pass,
    pseudo_label_pass,
    threshold_pass,
)
from udaseg.data import ClassSpace, PreparedDataset, pseudo_labels_digest
from udaseg.distributed import by_first_rank, everywhere, world_size
from udaseg.engine import Checkpoint, Fit, StopSignal, newest
from udaseg.errors import CheckpointError, DataError, Interrupted
from udaseg.recipe import Leg, Recipe, legs
from udaseg.reporting import WorkProgress, write_json_atomic

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoint"
_LABELS = "pseudo_labels"
_MARKER = "pseudo_labels.json"


def end_of(folder: Path, leg: Leg) -> Path:
    """Return where the checkpoint that ended a stage lies in its run's folder."""
    assert leg.folder is not None
    return folder / leg.folder / CHECKPOINTS


def before_leg(folder: Path, recipe: Recipe, leg: Leg) -> Checkpoint:
    """Return the checkpoint that ended the stage before `leg`.

    Raises:
        CheckpointError: It is gone, or of another step.
    """
    earlier = legs(recipe)[leg.number - 1]
    where = end_of(folder, earlier)
    found = newest(where)
    if found is None or found.step != earlier.end:
        raise CheckpointError(
            f"{where}: the checkpoint that ended stage {earlier.name} is gone, and {leg.name} "
            "starts from it; start the run again with --overwrite"
        )
    return found


def open_leg(
    recipe: Recipe,
    leg: Leg,
    source: PreparedDataset,
    target: PreparedDataset | None,
    folder: Path,
    *,
    fresh: bool,
    stop: StopSignal,
) -> tuple[Fit, dict[str, str]]:
    """Return what a stage after the first trains with, and the digests of what was made for it.

    Args:
        recipe: Of the run.
        leg: The stage.
        source: Labelled images.
        target: Unlabelled images.
        folder: Of the run.
        fresh: No step of the stage was done, so prototypes are to be made; otherwise a checkpoint
            brings them.
        stop: Ends a pass when a signal came.
    """
    assert leg.folder is not None and source.classes is not None
    before = before_leg(folder, recipe, leg)
    labels = folder / leg.folder / _LABELS if leg.pseudo_labels is not None else None
    made = build.run(recipe, source, target, init=before, leg=leg, pseudo_labels=labels)
    digests: dict[str, str] = {}
    if labels is not None:
        student = _digest(made.objective.student)
        digests[_LABELS] = _pseudo_labels(made, leg, source.classes, labels, student, stop, folder)
    if fresh and isinstance(made.objective, PrototypeAlignment):
        _first_prototypes(made, len(source.classes), stop, folder)
    return made, digests


def _first_prototypes(made: Fit, num_classes: int, stop: StopSignal, folder: Path) -> None:
    objective, source = made.objective, made.batches.source
    assert isinstance(objective, PrototypeAlignment) and source is not None
    with WorkProgress("prototypes of the source", len(source.samples)) as progress:
        sums = prototype_pass(
            *(objective.student, source, num_classes, made.device),
            watched(progress, stop, folder),
        )
    means, seen = sums.prototypes()
    objective.contrast.prototypes.start(means, seen)
    if not bool(seen.all()):
        log.warning(
            "%d of %d classes are nowhere predicted right on the source; they get a prototype when "
            "they first are",
            *(int((~seen).sum()), num_classes),
        )


def _pseudo_labels(
    made: Fit,
    leg: Leg,
    classes: ClassSpace,
    labels: Path,
    student: str,
    stop: StopSignal,
    folder: Path,
) -> str:
    """Return the digest of the pseudo-labels, made here unless they are there and whole."""
    target, how = made.batches.target, leg.pseudo_labels
    assert target is not None and how is not None
    marker = labels.parent / _MARKER
    known = by_first_rank(lambda: _read(marker))
    if known.get("student") == student:
        digest = pseudo_labels_digest(labels, target.samples)
        if everywhere(digest is not None and digest == known.get("digest")):
            assert digest is not None
            return digest
        log.warning("%s: pseudo-labels are missing or changed; they are made again", labels)
    network, device = made.objective.student, made.device
    whole = replace(target, scale=(1.0, 1.0))
    with WorkProgress("confidence on the target", len(target.samples)) as progress:
        histograms = threshold_pass(
            network, whole, len(classes), device, watched(progress, stop, folder)
        )
    thresholds = histograms.thresholds(quantile=how.quantile, cap=how.cap)
    with WorkProgress("pseudo-labels of the target", len(target.samples)) as progress:
        kept = pseudo_label_pass(
            *(network, whole, thresholds, labels, device), watched(progress, stop, folder)
        )
    digest = pseudo_labels_digest(labels, target.samples)
    if digest is None:
        raise DataError(f"{labels}: pseudo-labels vanished while they were written")
    predicted = histograms.counts.sum(1)
    by_class = zip(
        *(classes.names, thresholds.tolist(), predicted.tolist(), kept.tolist()), strict=True
    )
    document = {
        "student": student,
        "digest": digest,
        "images": len(target.samples),
        "classes": {
            name: {"threshold": threshold, "predicted_pixels": count, "kept_pixels": left}
            for name, threshold, count, left in by_class
        },
    }
    by_first_rank(lambda: write_json_atomic(marker, document))
    share = float(kept.sum()) / max(1, int(predicted.sum()))
    log.info("%.1f %% of the target's pixels got a pseudo-label", 100 * share)
    never = [
        name for name, count in zip(classes.names, predicted.tolist(), strict=True) if not count
    ]
    if never:
        log.warning("never predicted on the target, so never learned there: %s", ", ".join(never))
    return digest


def watched(
    progress: WorkProgress, stop: StopSignal, folder: Path, *, shared: bool = True
) -> Callable[[int, int], None]:
    """Return what a pass over images calls: it moves the bar, and ends the pass at a signal.

    Args:
        progress: The bar.
        stop: Knows of signals.
        folder: Of the run.
        shared: The images are shared out over ranks; otherwise each looks at all of them.
    """

    def seen(done: int, of_all: int) -> None:
        ranks = world_size() if shared else 1
        progress.update(min(done * ranks, of_all))
        # the ranks ask each other as long as all have images: none has more than one more
        if done <= of_all // ranks and stop.asked():
            assert stop.number is not None
            raise Interrupted(
                f"stopped between two parts of the run; go on with --resume {folder}", stop.number
            )

    return seen


def _digest(network: nn.Module) -> str:
    """Return a digest of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _read(marker: Path) -> dict[str, object]:
    try:
        document = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
