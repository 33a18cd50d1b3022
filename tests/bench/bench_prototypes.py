"""Benchmark SPCL's loss and class means at the published sizes; run as a script.

    python tests/bench/bench_prototypes.py

Compares our form with the published form and a plain form, for a source image of 1280x720 and a
target image of 1024x512 at stride 8. One thread; medians of interleaved rounds; forward and
backward together. Memory is the growth of the peak in a separate process (Linux), minus what the
features and their gradient take. Our form gets channels-last features, as our network produces
them. The published form has channels-first features, reshapes the map to rows, selects the labelled
rows with a mask and normalises them; autograd keeps every intermediate. The plain form is a careful
rewrite of it: channels last, no rows selected. The published means loop over the classes with a
mask repeated over all channels.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench import bench_training as bench
from udaseg.methods.contrast.class_losses import prototype_loss
from udaseg.methods.contrast.prototypes import class_sums
from udaseg.models.projector import to_unit_length

CLASSES, CHANNELS = 19, 2048
TEMPERATURE = 100.0
SIZES = ((90, 160), (64, 128))


def case(channels_last: bool = True) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return features and labels of a source and a target image, and prototypes."""
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for size in SIZES:
        feature = torch.randn(1, CHANNELS, *size, generator=generator)
        if channels_last:
            feature = feature.contiguous(memory_format=torch.channels_last)
        features.append(feature)
        label = torch.randint(0, CLASSES + 1, (1, *size), generator=generator)
        labels.append(label.masked_fill(label == CLASSES, 255))
    return features, labels, to_unit_length(torch.randn(CLASSES, CHANNELS, generator=generator))


def channels_first() -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the same case with features as the published code has them."""
    return case(channels_last=False)


def gradients(features: list[Tensor], loss: Callable[[list[Tensor]], Tensor]) -> list[Tensor]:
    """Return the gradient of each view. The features stand in for a network's output."""
    leaves = [feature.detach().requires_grad_() for feature in features]
    loss(leaves).backward()
    return [leaf.grad for leaf in leaves]


def held(features: list[Tensor], labels: list[Tensor], prototypes: Tensor) -> list[Tensor]:
    """Hold only the features and a gradient of their size: the lower bound of memory."""
    return gradients(features, lambda leaves: sum(leaf.sum() for leaf in leaves))


def published_loss(
    features: list[Tensor], labels: list[Tensor], prototypes: Tensor
) -> list[Tensor]:
    def loss(leaves: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for leaf, label in zip(leaves, labels, strict=True):
            rows = leaf.permute(0, 2, 3, 1).contiguous().view(-1, CHANNELS)
            known = label.flatten() != 255
            rows = F.normalize(rows[known], dim=1)
            scores = rows.mm(prototypes.permute(1, 0).contiguous()) / TEMPERATURE
            total = total + F.cross_entropy(scores, label.flatten()[known])
        return total

    return gradients(features, loss)


def plain_loss(features: list[Tensor], labels: list[Tensor], prototypes: Tensor) -> list[Tensor]:
    def loss(leaves: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for leaf, label in zip(leaves, labels, strict=True):
            rows = F.normalize(leaf.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
            scores = rows.mm(prototypes.T) / TEMPERATURE
            total = total + F.cross_entropy(scores, label.flatten(), ignore_index=255)
        return total

    return gradients(features, loss)


def our_loss(features: list[Tensor], labels: list[Tensor], prototypes: Tensor) -> list[Tensor]:
    seen = torch.ones(CLASSES, dtype=torch.bool)

    def loss(leaves: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for leaf, label in zip(leaves, labels, strict=True):
            rows = leaf.permute(0, 2, 3, 1).flatten(0, 2)
            total = total + prototype_loss(
                rows, label.flatten(), prototypes, seen, temperature=TEMPERATURE
            )
        return total

    return gradients(features, loss)


def published_means(features: list[Tensor], labels: list[Tensor], _: Tensor) -> Tensor:
    scaled = F.normalize(features[0], dim=1)
    means = []
    for number in range(CLASSES):
        mask = (labels[0] == number).float()[:, None].repeat(1, CHANNELS, 1, 1)
        means.append((scaled * mask).sum((0, 2, 3)) / mask[:, 0].sum())
    return torch.stack(means)


def our_means(features: list[Tensor], labels: list[Tensor], _: Tensor) -> Tensor:
    flat = features[0].permute(0, 2, 3, 1).flatten(0, 2)
    sums, counts = class_sums(flat, labels[0].flatten(), CLASSES)
    return sums / counts[:, None]


def only(features: list[Tensor], labels: list[Tensor], _: Tensor) -> Tensor:
    """Hold only the features: the lower bound of memory for the means."""
    return features[0][:, :1].sum()


bench.MEMORY |= {
    "loss held": bench._with(case, held),
    "loss published": bench._with(channels_first, published_loss),
    "loss plain": bench._with(case, plain_loss),
    "loss ours": bench._with(case, our_loss),
    "means held": bench._with(case, only),
    "means published": bench._with(channels_first, published_means),
    "means ours": bench._with(case, our_means),
}


def main() -> None:
    torch.set_num_threads(1)
    last, first = case(), channels_first()
    ours = our_loss(*last)
    for other in (plain_loss(*last), published_loss(*first)):
        assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(other, ours, strict=True))
    assert torch.allclose(published_means(*first), our_means(*last), atol=1e-6)
    times = bench.milliseconds(lambda: published_loss(*first), lambda: our_loss(*last))
    bench.show("SPCL loss, published form", *times)
    times = bench.milliseconds(lambda: plain_loss(*last), lambda: our_loss(*last))
    bench.show("SPCL loss, plain form", *times)
    times = bench.milliseconds(lambda: published_means(*first), lambda: our_means(*last))
    bench.show("SPCL class means, published form", *times)
    peaks = {name: bench.peak_mib(name) for name in bench.MEMORY}
    for name, peak in peaks.items():
        kind = name.split()[0]
        if kind in ("loss", "means"):
            sys.stdout.write(f"{name:<20} {peak - peaks[f'{kind} held']:7.0f} MiB\n")


if __name__ == "__main__":
    main()
