"""Counting and labelling at 2048x1024, against the plain forms; run as a script.

    python tests/bench/bench_evaluation.py

One thread, medians of interleaved rounds; memory is the growth of the peak in a process of its own
(Linux). The plain forms are written here from their description: boolean masks with three
`torch.histc`, and upsampling with softmax and argmax.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from udaseg.evaluation import ConfusionMatrix, labels_from_logits

CLASSES = 19
SIZE = (1024, 2048)
CELLS = (128, 256)
ROUNDS = 9


def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, CLASSES, (32, 64)).astype(np.uint8)
    truth = np.kron(coarse, np.ones((32, 32), np.uint8))
    prediction = np.where(rng.random(SIZE) < 0.8, truth, rng.integers(0, CLASSES, SIZE))
    truth[rng.random(SIZE) < 0.1] = 255
    return prediction.astype(np.uint8), truth


def logits() -> torch.Tensor:
    return torch.randn(CLASSES, *CELLS, generator=torch.Generator().manual_seed(0))


def masks_and_histc(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection and union of each class by masks and float histograms."""
    guess = torch.from_numpy(prediction.astype(np.int64))
    true = torch.from_numpy(truth.astype(np.int64))
    known = true != 255
    guess, true = guess[known], true[known]
    right = guess[guess == true]
    areas = [
        torch.histc(part.float(), bins=CLASSES, min=0, max=CLASSES - 1)
        for part in (right, guess, true)
    ]
    return torch.stack([areas[0], areas[1] + areas[2] - areas[0]]).numpy()


def counted(prediction: np.ndarray, truth: np.ndarray) -> ConfusionMatrix:
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(prediction, truth)
    return matrix


def softmax_and_argmax(small: torch.Tensor) -> np.ndarray:
    wide = F.interpolate(small[None], SIZE, mode="bilinear", align_corners=False)
    return torch.softmax(wide, 1).argmax(1)[0].numpy()


def class_by_class(small: torch.Tensor) -> np.ndarray:
    return labels_from_logits(small, SIZE)[0]


def milliseconds(*forms: Callable[[], object]) -> list[float]:
    """Return the median of each form, in rounds that run all of them."""
    times: list[list[float]] = [[] for _ in forms]
    for _ in range(ROUNDS + 1):
        for form, kept in zip(forms, times, strict=True):
            start = time.perf_counter()
            form()
            kept.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(kept[1:]) for kept in times]


def _measure_peak(name: str, queue: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    given = pair() if name in ("masks_and_histc", "counted") else (logits(),)
    # what is loaded or allocated once shall not count: a first call on a corner
    globals()[name](*(part[..., :32, :32] for part in given))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _resident_peak()
    globals()[name](*given)
    queue.put(_resident_peak() - before)


def _resident_peak() -> float:
    """Return the most memory this process held, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def extra_mebibytes(name: str) -> float:
    """Return how far a form raises the peak memory of a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure_peak, args=(name, queue))
    process.start()
    grown: float = queue.get()
    process.join()
    return grown


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    prediction, truth = pair()
    small = logits()
    plain = masks_and_histc(prediction, truth)
    ours = counted(prediction, truth).iou()
    assert np.allclose(ours, plain[0] / plain[1])
    same = (class_by_class(small) == softmax_and_argmax(small)).mean()
    out = sys.stdout.write
    out(f"torch {torch.__version__}, OpenCV {cv2.__version__}, 1 thread, {SIZE[1]}x{SIZE[0]}\n")
    for title, old, new, arguments in (
        ("count a pair", masks_and_histc, counted, (prediction, truth)),
        ("logits to labels", softmax_and_argmax, class_by_class, (small,)),
    ):
        slow, fast = milliseconds(
            lambda form=old, given=arguments: form(*given),
            lambda form=new, given=arguments: form(*given),
        )
        memory = [extra_mebibytes(form.__name__) for form in (old, new)]
        out(
            f"{title}: {old.__name__} {slow:.1f} ms, {memory[0]:.0f} MiB; "
            f"{new.__name__} {fast:.1f} ms, {memory[1]:.1f} MiB; ratio {slow / fast:.1f}\n"
        )
    out(f"equal labels: {100 * same:.5f} % (others are ties within rounding)\n")


if __name__ == "__main__":
    main()
