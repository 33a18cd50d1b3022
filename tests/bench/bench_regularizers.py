"""Measure the time and memory that each regularizer adds to a plain self-training step.

    python tests/bench/bench_regularizers.py

The networks and sizes of recipes/gta5_cityscapes (DeepLab-v2 ResNet-101 at stride 8, crops of
512x512) with one source and one target image, one thread. A step is forward, backward and
`after_step`, without the optimiser. Memory banks are full before the first timing. The extra
forward passes that a method needs are also timed separately, so that they can be told apart from a
regularizer's own cost. Rounds are interleaved. Seconds are process time, so that other load on the
machine has little effect. Memory is the peak of a separate process (Linux).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import sys
import time
from collections.abc import Callable

import torch

from tests.bench import bench_training as bench
from tests.bench.peak_memory import in_fresh_process, reset_peak, resident_peak_mib
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
    recipe_name = "rccr_spcl" if name == "spcl" else name
    recipe = shipped(f"gta5_cityscapes/{recipe_name}", MODEL)
    objective = build_objective(recipe, CLASSES)
    if name == "spcl":
        del objective.regularizers["regional"]
        objective.student.projector = objective.teacher.network.projector = None
    return objective.train()


def batch(step: int = 0) -> Batch:
    """Return labels and images of flat patches, so that pseudo-labels are not noise."""
    generator = torch.Generator().manual_seed(step)

    def image() -> torch.Tensor:
        small = torch.rand(1, 3, 16, 16, generator=generator)
        return (255 * torch.nn.functional.interpolate(small, (SIDE, SIDE))).to(torch.uint8)

    labels = torch.randint(0, CLASSES, (1, 1, 16, 16), generator=generator).float()
    wide = torch.nn.functional.interpolate(labels, (SIDE, SIDE))[:, 0].to(torch.uint8)
    return Batch(step, 0.9, step, image(), wide, image())


def step_of(name: str) -> Callable[[], None]:
    """Return a full step of a method, with full memory banks."""
    objective, inputs = made(name), batch()
    for module in objective.modules():
        if isinstance(module, MemoryBank):
            generator = torch.Generator().manual_seed(0)
            module.embeddings.copy_(
                to_unit_length(torch.randn(module.embeddings.shape, generator=generator))
            )
            module.labels.random_(0, CLASSES, generator=generator)

    def step() -> None:
        objective.zero_grad(set_to_none=True)
        report = objective(inputs)
        report.total.backward()
        objective.after_step(1, report)

    return step


def student_pass() -> Callable[[], None]:
    """Return a forward and backward pass of the student with its projector (CutMix's pass)."""
    student = made("rccr").student
    images = batch().source_images.float() / 255
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        student.zero_grad(set_to_none=True)
        output = student(images, embed=True)
        # like the contrast loss: a gradient for the embeddings, none for the logits
        output.embeddings.sum().backward()

    return step


def teacher_pass() -> Callable[[], None]:
    """Return a forward pass of the teacher with its projector (SePiCo's source pass)."""
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


def _measure(name: str) -> float:
    work = PARTS[name]()
    work()
    reset_peak()
    work()
    return resident_peak_mib()


def peak(name: str) -> float:
    """Return the peak memory of a process that only runs steps of `name`, in MiB."""
    return in_fresh_process(_measure, name)


def steps() -> None:
    """Print time and memory of each method's step next to those of the plain step."""
    work = {name: build() for name, build in PARTS.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, step in work.items():
            started = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - started)
    median = {name: statistics.median(samples) for name, samples in times.items()}
    del work
    plain, plain_peak = median["dacs"], peak("dacs")
    write = sys.stdout.write
    write(f"{'step':<36}{'s':>8}{'extra pass':>12}{'own':>8}{'of the sum':>12}{'peak MiB':>10}\n")
    for name, title in TERMS.items():
        extra = median[EXTRA[name]] if name in EXTRA else 0.0
        cost = median[name] - plain - extra
        memory = plain_peak if name == "dacs" else peak(name)
        share = 100 * cost / (plain + extra)
        write(
            f"{title:<36}{median[name]:8.2f}{extra:12.2f}{cost:8.2f}{share:11.1f}%{memory:10.0f}\n"
        )


def memories() -> None:
    """Print the cost of the bank and of the loss for growing banks."""
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

        push_ms, loss_ms = bench.milliseconds(push, loss)
        sys.stdout.write(f"{8000 * count:<12,}{push_ms:10.1f}{loss_ms:10.0f}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    memories()
    steps()
