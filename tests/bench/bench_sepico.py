"""Benchmark SePiCo's statistics and losses against their plain forms; run as a script.

    python tests/bench/bench_sepico.py

One thread; medians of interleaved rounds; losses forward and backward together. Memory is the
growth of the peak in a separate process (Linux). Two images of 80 x 80 cells, 512 channels, 19
classes, a bank of 200 rows a class. The plain forms are written here from the method's description:
moments by an expansion to N x 19 x 512, cross-entropy of the augmented logits of the kept vectors,
and for the bank a loop over pairs of classes that concatenates the rows every time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.peak_memory import in_fresh_process, reset_peak, resident_peak_mib
from udaseg.methods.contrast.class_losses import bank_loss, distribution_loss
from udaseg.methods.contrast.class_statistics import class_moments
from udaseg.models.projector import to_unit_length

ROUNDS = 5
TEMPERATURE = 0.1
CLASSES, CHANNELS, ROWS = 19, 512, 200
VECTORS = 2 * 80 * 80


def vectors_case() -> tuple[Tensor, Tensor]:
    """Return vectors and labels; one vector in ten has no class."""
    generator = torch.Generator().manual_seed(0)
    embeddings = to_unit_length(torch.randn(VECTORS, CHANNELS, generator=generator))
    labels = torch.randint(0, CLASSES, (VECTORS,), generator=generator)
    return embeddings, labels.masked_fill(torch.rand(VECTORS, generator=generator) < 0.1, 255)


def distribution_case() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    means = 0.5 * to_unit_length(torch.randn(CLASSES, CHANNELS, generator=generator))
    variances = torch.rand(CLASSES, CHANNELS, generator=generator) / CHANNELS
    return (*vectors_case(), means, variances)


def bank_case() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (
        *vectors_case(),
        to_unit_length(torch.randn(CLASSES, ROWS, CHANNELS, generator=generator), 2),
    )


def plain_moments(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances of a batch, by expansion to N x K x D."""
    kept = labels != 255
    embeddings, labels = embeddings[kept], labels[kept]
    member = F.one_hot(labels, CLASSES).float()[..., None].expand(-1, -1, CHANNELS)
    sorted_NKD = embeddings[:, None].expand(-1, CLASSES, -1) * member
    counts_KD = member.sum(0).clamp_min(1)
    mean_KD = sorted_NKD.sum(0) / counts_KD
    return mean_KD, (sorted_NKD - mean_KD * member).pow(2).sum(0) / counts_KD


def our_moments(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return class_moments(embeddings, labels, CLASSES)[1:]


def plain_distribution(
    embeddings: Tensor, labels: Tensor, means: Tensor, variances: Tensor
) -> Tensor:
    leaf = embeddings.clone().requires_grad_()
    kept = labels != 255
    query, label = F.normalize(leaf)[kept], labels[kept]
    scaled = variances / TEMPERATURE
    score = (query @ means.T + 0.5 * query.pow(2) @ scaled.T) / TEMPERATURE
    variance_term = 0.5 * (query.pow(2) * scaled[label]).sum(1) / TEMPERATURE
    (F.cross_entropy(score, label, reduction="none") + variance_term).mean().backward()
    return leaf.grad


def our_distribution(
    embeddings: Tensor, labels: Tensor, means: Tensor, variances: Tensor
) -> Tensor:
    leaf = embeddings.clone().requires_grad_()
    seen = torch.ones(CLASSES, dtype=torch.bool)
    distribution_loss(leaf, labels, means, variances, seen, temperature=TEMPERATURE).backward()
    return leaf.grad


def plain_bank(embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    leaf = embeddings.clone().requires_grad_()
    queue = [list(bank.split(1)) for bank in rows]
    query, losses = F.normalize(leaf), []
    for label in range(CLASSES):
        class_query, negatives = query[labels == label], []
        for other in range(CLASSES):
            score = class_query @ torch.cat(queue[other]).T / TEMPERATURE
            if other == label:
                positive = score.exp()
            else:
                negatives.append(score.mean(1, keepdim=True))
        negative = torch.cat(negatives, 1).exp().sum(1, keepdim=True)
        losses.append(-(positive / (positive + negative)).log().mean(1))
    torch.cat(losses).mean().backward()
    return leaf.grad


def our_bank(embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    leaf = embeddings.clone().requires_grad_()
    filled = torch.full((CLASSES,), ROWS)
    bank_loss(leaf, labels, rows, filled, temperature=TEMPERATURE).backward()
    return leaf.grad


WORK: dict[str, tuple[Callable[[], tuple[Tensor, ...]], Callable[..., object]]] = {
    "moments plain": (vectors_case, plain_moments),
    "moments ours": (vectors_case, our_moments),
    "distribution plain": (distribution_case, plain_distribution),
    "distribution ours": (distribution_case, our_distribution),
    "bank plain": (bank_case, plain_bank),
    "bank ours": (bank_case, our_bank),
}


def milliseconds(name: str) -> tuple[float, float]:
    """Return the median times of the plain form and ours, alternated after a warm-up."""
    case = WORK[f"{name} plain"][0]()
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for turn in range(ROUNDS + 1):
        for form, samples in times.items():
            started = time.perf_counter()
            WORK[f"{name} {form}"][1](*case)
            if turn:
                samples.append(1000 * (time.perf_counter() - started))
    return statistics.median(times["plain"]), statistics.median(times["ours"])


def _peak(name: str) -> float:
    make, work = WORK[name]
    case = make()
    before = reset_peak()
    work(*case)
    return resident_peak_mib() - before


def peak_mib(name: str) -> float:
    """Return the growth of the peak memory of a fresh process during the work, in MiB."""
    return in_fresh_process(_peak, name)


def show(title: str, name: str) -> None:
    plain, ours = milliseconds(name)
    line = f"{title:<58} {plain:9.1f} ms {ours:9.1f} ms  {plain / ours:5.2f}x"
    line += f"  {peak_mib(f'{name} plain'):7.0f} MiB {peak_mib(f'{name} ours'):6.0f} MiB"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    case = vectors_case()
    for plain, ours in zip(plain_moments(*case), our_moments(*case), strict=True):
        assert torch.allclose(plain, ours, atol=1e-6)
    spread = distribution_case()
    assert torch.allclose(plain_distribution(*spread), our_distribution(*spread), atol=1e-7)
    bank = bank_case()
    assert torch.allclose(plain_bank(*bank), our_bank(*bank), atol=1e-7)
    sys.stdout.write(f"{'':<58} {'plain':>12} {'ours':>12}  ratio  peak memory\n")
    show(f"class mean and variance, {VECTORS} x {CHANNELS}", "moments")
    show(f"distribution loss (DistCL), {VECTORS} x {CHANNELS}", "distribution")
    show(f"bank loss (BankCL), {VECTORS} x {CHANNELS}, 200 rows a class", "bank")


if __name__ == "__main__":
    main()
