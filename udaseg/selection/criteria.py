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
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True)
class Criterion:
    """Direction in which the values of a criterion improve, and their meaning."""

    name: str
    better: Literal["lower", "higher"]
    meaning: str


CRITERIA = (
    Criterion("entropy", "lower", "mean entropy of the predictions; 1 is a uniform guess"),
    Criterion("infomax", "higher", "confident per pixel, yet many classes over all pixels"),
    Criterion("teacher", "higher", "mIoU between the student's labels and the teacher's"),
    Criterion("flip", "higher", "mIoU between the labels of an image and of its mirror image"),
    Criterion("source", "higher", "mIoU on labelled source images"),
    Criterion("drift", "lower", "bits between the predicted class shares and the source's"),
)
"""The criteria that `udaseg select` computes; none needs target labels."""


def sample_pixels(probabilities: Tensor, count: int, seed: int) -> Tensor:
    """Return the (N, K) probabilities of up to `count` random pixels of a (K, H, W) map.

    For a seed, all maps of equal size give the same pixels.
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
    """Return the information between pixels and classes of (N, K) probabilities over log K.

    It is the entropy of the mean prediction minus the mean entropy, so it is high for confident
    predictions of different classes. A network that has collapsed to one class gets 0, whatever its
    entropy.

    Reference: the information maximisation of SHOT, Liang et al. 2020 (arXiv 2002.08546), used as a
    score. Differs: divided by log K.
    """
    mean_prediction = probabilities.double().mean(0, keepdim=True)
    return float(_entropy(mean_prediction)[0]) - mean_entropy(probabilities)


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
    """Return the Jensen-Shannon divergence of two class distributions (K,) in bits, in [0, 1].

    Args:
        shares: Predictions on the target, as counts or shares.
        prior: Labels of the source, as counts or shares.
    """
    counts = torch.stack([shares.double(), prior.double()])
    pair = counts / counts.sum(1, keepdim=True)
    mixture = pair.mean(0)
    terms = pair * (pair.clamp_min(_TINY) / mixture.clamp_min(_TINY)).log2()
    divergences = torch.where(pair > 0, terms, 0.0).sum(1)
    return max(0.0, float(divergences.mean()))


def ranks(values: Sequence[float], better: Literal["lower", "higher"]) -> list[float]:
    """Return the rank of each value, 1 is best; ties share their mean rank, NaN ranks last."""
    sign = 1.0 if better == "lower" else -1.0
    keys = [math.inf if math.isnan(value) else sign * value for value in values]
    return [
        sum(other < key for other in keys) + (1 + sum(other == key for other in keys)) / 2
        for key in keys
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation of two lists from `ranks`; NaN if one is all equal."""
    pairs = torch.tensor([first, second], dtype=torch.float64)
    centred = pairs - pairs.mean(1, keepdim=True)
    spread = float(centred.norm(dim=1).prod())
    return float((centred[0] * centred[1]).sum()) / spread if spread > 0 else math.nan


def complete_ranks(columns: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """Return the rank of each candidate by each criterion that all candidates have.

    Ranks among some candidates are not comparable with ranks among all.

    Args:
        columns: Values of each criterion of `CRITERIA` by name, one per candidate.
    """
    better = {criterion.name: criterion.better for criterion in CRITERIA}
    orders = {}
    for name, values in columns.items():
        computed = [value for value in values if value is not None]
        if computed and len(computed) == len(values):
            orders[name] = ranks(computed, better[name])
    return orders


def mean_ranks(columns: Mapping[str, Sequence[float | None]]) -> tuple[list[float], list[str]]:
    """Return each candidate's mean over `complete_ranks`, and the names of these criteria."""
    orders = complete_ranks(columns)
    rows = zip(*orders.values(), strict=True)
    return [sum(row) / len(row) for row in rows], list(orders)


def _entropy(probabilities: Tensor) -> Tensor:
    """Return (N,) entropies of (N, K) probabilities over log K."""
    spread: Tensor = torch.special.entr(probabilities.double()).sum(1)
    return spread / math.log(max(2, probabilities.shape[1]))
