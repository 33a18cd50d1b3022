"""Prepare a stage of a run: initial prototypes, thresholds and pseudo-labels.

All of it depends only on the student at the end of the previous stage, so a run that is killed
here repeats the same passes; complete pseudo-labels are kept.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from udaseg.data.datasets.index import PreparedDataset, Sample, evenly_spaced_indices
from udaseg.data.loading.cache import open_cache
from udaseg.data.loading.pseudo_labels import pseudo_labels_digest, write_pseudo_label
from udaseg.display.progress import LazyProgress, WorkProgress
from udaseg.distributed import all_ranks, all_reduce_sum, on_rank_zero, rank, world_size
from udaseg.errors import CheckpointError, DataError, Interrupted
from udaseg.evaluation.given_labels import GivenLabels, find_given_labels, read_given_labels
from udaseg.files import read_json, write_json
from udaseg.methods import passes
from udaseg.methods.augmentation import generator_for
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.objectives.alignment import PrototypeAlignment
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.start import segmenter_as_given
from udaseg.methods.target_statistics import adapt_batch_norms
from udaseg.models.weights import state_digest
from udaseg.recipe.load import expand_path
from udaseg.recipe.methods import PseudoLabelling
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import Stage, stages_of
from udaseg.runs.checkpoint import Checkpoint, newest_checkpoint
from udaseg.signals import StopSignal
from udaseg.training.setup import (
    RunContext,
    RunData,
    TrainingSetup,
    build_crop_source,
    build_setup,
)

log = logging.getLogger(__name__)
_CHECKPOINT_FOLDER = "checkpoint"
_LABEL_FOLDER = "pseudo_labels"
_MARKER = "pseudo_labels.json"


def stage_checkpoint_folder(folder: Path, stage: Stage) -> Path:
    """Return the folder of the checkpoint that ended a stage."""
    assert stage.folder is not None
    return folder / stage.folder / _CHECKPOINT_FOLDER


def _checkpoint_before(folder: Path, recipe: Recipe, stage: Stage) -> Checkpoint:
    """Return the checkpoint that ended the stage before `stage`."""
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
    context: RunContext, stage: Stage, *, is_new: bool, stop: StopSignal
) -> tuple[TrainingSetup, dict[str, str]]:
    """Return the training setup of a stage after the first, and digests of its files.

    If no step of the stage was done, prototypes are computed; otherwise a checkpoint restores them.
    """
    recipe, data, folder = context.recipe, context.data, context.folder
    previous = _checkpoint_before(folder, recipe, stage)
    labels = label_folder(folder, stage)
    setup = build_setup(
        recipe, data.source, data.target, init=previous, stage=stage, pseudo_labels=labels
    )
    digests = make_labels(context, setup, stop)
    if is_new and isinstance(setup.objective, PrototypeAlignment):
        _initialise_prototypes(context, setup, setup.objective, stop)
    return setup, digests


def _initialise_prototypes(
    context: RunContext, setup: TrainingSetup, objective: PrototypeAlignment, stop: StopSignal
) -> None:
    """Set the prototypes to the mean embeddings of correctly predicted source pixels."""
    source = setup.batches.source
    assert source is not None
    classes = len(context.data.classes)
    with _pass_over("prototypes of the source", len(source.samples), stop, context) as on_image:
        means, has_prototype = passes.collect_prototypes(
            objective.student, source, classes, setup.device, on_image
        )
    objective.contrast.prototypes.initialise(means, has_prototype)
    if not bool(has_prototype.all()):
        log.warning(
            "%d of %d classes have no correct prediction on the source; they get a prototype with "
            "their first one",
            int((~has_prototype).sum()),
            classes,
        )


def make_anchors(context: RunContext, setup: TrainingSetup, stop: StopSignal) -> None:
    """Set the frozen prototypes of a new run, if it has any, by a pass over source images."""
    terms = getattr(setup.objective, "regularizers", {})
    contrasts = [term for term in terms.values() if isinstance(term, AnchorContrast)]
    source, classes, recipe = setup.batches.source, context.data.classes, context.recipe
    if not contrasts or source is None:
        return
    network = segmenter_as_given(recipe).to(setup.device)
    order = torch.randperm(len(source.samples), generator=generator_for(recipe.seed, "anchors"))
    chosen = order[: contrasts[0].spec.anchor_images].tolist()
    samples = [source.samples[number] for number in sorted(chosen)]
    with _pass_over("anchors of the source", len(samples), stop, context) as on_image:
        means, seen = passes.collect_anchors(
            network, source, samples, len(classes), setup.device, on_image
        )
    contrasts[0].prototypes.initialise(means, seen)
    if without := [name for name, has in zip(classes.names, seen.tolist(), strict=True) if not has]:
        log.warning(
            "not in the %d source images of method.prototypes.anchor_images, so without an anchor: "
            "%s",
            len(samples),
            ", ".join(without),
        )


def label_folder(folder: Path, stage: Stage) -> Path | None:
    """Return the folder of a stage's pseudo-labels in a run folder; None if it uses none."""
    if stage.pseudo_labels is None:
        return None
    assert stage.folder is not None
    return folder / stage.folder / _LABEL_FOLDER


def refuse_missing_labels(recipe: Recipe, data: RunData) -> None:
    """Refuse a folder of pseudo-labels that a stage could not use, before the run begins.

    Its files are read once: a stage may begin days later.
    """
    for stage in stages_of(recipe):
        settings = stage.pseudo_labels
        if settings is not None and settings.folder is not None:
            on_rank_zero(functools.partial(_read_once, settings, recipe, data))


def _read_once(settings: PseudoLabelling, recipe: Recipe, data: RunData) -> None:
    assert data.target is not None
    given, samples = _given_labels(settings, recipe, data), data.target.split(recipe.target.split)
    with LazyProgress(f"read {settings.folder}", "files") as on_progress:
        pixels = read_given_labels(
            given, samples, len(data.classes), lambda done: on_progress(done, len(samples))
        )
    _refuse_no_labels(settings, pixels.tolist(), data.classes.names)


def make_labels(context: RunContext, setup: TrainingSetup, stop: StopSignal) -> dict[str, str]:
    """Return the digest of a stage's pseudo-labels; make them unless they exist unchanged."""
    labels, settings = label_folder(context.folder, setup.stage), setup.stage.pseudo_labels
    if labels is None or settings is None:
        return {}
    crops, student = setup.batches.target, setup.objective.student
    assert crops is not None
    marker, is_given = labels.parent / _MARKER, settings.folder is not None
    origin = f"folder {settings.folder}" if is_given else state_digest(student)
    if (digest := _finished_digest(marker, labels, origin, crops.samples)) is not None:
        return {_LABEL_FOLDER: digest}
    make = _copy_labels if is_given else _label_target
    entries = make(context, setup, labels, stop)
    digest = pseudo_labels_digest(labels, crops.samples)
    if digest is None:
        raise DataError(f"{labels}: pseudo-labels were deleted while they were written")
    facts = {"student": origin, "digest": digest, "images": len(crops.samples)}
    on_rank_zero(lambda: write_json(marker, {**facts, "classes": entries}))
    return {_LABEL_FOLDER: digest}


def _label_target(
    context: RunContext, setup: TrainingSetup, labels: Path, stop: StopSignal
) -> dict[str, dict[str, float]]:
    """Write the student's labels of the target; return threshold and pixels of each class."""
    classes = context.data.classes
    crops, settings = setup.batches.target, setup.stage.pseudo_labels
    assert crops is not None and settings is not None
    assert settings.quantile is not None and settings.cap is not None
    student, num_images = setup.objective.student, len(crops.samples)
    crops = replace(crops, scale=(1.0, 1.0))
    if (size := settings.resize) is not None:
        cache = open_cache(
            crops.dataset, crops.split, size, labelled=False, resampling=crops.resampling
        )
        crops = replace(crops, resize=size, cache=cache)
    resized = size is not None
    with _pass_over("confidence on the target", num_images, stop, context) as on_image:
        histogram = passes.collect_confidence(
            student, crops, len(classes), setup.device, on_image, at_file_size=resized
        )
    thresholds = passes.confidence_thresholds(
        histogram, quantile=settings.quantile, cap=settings.cap, rank=settings.rank
    )
    with _pass_over("pseudo-labels of the target", num_images, stop, context) as on_image:
        kept = passes.write_pseudo_labels(
            student, crops, thresholds, labels, setup.device, on_image, at_file_size=resized
        )
    predicted = histogram.sum(1)
    rows = zip(classes.names, thresholds.tolist(), predicted.tolist(), kept.tolist(), strict=True)
    entries = {
        name: {"threshold": threshold, "predicted_pixels": count, "kept_pixels": kept_count}
        for name, threshold, count, kept_count in rows
    }
    share = float(kept.sum()) / max(1, int(predicted.sum()))
    log.info("%.1f %% of the target pixels have a pseudo-label", 100 * share)
    if unpredicted := [name for name, entry in entries.items() if not entry["predicted_pixels"]]:
        log.warning(
            "never predicted on the target, so without pseudo-labels: %s", ", ".join(unpredicted)
        )
    return entries


def _copy_labels(
    context: RunContext, setup: TrainingSetup, labels: Path, stop: StopSignal
) -> dict[str, dict[str, float]]:
    """Write the labels of a folder as those of the run; return the pixels of each class."""
    crops, settings, classes = setup.batches.target, setup.stage.pseudo_labels, context.data.classes
    assert crops is not None and settings is not None
    given, total = _given_labels(settings, context.recipe, context.data), len(crops.samples)
    log.info("%d of %d images have a pseudo-label in %s", len(given.files), total, settings.folder)
    own = crops.samples[rank() :: world_size()]
    with _pass_over("pseudo-labels of the folder", total, stop, context) as on_image:
        pixels = read_given_labels(
            given,
            own,
            len(classes),
            lambda done: on_image(done, total),
            lambda sample, mask: write_pseudo_label(labels, sample, mask),
        )
    kept = all_reduce_sum(torch.from_numpy(pixels)).tolist()
    _refuse_no_labels(settings, kept, classes.names)
    share = 100 * sum(kept[:-1]) / max(1, sum(kept))
    log.info("%.1f %% of the target pixels have a pseudo-label", share)
    if without := [name for name, count in zip(classes.names, kept, strict=False) if not count]:
        log.warning("without pseudo-labels: %s", ", ".join(without))
    return {name: {"kept_pixels": count} for name, count in zip(classes.names, kept, strict=False)}


def _refuse_no_labels(settings: PseudoLabelling, kept: Sequence[int], names: Sequence[str]) -> None:
    if not any(kept[:-1]):
        raise DataError(
            f"{settings.folder}: no pixel has a class of the network ({', '.join(names)}), so "
            "there is nothing to train on"
        )


def _given_labels(settings: PseudoLabelling, recipe: Recipe, data: RunData) -> GivenLabels:
    assert settings.folder is not None and data.target is not None
    return find_given_labels(
        Path(expand_path(settings.folder)),
        settings.ids,
        data.target,
        recipe.target.split,
        data.classes,
    )


def _finished_digest(
    marker: Path, labels: Path, origin: str, samples: Sequence[Sample]
) -> str | None:
    """Return the digest of pseudo-labels of this origin; None to make them."""
    stored = on_rank_zero(lambda: read_json(marker))
    if stored.get("student") != origin:
        return None
    digest = pseudo_labels_digest(labels, samples)
    if all_ranks(digest is not None and digest == stored.get("digest")):
        return digest
    log.warning("%s: pseudo-labels are missing or changed; making them again", labels)
    return None


@contextlib.contextmanager
def _pass_over(
    title: str, count: int, stop: StopSignal, context: RunContext, *, divided: bool = True
) -> Iterator[passes.ProgressCallback]:
    """Show a pass over images; its callback updates the bar, and stops the pass at a signal.

    If the images are not divided among ranks, each rank processes all of them.
    """
    ranks = world_size() if divided else 1
    with WorkProgress(title, count) as progress:

        def on_image(done: int, total: int) -> None:
            context.refuse_lost_folder()
            progress.update(min(done * ranks, total))
            # collective: call it only while every rank has images; some have one more
            if done <= total // ranks and stop.stop_requested():
                assert stop.number is not None
                raise Interrupted(
                    "stopped between two parts of the run; continue with --resume "
                    f"{context.folder}",
                    stop.number,
                )

        yield on_image


def adapt_batch_norm(
    context: RunContext, setup: TrainingSetup, target: PreparedDataset, stop: StopSignal
) -> None:
    """Give student and teacher the batch-norm statistics of unlabelled target images.

    The result depends only on the weights and the images. A run that is killed here repeats the
    pass from its last checkpoint, with the same result.
    """
    recipe = context.recipe
    crops = build_crop_source(recipe.target, target, labelled=False)
    indices = evenly_spaced_indices(len(crops.samples), recipe.method.target_statistics)
    samples = [crops.samples[index] for index in indices]
    objective = setup.objective
    networks = [objective.student]
    if isinstance(objective, SelfTraining):
        networks.append(objective.teacher.network)
    count = len(samples)
    with _pass_over("statistics of the target", count, stop, context, divided=False) as on_image:
        adapt_batch_norms(
            networks,
            crops,
            samples,
            batch_size=recipe.batch.target,
            device=setup.device,
            on_progress=on_image,
        )
    objective.train()
    log.info("batch norm uses the statistics of %d images of %s", count, target.name)
