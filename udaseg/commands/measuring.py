"""The criteria of `udaseg select` for one candidate: what its network says of the images."""

from collections.abc import Collection

import torch
from torch import Tensor

from udaseg import build
from udaseg.commands.candidates import Candidate, Sets
from udaseg.commands.scoring import score, trained_size
from udaseg.data import ClassSpace, PreparedDataset, read_image, resize_image
from udaseg.errors import CheckpointError
from udaseg.evaluation import (
    CRITERIA,
    agreement,
    information,
    joint_counts,
    labels_from_logits,
    mean_entropy,
    neighbourhood_density,
    predict_logits,
    prior_drift,
    sample_pixels,
    whole_size,
)
from udaseg.reporting import WorkProgress

_PIXELS_EACH = 2048
_PIXELS_SND = 4096
_ONE_CLASS = 0.99
_ALL = frozenset(criterion.name for criterion in CRITERIA)


def measure(
    candidate: Candidate,
    loaded: build.LoadedRun,
    sets: Sets,
    *,
    device: str,
    wanted: Collection[str] = _ALL,
) -> None:
    """Compute the criteria of one candidate, and its oracle score where labels were opened.

    Args:
        candidate: Gets the values; None for a criterion that cannot be computed.
        loaded: Its network.
        sets: What it is looked at with.
        device: Of its teacher.
        wanted: Criteria; passes that only others need are not made.
    """
    values, predicted = _on_target(candidate, loaded, sets, device=device, wanted=wanted)
    candidate.collapsed = float(predicted.max() / predicted.sum()) > _ONE_CLASS
    size = trained_size(loaded.recipe)
    values |= {"source": None, "drift": None}
    if sets.source is not None:
        if "source" in wanted:
            values["source"] = score(
                *(loaded.segmenter, loaded.classes, sets.source, sets.source_split),
                resize=size,
                keep_shape=True,
                device=loaded.device,
            ).mean_iou()
        prior = _prior(sets.source, sets.source_split, loaded.classes)
        if prior is not None:
            values["drift"] = prior_drift(predicted, prior)
    candidate.values = {criterion.name: values[criterion.name] for criterion in CRITERIA}
    if sets.labelled is not None:
        candidate.oracle = score(
            *(loaded.segmenter, loaded.classes, sets.labelled, sets.labelled_split),
            resize=size,
            keep_shape=True,
            device=loaded.device,
        ).mean_iou()


def _on_target(
    candidate: Candidate,
    loaded: build.LoadedRun,
    sets: Sets,
    *,
    device: str,
    wanted: Collection[str],
) -> tuple[dict[str, float | None], Tensor]:
    """Return what unlabelled images tell of a network, and the (K,) pixels it gives each class."""
    teacher = _teacher(candidate, device) if "teacher" in wanted else None
    samples = sets.target.split(sets.target_split)
    classes, each = len(loaded.classes), max(1, _PIXELS_SND // len(samples))
    rows, few = [], []
    flips, teachers = torch.zeros(2, classes, classes, dtype=torch.int64)
    predicted = torch.zeros(classes, dtype=torch.int64)
    with WorkProgress(f"select {candidate.name}", len(samples)) as progress:
        for number, sample in enumerate(samples):
            stored = read_image(sets.target.image_path(sample))
            seen = whole_size((stored.shape[0], stored.shape[1]), trained_size(loaded.recipe))
            image = torch.from_numpy(resize_image(stored, seen)).to(loaded.device)
            image = image.permute(2, 0, 1)[None].float() / 255
            logits = predict_logits(loaded.segmenter, image)
            taken = sample_pixels(logits.softmax(0), _PIXELS_EACH, seed=number).cpu()
            rows.append(taken)
            few.append(taken[:each])
            labels = _labels(logits, seen)
            predicted += torch.bincount(labels.flatten().long(), minlength=classes)
            if "flip" in wanted:
                mirrored = _labels(predict_logits(loaded.segmenter, image.flip(-1)).flip(-1), seen)
                flips += joint_counts(labels, mirrored, classes)
            if teacher is not None:
                theirs = _labels(predict_logits(teacher.segmenter, image), seen)
                teachers += joint_counts(labels, theirs, classes)
            progress.advance()
    pixels = torch.cat(rows)
    values: dict[str, float | None] = {
        "entropy": mean_entropy(pixels),
        "infomax": information(pixels),
        "snd": neighbourhood_density(torch.cat(few)) if "snd" in wanted else None,
        "flip": agreement(flips) if "flip" in wanted else None,
        "teacher": None if teacher is None else agreement(teachers),
    }
    return values, predicted


def _labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (H, W) labels at the size that the network saw."""
    return torch.from_numpy(labels_from_logits(logits, size)[0])


def _teacher(candidate: Candidate, device: str) -> build.LoadedRun | None:
    """Return the candidate's teacher; None where its checkpoint has none."""
    try:
        return build.load_run(candidate.checkpoint, weights="teacher", device=device)
    except CheckpointError:  # it was read a moment ago, so what is missing is the teacher
        return None


def _prior(source: PreparedDataset, split: str, classes: ClassSpace) -> Tensor | None:
    """Return (K,) pixels of each class of the network in the source's labels; None if uncounted."""
    if source.classes is None:
        return None
    place = source.classes.train_ids_in(classes)
    counts = torch.zeros(len(classes), dtype=torch.int64)
    for sample in source.split(split):
        for train_id, pixels in zip(place, sample.pixels, strict=False):
            if train_id < len(classes):
                counts[train_id] += pixels
    return counts if bool(counts.any()) else None
