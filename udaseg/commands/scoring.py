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
        data: What to score on; None takes the recipe's validation, else its target.
        split: Which split of it.
        weights: `student` or `teacher`.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Sliding window (height, width); None looks at the whole image.
        release: Input and truth at 1024x512, as the releases of DACS and RCCR score.
        batch: Images at a time; None chooses.
        protocol: Show only the mean over 19, 16 or 13 classes.
        convention: 19 counts truth of classes that SYNTHIA lacks, 16 ignores it; None is the
            network's own.
        format: table, json, csv or md.
        fail_under: Smallest mean IoU in percent that passes.
        out: Folder of the score files; None is one of the run's, see `score_folder`.
        save: Also write every prediction as a PNG below this folder.
        ids: Which ids these hold.
        device: Where to compute.
        root: Where prepared data lie.

    Raises:
        UsageError: `protocol` or `convention` asks for classes that the network does not have, or
            `release` or `save` cannot be.
        DataError: The images have no labels, or share no class with the network.
        GateError: The mean IoU is below `fail_under`; the scores are written all the same.
    """
    loaded = build.load_run(run, weights=weights, device=device)
    refuse_protocol(loaded.classes.names, protocol, convention)
    asked = Look(flip=flip, scales=scales, window=window, release=release, batch=batch)
    dataset, look = chosen_data(loaded.recipe, data, asked, root)
    if look.release:
        refuse_release(dataset, split)
    keep = None
    if save is not None:
        keep = Saver(save, dataset, split, loaded.classes, ids).write
    matrix = count(
        *(loaded.segmenter, loaded.classes, dataset, split, look),
        device=loaded.device,
        on_labels=None if keep is None else lambda seen: keep(seen.sample, seen.labels),
    )
    facts = {"weights": f"{weights} at step {loaded.step}", **look_facts(look)}
    if any(look.in_tiles((sample.height, sample.width)) for sample in dataset.split(split)):
        facts["tiles"] = f"above {WHOLE_PX:,} pixels"
    scores = summarise(
        *(matrix, loaded.classes, dataset, split, facts),
        protocol=protocol,
        convention=convention,
        release=look.release,
    )
    words = [
        *([] if weights == "student" else [weights]),
        *([] if run.resolve() == run_of(run).resolve() else [loaded.checkpoint.stem]),
        *look_words(look),
        *([] if protocol is None else [f"mean{protocol}"]),
        *([] if convention is None else [f"convention{convention}"]),
    ]
    folder = out or score_folder(run_of(run), dataset.name, split, words)
    write_scores(folder, scores)
    show(scores, format)
    log.info("scores written to %s", folder)
    gate(scores, fail_under)


def chosen_data(
    recipe: Recipe, data: str | None, look: Look, root: Path
) -> tuple[PreparedDataset, Look]:
    """Return the images to look at, and the look with the sizes that the recipe gives for them.

    Args:
        recipe: Of the network.
        data: What to look at; None takes the recipe's validation, else its target.
        look: How.
        root: Where prepared data lie.
    """
    chosen = data or recipe.validation.data or recipe.target.data
    dataset = open_dataset(chosen, root=root)
    # another data set's images need not have the shape that the network was trained at
    other = chosen != recipe.validation.data
    return dataset, replace(look, resize=trained_size(recipe), keep_shape=other)


def score_folder(run: Path, data: str, split: str, words: Iterable[str]) -> Path:
    """Return where scores of a run are kept: the plain ones in `eval/<data>-<split>`.

    Args:
        run: Run folder.
        data: Name of the data set.
        split: Which split of it.
        words: What differs from the plain look, such as `flip`; each is added after a `+`, so that
            results of different protocols lie side by side.
    """
    return run / "eval" / "+".join([f"{data}-{split}", *words])


def look_facts(look: Look) -> dict[str, str]:
    """Return how the network looked, for the protocol line."""
    size = look.resize
    facts = {"input": shown_size(size) + (" or as many pixels" if look.keep_shape and size else "")}
    if look.release:
        facts["input"] = shown_size(look.input_size((0, 0)))
    if look.window is not None:
        facts["window"] = shown_size(look.window)
    if look.flip:
        facts["flip"] = "yes"
    if look.scales != (1.0,):
        facts["scales"] = " ".join(map(str, look.scales))
    return facts


def look_words(look: Look) -> list[str]:
    """Return what of a look differs from the plain one, as words for a folder's name."""
    return [
        *(["release"] if look.release else []),
        *(["flip"] if look.flip else []),
        *([] if look.scales == (1.0,) else ["scales" + ",".join(map(str, look.scales))]),
        *([] if look.window is None else [f"window{shown_size(look.window)}"]),
    ]


def gate(scores: Scores, fail_under: float | None) -> None:
    """Refuse scores whose first mean is below `fail_under` percent, or was not measured.

    Raises:
        GateError: It is.
    """
    label, mean = next(iter(scores.means.items()))
    if fail_under is not None and not 100 * mean >= fail_under:
        raise GateError(f"{label} is {100 * mean:.2f}, below --fail-under {fail_under:g}")


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
) -> ConfusionMatrix:
    """Return the confusion matrix of a network that looks once at each image, see `count`."""
    look = Look(resize=resize, keep_shape=keep_shape)
    return count(segmenter, classes, dataset, split, look, device=device)


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
