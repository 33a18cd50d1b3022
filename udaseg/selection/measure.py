"""Compute the criteria of `udaseg select` for one candidate."""

from collections.abc import Collection

import torch
from torch import Tensor

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.files.images import read_image
from udaseg.data.labels.classes import ClassSpace
from udaseg.display.progress import WorkProgress
from udaseg.errors import CheckpointError
from udaseg.evaluation.evaluate import score_dataset
from udaseg.inference import trained_model
from udaseg.inference.labels import labels_from_logits
from udaseg.inference.sizes import network_input_size
from udaseg.inference.trained_model import Model
from udaseg.inference.windows import predict_logits
from udaseg.selection.candidates import Candidate, EvaluationSets
from udaseg.selection.criteria import (
    CRITERIA,
    joint_label_counts,
    mean_entropy,
    mean_iou_of_labellings,
    mutual_information,
    neighbourhood_density,
    prior_drift,
    sample_pixels,
)
from udaseg.selection.images import network_input

_PIXELS_PER_IMAGE = 2048
_PIXELS_FOR_DENSITY = 4096
_COLLAPSE_SHARE = 0.99
_ALL_CRITERIA = frozenset(criterion.name for criterion in CRITERIA)


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
    values, predicted = _criteria_on_target(
        candidate, model, sets, device=device, requested=criteria
    )
    candidate.collapsed = float(predicted.max() / predicted.sum()) > _COLLAPSE_SHARE
    size = network_input_size(model.recipe)
    values |= {"source": None, "drift": None}
    if sets.source is not None:
        if "source" in criteria:
            values["source"] = score_dataset(
                model.segmenter,
                model.classes,
                sets.source,
                sets.source_split,
                resize=size,
                keep_shape=True,
                device=model.device,
            ).mean_iou()
        prior = _source_prior(sets.source, sets.source_split, model.classes)
        if prior is not None:
            values["drift"] = prior_drift(predicted, prior)
    candidate.values = {criterion.name: values[criterion.name] for criterion in CRITERIA}
    if sets.labelled is not None:
        candidate.oracle = score_dataset(
            model.segmenter,
            model.classes,
            sets.labelled,
            sets.labelled_split,
            resize=size,
            keep_shape=True,
            device=model.device,
        ).mean_iou()


def _criteria_on_target(
    candidate: Candidate,
    model: Model,
    sets: EvaluationSets,
    *,
    device: str,
    requested: Collection[str],
) -> tuple[dict[str, float | None], Tensor]:
    """Return the criteria from unlabelled images, and the (K,) predicted pixels of each class."""
    teacher = _load_teacher(candidate, device) if "teacher" in requested else None
    samples = sets.target.split(sets.target_split)
    classes, pixels_per_image = len(model.classes), max(1, _PIXELS_FOR_DENSITY // len(samples))
    rows, density_rows = [], []
    flip_counts, teacher_counts = torch.zeros(2, classes, classes, dtype=torch.int64)
    predicted = torch.zeros(classes, dtype=torch.int64)
    with WorkProgress(f"select {candidate.name}", len(samples)) as progress:
        for index, sample in enumerate(samples):
            image = network_input(model, read_image(sets.target.image_path(sample)))
            input_size = (image.shape[-2], image.shape[-1])
            logits = predict_logits(model.segmenter, image)
            sampled = sample_pixels(logits.softmax(0), _PIXELS_PER_IMAGE, seed=index).cpu()
            rows.append(sampled)
            density_rows.append(sampled[:pixels_per_image])
            labels = _labels_at_input_size(logits, input_size)
            predicted += torch.bincount(labels.flatten().long(), minlength=classes)
            if "flip" in requested:
                mirrored = _labels_at_input_size(
                    predict_logits(model.segmenter, image.flip(-1)).flip(-1), input_size
                )
                flip_counts += joint_label_counts(labels, mirrored, classes)
            if teacher is not None:
                teacher_labels = _labels_at_input_size(
                    predict_logits(teacher.segmenter, image), input_size
                )
                teacher_counts += joint_label_counts(labels, teacher_labels, classes)
            progress.advance()
    pixels = torch.cat(rows)
    values: dict[str, float | None] = {
        "entropy": mean_entropy(pixels),
        "infomax": mutual_information(pixels),
        "snd": neighbourhood_density(torch.cat(density_rows)) if "snd" in requested else None,
        "flip": mean_iou_of_labellings(flip_counts) if "flip" in requested else None,
        "teacher": None if teacher is None else mean_iou_of_labellings(teacher_counts),
    }
    return values, predicted


def _labels_at_input_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (H, W) labels at the network's input size."""
    return torch.from_numpy(labels_from_logits(logits, size)[0])


def _load_teacher(candidate: Candidate, device: str) -> Model | None:
    """Return the candidate's teacher; None if its checkpoint has none."""
    try:
        return trained_model.load(candidate.checkpoint, weights="teacher", device=device)
    except CheckpointError:  # the checkpoint was read before, so only the teacher can be missing
        return None


def _source_prior(source: PreparedDataset, split: str, classes: ClassSpace) -> Tensor | None:
    """Return the (K,) source pixels of each class of the network; None if not counted."""
    if source.classes is None:
        return None
    train_ids = source.classes.train_ids_in(classes)
    counts = torch.zeros(len(classes), dtype=torch.int64)
    for sample in source.split(split):
        for train_id, pixels in zip(train_ids, sample.class_pixels, strict=False):
            if train_id < len(classes):
                counts[train_id] += pixels
    return counts if bool(counts.any()) else None
