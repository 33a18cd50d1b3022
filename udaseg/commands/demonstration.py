"""`udaseg demo`: compare source-only training with RCCR on the built-in toyland."""

import logging
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands.fit import adapt, train
from udaseg.commands.preparation import prepare
from udaseg.commands.scoring import score, trained_size
from udaseg.commands.summary import summarise
from udaseg.data import (
    PreparedDataset,
    open_dataset,
    read_image,
    read_train_ids,
    resize_image,
    write_png,
)
from udaseg.errors import UsageError
from udaseg.evaluation import label_image, network_size
from udaseg.recipe import choose_recipe, load
from udaseg.reporting import color_mask, comparison_table, side_by_side, write_json_atomic

log = logging.getLogger(__name__)

_METHODS = {"source_only": train, "rccr": adapt}
_SHOWN = 4
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
    if (root / "toyland").is_dir():
        # any existing toyland is used, even one of another size or seed
        log.info("using the toyland in %s", root / "toyland")
    else:
        prepare(
            names=["toyland"],
            root=root,
            check_only=False,
            max_bad=0,
            on_mismatch="exclude",
            seed=0,
            size=None,
            workers=-1,
        )
    for method, run in _METHODS.items():
        path = choose_recipe(method, "toyland", "toyland-target")
        run(
            recipe=load(path, overrides=[f"seed={seed}", "machine.checkpoint_every=0"]),
            recipe_path=path,
            out=out / method,
            root=root,
            resume=None,
            init=None,
            overwrite=True,
            dry_run=False,
            command=["udaseg", "demo", "--seed", str(seed)],
        )
    target = open_dataset("toyland-target", root=root)
    loaded_runs = {method: build.load_run(out / method) for method in _METHODS}
    matrices = {
        method: score(
            run.segmenter,
            run.classes,
            target,
            "val",
            resize=run.recipe.validation.resize,
            device=run.device,
        )
        for method, run in loaded_runs.items()
    }
    picture = out / "side_by_side.png"
    write_png(picture, _picture(loaded_runs, target))
    seconds = time.monotonic() - started
    protocol = {"weights": "student", "seed": str(seed)}
    columns = {
        method: summarise(matrix, loaded_runs[method].classes, target, "val", protocol)
        for method, matrix in matrices.items()
    }
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
    write_json_atomic(out / "summary.json", summary)
    console = Console(highlight=False)
    console.print(comparison_table(columns))
    gain = 100 * (matrices["rccr"].mean_iou() - matrices["source_only"].mean_iou())
    console.print(
        Text(
            f"On the unlabelled target, adaptation moved mIoU from "
            f"{100 * matrices['source_only'].mean_iou():.1f} to "
            f"{100 * matrices['rccr'].mean_iou():.1f} ({gain:+.1f} points) in {seconds:.0f} s.\n"
            f"Picture: {picture} (image | source only | adapted | truth)\n"
            f"Summary: {out / 'summary.json'}\n"
            f"Next: udaseg adapt --source toyland --target FOLDER_OF_IMAGES, "
            "then udaseg predict FOLDER_OF_IMAGES"
        )
    )


def _picture(loaded_runs: dict[str, build.LoadedRun], target: PreparedDataset) -> NDArray[np.uint8]:
    """Return an image with a few validation images, both predictions and the truth in rows."""
    samples = target.split("val")
    rows = []
    for sample in samples[:: max(1, len(samples) // _SHOWN)][:_SHOWN]:
        image = read_image(target.image_path(sample))
        size = (image.shape[0], image.shape[1])
        row = [image]
        for run in loaded_runs.values():
            resized = resize_image(image, network_size(size, trained_size(run.recipe)))
            labels, _ = label_image(run.segmenter, resized, size, device=run.device)
            row.append(color_mask(labels, run.classes.colors))
        truth = read_train_ids(target.label_path(sample))
        row.append(color_mask(truth, loaded_runs["rccr"].classes.colors))
        rows.append([_enlarged(panel) for panel in row])
    titles = ["target image", "source only", "RCCR", "truth"]
    return side_by_side(rows, titles)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    wide = cv2.resize(picture, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_NEAREST)
    return np.asarray(wide, np.uint8)
