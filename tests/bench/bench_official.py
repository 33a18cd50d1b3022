"""Compare `udaseg eval` with the public Cityscapes evaluation on the same files; run as a script.

    pip install '.[cityscapes]'
    UDASEG_TEST_DATA=... python -m tests.bench.bench_official

Ten pairs of 2048x1024. The labels are genuine files if the sample data are available, otherwise
random. The predictions are the labels, shifted and smoothed, written by Pillow as any tool would.
One thread for each form; medians of CPU time over interleaved rounds, because other load on the
machine affects CPU time less than wall time. All forms must give the same IoU for each class.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from PIL import Image

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import lookup_table
from udaseg.data.labels.read import read_train_ids
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.open import open_dataset
from udaseg.evaluation.evaluate import empty_matrix
from udaseg.evaluation.prediction_files import read_prediction
from udaseg.evaluation.score_predictions import count_predictions

PAIRS, ROUNDS = 10, 7
SIZE = (1024, 2048)
TABLE = builtin_label_table("cityscapes19")
IDS = [class_ids[0] for class_ids in TABLE.ids]
DECLARED = """
name: city
images: {val: leftImg8bit/*_leftImg8bit.png}
labels: {val: gtFine/*_gtFine_labelIds.png}
match: {strip: [_leftImg8bit, _gtFine_labelIds]}
label_format: ids
classes: cityscapes19
"""


def official() -> Any:
    """Return the public script in quiet mode; restore `np.in1d`, gone in numpy 2.4, for it."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

    if not hasattr(np, "in1d"):
        np.in1d = np.isin  # type: ignore[attr-defined]
    script.args.quiet, script.args.JSONOutput = True, False
    return script


def genuine() -> list[Path]:
    data = Path(os.environ.get("UDASEG_TEST_DATA", "nowhere"))
    paths = (data / "layouts/real/cityscapes/gtFine/train").rglob("*_gtFine_labelIds.png")
    return sorted(paths)


def drawn(path: Path, number: int) -> None:
    """Write random labels (large areas with objects on them) and their instance ids."""
    rng = np.random.default_rng(number)
    coarse = rng.choice([*IDS, 0, 3, 4], (16, 32)).astype(np.uint8)
    ids = np.kron(coarse, np.ones((64, 64), np.uint8))
    instances = ids.astype(np.uint16)
    for thing in range(40):
        top, left = rng.integers(0, SIZE[0] - 80), rng.integers(0, SIZE[1] - 80)
        area = np.s_[top : top + rng.integers(8, 80), left : left + rng.integers(8, 80)]
        label = int(rng.choice(IDS[11:]))
        ids[area], instances[area] = label, label * 1000 + thing
    Image.fromarray(ids).save(path)
    Image.fromarray(instances).save(str(path).replace("labelIds", "instanceIds"))


def write_pairs(root: Path) -> tuple[list[str], list[str]]:
    """Write labels, predictions and empty images; return the prediction and label paths."""
    sources = genuine()
    for folder in ("gtFine", "leftImg8bit", "predictions"):
        (root / folder).mkdir()
    predicted, true = [], []
    for number in range(PAIRS):
        name = f"city_{number:06d}_000019"
        path = root / f"gtFine/{name}_gtFine_labelIds.png"
        if sources:
            source = str(sources[number % len(sources)])
            for kind in ("labelIds", "instanceIds"):
                to = str(path).replace("labelIds", kind)
                shutil.copyfile(source.replace("labelIds", kind), to)
        else:
            drawn(path, number)
        ids = np.asarray(Image.open(path))
        guess = cv2.medianBlur(np.roll(np.where(np.isin(ids, IDS), ids, 7), 7 + number, 1), 9)
        predicted.append(str(root / f"predictions/{name}_pred.png"))
        Image.fromarray(guess.astype(np.uint8)).save(predicted[-1])
        cv2.imwrite(str(root / f"leftImg8bit/{name}_leftImg8bit.png"), np.zeros((*SIZE, 3)))
        true.append(str(path))
    (root / "city.yaml").write_text(DECLARED, encoding="utf-8")
    return predicted, true


def medians(forms: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median CPU milliseconds per pair; every round runs all forms."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS + 1):
        for name, form in forms.items():
            started = time.process_time()
            form()
            times[name].append(1e3 * (time.process_time() - started) / PAIRS)
    return {name: median(samples[1:]) for name, samples in times.items()}


def from_files(root: Path, dataset: PreparedDataset) -> Any:
    return count_predictions(root / "predictions", "label", TABLE.classes, dataset, "val")


def from_raw_files(predicted: list[str], true: list[str], dataset: PreparedDataset) -> Any:
    """Score against the original labels instead of those that `prepare` stored."""
    matrix, _ = empty_matrix(TABLE.classes, dataset, "val")
    train_ids = lookup_table([IDS.index(v) if v in IDS else 255 for v in range(256)])
    for guess, truth in zip(predicted, true, strict=True):
        matrix.update(
            *(read_prediction(Path(guess)), read_prediction(Path(truth))), train_ids, train_ids
        )
    return matrix


def from_memory(predictions: list[Any], dataset: PreparedDataset) -> Any:
    """Score as `eval` does after inference: predictions in memory, ground truth from disk."""
    matrix, truth_map = empty_matrix(TABLE.classes, dataset, "val")
    for labels, sample in zip(predictions, dataset.split("val"), strict=True):
        matrix.update(labels, read_train_ids(dataset.label_path(sample)), truth_map)
    return matrix


def main() -> None:
    out = sys.stdout.write
    if find_spec("cityscapesscripts") is None:
        out("cityscapesscripts is not installed (.[cityscapes]): nothing compared\n")
        return
    logging.disable(logging.CRITICAL)
    cv2.setNumThreads(1)
    script = official()

    def theirs(instances: bool) -> Any:
        script.args.evalInstLevelScore = instances
        return script.evaluateImgLists(predicted, true, script.args)

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        predicted, true = write_pairs(root)
        dataset = open_dataset(str(root / "city.yaml"), root=root)
        to_train = np.array([IDS.index(v) if v in IDS else 255 for v in range(256)], np.uint8)
        label_maps = [to_train[read_prediction(Path(path))] for path in predicted]
        scores = theirs(True)
        for matrix in (
            from_files(root, dataset),
            from_raw_files(predicted, true, dataset),
            from_memory(label_maps, dataset),
        ):
            ours = dict(zip(TABLE.classes.names, matrix.iou(), strict=True))
            for label, iou in ours.items():
                other = scores["classScores"][label]
                assert iou == other or (np.isnan(iou) and (np.isnan(other) or other == 0)), label
        times = medians(
            {
                "official, as by default": lambda: theirs(True),
                "official, without instance scores": lambda: theirs(False),
                "ours, prediction and prepared label": lambda: from_files(root, dataset),
                "ours, prediction and original label": lambda: from_raw_files(
                    predicted, true, dataset
                ),
                "ours, prediction in memory": lambda: from_memory(label_maps, dataset),
            }
        )
    default, plain = list(times.values())[:2]
    labels = "genuine" if genuine() else "drawn"
    out(f"{PAIRS} pairs of {SIZE[1]}x{SIZE[0]}, {labels} labels, CPU ms a pair\n")
    for title, value in times.items():
        out(f"{title:<38} {value:6.1f}  {default / value:5.2f}x  {plain / value:5.2f}x\n")


if __name__ == "__main__":
    main()
