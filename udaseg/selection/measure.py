"""Compute the criteria of `udaseg select` for one candidate."""

import math
from collections.abc import Collection
from functools import partial

import numpy as np
import torch
from torch import Tensor

from udaseg.data.labels.classes import ClassSpace
from udaseg.display.progress import WorkProgress
from udaseg.errors import CheckpointError, NotFiniteError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import confusion_matrix
from udaseg.inference import trained_model
from udaseg.inference.labels import labels_from_logits, refuse_not_finite
from udaseg.inference.pipeline import InferenceOptions
from udaseg.inference.sizes import network_input_size
from udaseg.inference.trained_model import Model
from udaseg.inference.windows import predict_logits
from udaseg.recipe.methods import warm_up_steps
from udaseg.selection import criteria as measures
from udaseg.selection.candidates import Candidate, EvaluationSets
from udaseg.selection.images import ImageSet, network_input

_PIXELS_PER_IMAGE = 2048
_COLLAPSE_SHARE = 0.99
_ALL_CRITERIA = tuple(criterion.name for criterion in measures.CRITERIA)


def compute_criteria(
    candidate: Candidate,
    model: Model,
    sets: EvaluationSets,
    *,
    device: str,
    criteria: Collection[str] = _ALL_CRITERIA,
) -> None:
    """Compute the criteria of one candidate, and its oracle score if labels are open.

    Args:
        candidate: Receives the values; None for a criterion that cannot be computed.
        model: The network of the candidate.
        sets: Images to evaluate it on.
        device: Device of the teacher.
        criteria: Names of the criteria; passes that only other criteria need are skipped.
    """
    values, predicted = _criteria_on_target(candidate, model, sets, device, criteria)
    candidate.shares = _by_name(predicted, model.classes)
    candidate.collapsed = max(candidate.shares.values()) > _COLLAPSE_SHARE
    if sets.source is not None:
        if "source" in criteria:
            matrix = _confusion(model, sets.source)
            values["source"] = matrix.mean_iou()
            ious = zip(model.classes.names, matrix.iou().tolist(), strict=True)
            candidate.source_iou = {name: iou for name, iou in ious if not math.isnan(iou)}
        prior = _source_prior(sets.source, model.classes)
        if bool(prior.any()):
            values["drift"] = measures.prior_drift(predicted, prior)
    candidate.values = dict.fromkeys(_ALL_CRITERIA) | values
    if sets.labelled is not None:
        candidate.oracle = _confusion(model, sets.labelled).mean_iou()


def _criteria_on_target(
    candidate: Candidate,
    model: Model,
    sets: EvaluationSets,
    device: str,
    requested: Collection[str],
) -> tuple[dict[str, float | None], Tensor]:
    """Return the criteria from unlabelled images, and the (K,) predicted pixels of each class."""
    teacher = _load_teacher(candidate, model, device) if "teacher" in requested else None
    dataset, classes = sets.target.dataset, len(model.classes)
    to_labels = partial(labels_from_logits, align_corners=model.recipe.model.align_corners)
    pixels = []
    agreement = {"flip": ConfusionMatrix(classes), "teacher": ConfusionMatrix(classes)}
    predicted = np.zeros(classes, np.int64)
    with WorkProgress(f"select {candidate.name}", len(sets.target.samples)) as progress:
        for index, sample in enumerate(sets.target.samples):
            image = network_input(model, dataset.read_image(sample))
            size = (image.shape[-2], image.shape[-1])
            logits = predict_logits(model.segmenter, image)
            refuse_not_finite(logits, str(candidate.checkpoint))
            probabilities = logits.softmax(0)
            pixels.append(measures.sample_pixels(probabilities, _PIXELS_PER_IMAGE, index).cpu())
            labels, _ = to_labels(logits, size)
            predicted += np.bincount(labels.ravel(), minlength=classes)
            if "flip" in requested:
                mirrored = predict_logits(model.segmenter, image.flip(-1)).flip(-1)
                agreement["flip"].update(to_labels(mirrored, size)[0], labels)
            if teacher is not None:
                teacher_logits = predict_logits(teacher.segmenter, image)
                refuse_not_finite(teacher_logits, f"{candidate.checkpoint}, teacher")
                agreement["teacher"].update(to_labels(teacher_logits, size)[0], labels)
            progress.advance()
    values: dict[str, float | None] = {
        "entropy": measures.mean_entropy(torch.cat(pixels)),
        "infomax": measures.mutual_information(torch.cat(pixels)),
    }
    for name, matrix in agreement.items():
        if matrix.table.any():
            values[name] = measures.mean_iou_of_labellings(torch.from_numpy(matrix.counts))
    return values, torch.from_numpy(predicted)


def _load_teacher(candidate: Candidate, student: Model, device: str) -> Model | None:
    """Return the teacher of a checkpoint; None if it has none, or one that is the student."""
    warm_up = warm_up_steps(student.recipe.method, student.recipe.steps)
    if warm_up and student.step <= warm_up:
        return None
    try:
        return trained_model.load(candidate.checkpoint, weights="teacher", device=device)
    except NotFiniteError:
        raise
    except CheckpointError:  # the checkpoint was read before, so only the teacher can be missing
        return None


def _confusion(model: Model, images: ImageSet) -> ConfusionMatrix:
    size, resampling = network_input_size(model.recipe), model.recipe.target.resampling
    options = InferenceOptions(resize=size, keep_shape=True, resampling=resampling)
    return confusion_matrix(
        model.segmenter, model.classes, images.dataset, images.split, options, device=model.device
    )


def source_shares(source: ImageSet, classes: ClassSpace) -> dict[str, float]:
    """Return the share of each class of a network in the source's labels; empty if not counted."""
    counts = _source_prior(source, classes)
    return _by_name(counts, classes) if bool(counts.any()) else {}


def _by_name(counts: Tensor, classes: ClassSpace) -> dict[str, float]:
    return dict(zip(classes.names, (counts / counts.sum()).tolist(), strict=True))


def _source_prior(source: ImageSet, classes: ClassSpace) -> Tensor:
    """Return the (K,) source pixels of each class of the network; zeros if not counted."""
    counts = torch.zeros(len(classes), dtype=torch.int64)
    if source.dataset.classes is not None:
        train_ids = source.dataset.classes.train_ids_in(classes)
        for sample in source.samples:
            for train_id, pixels in zip(train_ids, sample.class_pixels, strict=False):
                if train_id < len(classes):
                    counts[train_id] += pixels
    return counts
