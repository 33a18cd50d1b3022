"""Collect the checkpoints that `udaseg select` compares, and the images to evaluate them on."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.errors import CheckpointError, DataError, UsageError
from udaseg.inference.run_data import open_run_data
from udaseg.recipe.load import from_dict
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import adapts
from udaseg.runs.checkpoint import Checkpoint, find_checkpoint
from udaseg.runs.folder import run_folder_of, with_located_data
from udaseg.runs.manifests import list_manifests
from udaseg.selection.images import ImageSet, choose_images, source_images

log = logging.getLogger(__name__)
ORACLE_WARNING = (
    "USES TARGET LABELS: the oracle column is for analysis only; a choice by it is not unsupervised"
)


@dataclass
class Candidate:
    """A checkpoint that can be selected.

    Attributes:
        run: Its run folder, or the checkpoint itself if it has none.
        checkpoint: The file.
        values: Value of each criterion; None if it could not be computed.
        oracle: mIoU on labelled target images, if requested.
        mean_rank: Mean over the criteria that voted.
        collapsed: Predicts one class for nearly all of the target. Entropy and agreement with
            mirror images favour such a network, so it is selected only if there is no other.
        shares: Share of each class in the pixels that it predicts on the target, 0 to 1.
        source_iou: IoU on the source of each class that has labels there.
    """

    run: Path
    checkpoint: Path
    step: int = 0
    values: dict[str, float | None] = field(default_factory=dict)
    oracle: float | None = None
    mean_rank: float = math.nan
    collapsed: bool = False
    shares: dict[str, float] = field(default_factory=dict)
    source_iou: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Display name: run folder and step."""
        return f"{self.run.name} {self.step}"

    @property
    def oracle_miou(self) -> float:
        """The oracle's mIoU for comparisons; 0 if there is none."""
        return 0.0 if self.oracle is None or math.isnan(self.oracle) else self.oracle


@dataclass(frozen=True)
class EvaluationSets:
    """The images that all candidates are evaluated on; `labelled` only for the oracle."""

    target: ImageSet
    source: ImageSet | None
    labelled: ImageSet | None


def find_candidates(runs: Sequence[Path], *, all_checkpoints: bool) -> list[Candidate]:
    """Return the checkpoints of the given runs, in their order, by rising step within a run."""
    candidates = []
    for run in runs:
        if run.is_file():
            in_run = run.parent.name == "checkpoints"
            candidates.append(Candidate(run.parent.parent if in_run else run, run))
            continue
        manifests = reversed(list_manifests(run / "checkpoints"))
        paths = [manifest.with_suffix(".pt") for manifest in manifests]
        checkpoints = [path for path in paths if path.is_file()]
        for path in paths:
            if not path.is_file():
                log.warning("%s: it has a manifest, but it is not there; it is left out", path)
        if not checkpoints:
            raise CheckpointError(f"{run}: no such run, or it holds no checkpoint")
        chosen = checkpoints if all_checkpoints or len(runs) == 1 else [find_checkpoint(run).path]
        candidates += [Candidate(run, path) for path in chosen]
    if not candidates:
        raise CheckpointError("no run was given to choose from")
    unique = {candidate.checkpoint.resolve(): candidate for candidate in candidates}
    if len(unique) == 1:
        log.warning(
            "only one checkpoint, so there is nothing to compare; give more runs, or train with "
            "machine.checkpoint_every=1000 machine.keep_checkpoints=10"
        )
    return list(unique.values())


def open_evaluation_sets(
    recipe: Recipe, data: str | None, split: str | None, images: int, *, oracle: bool, root: Path
) -> EvaluationSets:
    """Open the target, the source if available, and labelled images if `oracle` is set.

    Raises:
        DataError: There are no such images, or the oracle has no labels to score on.
    """
    dataset = open_run_data(recipe, data or recipe.target.data, root=root)
    if split is None and data is None:
        split = recipe.target.split
    elif split is None:
        split = next(
            (name for name in ("train", "val") if dataset.splits.get(name)),
            next(iter(dataset.splits), "train"),
        )
    target = choose_images(dataset, split, images)
    source: ImageSet | None = None
    try:
        source = source_images(recipe, images, root)
    except DataError as error:
        log.warning("%s; skipping the criteria `source` and `drift`", error)
    if not oracle:
        return EvaluationSets(target, source, None)
    log.warning("%s", ORACLE_WARNING)
    labelled = target
    if data is None and recipe.validation.data is not None:
        dataset = open_run_data(recipe, recipe.validation.data, root=root)
        labelled = choose_images(dataset, recipe.validation.split, images)
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so the oracle cannot score on it")
    return EvaluationSets(target, source, labelled)


def check_comparable(candidates: Sequence[Candidate], *, same_target: bool) -> Recipe:
    """Refuse candidates that cannot be compared; set their steps and return a recipe of them.

    It is the first that adapts to a target, or the first if none does.
    """
    first: Checkpoint | None = None
    adapted: tuple[Checkpoint, Recipe] | None = None
    for candidate in candidates:
        checkpoint = find_checkpoint(candidate.checkpoint)
        candidate.step = checkpoint.step
        first = first or checkpoint
        refuse_other_classes(
            checkpoint.path, checkpoint.classes["names"], first.path, first.classes["names"]
        )
        recipe = from_dict(checkpoint.recipe)
        if not adapts(recipe):
            continue
        other, model = adapted = adapted or (checkpoint, recipe)
        target, first_target = recipe.target.data, model.target.data
        if same_target and target != first_target:
            raise UsageError(
                f"{checkpoint.path}: was adapted to {target}, {other.path} to {first_target}; "
                "choose the images to compare them on with --data"
            )
    assert first is not None
    chosen, recipe = adapted or (first, from_dict(first.recipe))
    return with_located_data(recipe, run_folder_of(chosen.path))


def refuse_other_classes(
    path: Path, names: Sequence[str], other: Path, other_names: Sequence[str]
) -> None:
    """Refuse to compare networks of other classes; the paths are those of their checkpoints.

    Raises:
        UsageError: The classes differ.
    """
    if list(names) != list(other_names):
        raise UsageError(
            f"{path}: its classes differ from those of {other}; only networks with the same "
            "classes can be compared"
        )
