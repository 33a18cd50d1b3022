"""`udaseg eval`: score a run on labelled images at their own resolution."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from udaseg import build
from udaseg.commands.run_folder import run_of
from udaseg.commands.summary import refuse_protocol, shown_size, summarise
from udaseg.data import (
    IGNORE,
    ClassSpace,
    PreparedDataset,
    Sample,
    lookup_table,
    open_dataset,
    read_image,
    read_train_ids,
    resize_image,
)
from udaseg.distributed import rank, world_size
from udaseg.errors import DataError, GateError
from udaseg.evaluation import (
    ConfusionMatrix,
    Model,
    labels_from_logits,
    network_size,
    predict_logits,
    strangers,
)
from udaseg.recipe import Recipe
from udaseg.reporting import (
    Scores,
    WorkProgress,
    as_csv,
    as_json,
    as_markdown,
    score_table,
    write_text_atomic,
)

log = logging.getLogger(__name__)

_AHEAD = 4
_TEXTS = {"json": as_json, "csv": as_csv, "md": as_markdown}


def evaluate(
    *,
    run: Path,
    data: str | None,
    split: str,
    weights: str,
    flip: bool,
    scales: tuple[float, ...],
    window: tuple[int, int] | None,
    protocol: int | None,
    convention: int | None = None,
    format: str,  # noqa: A002 (the option's own name)
    fail_under: float | None,
    out: Path | None,
    device: str,
    root: Path,
) -> None:
    """Score a run or checkpoint, print the table, and write it into the run.

    Args:
        run: Run folder or checkpoint.
        data: What to score on; None takes the recipe's validation, else its target.
        split: Which split of it.
        weights: `student` or `teacher`.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Sliding window (height, width); None looks at the whole image.
        protocol: Show only the mean over 19, 16 or 13 classes.
        convention: 19 counts truth of classes that SYNTHIA lacks, 16 ignores it; None is the
            network's own.
        format: table, json, csv or md.
        fail_under: Smallest mean IoU in percent that passes.
        out: Folder of the score files; None is `eval/<data>-<split>` in the run.
        device: Where to compute.
        root: Where prepared data lie.

    Raises:
        UsageError: `protocol` or `convention` asks for classes that the network does not have.
        DataError: The images have no labels, or share no class with the network.
        GateError: The mean IoU is below `fail_under`; the scores are written all the same.
    """
    loaded = build.load_run(run, weights=weights, device=device)
    recipe = loaded.recipe
    refuse_protocol(loaded.classes.names, protocol, convention)
    chosen = data or recipe.validation.data or recipe.target.data
    dataset = open_dataset(chosen, root=root)
    resize = trained_size(recipe)
    # another data set's images need not have the shape that the network was trained at
    keep_shape = chosen != recipe.validation.data
    matrix = score(
        loaded.segmenter,
        loaded.classes,
        dataset,
        split,
        resize=resize,
        keep_shape=keep_shape,
        device=loaded.device,
        flip=flip,
        scales=scales,
        window=window,
    )
    look = {
        "weights": f"{weights} at step {loaded.step}",
        "input": shown_size(resize) + (" or as many pixels" if keep_shape and resize else ""),
    }
    if window is not None:
        look["window"] = shown_size(window)
    if flip:
        look["flip"] = "yes"
    if tuple(scales) != (1.0,):
        look["scales"] = " ".join(map(str, scales))
    scores = summarise(
        *(matrix, loaded.classes, dataset, split, look), protocol=protocol, convention=convention
    )
    suffix = "" if weights == "student" else f"-{weights}"
    folder = out or run_of(run) / "eval" / f"{dataset.name}-{split}{suffix}"
    write_scores(folder, scores)
    show(scores, format)
    log.info("scores written to %s", folder)
    mean = next(iter(scores.means.values()))
    if fail_under is not None and not 100 * mean >= fail_under:
        raise GateError(
            f"{next(iter(scores.means))} is {100 * mean:.2f}, below --fail-under {fail_under:g}"
        )


def trained_size(recipe: Recipe) -> tuple[int, int] | None:
    """Return the size that validation gives the network, or without one that of target images."""
    if recipe.validation.data is not None:
        return recipe.validation.resize
    return recipe.validation.resize or recipe.target.resize


def score(
    segmenter: Model,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    *,
    resize: tuple[int, int] | None,
    device: torch.device,
    keep_shape: bool = False,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    window: tuple[int, int] | None = None,
) -> ConfusionMatrix:
    """Return the confusion matrix of a network over a split, at the labels' own resolution.

    Classes of the labels that the network lacks are outside it, so that both conventions of
    `udaseg.evaluation.protocols` can be read off.

    Every process of a group scores its share of the images, and each returns the whole matrix.

    Args:
        segmenter: In evaluation mode, on `device`.
        classes: Its outputs; matched with the labels' classes by name.
        dataset: Labelled images.
        split: Which of them.
        resize: (height, width) of the network's input; None keeps each image's size.
        device: Where the network is.
        keep_shape: Give images of another shape as many pixels as `resize` has, unsquashed.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Sliding window; None looks at the whole image.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so nothing can be scored on it")
    others = strangers(classes.names, dataset.classes.names)
    if len(others) == len(dataset.classes):
        raise DataError(
            f"{dataset.name}: its classes ({', '.join(dataset.classes.names)}) share no name with "
            f"the network's ({', '.join(classes.names)})"
        )
    if len(classes) + len(others) >= IGNORE:  # more than a label can tell apart
        others = ()
    outputs = {name: number for number, name in enumerate((*classes.names, *others))}
    truth_map = lookup_table([outputs.get(name, IGNORE) for name in dataset.classes.names])
    if not dataset.split(split):
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    samples = dataset.split(split)[rank() :: world_size()]
    matrix = ConfusionMatrix(len(classes), ignore=IGNORE, num_outside=len(others))
    with WorkProgress("eval", len(samples)) as progress:
        for image, truth in _decoded(dataset, samples):
            size = network_size((image.shape[0], image.shape[1]), resize) if keep_shape else resize
            seen = image if size is None else resize_image(image, size)
            tensor = torch.from_numpy(seen).to(device).permute(2, 0, 1)[None].float() / 255
            logits = predict_logits(segmenter, tensor, window=window, flip=flip, scales=scales)
            labels, _ = labels_from_logits(logits, (truth.shape[0], truth.shape[1]))
            matrix.update(labels, truth, truth_map)
            progress.advance()
    return matrix.over_ranks(device)


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.json` and `scores.csv` into `folder`."""
    write_text_atomic(folder / "scores.json", as_json(scores) + "\n")
    write_text_atomic(folder / "scores.csv", as_csv(scores))


def show(scores: Scores, format: str) -> None:  # noqa: A002 (the option's own name)
    """Print the scores on stdout."""
    console = Console(highlight=False, soft_wrap=format != "table")
    if format == "table":
        console.print(score_table(scores))
    else:
        console.print(_TEXTS[format](scores), markup=False)


def _decoded(
    dataset: PreparedDataset, samples: Sequence[Sample]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield images and labels, a few decoded ahead; OpenCV decodes outside the interpreter lock."""

    def read(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return read_image(dataset.image_path(sample)), read_train_ids(dataset.label_path(sample))

    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read, sample) for sample in samples[:_AHEAD]]
        for index in range(len(samples)):
            ready = ahead.pop(0)
            if index + _AHEAD < len(samples):
                ahead.append(pool.submit(read, samples[index + _AHEAD]))
            yield ready.result()
