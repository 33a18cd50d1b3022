"""Criteria that choose among networks without a label of the target: tensors in, numbers out.

Each looks at what a network says of target pixels, as a matrix of probabilities (N, K), or at how
two answers for the same pixels agree. None is safe alone: entropy is best for a network that calls
everything road, source scores know nothing of the target. `mean_ranks` lets them vote.
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
    """How a number is read.

    Attributes:
        name: Key in tables and files.
        better: Which of two values is preferred.
        meaning: One line for people.
        votes: Has a say in the choice by mean rank.
    """

    name: str
    better: Literal["lower", "higher"]
    meaning: str
    votes: bool = True


CRITERIA = (
    Criterion("entropy", "lower", "mean entropy of the predictions; 1 is a uniform guess"),
    Criterion("infomax", "higher", "sure of each pixel, yet many classes over all pixels"),
    # on both pairs that were studied it ranks checkpoints against the labels (BENCHMARKS.md)
    Criterion(
        *("snd", "higher", "soft neighbourhood density: pixels have many near neighbours"),
        votes=False,
    ),
    Criterion("teacher", "higher", "mIoU between the student's labels and the teacher's"),
    Criterion("flip", "higher", "mIoU between the labels of an image and of its mirror image"),
    Criterion("source", "higher", "mIoU on labelled source images"),
    Criterion("drift", "lower", "bits between the predicted class shares and the source's"),
)
"""What `udaseg select` computes; none of it needs a label of the target."""


def sample_pixels(probabilities: Tensor, count: int, seed: int) -> Tensor:
    """Return probabilities of up to `count` pixels of an image, the same ones for one seed.

    Args:
        probabilities: (K, H, W).
        count: Most pixels to take.
        seed: Decides which; networks with maps of one size get the same pixels.

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


def information(probabilities: Tensor) -> float:
    """Return the information between pixels and classes over log K, in [0, 1]; higher is better.

    It is the entropy of the mean prediction less the mean entropy: sure predictions that differ
    from one another. A network that has collapsed into one class gets 0, whatever its entropy.

    Args:
        probabilities: (N, K).

    Reference: the information maximisation of SHOT, Liang et al. 2020 (arXiv 2002.08546), read as
    a score. Differs: divided by log K.
    """
    return float(_entropy(probabilities.double().mean(0, keepdim=True))[0]) - mean_entropy(
        probabilities
    )


def neighbourhood_density(probabilities: Tensor, *, temperature: float = 0.05) -> float:
    """Return the soft neighbourhood density of (N, K) predictions in nats; higher is better.

    Each pixel spreads a softmax over its similarity with all others; the mean entropy of these is
    the logarithm of how many near neighbours a pixel has. It is at most log(N - 1), so compare
    values of one N only. Works in chunks: memory is 1024 x N values.

    Args:
        probabilities: (N, K) with N of at least 2; a few thousand rows suffice.
        temperature: Of the softmax over similarities.

    Raises:
        ValueError: Fewer than two rows.

    Reference: Saito et al., Tune it the Right Way, ICCV 2021 (arXiv 2108.10860).
    """
    if len(probabilities) < 2:
        raise ValueError(f"a neighbourhood needs two rows or more, got {len(probabilities)}")
    unit = F.normalize(probabilities.float(), dim=1)
    total = 0.0
    for start in range(0, len(unit), _CHUNK):
        rows = unit[start : start + _CHUNK]
        similarity = rows @ unit.T / temperature
        own = torch.arange(len(rows), device=unit.device)
        similarity[own, own + start] = -math.inf
        logs = similarity.log_softmax(1)
        # 0 log 0 of the pixel itself is 0
        logs[own, own + start] = 0
        weights = logs.exp()
        weights[own, own + start] = 0
        total -= float((weights * logs).double().sum())
    return total / len(unit)


def joint_counts(first: Tensor, second: Tensor, num_classes: int) -> Tensor:
    """Return (K, K) int64, how many pixels got class i in `first` and class j in `second`.

    Args:
        first: Labels of any shape, integers below `num_classes`.
        second: Labels of the same shape.
        num_classes: K.
    """
    if first.shape != second.shape:
        raise ValueError(f"labels {tuple(first.shape)} and {tuple(second.shape)} do not pair")
    pairs = first.reshape(-1).long() * num_classes + second.reshape(-1).long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def agreement(counts: Tensor) -> float:
    """Return the mean IoU between two labellings, from their (K, K) joint counts.

    It is symmetric; classes that neither labelling has are left out. Unlike the share of equal
    pixels it does not let the road decide. NaN without a pixel.
    """
    counts = counts.double()
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    seen = either > 0
    return float((both[seen] / either[seen]).mean()) if bool(seen.any()) else math.nan


def prior_drift(shares: Tensor, prior: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two class distributions in bits, in [0, 1].

    Args:
        shares: (K,) of what was predicted on the target, counts or shares.
        prior: (K,) of the source's labels, counts or shares.
    """
    first, second = (part.double() / part.double().sum() for part in (shares, prior))
    middle = (first + second) / 2
    parts = [
        torch.where(part > 0, part * (part.clamp_min(_TINY) / middle.clamp_min(_TINY)).log2(), 0.0)
        for part in (first, second)
    ]
    return max(0.0, float((parts[0].sum() + parts[1].sum()) / 2))


def ranks(values: Sequence[float], better: Literal["lower", "higher"]) -> list[float]:
    """Return the rank of each value, 1 the best; equals share their mean rank, NaN comes last."""
    sign = 1.0 if better == "lower" else -1.0
    keys = [math.inf if math.isnan(value) else sign * value for value in values]
    return [
        sum(other < key for other in keys) + (1 + sum(other == key for other in keys)) / 2
        for key in keys
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation of two lists of ranks, 1 for the same order.

    Args:
        first: From `ranks`, where equals share their mean rank.
        second: As many.

    Returns:
        In [-1, 1]; NaN when one list does not tell any two apart.
    """
    pairs = torch.tensor([first, second], dtype=torch.float64)
    centred = pairs - pairs.mean(1, keepdim=True)
    spread = float(centred.norm(dim=1).prod())
    return float((centred[0] * centred[1]).sum()) / spread if spread > 0 else math.nan


def mean_ranks(columns: Mapping[str, Sequence[float | None]]) -> tuple[list[float], list[str]]:
    """Return the mean rank of each candidate over the criteria, and the criteria that voted.

    A criterion that could not be computed for some candidate (None) has no vote: ranks among a
    part of the candidates would not compare with ranks among all. Nor has one that is told not to.

    Args:
        columns: Values of each criterion of `CRITERIA` by its name, one a candidate.
    """
    known = {criterion.name: criterion for criterion in CRITERIA}
    voted: dict[str, list[float]] = {}
    for name, values in columns.items():
        measured = [value for value in values if value is not None]
        if known[name].votes and measured and len(measured) == len(values):
            voted[name] = ranks(measured, known[name].better)
    votes = list(zip(*voted.values(), strict=True))
    return [sum(row) / len(row) for row in votes], list(voted)


def _entropy(probabilities: Tensor) -> Tensor:
    """Return (N,) entropies of (N, K) probabilities over log K."""
    spread: Tensor = torch.special.entr(probabilities.double()).sum(1)
    return spread / math.log(max(2, probabilities.shape[1]))
