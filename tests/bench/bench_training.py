"""Benchmark parts of a training step against their plain forms; run as a script.

    python tests/bench/bench_training.py

One thread; medians of interleaved rounds; forward and backward together. Memory is the growth of
the peak in a separate process (Linux). The plain forms are written here from the methods'
descriptions: the regional loss with bank chunks of 2,000 under checkpointing and a mask applied
afterwards, cross-entropy of upsampled logits, softmax of upsampled logits, a loop over parameters
for the moving average, and ClassMix with one pass per class.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.bench.peak_memory import in_fresh_process, reset_peak, resident_peak_mib
from udaseg.methods.contrast.regional_loss import regional_loss
from udaseg.methods.mixing import class_mask
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels
from udaseg.methods.teacher import Teacher
from udaseg.models.backbones.build import build_backbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.projector import to_unit_length
from udaseg.models.segmenter import Segmenter
from udaseg.training.optimizer import make_optimizer, parameter_group

ROUNDS = 5
TEMPERATURE = 0.1


def contrast_case(regions: int, rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def vectors(count: int) -> Tensor:
        return to_unit_length(torch.randn(count, 128, generator=generator))

    return {
        "queries": vectors(regions),
        "keys": vectors(regions),
        "labels": torch.randint(0, 19, (regions,), generator=generator),
        "bank": vectors(rows),
        "bank_labels": torch.randint(0, 19, (rows,), generator=generator),
        "keep": torch.rand(regions, generator=generator) < 0.8,
    }


def published_contrast(case: dict[str, Tensor]) -> Tensor:
    """Return the gradient of the regional loss, with checkpointed bank chunks of 2,000."""
    queries = case["queries"].clone().requires_grad_()
    positive = (queries * case["keys"]).sum(1, keepdim=True) / TEMPERATURE

    def part(query: Tensor, rows: Tensor, row_labels: Tensor, top: Tensor) -> Tensor:
        score = query @ rows.T / TEMPERATURE
        other = (row_labels[None] != case["labels"][:, None]).float()
        return (torch.exp(score - top) * other).sum(1, keepdim=True)

    with torch.no_grad():
        top = torch.full_like(positive, 1 / TEMPERATURE)
    total = torch.exp(positive - top)
    for rows, row_labels in zip(
        case["bank"].split(2000), case["bank_labels"].split(2000), strict=True
    ):
        total = total + checkpoint(part, queries, rows, row_labels, top, use_reentrant=False)
    loss = -torch.log(torch.exp(positive - top) / (total + 1e-8) + 1e-8)[:, 0]
    keep = case["keep"].float()
    ((loss * keep).sum() / keep.sum()).backward()
    return queries.grad


def our_contrast(case: dict[str, Tensor]) -> Tensor:
    queries = case["queries"].clone().requires_grad_()
    other_inputs = {name: value for name, value in case.items() if name != "queries"}
    regional_loss(queries, **other_inputs, temperature=TEMPERATURE).backward()
    return queries.grad


def two_products(case: dict[str, Tensor]) -> Tensor:
    """Compute only the scores and their product with the bank: the lower bound."""
    return torch.cat(
        [(part @ case["bank"].T) @ case["bank"] for part in case["queries"].split(256)]
    )


def pixel_case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 19, 64, 64, generator=generator)
    labels = torch.randint(0, 20, (2, 512, 512), generator=generator)
    return logits, labels.masked_fill(labels == 19, 255).to(torch.uint8)


def plain_pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    wide = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    F.cross_entropy(wide, labels.long(), ignore_index=255).backward()
    return logits.grad


def our_pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    pixel_loss(logits, labels).backward()
    return logits.grad


def plain_pseudo_labels(logits: Tensor) -> Tensor:
    wide = F.interpolate(logits, (512, 512), mode="bilinear", align_corners=False)
    return torch.softmax(wide, 1).max(1)[1]


def our_pseudo_labels(logits: Tensor) -> Tensor:
    return pseudo_labels(logits, (512, 512))[0]


def plain_class_mask(labels: Tensor) -> Tensor:
    masks = []
    for label in labels:
        classes = torch.unique(label)
        classes = classes[classes != 255]
        chosen = classes[torch.randperm(len(classes))[: (len(classes) + 1) // 2]]
        masks.append((label[None] == chosen[:, None, None]).sum(0).bool())
    return torch.stack(masks)


def our_class_mask(labels: Tensor) -> Tensor:
    return class_mask(labels, 19, torch.Generator().manual_seed(0), ignore_is_class=False)


def resnet101() -> Segmenter:
    backbone = build_backbone("resnet101", output_stride=8, weights="random", levels=(-1,))
    head = DeepLabV2(backbone.channels, 19, (6, 12, 18, 24))
    return Segmenter(backbone, head, batch_norm="affine_frozen")


def average_by_loop(student: nn.Module, teacher: nn.Module) -> None:
    with torch.no_grad():
        for average, current in zip(teacher.parameters(), student.parameters(), strict=True):
            average.data[:] = 0.99 * average[:].data[:] + 0.01 * current[:].data[:]


def milliseconds(plain: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float]:
    """Return the median times of both, alternated after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for samples, work in zip(times, (plain, ours), strict=True):
            started = time.perf_counter()
            work()
            if turn:
                samples.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[0]), statistics.median(times[1])


def _peak(name: str) -> float:
    work = MEMORY[name]()
    before = reset_peak()
    work()
    return resident_peak_mib() - before


def peak_mib(name: str) -> float:
    """Return the growth of the peak memory of a fresh process during the work, in MiB."""
    return in_fresh_process(_peak, name)


def _with(
    case: Callable[[], object], work: Callable[..., object]
) -> Callable[[], Callable[[], object]]:
    def ready() -> Callable[[], object]:
        value = case()
        parts = value if isinstance(value, tuple) else (value,)
        return lambda: work(*parts)

    return ready


def _published_size() -> dict[str, Tensor]:
    return contrast_case(8450, 24_000)


MEMORY = {
    "contrast plain": _with(_published_size, published_contrast),
    "contrast ours": _with(_published_size, our_contrast),
    "pixels plain": _with(pixel_case, plain_pixel_loss),
    "pixels ours": _with(pixel_case, our_pixel_loss),
    "pseudo plain": _with(lambda: pixel_case()[0], plain_pseudo_labels),
    "pseudo ours": _with(lambda: pixel_case()[0], our_pseudo_labels),
}


def show(title: str, plain: float, ours: float, memory: str | None = None) -> None:
    line = f"{title:<58} {plain:9.1f} ms {ours:9.1f} ms  {plain / ours:5.2f}x"
    if memory is not None:
        line += f"  {peak_mib(f'{memory} plain'):7.0f} MiB {peak_mib(f'{memory} ours'):6.0f} MiB"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    sys.stdout.write(f"{'':<58} {'plain':>12} {'ours':>12}  ratio  peak memory\n")
    for regions, rows in ((1024, 9_500), (8450, 24_000)):
        case = contrast_case(regions, rows)
        published, ours = published_contrast(case), our_contrast(case)
        # the published form adds 1e-8 to denominator and logarithm; random vectors show it most
        assert (published - ours).abs().max() < 0.02 * published.abs().max()
        times = milliseconds(lambda c=case: published_contrast(c), lambda c=case: our_contrast(c))
        largest = (regions, rows) == (8450, 24_000)
        name = f"regional loss {regions} x {rows} x 128, 80 % confident"
        show(name, *times, "contrast" if largest else None)
        confident = dict(case, queries=case["queries"][case["keep"]])
        floor, ours = milliseconds(
            lambda c=confident: two_products(c), lambda c=case: our_contrast(c)
        )
        sys.stdout.write(
            f"{'  ours against its two products alone':<58} {floor:9.1f} ms {ours:9.1f} ms"
            f"  {ours / floor:5.2f} of the floor\n"
        )
    logits, labels = pixel_case()
    assert torch.allclose(
        plain_pixel_loss(logits, labels), our_pixel_loss(logits, labels), atol=1e-7
    )
    times = milliseconds(
        lambda: plain_pixel_loss(logits, labels), lambda: our_pixel_loss(logits, labels)
    )
    show("cross-entropy 2x19x64x64 -> 512x512", *times, "pixels")
    times = milliseconds(lambda: plain_pseudo_labels(logits), lambda: our_pseudo_labels(logits))
    show("pseudo-labels 2x19x64x64 -> 512x512", *times, "pseudo")
    times = milliseconds(lambda: plain_class_mask(labels), lambda: our_class_mask(labels))
    show("ClassMix mask 2x512x512, 19 classes", *times)
    student = resnet101()
    teacher = Teacher(student, momentum=0.99, batch_statistics=True)
    plain = copy.deepcopy(student)
    times = milliseconds(
        lambda: average_by_loop(student, plain), lambda: teacher.update(student, 10_000)
    )
    show("moving average, DeepLab-v2 ResNet-101", *times)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    unfused = torch.optim.SGD(
        [{"params": [part]} for part in student.parameters()],
        lr=1e-9,
        momentum=0.9,
        weight_decay=5e-4,
        foreach=False,
    )
    fused = make_optimizer(
        "sgd",
        [parameter_group("all", 1e-9, student.named_parameters())],
        momentum=0.9,
        weight_decay=5e-4,
    )
    show("SGD step, DeepLab-v2 ResNet-101", *milliseconds(unfused.step, fused.step))


if __name__ == "__main__":
    main()
