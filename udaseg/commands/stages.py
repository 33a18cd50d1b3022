"""Prepare a stage of a run: initial prototypes, thresholds and pseudo-labels.

All of it depends only on the student at the end of the previous stage, so a run that is killed
here repeats the same passes; complete pseudo-labels are kept.
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


def end_of(folder: Path, stage: Leg) -> Path:
    """Return the folder of the checkpoint that ended a stage."""
    assert stage.folder is not None
    return folder / stage.folder / CHECKPOINTS


def before_leg(folder: Path, recipe: Recipe, stage: Leg) -> Checkpoint:
    """Return the checkpoint that ended the stage before `stage`.

    Raises:
        CheckpointError: It is missing, or of another step.
    """
    previous = legs(recipe)[stage.number - 1]
    checkpoint_folder = end_of(folder, previous)
    checkpoint = newest(checkpoint_folder)
    if checkpoint is None or checkpoint.step != previous.end:
        raise CheckpointError(
            f"{checkpoint_folder}: the checkpoint that ended stage {previous.name} is missing, and "
            f"{stage.name} needs it; start the run again with --overwrite"
        )
    return checkpoint


def open_leg(
    recipe: Recipe,
    stage: Leg,
    source: PreparedDataset,
    target: PreparedDataset | None,
    folder: Path,
    *,
    fresh: bool,
    stop: StopSignal,
) -> tuple[Fit, dict[str, str]]:
    """Return the training setup of a stage after the first, and digests of its files.

    Args:
        recipe: Recipe of the run.
        stage: The stage.
        source: Labelled images.
        target: Unlabelled images.
        folder: Run folder.
        fresh: No step of the stage was done, so prototypes are computed; otherwise a checkpoint
            restores them.
        stop: Stops a pass when a signal is received.
    """
    assert stage.folder is not None and source.classes is not None
    previous = before_leg(folder, recipe, stage)
    labels = folder / stage.folder / _LABELS if stage.pseudo_labels is not None else None
    setup = build.run(recipe, source, target, init=previous, leg=stage, pseudo_labels=labels)
    digests: dict[str, str] = {}
    if labels is not None:
        student = _digest(setup.objective.student)
        digests[_LABELS] = _pseudo_labels(
            setup, stage, source.classes, labels, student, stop, folder
        )
    if fresh and isinstance(setup.objective, PrototypeAlignment):
        _first_prototypes(setup, len(source.classes), stop, folder)
    return setup, digests


def _first_prototypes(setup: Fit, num_classes: int, stop: StopSignal, folder: Path) -> None:
    objective, source = setup.objective, setup.batches.source
    assert isinstance(objective, PrototypeAlignment) and source is not None
    with WorkProgress("prototypes of the source", len(source.samples)) as progress:
        sums = prototype_pass(
            objective.student,
            source,
            num_classes,
            setup.device,
            watched(progress, stop, folder),
        )
    means, has_prototype = sums.prototypes()
    objective.contrast.prototypes.start(means, has_prototype)
    if not bool(has_prototype.all()):
        log.warning(
            "%d of %d classes have no correct prediction on the source; they get a prototype with "
            "their first one",
            int((~has_prototype).sum()),
            num_classes,
        )


def _pseudo_labels(
    setup: Fit,
    stage: Leg,
    classes: ClassSpace,
    labels: Path,
    student: str,
    stop: StopSignal,
    folder: Path,
) -> str:
    """Return the digest of the pseudo-labels; compute them unless they exist unchanged."""
    target, settings = setup.batches.target, stage.pseudo_labels
    assert target is not None and settings is not None
    marker = labels.parent / _MARKER
    stored = by_first_rank(lambda: _read(marker))
    if stored.get("student") == student:
        digest = pseudo_labels_digest(labels, target.samples)
        if everywhere(digest is not None and digest == stored.get("digest")):
            assert digest is not None
            return digest
        log.warning("%s: pseudo-labels are missing or changed; computing them again", labels)
    network, device = setup.objective.student, setup.device
    unscaled = replace(target, scale=(1.0, 1.0))
    with WorkProgress("confidence on the target", len(target.samples)) as progress:
        histograms = threshold_pass(
            network, unscaled, len(classes), device, watched(progress, stop, folder)
        )
    thresholds = histograms.thresholds(quantile=settings.quantile, cap=settings.cap)
    with WorkProgress("pseudo-labels of the target", len(target.samples)) as progress:
        kept = pseudo_label_pass(
            network, unscaled, thresholds, labels, device, watched(progress, stop, folder)
        )
    digest = pseudo_labels_digest(labels, target.samples)
    if digest is None:
        raise DataError(f"{labels}: pseudo-labels were deleted while they were written")
    predicted = histograms.counts.sum(1)
    by_class = zip(
        classes.names, thresholds.tolist(), predicted.tolist(), kept.tolist(), strict=True
    )
    document = {
        "student": student,
        "digest": digest,
        "images": len(target.samples),
        "classes": {
            name: {"threshold": threshold, "predicted_pixels": count, "kept_pixels": kept_pixels}
            for name, threshold, count, kept_pixels in by_class
        },
    }
    by_first_rank(lambda: write_json_atomic(marker, document))
    share = float(kept.sum()) / max(1, int(predicted.sum()))
    log.info("%.1f %% of the target pixels have a pseudo-label", 100 * share)
    unpredicted = [
        name for name, count in zip(classes.names, predicted.tolist(), strict=True) if not count
    ]
    if unpredicted:
        log.warning(
            "never predicted on the target, so without pseudo-labels: %s", ", ".join(unpredicted)
        )
    return digest


def watched(
    progress: WorkProgress, stop: StopSignal, folder: Path, *, shared: bool = True
) -> Callable[[int, int], None]:
    """Return a callback for a pass over images: it updates the bar and stops at a signal.

    Args:
        progress: Progress bar.
        stop: Signal state.
        folder: Run folder.
        shared: The images are divided among ranks; otherwise each rank processes all of them.
    """

    def on_image(done: int, total: int) -> None:
        ranks = world_size() if shared else 1
        progress.update(min(done * ranks, total))
        # asked() is collective: call it only while every rank has images; some have one more
        if done <= total // ranks and stop.asked():
            assert stop.number is not None
            raise Interrupted(
                f"stopped between two parts of the run; continue with --resume {folder}",
                stop.number,
            )

    return on_image


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
