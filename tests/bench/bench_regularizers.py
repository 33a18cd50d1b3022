"""What each regularizer adds to a plain self-training step, in time and in memory.

    python tests/bench/bench_regularizers.py

The networks and sizes of recipes/gta5_cityscapes (DeepLab-v2 ResNet-101 at stride 8, crops of
512x512) with one source and one target image, one thread; forward, backward and `after_step`,
without the optimiser. Memories are full before the first timing. The extra forward passes that a
method asks for are timed by themselves, so that a regularizer's own cost can be told from them.
Rounds are interleaved; seconds are the process's own, so that other work on the machine counts for
little; memory is the peak of a process of its own (Linux).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.bench import bench_training as bench
from tests.support.small import shipped
from udaseg.data.loading.batches import Batch
from udaseg.methods.build import build_objective
from udaseg.methods.contrast.memory_bank import MemoryBank
from udaseg.methods.contrast.regional_loss import regional_loss
from udaseg.methods.objectives.objective import Objective
from udaseg.models.projector import to_unit_length

CLASSES, SIDE, ROUNDS = 19, 512, 3
MODEL = ["model.weights=random"]
TERMS = {
    "dacs": "plain self-training",
    "rccr": "regional contrast, bank of 24,000",
    "spcl": "prototypes in self-training",
    "sepico": "SePiCo, DistCL",
}


def made(name: str) -> Objective:
    """Return a recipe's objective; `spcl` is DACS with the prototype term of rccr_spcl."""
    found = "rccr_spcl" if name == "spcl" else name
    recipe = shipped(f"gta5_cityscapes/{found}", MODEL)
    built = build_objective(recipe, CLASSES)
    if name == "spcl":
        del built.regularizers["regional"]
        built.student.projector = built.teacher.network.projector = None
    return built.train()


def batch(step: int = 0) -> Batch:
    """Return images of smooth patches, so that pseudo-labels are not noise, and labels."""
    generator = torch.Generator().manual_seed(step)

    def image() -> torch.Tensor:
        small = torch.rand(1, 3, 16, 16, generator=generator)
        return (255 * torch.nn.functional.interpolate(small, (SIDE, SIDE))).to(torch.uint8)

    labels = torch.randint(0, CLASSES, (1, 1, 16, 16), generator=generator).float()
    wide = torch.nn.functional.interpolate(labels, (SIDE, SIDE))[:, 0].to(torch.uint8)
    return Batch(step, 0.9, step, image(), wide, image())


def step_of(name: str) -> Callable[[], None]:
    """Return one whole step of a method, its memories filled."""
    built, seen = made(name), batch()
    for module in built.modules():
        if isinstance(module, MemoryBank):
            generator = torch.Generator().manual_seed(0)
            module.embeddings.copy_(
                to_unit_length(torch.randn(module.embeddings.shape, generator=generator))
            )
            module.labels.random_(0, CLASSES, generator=generator)

    def step() -> None:
        built.zero_grad(set_to_none=True)
        report = built(seen)
        report.total.backward()
        built.after_step(1, report)

    return step


def student_pass() -> Callable[[], None]:
    """Return a pass of the student, forward and backward, with its projector: CutMix's."""
    student = made("rccr").student
    images = batch().source_images.float() / 255
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        student.zero_grad(set_to_none=True)
        seen = student(images, embed=True)
        # what the contrast sends back: a gradient of the embeddings' size, none of the logits
        seen.embeddings.sum().backward()

    return step


def teacher_pass() -> Callable[[], None]:
    """Return a pass of the teacher, forward only, with its projector: SePiCo's source pass."""
    teacher = made("sepico").teacher
    images = batch().source_images.float() / 255
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad():
            teacher(images, embed=True)

    return step


PARTS: dict[str, Callable[[], Callable[[], None]]] = {
    **{name: (lambda name=name: step_of(name)) for name in TERMS},
    "student pass": student_pass,
    "teacher pass": teacher_pass,
}
EXTRA = {"rccr": "student pass", "sepico": "teacher pass"}


def _measure(name: str, queue: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    work = PARTS[name]()
    work()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work()
    queue.put(bench._resident_peak_mib())


def peak(name: str) -> float:
    """Return the peak of a process that does nothing but steps of `name`, in MiB."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(name, queue))
    process.start()
    process.join()
    return queue.get()


def steps() -> None:
    """Print seconds and memory of each method's step beside the plain one."""
    work = {name: build() for name, build in PARTS.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, step in work.items():
            started = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - started)
    middle = {name: statistics.median(found) for name, found in times.items()}
    del work
    plain, plain_peak = middle["dacs"], peak("dacs")
    write = sys.stdout.write
    write(f"{'step':<36}{'s':>8}{'extra pass':>12}{'own':>8}{'of the sum':>12}{'peak MiB':>10}\n")
    for name, what in TERMS.items():
        extra = middle[EXTRA[name]] if name in EXTRA else 0.0
        own = middle[name] - plain - extra
        memory = plain_peak if name == "dacs" else peak(name)
        share = 100 * own / (plain + extra)
        write(f"{what:<36}{middle[name]:8.2f}{extra:12.2f}{own:8.2f}{share:11.1f}%{memory:10.0f}\n")


def memories() -> None:
    """Print the bank's own cost and the loss's, for growing banks."""
    queries, keys = (to_unit_length(torch.randn(4225, 128)) for _ in range(2))
    labels = torch.randint(0, CLASSES, (4225,))
    sys.stdout.write(f"{'bank rows':<12}{'push, ms':>10}{'loss, ms':>10}\n")
    for count in (1, 3, 6, 12):
        bank = MemoryBank(count, 8000, 128)
        rows, row_labels = (
            to_unit_length(torch.randn(8000, 128)),
            torch.randint(0, CLASSES, (8000,)),
        )
        for _ in range(count):
            bank.push(rows, row_labels)

        def loss(bank: MemoryBank = bank) -> None:
            leaf = queries.clone().requires_grad_()
            regional_loss(leaf, keys, labels, *bank.rows(), temperature=0.1).backward()

        def push(
            bank: MemoryBank = bank,
            rows: torch.Tensor = rows,
            row_labels: torch.Tensor = row_labels,
        ) -> None:
            bank.push(rows, row_labels)

        pushed, lost = bench.milliseconds(push, loss)
        sys.stdout.write(f"{8000 * count:<12,}{pushed:10.1f}{lost:10.0f}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    memories()
    steps()
