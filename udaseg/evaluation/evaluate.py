"""`udaseg eval`: score a run on labelled images at their own resolution."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import IGNORE, ClassSpace, lookup_table
from udaseg.data.labels.tables import Ids
from udaseg.data.open import open_dataset
from udaseg.display.console import open_console
from udaseg.display.progress import WorkProgress
from udaseg.distributed import rank, world_size
from udaseg.errors import DataError, GateError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.prediction_files import PredictionWriter
from udaseg.evaluation.protocols import classes_only_in_truth
from udaseg.evaluation.scores import ScoringOptions, check_protocol, summarise
from udaseg.evaluation.tables import as_csv, as_json, as_markdown, score_table
from udaseg.files import write_text
from udaseg.inference import trained_model
from udaseg.inference.pipeline import (
    InferenceOptions,
    Limit,
    OrderedWork,
    SamplePrediction,
    check_release_sizes,
    infer,
)
from udaseg.inference.sizes import MAX_WHOLE_PIXELS, network_input_size
from udaseg.inference.trained_model import Model
from udaseg.inference.windows import Network
from udaseg.recipe.schema import Recipe
from udaseg.runs.folder import run_folder_of
from udaseg.runs.scores import Scores
from udaseg.text import format_size

log = logging.getLogger(__name__)
_FORMATTERS = {"json": as_json, "csv": as_csv, "md": as_markdown}
_MAX_UNCOUNTED = Limit(4)


@dataclass(frozen=True)
class EvaluationOptions:
    """What to score a run on, and how.

    Attributes:
        data: Dataset to score on; None takes the recipe's validation, else its target.
        split: Split of the dataset.
        weights: `student` or `teacher`.
        inference: Flip, scales, window, batch and release; the recipe sets the input size.
        scoring: What to score, how to print it, and where to write it.
        save: Also write every prediction as a PNG below this folder.
        ids: Ids of the saved predictions.
        device: Device to compute on.
        root: Folder of the prepared data.
    """

    data: str | None = None
    split: str = "val"
    weights: str = "student"
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    save: Path | None = None
    ids: Ids = "train"
    device: str = "auto"
    root: Path = Path("data")


def evaluate(*, run: Path, options: EvaluationOptions) -> None:
    """Score a run or checkpoint, print the table, and write it into the run.

    Args:
        run: Run folder or checkpoint.
        options: What to score it on, and how.

    Raises:
        UsageError: The network lacks the classes of the protocol or convention, or `release` or
            `save` is not possible.
        DataError: The images have no labels, or share no class with the network.
        GateError: The mean IoU is below `fail_under`; the scores are written first.
    """
    scoring, split = options.scoring, options.split
    loaded = trained_model.load(run, weights=options.weights, device=options.device)
    check_protocol(loaded.classes.names, scoring.protocol, scoring.convention)
    dataset, inference = open_eval_data(
        loaded.recipe, options.data, options.inference, options.root
    )
    if inference.release:
        check_release_sizes(dataset, split)
    matrix = confusion_matrix(
        loaded.segmenter,
        loaded.classes,
        dataset,
        split,
        inference,
        device=loaded.device,
        on_prediction=_save_predictions(options, dataset, loaded.classes),
    )
    scores = summarise(
        matrix,
        loaded.classes,
        dataset,
        split,
        _network_facts(loaded, options.weights, inference, dataset.split(split)),
        protocol=scoring.protocol,
        convention=scoring.convention,
        release=inference.release,
    )
    variants = _variants(run, loaded, options)
    folder = scoring.out or score_folder(run_folder_of(run), dataset.name, split, variants)
    report_scores(scores, scoring, folder)


def open_eval_data(
    recipe: Recipe, data: str | None, options: InferenceOptions, root: Path
) -> tuple[PreparedDataset, InferenceOptions]:
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
    return dataset, replace(options, resize=network_input_size(recipe), keep_shape=is_other_data)


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


def describe_options(options: InferenceOptions) -> dict[str, str]:
    """Return the inference options for the protocol line."""
    size = options.resize
    facts = {
        "input": format_size(size) + (" or as many pixels" if options.keep_shape and size else "")
    }
    if options.release:
        facts["input"] = format_size(options.input_size((0, 0)))
    if options.window is not None:
        facts["window"] = format_size(options.window)
    if options.flip:
        facts["flip"] = "yes"
    if options.scales != (1.0,):
        facts["scales"] = " ".join(map(str, options.scales))
    return facts


def option_words(options: InferenceOptions) -> list[str]:
    """Return the options that differ from the plain protocol, as words for a folder name."""
    return [
        *(["release"] if options.release else []),
        *(["flip"] if options.flip else []),
        *([] if options.scales == (1.0,) else ["scales" + ",".join(map(str, options.scales))]),
        *([] if options.window is None else [f"window{format_size(options.window)}"]),
    ]


def score_dataset(
    segmenter: Network,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    *,
    resize: tuple[int, int] | None,
    device: torch.device,
    keep_shape: bool = False,
) -> ConfusionMatrix:
    """Return the confusion matrix of a network on single, whole images."""
    options = InferenceOptions(resize=resize, keep_shape=keep_shape)
    return confusion_matrix(segmenter, classes, dataset, split, options, device=device)


def report_scores(scores: Scores, options: ScoringOptions, folder: Path | None) -> None:
    """Write the scores into `folder` if there is one, print them, and check `fail_under`.

    Raises:
        GateError: The first mean is below `fail_under`, or NaN.
    """
    if folder is not None:
        write_scores(folder, scores)
    print_scores(scores, options.format)
    if folder is not None:
        log.info("scores written to %s", folder)
    _check_score(scores, options.fail_under)


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.json` and `scores.csv` into `folder`."""
    write_text(folder / "scores.json", as_json(scores) + "\n")
    write_text(folder / "scores.csv", as_csv(scores))


def print_scores(scores: Scores, format: str) -> None:  # noqa: A002 (the option's own name)
    """Print the scores to stdout."""
    console = open_console(soft_wrap=format != "table")
    if format == "table":
        console.print(score_table(scores))
    else:
        console.print(_FORMATTERS[format](scores), markup=False)


def confusion_matrix(
    segmenter: Network,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    options: InferenceOptions,
    *,
    device: torch.device,
    on_prediction: Callable[[SamplePrediction], None] | None = None,
) -> ConfusionMatrix:
    """Return the confusion matrix of a network over a split, at the resolution of the labels.

    True classes that the network lacks are counted as outside classes, so both conventions of
    `udaseg.evaluation.protocols` can be computed from the matrix.

    Each process of a group scores its share of the images; each returns the whole matrix.

    Args:
        segmenter: In evaluation mode, on `device`.
        classes: Outputs of the network; matched with the classes of the labels by name.
        dataset: Labelled images.
        split: Split of `dataset`.
        options: Inference options, and the size at which to score.
        device: Device of the network.
        on_prediction: Called with the prediction for each image, in order, in another thread.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    matrix, truth_map = empty_matrix(classes, dataset, split)
    samples = dataset.split(split)[rank() :: world_size()]

    def count(prediction: SamplePrediction) -> None:
        assert prediction.truth is not None
        matrix.update(prediction.labels, prediction.truth, truth_map)
        if on_prediction is not None:
            on_prediction(prediction)

    predictions = infer(segmenter, dataset, samples, options, device=device, truth=True)
    # count in a thread while the network runs; at most a few images wait, which bounds memory
    with WorkProgress("eval", len(samples)) as progress, OrderedWork(_MAX_UNCOUNTED) as counting:
        for prediction in predictions:
            counting.submit(partial(count, prediction))
            progress.advance()
    return matrix.all_reduce_sum(device)


def empty_matrix(
    classes: ClassSpace, dataset: PreparedDataset, split: str
) -> tuple[ConfusionMatrix, bytes]:
    """Return an empty matrix over `classes`, and the lookup table that maps truth ids to it.

    Classes of the data that the network lacks are outside classes of the matrix.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so it cannot be used for scoring")
    others = classes_only_in_truth(classes.names, dataset.classes.names)
    if len(others) == len(dataset.classes):
        raise DataError(
            f"{dataset.name}: its classes ({', '.join(dataset.classes.names)}) share no name with "
            f"the network's ({', '.join(classes.names)})"
        )
    if len(classes) + len(others) >= IGNORE:  # more classes than a label (uint8) can hold
        others = ()
    if not dataset.split(split):
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    outputs = {name: index for index, name in enumerate((*classes.names, *others))}
    truth_map = lookup_table([outputs.get(name, IGNORE) for name in dataset.classes.names])
    return ConfusionMatrix(len(classes), ignore=IGNORE, num_outside=len(others)), truth_map


def _save_predictions(
    options: EvaluationOptions, dataset: PreparedDataset, classes: ClassSpace
) -> Callable[[SamplePrediction], None] | None:
    """Return a function that writes a prediction below `options.save`; None if that is None."""
    if options.save is None:
        return None
    writer = PredictionWriter(options.save, dataset, options.split, classes, options.ids)
    return lambda prediction: writer.write(prediction.sample, prediction.labels)


def _network_facts(
    loaded: Model, weights: str, options: InferenceOptions, samples: Sequence[Sample]
) -> dict[str, str]:
    """Return the network and its inference options for the protocol line."""
    facts = {"weights": f"{weights} at step {loaded.step}", **describe_options(options)}
    if any(options.needs_tiles((sample.height, sample.width)) for sample in samples):
        facts["tiles"] = f"above {MAX_WHOLE_PIXELS:,} pixels"
    return facts


def _variants(run: Path, loaded: Model, options: EvaluationOptions) -> list[str]:
    """Return the options that differ from the plain evaluation of a run, as words."""
    scoring = options.scoring
    return [
        *([] if options.weights == "student" else [options.weights]),
        *([] if run.resolve() == run_folder_of(run).resolve() else [loaded.checkpoint.stem]),
        *option_words(options.inference),
        *([] if scoring.protocol is None else [f"mean{scoring.protocol}"]),
        *([] if scoring.convention is None else [f"convention{scoring.convention}"]),
    ]


def _check_score(scores: Scores, fail_under: float | None) -> None:
    """Refuse scores whose first mean is below `fail_under` percent or NaN.

    Raises:
        GateError: The mean is below `fail_under`, or NaN.
    """
    label, mean = next(iter(scores.means.items()))
    if fail_under is not None and not 100 * mean >= fail_under:
        raise GateError(f"{label} is {100 * mean:.2f}, below --fail-under {fail_under:g}")
