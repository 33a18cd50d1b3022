"""SPCL's loss and class means at the published sizes, against plain forms of them.

    python tests/bench/bench_prototypes.py

One thread, medians of interleaved rounds, forward and backward together; memory is the growth of
the peak in a process of its own (Linux). Features lie as the network makes them, channels last. The
plain loss normalises the whole map and lets autograd keep it; the plain means loop over the
classes with a mask repeated over all channels.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench import bench_training as bench
from udaseg.contrast import class_sums, prototype_loss, unit

CLASSES, CHANNELS = 19, 2048
TEMPERATURE = 100.0


def case() -> tuple[Tensor, Tensor, Tensor]:
    """Return features of a source image of 1280x720 at stride 8, labels, and prototypes."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, CHANNELS, 90, 160, generator=generator)
    labels = torch.randint(0, CLASSES + 1, (1, 90, 160), generator=generator)
    prototypes = unit(torch.randn(CLASSES, CHANNELS, generator=generator))
    features = features.contiguous(memory_format=torch.channels_last)
    return features, labels.masked_fill(labels == CLASSES, 255), prototypes


def plain_loss(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    leaf = features.clone().requires_grad_()
    flat = F.normalize(leaf.permute(0, 2, 3, 1).reshape(-1, CHANNELS), dim=1)
    logits = flat.mm(prototypes.T) / TEMPERATURE
    F.cross_entropy(logits, labels.flatten(), ignore_index=255).backward()
    return leaf.grad


def our_loss(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    leaf = features.clone().requires_grad_()
    flat = leaf.permute(0, 2, 3, 1).flatten(0, 2)
    seen = torch.ones(CLASSES, dtype=torch.bool)
    prototype_loss(flat, labels.flatten(), prototypes, seen, temperature=TEMPERATURE).backward()
    return leaf.grad


def plain_means(features: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    scaled = F.normalize(features, dim=1)
    means = []
    for number in range(CLASSES):
        mask = (labels == number).float()[:, None].repeat(1, CHANNELS, 1, 1)
        means.append((scaled * mask).sum((0, 2, 3)) / mask[:, 0].sum())
    return torch.stack(means)


def our_means(features: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    flat = features.permute(0, 2, 3, 1).flatten(0, 2)
    sums, counts = class_sums(flat, labels.flatten(), CLASSES)
    return sums / counts[:, None]


bench.MEMORY |= {
    "loss plain": bench._with(case, plain_loss),
    "loss ours": bench._with(case, our_loss),
    "means plain": bench._with(case, plain_means),
    "means ours": bench._with(case, our_means),
}


def main() -> None:
    torch.set_num_threads(1)
    made = case()
    assert torch.allclose(plain_loss(*made), our_loss(*made), atol=1e-8)
    assert torch.allclose(plain_means(*made), our_means(*made), atol=1e-6)
    times = bench.milliseconds(lambda: plain_loss(*made), lambda: our_loss(*made))
    bench.show("SPCL loss 14,400 x 19 x 2048", *times)
    times = bench.milliseconds(lambda: plain_means(*made), lambda: our_means(*made))
    bench.show("SPCL class means 14,400 x 2048, 19 classes", *times)
    for name in bench.MEMORY:
        if name.startswith(("loss", "means")):
            sys.stdout.write(f"{name:<20} {bench.peak_mib(name):7.0f} MiB\n")


if __name__ == "__main__":
    main()
