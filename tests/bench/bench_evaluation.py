"""Benchmark counting and labelling at 2048x1024 against plain forms; run as a script.

    python tests/bench/bench_evaluation.py

One thread; medians of CPU time over interleaved rounds. Memory is the growth of the peak in a
separate process (Linux). The plain forms are written here from their description: boolean masks
with three `torch.histc`, and upsampling with softmax and argmax. The last lines simulate a network
that takes 80 ms on another processor. They report the wall time that reading ahead saves, and the
peak memory for few and for many images.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_image, write_png
from udaseg.data.labels.read import read_train_ids
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.loading.transforms import resize_image
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import confusion_matrix
from udaseg.inference.labels import labels_from_logits
from udaseg.inference.pipeline import InferenceOptions
from udaseg.inference.windows import predict_logits

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
    """Return intersection and union per class, from masks and float histograms."""
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
    """Return the median time of each form; every round runs all forms."""
    times: list[list[float]] = [[] for _ in forms]
    for _ in range(ROUNDS + 1):
        for form, samples in zip(forms, times, strict=True):
            start = time.process_time()
            form()
            samples.append(1e3 * (time.process_time() - start))
    return [statistics.median(samples[1:]) for samples in times]


def _measure_peak(name: str, queue: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    inputs = pair() if name in ("masks_and_histc", "counted") else (logits(),)
    # warm up on a corner, so that one-time loading and allocation do not count
    globals()[name](*(part[..., :32, :32] for part in inputs))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
    before = _resident_peak()
    globals()[name](*inputs)
    queue.put(_resident_peak() - before)


def _resident_peak() -> float:
    """Return this process's peak resident memory, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def in_a_process(measure: Callable[..., None], argument: str | int) -> float:
    """Run a measurement in a fresh process and return its result in MiB."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(argument, queue))
    process.start()
    result: float = queue.get()
    process.join()
    return result


class Elsewhere:
    """Stand-in for a network on a GPU: it takes time but does not use this processor."""

    def __call__(self, images: torch.Tensor) -> SimpleNamespace:
        time.sleep(0.08 * len(images))
        return SimpleNamespace(logits=logits()[None].expand(len(images), -1, -1, -1))


def write_city(folder: Path, count: int) -> PreparedDataset:
    _, truth = pair()
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    write_png(folder / "0.png", cv2.GaussianBlur(noise, (0, 0), 3))
    write_png(folder / "label.png", truth)
    classes = builtin_label_table("cityscapes19").classes
    samples = (Sample("0.png", "label.png", *SIZE),) * count
    return PreparedDataset("city", folder, folder, classes, {"val": samples})


def one_after_another(dataset: PreparedDataset, size: tuple[int, int]) -> None:
    """Read, infer, label and count each image before reading the next."""
    matrix = ConfusionMatrix(CLASSES)
    for sample in dataset.split("val"):
        image = resize_image(read_image(dataset.image_path(sample)), size)
        truth = read_train_ids(dataset.label_path(sample))
        predicted = predict_logits(
            Elsewhere(), torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        )
        matrix.update(labels_from_logits(predicted, SIZE)[0], truth)


def read_ahead(dataset: PreparedDataset, size: tuple[int, int]) -> None:
    classes = builtin_label_table("cityscapes19").classes
    confusion_matrix(
        Elsewhere(),
        classes,
        dataset,
        "val",
        InferenceOptions(resize=size),
        device=torch.device("cpu"),
    )


def _measure_images(images: int, queue: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        read_ahead(write_city(Path(name), images), (512, 1024))
    queue.put(_resident_peak())


def seconds(form: Callable[[], object]) -> float:
    start = time.perf_counter()
    form()
    return time.perf_counter() - start


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
        memory = [in_a_process(_measure_peak, form.__name__) for form in (old, new)]
        out(
            f"{title}: {old.__name__} {slow:.1f} ms, {memory[0]:.0f} MiB; "
            f"{new.__name__} {fast:.1f} ms, {memory[1]:.1f} MiB; ratio {slow / fast:.1f}\n"
        )
    out(f"equal labels: {100 * same:.5f} % (others are ties within rounding)\n")

    with tempfile.TemporaryDirectory() as name:
        images = 8
        city, size = write_city(Path(name), images), (512, 1024)
        plain_s, ahead_s = zip(
            *(
                (
                    seconds(lambda: one_after_another(city, size)),
                    seconds(lambda: read_ahead(city, size)),
                )
                for _ in range(3)
            ),
            strict=True,
        )
    plain_ms, ahead_ms = (1e3 * statistics.median(each) / images for each in (plain_s, ahead_s))
    out(
        f"an image beside a network of 80 ms elsewhere: one after another {plain_ms:.0f} ms, "
        f"read ahead {ahead_ms:.0f} ms; ratio {plain_ms / ahead_ms:.2f}\n"
    )
    few, many = (in_a_process(_measure_images, images) for images in (8, 40))
    out(f"peak of a whole eval process: {few:.0f} MiB for 8 images, {many:.0f} MiB for 40\n")


if __name__ == "__main__":
    main()
