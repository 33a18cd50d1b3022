"""Measure networks on a CPU: memory layouts, heads, and views of a step in one pass or in several.

    python -m tests.bench.bench_networks

One thread; medians of CPU seconds over interleaved rounds, forward and backward, of 2 images of
266x350 with random weights. The last table trains a ViT-S with two views of 2 images, whose losses
have a backward pass each, or one together; its memory is the growth of a fresh process.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from tests.bench.peak_memory import in_fresh_process, reset_peak, resident_peak_mib
from udaseg.data.files.images import keep_freed_memory
from udaseg.methods.pixel_loss import pixel_loss
from udaseg.models.backbones.build import build_backbone
from udaseg.models.heads.head import head_class
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.recipe.choices import HeadName
from udaseg.recipe.schema import Model

VIT = "timm:vit_small_patch14_dinov2"
BACKBONES = ("mobilenet_v2", "efficientnet_lite0", "resnet50", "timm:convnext_tiny", VIT)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SIZE = (266, 350)
CLASSES = 19
ROUNDS = 5


def network(head: HeadName, backbone: str = VIT) -> Segmenter:
    torch.manual_seed(0)
    width = 192 if head in ("upsample", "pyramid") else 256
    spec = Model(backbone, 16, "random", "train", head, (6, 12, 18), head_channels=width)
    return build_segmenter(spec, CLASSES).to(memory_format=torch.channels_last)


def images(count: int = 2, layout: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.rand(count, 3, *SIZE).contiguous(memory_format=layout)


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def interleaved(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each work, without the first round."""
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(ROUNDS + 1)]
    return {name: statistics.median(each[name] for each in rounds[1:]) for name in works}


def layouts() -> None:
    """Compare memory layouts of weights and images."""
    for name in BACKBONES:
        works: dict[str, Callable[[], object]] = {}
        for layout, memory_format in LAYOUTS.items():
            body = build_backbone(name, output_stride=16, weights="random")
            body.to(memory_format=memory_format)
            given = images(layout=memory_format)

            def train(body=body, given=given) -> None:
                sum(each.square().mean() for each in body(given)).backward()

            works[layout] = train
        show(name, interleaved(works))


def heads() -> None:
    """Compare heads on maps of three kinds of backbones."""
    for backbone in ("resnet50", "timm:convnext_tiny", VIT):
        works: dict[str, Callable[[], object]] = {}
        body = build_backbone(backbone, output_stride=16, weights="random")
        with torch.no_grad():
            maps = [each.clone() for each in body(images())]
        for name in get_args(HeadName):
            head = network(name, backbone).head
            levels = head_class(name).levels
            kept = maps if levels is None else [maps[level] for level in levels]
            given = [each.clone().requires_grad_() for each in kept]

            def train(head=head, given=given) -> None:
                head(given).square().mean().backward()

            works[name] = train
        show(backbone, interleaved(works))


def two_views(how: str) -> Callable[[], None]:
    """Return a step of a ViT-S on two views: `apart`, or `together` in one pass."""
    student, views = network("upsample"), [images() for _ in range(2)]
    labels = [torch.randint(0, CLASSES, (2, *SIZE), dtype=torch.uint8) for _ in range(2)]

    def step() -> None:
        student.zero_grad(set_to_none=True)
        if how == "apart":
            for view, truth in zip(views, labels, strict=True):
                pixel_loss(student(view).logits, truth).backward()
            return
        logits = student(torch.cat(views)).logits.split(2)
        losses = [pixel_loss(*pair) for pair in zip(logits, labels, strict=True)]
        torch.stack(losses).sum().backward()

    return step


def growth(how: str) -> float:
    """Return the MiB by which three steps make this process larger."""
    keep_freed_memory(2**31 - 1)
    step = two_views(how)
    before = reset_peak()
    for _ in range(3):
        step()
    return resident_peak_mib() - before


def show(name: str, found: dict[str, float], unit: str = "s") -> None:
    cells = "  ".join(f"{each} {value:.3f} {unit}" for each, value in found.items())
    sys.stdout.write(f"{name:32}{cells}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory(2**31 - 1)
    layouts()
    heads()
    show(
        "two views of 2 images", interleaved({how: two_views(how) for how in ("apart", "together")})
    )
    memory = {how: in_fresh_process(growth, how) for how in ("apart", "together")}
    show("growth of a process", memory, "MiB")


if __name__ == "__main__":
    main()
