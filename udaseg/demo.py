"""`udaseg demo`: compare source-only training with RCCR on the built-in toyland."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.files.images import read_image, write_png
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.transforms import resize_image
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare
from udaseg.display.console import open_console, safe_text
from udaseg.display.pictures import color_mask, comparison_sheet
from udaseg.display.score_tables import comparison_table
from udaseg.errors import UsageError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import score_dataset
from udaseg.evaluation.scores import summarise
from udaseg.files import write_json
from udaseg.inference import trained_model
from udaseg.inference.sizes import input_size, network_input_size
from udaseg.inference.tiles import TileOptions, label_image
from udaseg.inference.trained_model import Model
from udaseg.recipe.library import choose_recipe
from udaseg.training.train import TrainOptions, adapt, train

log = logging.getLogger(__name__)
_METHODS = {"source_only": train, "rccr": adapt}
_NUM_IMAGES = 4
_ZOOM = 2


def demo(*, seed: int, out: Path, root: Path) -> None:
    """Prepare toyland, train on its source, adapt to its target, and compare both on the target.

    Args:
        seed: Seed of both trainings; toyland is always the same.
        out: Folder for runs, summary and picture; an earlier demo there is replaced.
        root: Folder of the prepared data.

    Raises:
        UsageError: `out` holds something other than an earlier demo.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "source_only" / "recipe.yaml").is_file():
        raise UsageError(f"{out}: is not empty and not an earlier demo; choose another --out")
    started = time.monotonic()
    _prepare_toyland(root)
    for method, run in _METHODS.items():
        path = choose_recipe(method, "toyland", "toyland-target")
        run(
            path,
            seed=seed,
            overrides={"machine.checkpoint_every": 0},
            out=out / method,
            options=TrainOptions(
                root=root, overwrite=True, command=["udaseg", "demo", "--seed", str(seed)]
            ),
        )
    target = open_dataset("toyland-target", root=root)
    loaded_runs = {method: trained_model.load(out / method) for method in _METHODS}
    matrices = {method: _score(run, target) for method, run in loaded_runs.items()}
    picture = out / "side_by_side.png"
    write_png(picture, _comparison_picture(loaded_runs, target))
    seconds = time.monotonic() - started
    summary: dict[str, object] = {
        method: {
            "miou": matrix.mean_iou(),
            "iou": dict(zip(loaded_runs[method].classes.names, matrix.iou().tolist(), strict=True)),
        }
        for method, matrix in matrices.items()
    }
    summary |= {
        "seed": seed,
        "steps": loaded_runs["rccr"].recipe.steps,
        "seconds": round(seconds, 1),
    }
    write_json(out / "summary.json", summary)
    protocol = {"weights": "student", "seed": str(seed)}
    columns = {
        method: summarise(matrix, loaded_runs[method].classes, target, "val", protocol)
        for method, matrix in matrices.items()
    }
    console = open_console()
    console.print(comparison_table(columns))
    console.print(safe_text(_conclusion(matrices, picture, out / "summary.json", seconds)))


def _prepare_toyland(root: Path) -> None:
    if (root / "toyland").is_dir():
        # any existing toyland is used, even one of another size or seed
        log.info("using the toyland in %s", root / "toyland")
        return
    prepare("toyland", root=root)


def _score(run: Model, target: PreparedDataset) -> ConfusionMatrix:
    return score_dataset(
        run.segmenter,
        run.classes,
        target,
        "val",
        resize=run.recipe.validation.resize,
        device=run.device,
    )


def _conclusion(
    matrices: Mapping[str, ConfusionMatrix], picture: Path, summary: Path, seconds: float
) -> str:
    """Return what adaptation gained, the files of the demo, and what to run next."""
    before, after = (100 * matrices[method].mean_iou() for method in ("source_only", "rccr"))
    gain = 100 * (matrices["rccr"].mean_iou() - matrices["source_only"].mean_iou())
    return (
        f"On the unlabelled target, adaptation moved mIoU from {before:.1f} to {after:.1f} "
        f"({gain:+.1f} points) in {seconds:.0f} s.\n"
        f"Picture: {picture} (image | source only | adapted | truth)\n"
        f"Summary: {summary}\n"
        f"Next: udaseg adapt --source toyland --target FOLDER_OF_IMAGES, "
        "then udaseg predict FOLDER_OF_IMAGES"
    )


def _comparison_picture(
    loaded_runs: dict[str, Model], target: PreparedDataset
) -> NDArray[np.uint8]:
    """Return an image with a few validation images, both predictions and the truth in rows."""
    samples = target.split("val")
    rows = []
    for sample in samples[:: max(1, len(samples) // _NUM_IMAGES)][:_NUM_IMAGES]:
        image = read_image(target.image_path(sample))
        size = (image.shape[0], image.shape[1])
        row = [image]
        for run in loaded_runs.values():
            resized = resize_image(image, input_size(size, network_input_size(run.recipe)))
            labels, _ = label_image(run.segmenter, resized, size, TileOptions(run.device))
            row.append(color_mask(labels, run.classes.colors))
        truth = read_train_ids(target.label_path(sample))
        row.append(color_mask(truth, loaded_runs["rccr"].classes.colors))
        rows.append([_enlarge(panel) for panel in row])
    titles = ["target image", "source only", "RCCR", "truth"]
    return comparison_sheet(rows, titles)


def _enlarge(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    wide = cv2.resize(picture, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_NEAREST)
    return np.asarray(wide, np.uint8)
