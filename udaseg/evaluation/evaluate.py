"""`udaseg eval`: score a run on labelled images at their own resolution."""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import IGNORE, ClassSpace, lookup_table
from udaseg.data.labels.tables import Ids, check_ids
from udaseg.data.loading.threads import Limit, OrderedWork
from udaseg.display.progress import WorkProgress
from udaseg.distributed import SHARES_TIMEOUT, on_rank_zero, rank, world_size
from udaseg.errors import CheckpointError, DataError, UsageError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.prediction_files import prediction_writer
from udaseg.evaluation.protocols import classes_only_in_truth
from udaseg.evaluation.scores import PUBLISHED_SCORING, ScoringOptions, check_protocol, summarise
from udaseg.failures import process_group
from udaseg.files import write_json, write_text
from udaseg.inference import pipeline, trained_model
from udaseg.inference.pipeline import InferenceOptions, SamplePrediction
from udaseg.inference.run_data import open_run_data
from udaseg.inference.sizes import MAX_WHOLE_PIXELS, network_input_size
from udaseg.inference.trained_model import Model
from udaseg.inference.windows import Network
from udaseg.models.segmenter import evaluation_mode
from udaseg.recipe.schema import Recipe
from udaseg.runs.best import warm_up_folder
from udaseg.runs.folder import run_folder_of
from udaseg.runs.image_counts import IMAGES_FILE
from udaseg.runs.leftovers import writing_in_run
from udaseg.runs.score_matrix import ScoreMatrix
from udaseg.runs.scores import Scores
from udaseg.text import format_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationOptions:
    """How to score a run.

    Attributes:
        weights: `student` or `teacher`.
        inference: Flip, scales, window, batch and release; the recipe sets the input size.
        scoring: Which mean by which convention, and where to write the scores.
        save: Also write every prediction as a PNG below this folder.
        ids: Ids of the saved predictions.
        root: Folder of the prepared data.
    """

    weights: str = "student"
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    save: str | os.PathLike[str] | None = None
    ids: Ids = "train"
    device: str = "auto"
    root: str | os.PathLike[str] = "data"

    def __post_init__(self) -> None:
        check_ids(self.ids)


def evaluate(
    run: str | os.PathLike[str] | Model,
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "val",
    options: EvaluationOptions | None = None,
) -> Scores:
    """Return the scores of a run or checkpoint on labelled images, and write them into the run.

    Scores of a loaded model, whose weights may have changed, are written only to `scoring.out`. The
    processes of torchrun share the images, and each returns the scores of all.

    Args:
        run: Run folder, checkpoint, or a loaded model, which is scored with its own weights, on its
            own device, and counts as a checkpoint.
        data: Dataset to score on: a prepared name or a dataset YAML. None takes the recipe's
            validation, else its target.
        split: Split of the dataset.
        options: How to score it.

    Returns:
        Scores at the size of the labels. If the run says that the adaptation made the network worse
        (see `worth_it`), its `baseline` has those of the network that it lost to.

    Raises:
        UsageError: The network lacks the classes of the protocol or convention, or `release` or
            `save` is not possible.
        CheckpointError: There is no such network.
        DataError: The images have no labels, or share no class with the network.

    Example:
        scores = udaseg.evaluate("runs/city-rccr", data="my_val.yaml")
        scores.miou, scores.iou["road"]
    """
    options = options or EvaluationOptions()
    if isinstance(run, Model):
        return _evaluate(run, None, data, split, replace(options, weights=run.weights))
    with process_group(options.device, SHARES_TIMEOUT):
        model = trained_model.load(Path(run), weights=options.weights, device=options.device)
        return _evaluate(model, Path(run), data, split, options)


def _evaluate(
    model: Model,
    path: Path | None,
    data: str | os.PathLike[str] | None,
    split: str,
    options: EvaluationOptions,
) -> Scores:
    check_protocol(model.classes.names, options.scoring)
    opened = open_eval_data(model.recipe, data, options.inference, options.root)
    scores = _score(model, path, opened, split, options)
    return replace(scores, baseline=_score_baseline(_load_baseline(model), data, split, options))


def evaluate_each(
    run: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    *,
    split: str = "val",
    options: EvaluationOptions | None = None,
) -> ScoreMatrix:
    """Return the scores of a run or checkpoint on several labelled data sets, as `evaluate` does.

    All data sets are opened before the first is scored, so a wrong name costs no time. The scores
    of each are written into the run.

    Args:
        run: Run folder or checkpoint.
        data: Data sets to score on: prepared names or dataset YAMLs.
        split: Split of each of them.
        options: How to score them; `save` and `scoring.out` are for a single data set.

    Raises:
        UsageError: As in `evaluate`; a data set is named twice; or an output folder is given.
        CheckpointError: There is no such network.
        DataError: Images have no labels, or share no class with the network.

    Example:
        matrix = udaseg.evaluate_each("runs/city-rccr", ["acdc", "bdd100k", "mapillary"])
        print(matrix.to_markdown())
    """
    options = options or EvaluationOptions()
    if options.save is not None or options.scoring.out is not None:
        raise UsageError("several data sets: --save and --out are for one; name one data set")
    with process_group(options.device, SHARES_TIMEOUT):
        return _evaluate_each(Path(run), [os.fspath(name) for name in data], split, options)


def _evaluate_each(
    run: Path, names: Sequence[str], split: str, options: EvaluationOptions
) -> ScoreMatrix:
    model = trained_model.load(run, weights=options.weights, device=options.device)
    sets = [open_eval_data(model.recipe, name, options.inference, options.root) for name in names]
    for dataset, _ in sets:
        empty_matrix(model.classes, dataset, split)  # refuses what cannot be scored
    if len({dataset.name for dataset, _ in sets}) < len(sets):
        raise UsageError(f"the same data set is named twice: {', '.join(names)}")
    check_protocol(model.classes.names, options.scoring)
    matrix, baseline_model = {}, _load_baseline(model)
    for name, opened in zip(names, sets, strict=True):
        scores = _score(model, run, opened, split, options)
        baseline = _score_baseline(baseline_model, name, split, options)
        matrix[opened[0].name] = replace(scores, baseline=baseline)
    return ScoreMatrix(matrix)


def _score(
    model: Model,
    path: Path | None,
    opened: tuple[PreparedDataset, InferenceOptions],
    split: str,
    options: EvaluationOptions,
) -> Scores:
    """Return the scores of a model, and write them into the run of `path` if there is one.

    `opened` is what `open_eval_data` returns.
    """
    dataset, inference = opened
    if inference.release:
        pipeline.check_release_sizes(dataset, split)
    write = None
    if options.save is not None:
        write = prediction_writer(Path(options.save), dataset, split, model.classes, options.ids)
    with evaluation_mode(model.segmenter):
        matrix = confusion_matrix(
            model.segmenter,
            model.classes,
            dataset,
            split,
            inference,
            device=model.device,
            on_prediction=write,
        )
    facts = _network_facts(model, options.weights, inference, dataset.split(split))
    scores = summarise(
        matrix, model.classes, dataset, split, facts, options.scoring, release=inference.release
    )
    folder = options.scoring.out
    writing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if folder is None and path is not None:
        run_folder = run_folder_of(path)
        checkpoint = "" if path.resolve() == run_folder.resolve() else model.checkpoint.stem
        if model.checkpoint.parent.name == warm_up_folder(run_folder).name:
            checkpoint = "warm_up"  # its step may be that of another checkpoint
        name = variant_name(
            f"{dataset.name}-{split}", options.weights, inference, options.scoring, checkpoint
        )
        folder = run_folder / "eval" / name
        writing = writing_in_run(run_folder)
    if folder is not None:
        on_rank_zero(partial(_write_locked, Path(folder), scores, writing))
        log.info("scores written to %s", folder)
    return scores


def _write_locked(
    folder: Path, scores: Scores, writing: contextlib.AbstractContextManager[None]
) -> None:
    with writing:
        write_scores(folder, scores)


def _load_baseline(model: Model) -> Model | None:
    """Return the network that a model is worse than, by its run; log a warning about the model.

    Returns None if the model is not worse, or if that network is gone.
    """
    worth = trained_model.stored_worth(model)
    if worth is None or worth.verdict != "worse":
        return None
    try:
        baseline = trained_model.load_baseline(worth, model)
    except CheckpointError as error:
        log.warning("the baseline is not scored: %s", error)
        return None
    log.warning(
        "%s: the adaptation made it worse than %s, by criteria without target labels (%s); both "
        "are scored",
        model.checkpoint,
        baseline.checkpoint,
        worth.reason,
    )
    return baseline


def _score_baseline(
    baseline: Model | None,
    data: str | os.PathLike[str] | None,
    split: str,
    options: EvaluationOptions,
) -> Scores | None:
    """Return the scores of the baseline of an adaptation, if any; they are written nowhere."""
    if baseline is None:
        return None
    scoring = replace(options.scoring, out=None)
    options = replace(options, weights="student", scoring=scoring, save=None)
    opened = open_eval_data(baseline.recipe, data, options.inference, options.root)
    scores = _score(baseline, None, opened, split, options)
    weights = f"{scores.protocol['weights']}, the baseline"
    return replace(scores, protocol={**scores.protocol, "weights": weights})


def open_eval_data(
    recipe: Recipe,
    data: str | os.PathLike[str] | None,
    options: InferenceOptions,
    root: str | os.PathLike[str],
) -> tuple[PreparedDataset, InferenceOptions]:
    """Return the dataset to predict, and the options with the recipe's input size.

    Without `data`, it is the recipe's validation, else its target.
    """
    own_data = recipe.validation.data or recipe.target.data
    name = os.fspath(own_data if data is None else data)
    dataset = open_run_data(recipe, name, root=Path(root))
    # images of another dataset may have another aspect ratio than those of training
    is_other_data = name != recipe.validation.data
    size, resampling = network_input_size(recipe), recipe.target.resampling
    options = replace(options, resize=size, resampling=resampling, keep_shape=is_other_data)
    return dataset, options


def variant_name(
    plain: str,
    weights: str,
    options: InferenceOptions,
    scoring: ScoringOptions = PUBLISHED_SCORING,
    checkpoint: str = "",
) -> str:
    """Return a file name: `plain`, then what differs from the plain protocol, such as `+flip`."""
    words = {
        weights: weights != "student",
        checkpoint: checkpoint != "",
        "release": options.release,
        "flip": options.flip,
        "scales" + ",".join(map(str, options.scales)): options.scales != (1.0,),
        f"window{format_size(options.window)}": options.window is not None,
        f"mean{scoring.protocol}": scoring.protocol is not None,
        f"convention{scoring.convention}": scoring.convention is not None,
    }
    return "+".join([plain, *(word for word, differs in words.items() if differs)])


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.json`, `scores.csv` and `images.csv` into `folder`."""
    if scores.images is None:
        (folder / IMAGES_FILE).unlink(missing_ok=True)  # of an earlier evaluation
    else:
        write_text(folder / IMAGES_FILE, scores.images.to_csv())
    write_json(folder / "scores.json", scores.to_json())
    write_text(folder / "scores.csv", scores.to_csv())


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

    Classes are matched by name. True classes that the network lacks are counted as outside classes,
    so both conventions of `udaseg.evaluation.protocols` can be computed from the matrix.

    Each process of a group scores its share of the images; each returns the whole matrix.
    `on_prediction` is called with each prediction, in order, in another thread.
    """
    matrix, truth_map = empty_matrix(classes, dataset, split)
    samples = dataset.split(split)[rank() :: world_size()]

    def count(prediction: SamplePrediction) -> None:
        assert prediction.truth is not None
        matrix.update(prediction.labels, prediction.truth, truth_map)
        if on_prediction is not None:
            on_prediction(prediction)

    predictions = pipeline.infer(segmenter, dataset, samples, options, device=device, truth=True)
    # count in a thread while the network runs; at most a few images wait, which bounds memory
    with (
        WorkProgress("eval", len(samples)) as progress,
        OrderedWork(Limit(4)) as counting,
    ):
        for prediction in predictions:
            counting.submit(partial(count, prediction))
            progress.advance()
    return matrix.all_reduce_sum(device)


def empty_matrix(
    classes: ClassSpace, dataset: PreparedDataset, split: str
) -> tuple[ConfusionMatrix, bytes]:
    """Return an empty matrix over `classes`, and the lookup table that maps truth ids to it.

    Classes of the data that the network lacks are outside classes of the matrix.
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


def _network_facts(
    model: Model, weights: str, options: InferenceOptions, samples: Sequence[Sample]
) -> dict[str, str]:
    """Return the network and its inference options for the protocol line."""
    size = format_size(pipeline.RELEASE_SIZE if options.release else options.resize)
    if options.keep_shape and isinstance(options.resize, tuple) and not options.release:
        size += " or as many pixels"
    tiles = any(options.needs_tiles((sample.height, sample.width)) for sample in samples)
    facts = {
        "weights": f"{weights} at step {model.step}",
        "input": size,
        "window": format_size(options.window) if options.window else None,
        "flip": "yes" if options.flip else None,
        "scales": " ".join(map(str, options.scales)) if options.scales != (1.0,) else None,
        "tiles": f"above {MAX_WHOLE_PIXELS:,} pixels" if tiles else None,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
