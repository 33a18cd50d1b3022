"""Score networks without target labels: criteria from tensors to numbers, combined by mean rank.

A criterion uses a network's predictions for target pixels, as a matrix of probabilities (N, K), or
the agreement of two predictions for the same pixels. No criterion is reliable alone: entropy
prefers a network that predicts road everywhere, and source scores ignore the target. `mean_ranks`
combines them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1024
_TINY = 1e-12


@dataclass(frozen=True)
class Criterion:
    """Direction and meaning of a criterion's values.

    Attributes:
        name: Key in tables and files.
        better: Direction in which values improve.
        meaning: One-line description.
        votes: Counts for the mean rank.
    """

    name: str
    better: Literal["lower", "higher"]
    meaning: str
    votes: bool = True


CRITERIA = (
    Criterion("entropy", "lower", "mean entropy of the predictions; 1 is a uniform guess"),
    Criterion("infomax", "higher", "confident per pixel, yet many classes over all pixels"),
    # on both pairs studied, its ranking of checkpoints opposes that of the labels (BENCHMARKS.md)
    Criterion(
        "snd",
        "higher",
        "soft neighbourhood density: pixels have many near neighbours",
        votes=False,
    ),
    Criterion("teacher", "higher", "mIoU between the student's labels and the teacher's"),
    Criterion("flip", "higher", "mIoU between the labels of an image and of its mirror image"),
    Criterion("source", "higher", "mIoU on labelled source images"),
    Criterion("drift", "lower", "bits between the predicted class shares and the source's"),
)
"""The criteria that `udaseg select` computes; none needs target labels."""


def sample_pixels(probabilities: Tensor, count: int, seed: int) -> Tensor:
    """Return the probabilities of up to `count` random pixels, always the same for a seed.

    Args:
        probabilities: (K, H, W).
        count: Maximum number of pixels.
        seed: Random seed; networks with maps of equal size get the same pixels.

    Returns:
        (min(count, H * W), K) on the probabilities' device.
    """
    flat = probabilities.flatten(1).T
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(flat), generator=generator)[:count]
    return flat[chosen.to(flat.device)]


def mean_entropy(probabilities: Tensor) -> float:
    """Return the mean entropy of (N, K) probabilities over log K: 0 is certain, 1 a uniform guess.

    Reference: Morerio et al., Minimal-Entropy Correlation Alignment, 2018 (arXiv 1711.10288), who
    choose hyperparameters by the target's entropy. Differs: divided by log K.
    """
    return float(_entropy(probabilities).mean())


def mutual_information(probabilities: Tensor) -> float:
    """Return the information between pixels and classes over log K, in [0, 1]; higher is better.

    It is the entropy of the mean prediction minus the mean entropy, so it is high for confident
    predictions of different classes. A network that has collapsed to one class gets 0, whatever its
    entropy.

    Args:
        probabilities: (N, K).

    Reference: the information maximisation of SHOT, Liang et al. 2020 (arXiv 2002.08546), used as a
    score. Differs: divided by log K.
    """
    return float(_entropy(probabilities.double().mean(0, keepdim=True))[0]) - mean_entropy(
        probabilities
    )


def neighbourhood_density(probabilities: Tensor, *, temperature: float = 0.05) -> float:
    """Return the soft neighbourhood density of (N, K) predictions in nats; higher is better.

    Each pixel has a softmax over its similarities with all others. The mean entropy of these is the
    logarithm of the number of near neighbours. It is at most log(N - 1), so compare only values of
    equal N. Computed in chunks: memory is 1024 x N values.

    Args:
        probabilities: (N, K) with N of at least 2; a few thousand rows suffice.
        temperature: Of the softmax over similarities.

    Raises:
        ValueError: Fewer than two rows.

    Reference: Saito et al., Tune it the Right Way, ICCV 2021 (arXiv 2108.10860).
    """
    if len(probabilities) < 2:
        raise ValueError(f"neighbourhood density needs at least two rows, got {len(probabilities)}")
    unit = F.normalize(probabilities.float(), dim=1)
    total = 0.0
    for start in range(0, len(unit), _CHUNK):
        rows = unit[start : start + _CHUNK]
        similarity = rows @ unit.T / temperature
        diagonal = torch.arange(len(rows), device=unit.device)
        similarity[diagonal, diagonal + start] = -math.inf
        logs = similarity.log_softmax(1)
        # 0 log 0 counts as 0 for the pixel itself
        logs[diagonal, diagonal + start] = 0
        weights = logs.exp()
        weights[diagonal, diagonal + start] = 0
        total -= float((weights * logs).double().sum())
    return total / len(unit)


def joint_label_counts(first: Tensor, second: Tensor, num_classes: int) -> Tensor:
    """Return (K, K) int64 counts of pixels with class i in `first` and class j in `second`.

    Args:
        first: Labels of any shape, integers below `num_classes`.
        second: Labels of the same shape.
        num_classes: K.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"labels have different shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    pairs = first.reshape(-1).long() * num_classes + second.reshape(-1).long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def mean_iou_of_labellings(counts: Tensor) -> float:
    """Return the mean IoU between two label maps, from their (K, K) joint counts.

    Symmetric; classes that occur in neither map are left out. Unlike the share of equal pixels, it
    is not dominated by the road. NaN without pixels.
    """
    counts = counts.double()
    intersection = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - intersection
    occurs = union > 0
    return float((intersection[occurs] / union[occurs]).mean()) if bool(occurs.any()) else math.nan


def prior_drift(shares: Tensor, prior: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two class distributions in bits, in [0, 1].

    Args:
        shares: (K,) predictions on the target, as counts or shares.
        prior: (K,) labels of the source, as counts or shares.
    """
    first, second = (
        distribution.double() / distribution.double().sum() for distribution in (shares, prior)
    )
    mixture = (first + second) / 2
    divergences = [
        torch.where(
            distribution > 0,
            distribution * (distribution.clamp_min(_TINY) / mixture.clamp_min(_TINY)).log2(),
            0.0,
        )
        for distribution in (first, second)
    ]
    return max(0.0, float((divergences[0].sum() + divergences[1].sum()) / 2))


def ranks(values: Sequence[float], better: Literal["lower", "higher"]) -> list[float]:
    """Return the rank of each value, 1 is best; ties share their mean rank, NaN ranks last."""
    sign = 1.0 if better == "lower" else -1.0
    keys = [math.inf if math.isnan(value) else sign * value for value in values]
    return [
        sum(other < key for other in keys) + (1 + sum(other == key for other in keys)) / 2
        for key in keys
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation of two lists of ranks, 1 for the same order.

    Args:
        first: From `ranks`, where ties share their mean rank.
        second: Ranks of equal length.

    Returns:
        In [-1, 1]; NaN if all ranks of a list are equal.
    """
    pairs = torch.tensor([first, second], dtype=torch.float64)
    centred = pairs - pairs.mean(1, keepdim=True)
    spread = float(centred.norm(dim=1).prod())
    return float((centred[0] * centred[1]).sum()) / spread if spread > 0 else math.nan


def mean_ranks(columns: Mapping[str, Sequence[float | None]]) -> tuple[list[float], list[str]]:
    """Return each candidate's mean rank over the criteria, and the names of the criteria used.

    A criterion that is missing (None) for a candidate does not count, since ranks among some
    candidates are not comparable with ranks among all. Criteria with `votes=False` do not count
    either.

    Args:
        columns: Values of each criterion of `CRITERIA` by name, one per candidate.
    """
    criteria = {criterion.name: criterion for criterion in CRITERIA}
    ranks_by_name: dict[str, list[float]] = {}
    for name, values in columns.items():
        measured = [value for value in values if value is not None]
        if criteria[name].votes and measured and len(measured) == len(values):
            ranks_by_name[name] = ranks(measured, criteria[name].better)
    candidate_ranks = list(zip(*ranks_by_name.values(), strict=True))
    return [sum(row) / len(row) for row in candidate_ranks], list(ranks_by_name)


def _entropy(probabilities: Tensor) -> Tensor:
    """Return (N,) entropies of (N, K) probabilities over log K."""
    spread: Tensor = torch.special.entr(probabilities.double()).sum(1)
    return spread / math.log(max(2, probabilities.shape[1]))
