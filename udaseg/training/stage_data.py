"""Prepare a stage of a run: initial prototypes, thresholds and pseudo-labels.

All of it depends only on the student at the end of the previous stage, so a run that is killed
here repeats the same passes; complete pseudo-labels are kept.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from udaseg.data.datasets.index import PreparedDataset, Sample, evenly_spaced_indices
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.pseudo_labels import pseudo_labels_digest
from udaseg.display.progress import WorkProgress
from udaseg.distributed import all_ranks, on_rank_zero, world_size
from udaseg.errors import CheckpointError, DataError, Interrupted
from udaseg.files import write_json
from udaseg.methods.objectives.alignment import PrototypeAlignment
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.passes import collect_confidence, collect_prototypes, write_pseudo_labels
from udaseg.methods.target_statistics import adapt_batch_norms
from udaseg.recipe.methods import PseudoLabelling
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import Stage, stages_of
from udaseg.runs.checkpoint import Checkpoint, newest_checkpoint
from udaseg.signals import StopSignal
from udaseg.training.context import RunData
from udaseg.training.setup import TrainingSetup, build_crop_source, build_setup

log = logging.getLogger(__name__)
_CHECKPOINT_FOLDER = "checkpoint"
_LABEL_FOLDER = "pseudo_labels"
_MARKER = "pseudo_labels.json"


def stage_checkpoint_folder(folder: Path, stage: Stage) -> Path:
    """Return the folder of the checkpoint that ended a stage."""
    assert stage.folder is not None
    return folder / stage.folder / _CHECKPOINT_FOLDER


def before_stage(folder: Path, recipe: Recipe, stage: Stage) -> Checkpoint:
    """Return the checkpoint that ended the stage before `stage`.

    Raises:
        CheckpointError: It is missing, or of another step.
    """
    previous = stages_of(recipe)[stage.index - 1]
    checkpoint_folder = stage_checkpoint_folder(folder, previous)
    checkpoint = newest_checkpoint(checkpoint_folder)
    if checkpoint is None or checkpoint.step != previous.end:
        raise CheckpointError(
            f"{checkpoint_folder}: the checkpoint that ended stage {previous.name} is missing, and "
            f"{stage.name} needs it; start the run again with --overwrite"
        )
    return checkpoint


def open_stage(
    recipe: Recipe, stage: Stage, data: RunData, folder: Path, *, is_new: bool, stop: StopSignal
) -> tuple[TrainingSetup, dict[str, str]]:
    """Return the training setup of a stage after the first, and digests of its files.

    Args:
        recipe: Recipe of the run.
        stage: The stage.
        data: Data sets of the run.
        folder: Run folder.
        is_new: No step of the stage was done, so prototypes are computed; otherwise a checkpoint
            restores them.
        stop: Stops a pass when a signal is received.
    """
    assert stage.folder is not None
    previous = before_stage(folder, recipe, stage)
    labels = folder / stage.folder / _LABEL_FOLDER if stage.pseudo_labels is not None else None
    setup = build_setup(
        recipe, data.source, data.target, init=previous, stage=stage, pseudo_labels=labels
    )
    passes = _StagePasses(setup, data.classes, stop, folder)
    digests: dict[str, str] = {}
    if labels is not None:
        digests[_LABEL_FOLDER] = passes.pseudo_labels(stage, labels)
    if is_new and isinstance(setup.objective, PrototypeAlignment):
        passes.initialise_prototypes()
    return setup, digests


@dataclass(frozen=True)
class _StagePasses:
    """Passes of the student over all images, before the first step of a stage.

    Attributes:
        setup: Training setup of the stage, with the student of the previous one.
        classes: Classes of the network.
        stop: Stops a pass when a signal is received.
        folder: Run folder.
    """

    setup: TrainingSetup
    classes: ClassSpace
    stop: StopSignal
    folder: Path

    def initialise_prototypes(self) -> None:
        """Set the prototypes to the mean embeddings of correctly predicted source pixels."""
        objective, source = self.setup.objective, self.setup.batches.source
        assert isinstance(objective, PrototypeAlignment) and source is not None
        num_classes = len(self.classes)
        with WorkProgress("prototypes of the source", len(source.samples)) as progress:
            sums = collect_prototypes(
                objective.student,
                source,
                num_classes,
                self.setup.device,
                pass_callback(progress, self.stop, self.folder),
            )
        means, has_prototype = sums.prototypes()
        objective.contrast.prototypes.initialise(means, has_prototype)
        if not bool(has_prototype.all()):
            log.warning(
                "%d of %d classes have no correct prediction on the source; they get a prototype "
                "with their first one",
                int((~has_prototype).sum()),
                num_classes,
            )

    def pseudo_labels(self, stage: Stage, labels: Path) -> str:
        """Return the digest of the pseudo-labels; compute them unless they exist unchanged.

        Args:
            stage: The stage, with settings of pseudo-labels.
            labels: Folder of the pseudo-labels.
        """
        target, settings = self.setup.batches.target, stage.pseudo_labels
        assert target is not None and settings is not None
        marker = labels.parent / _MARKER
        student = _network_digest(self.setup.objective.student)
        digest = _finished_digest(marker, labels, student, target.samples)
        if digest is not None:
            return digest
        unscaled = replace(target, scale=(1.0, 1.0))
        predicted, thresholds = self._thresholds(unscaled, settings)
        kept = self._write_labels(unscaled, thresholds, labels)
        digest = pseudo_labels_digest(labels, target.samples)
        if digest is None:
            raise DataError(f"{labels}: pseudo-labels were deleted while they were written")
        document = {
            "student": student,
            "digest": digest,
            "images": len(target.samples),
            "classes": _class_entries(self.classes, thresholds, predicted, kept),
        }
        on_rank_zero(lambda: write_json(marker, document))
        _report_pseudo_labels(self.classes, predicted, kept)
        return digest

    def _thresholds(self, target: CropSource, settings: PseudoLabelling) -> tuple[Tensor, Tensor]:
        """Return the predicted pixels and the confidence threshold of each class."""
        with WorkProgress("confidence on the target", len(target.samples)) as progress:
            histograms = collect_confidence(
                self.setup.objective.student,
                target,
                len(self.classes),
                self.setup.device,
                pass_callback(progress, self.stop, self.folder),
            )
        thresholds = histograms.thresholds(quantile=settings.quantile, cap=settings.cap)
        return histograms.counts.sum(1), thresholds

    def _write_labels(self, target: CropSource, thresholds: Tensor, labels: Path) -> Tensor:
        """Write the pseudo-labels and return the kept pixels of each class."""
        with WorkProgress("pseudo-labels of the target", len(target.samples)) as progress:
            return write_pseudo_labels(
                self.setup.objective.student,
                target,
                thresholds,
                labels,
                self.setup.device,
                pass_callback(progress, self.stop, self.folder),
            )


def _finished_digest(
    marker: Path, labels: Path, student: str, samples: Sequence[Sample]
) -> str | None:
    """Return the digest of pseudo-labels that this student has written; None to compute them."""
    stored = on_rank_zero(lambda: _read_marker(marker))
    if stored.get("student") != student:
        return None
    digest = pseudo_labels_digest(labels, samples)
    if all_ranks(digest is not None and digest == stored.get("digest")):
        return digest
    log.warning("%s: pseudo-labels are missing or changed; computing them again", labels)
    return None


def _class_entries(
    classes: ClassSpace, thresholds: Tensor, predicted: Tensor, kept: Tensor
) -> dict[str, dict[str, float]]:
    by_class = zip(
        classes.names, thresholds.tolist(), predicted.tolist(), kept.tolist(), strict=True
    )
    return {
        name: {"threshold": threshold, "predicted_pixels": count, "kept_pixels": kept_pixels}
        for name, threshold, count, kept_pixels in by_class
    }


def _report_pseudo_labels(classes: ClassSpace, predicted: Tensor, kept: Tensor) -> None:
    share = float(kept.sum()) / max(1, int(predicted.sum()))
    log.info("%.1f %% of the target pixels have a pseudo-label", 100 * share)
    unpredicted = [
        name for name, count in zip(classes.names, predicted.tolist(), strict=True) if not count
    ]
    if unpredicted:
        log.warning(
            "never predicted on the target, so without pseudo-labels: %s", ", ".join(unpredicted)
        )


def pass_callback(
    progress: WorkProgress, stop: StopSignal, folder: Path, *, divided: bool = True
) -> Callable[[int, int], None]:
    """Return a callback for a pass over images: it updates the bar and stops at a signal.

    Args:
        progress: Progress bar.
        stop: Signal state.
        folder: Run folder.
        divided: The images are divided among ranks; otherwise each rank processes all of them.
    """

    def on_image(done: int, total: int) -> None:
        ranks = world_size() if divided else 1
        progress.update(min(done * ranks, total))
        # collective: call it only while every rank has images; some have one more
        if done <= total // ranks and stop.stop_requested():
            assert stop.number is not None
            raise Interrupted(
                f"stopped between two parts of the run; continue with --resume {folder}",
                stop.number,
            )

    return on_image


def _network_digest(network: nn.Module) -> str:
    """Return a digest of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _read_marker(marker: Path) -> dict[str, object]:
    try:
        document = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def adapt_batch_norm(
    recipe: Recipe, setup: TrainingSetup, target: PreparedDataset, stop: StopSignal, folder: Path
) -> None:
    """Give student and teacher the batch-norm statistics of unlabelled target images.

    The result depends only on the weights and the images. A run that is killed here repeats the
    pass from its last checkpoint, with the same result.

    Args:
        recipe: Sets the number of images.
        setup: The trained setup.
        target: Unlabelled images.
        stop: Ends the pass after a signal.
        folder: Run folder.

    Raises:
        Interrupted: A signal came; the checkpoint from before the pass remains valid.
    """
    crops = build_crop_source(recipe.target, target, labelled=False)
    indices = evenly_spaced_indices(len(crops.samples), recipe.method.target_statistics)
    samples = [crops.samples[index] for index in indices]
    objective = setup.objective
    networks = [objective.student]
    if isinstance(objective, SelfTraining):
        networks.append(objective.teacher.network)
    with WorkProgress("statistics of the target", len(samples)) as progress:
        adapt_batch_norms(
            networks,
            crops,
            samples,
            batch_size=recipe.batch.target,
            device=setup.device,
            on_progress=pass_callback(progress, stop, folder, divided=False),
        )
    objective.train()
    log.info("batch norm uses the statistics of %d images of %s", len(samples), target.name)
