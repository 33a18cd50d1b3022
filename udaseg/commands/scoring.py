"""`udaseg eval`: score a run on labelled images at their own resolution."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from udaseg import build
from udaseg.commands.counting import count
from udaseg.commands.label_files import Ids, Saver
from udaseg.commands.looking import Look, refuse_release
from udaseg.commands.run_folder import run_of
from udaseg.commands.summary import refuse_protocol, shown_size, summarise
from udaseg.data import ClassSpace, PreparedDataset, open_dataset
from udaseg.errors import GateError
from udaseg.evaluation import WHOLE_PX, ConfusionMatrix, Model
from udaseg.recipe import Recipe
from udaseg.reporting import (
    Scores,
    as_csv,
    as_json,
    as_markdown,
    score_table,
    write_text_atomic,
)

log = logging.getLogger(__name__)

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
    release: bool = False,
    batch: int | None = None,
    protocol: int | None,
    convention: int | None = None,
    format: str,  # noqa: A002 (the option's own name)
    fail_under: float | None,
    out: Path | None,
    save: Path | None = None,
    ids: Ids = "train",
    device: str,
    root: Path,
) -> None:
    """Score a run or checkpoint, print the table, and write it into the run.

    Args:
        run: Run folder or checkpoint.
        data: Dataset to score on; None takes the recipe's validation, else its target.
        split: Split of the dataset.
        weights: `student` or `teacher`.
        flip: Average with the mirrored image.
        scales: Average over these scales.
        window: Sliding window (height, width); None predicts the whole image at once.
        release: Input and truth at 1024x512, as in the released code of DACS and RCCR.
        batch: Images per batch; None chooses.
        protocol: Show only the mean over 19, 16 or 13 classes.
        convention: 19 counts truth of classes that SYNTHIA lacks, 16 ignores it; None is the
            network's own.
        format: table, json, csv or md.
        fail_under: Minimum mean IoU in percent.
        out: Folder of the score files; None is a folder in the run, see `score_folder`.
        save: Also write every prediction as a PNG below this folder.
        ids: Ids of the saved predictions.
        device: Device to compute on.
        root: Folder of the prepared data.

    Raises:
        UsageError: The network lacks the classes of `protocol` or `convention`, or `release` or
            `save` is not possible.
        DataError: The images have no labels, or share no class with the network.
        GateError: The mean IoU is below `fail_under`; the scores are written first.
    """
    loaded = build.load_run(run, weights=weights, device=device)
    refuse_protocol(loaded.classes.names, protocol, convention)
    requested = Look(flip=flip, scales=scales, window=window, release=release, batch=batch)
    dataset, options = chosen_data(loaded.recipe, data, requested, root)
    if options.release:
        refuse_release(dataset, split)
    save_labels = None
    if save is not None:
        save_labels = Saver(save, dataset, split, loaded.classes, ids).write
    matrix = count(
        loaded.segmenter,
        loaded.classes,
        dataset,
        split,
        options,
        device=loaded.device,
        on_labels=None
        if save_labels is None
        else lambda prediction: save_labels(prediction.sample, prediction.labels),
    )
    protocol_facts = {"weights": f"{weights} at step {loaded.step}", **look_facts(options)}
    if any(options.in_tiles((sample.height, sample.width)) for sample in dataset.split(split)):
        protocol_facts["tiles"] = f"above {WHOLE_PX:,} pixels"
    scores = summarise(
        matrix,
        loaded.classes,
        dataset,
        split,
        protocol_facts,
        protocol=protocol,
        convention=convention,
        release=options.release,
    )
    variants = [
        *([] if weights == "student" else [weights]),
        *([] if run.resolve() == run_of(run).resolve() else [loaded.checkpoint.stem]),
        *look_words(options),
        *([] if protocol is None else [f"mean{protocol}"]),
        *([] if convention is None else [f"convention{convention}"]),
    ]
    folder = out or score_folder(run_of(run), dataset.name, split, variants)
    write_scores(folder, scores)
    show(scores, format)
    log.info("scores written to %s", folder)
    gate(scores, fail_under)


def chosen_data(
    recipe: Recipe, data: str | None, options: Look, root: Path
) -> tuple[PreparedDataset, Look]:
    """Return the dataset to predict, and the options with the recipe's input size.

    Args:
        recipe: Recipe of the network.
        data: Dataset to predict; None takes the recipe's validation, else its target.
        options: Options without the input size.
        root: Folder of the prepared data.
    """
    name = data or recipe.validation.data or recipe.target.data
    dataset = open_dataset(name, root=root)
    # images of another dataset may have another aspect ratio than those of training
    is_other_data = name != recipe.validation.data
    return dataset, replace(options, resize=trained_size(recipe), keep_shape=is_other_data)


def score_folder(run: Path, data: str, split: str, words: Iterable[str]) -> Path:
    """Return the folder of a run's scores; plain ones are in `eval/<data>-<split>`.

    Args:
        run: Run folder.
        data: Name of the dataset.
        split: Split of the dataset.
        words: Options that differ from the plain protocol, such as `flip`; each is added after a
            `+`, so that results of different protocols have separate folders.
    """
    return run / "eval" / "+".join([f"{data}-{split}", *words])


def look_facts(options: Look) -> dict[str, str]:
    """Return the inference options for the protocol line."""
    size = options.resize
    facts = {
        "input": shown_size(size) + (" or as many pixels" if options.keep_shape and size else "")
    }
    if options.release:
        facts["input"] = shown_size(options.input_size((0, 0)))
    if options.window is not None:
        facts["window"] = shown_size(options.window)
    if options.flip:
        facts["flip"] = "yes"
    if options.scales != (1.0,):
        facts["scales"] = " ".join(map(str, options.scales))
    return facts


def look_words(options: Look) -> list[str]:
    """Return the options that differ from the plain protocol, as words for a folder name."""
    return [
        *(["release"] if options.release else []),
        *(["flip"] if options.flip else []),
        *([] if options.scales == (1.0,) else ["scales" + ",".join(map(str, options.scales))]),
        *([] if options.window is None else [f"window{shown_size(options.window)}"]),
    ]


def gate(scores: Scores, fail_under: float | None) -> None:
    """Refuse scores whose first mean is below `fail_under` percent or NaN.

    Raises:
        GateError: The mean is below `fail_under`, or NaN.
    """
    label, mean = next(iter(scores.means.items()))
    if fail_under is not None and not 100 * mean >= fail_under:
        raise GateError(f"{label} is {100 * mean:.2f}, below --fail-under {fail_under:g}")


def trained_size(recipe: Recipe) -> tuple[int, int] | None:
    """Return the recipe's input size for validation; without one, that of target images."""
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
) -> ConfusionMatrix:
    """Return the confusion matrix of a network on single, whole images; see `count`."""
    options = Look(resize=resize, keep_shape=keep_shape)
    return count(segmenter, classes, dataset, split, options, device=device)


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.json` and `scores.csv` into `folder`."""
    write_text_atomic(folder / "scores.json", as_json(scores) + "\n")
    write_text_atomic(folder / "scores.csv", as_csv(scores))


def show(scores: Scores, format: str) -> None:  # noqa: A002 (the option's own name)
    """Print the scores to stdout."""
    console = Console(highlight=False, soft_wrap=format != "table")
    if format == "table":
        console.print(score_table(scores))
    else:
        console.print(_TEXTS[format](scores), markup=False)
