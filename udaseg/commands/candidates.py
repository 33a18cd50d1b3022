"""What `udaseg select` chooses among, and the images that every candidate is looked at with."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from udaseg import build
from udaseg.data import PreparedDataset, evenly_spaced, open_dataset
from udaseg.engine import Checkpoint
from udaseg.errors import CheckpointError, DataError, UsageError
from udaseg.recipe import Recipe, from_dict

log = logging.getLogger(__name__)

ORACLE_WARNING = (
    "USES TARGET LABELS: the oracle column is for study; a choice by it is not unsupervised"
)


@dataclass
class Candidate:
    """A checkpoint that may be chosen.

    Attributes:
        run: Its run folder, or the checkpoint itself without one.
        checkpoint: The file.
        step: Steps it was trained for.
        values: Of each criterion; None where it could not be computed.
        oracle: mIoU on labelled target images, where it was asked for.
        mean_rank: Over the criteria that voted.
        collapsed: Nearly all of the target is one class to it; entropy, neighbourhoods and mirror
            images all speak for such a network, so it is chosen only if there is no other.
    """

    run: Path
    checkpoint: Path
    step: int = 0
    values: dict[str, float | None] = field(default_factory=dict)
    oracle: float | None = None
    mean_rank: float = math.nan
    collapsed: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.run.name} {self.step}"


@dataclass(frozen=True)
class Sets:
    """What every candidate is looked at with; the same for all."""

    target: PreparedDataset
    target_split: str
    source: PreparedDataset | None
    source_split: str
    labelled: PreparedDataset | None
    labelled_split: str


def find_candidates(runs: Sequence[Path], *, every: bool) -> list[Candidate]:
    """Return the checkpoints that the words mean, in their order, by rising step in a run."""
    found = []
    for run in runs:
        if run.is_file():
            inside = run.parent.name == "checkpoints"
            found.append(Candidate(run.parent.parent if inside else run, run))
            continue
        folder = run / "checkpoints"
        whole = [path.with_suffix(".pt") for path in sorted(folder.glob("step-*.json"))]
        whole = [path for path in whole if path.is_file()]
        if not whole:
            raise CheckpointError(f"{run}: no such run, or it holds no checkpoint")
        taken = whole if every or len(runs) == 1 else [build.find_checkpoint(run).path]
        found += [Candidate(run, path) for path in taken]
    found = list({each.checkpoint.resolve(): each for each in found}.values())
    if len(found) == 1:
        log.warning(
            "only one checkpoint, so there is nothing to choose; name more runs, or train with "
            "machine.checkpoint_every=1000 machine.keep_checkpoints=10"
        )
    return found


def open_sets(
    recipe: Recipe, data: str | None, split: str | None, images: int, *, oracle: bool, root: Path
) -> Sets:
    """Open what is looked at: target, source where it is at hand, labels only for the oracle."""
    target = open_dataset(data or recipe.target.data, root=root)
    if split is None and data is None:
        split = recipe.target.split
    elif split is None:
        split = next(
            (name for name in ("train", "val") if target.splits.get(name)),
            next(iter(target.splits), "train"),
        )
    few = _some(target, split, images)
    source: PreparedDataset | None = None
    source_split = "val"
    try:
        whole = open_dataset(recipe.source.data, root=root)
        source_split = "val" if whole.splits.get("val") else recipe.source.split
        source = _some(whole, source_split, images)
    except DataError as error:
        log.warning("%s; the criteria `source` and `drift` are left out", error)
    labelled, labelled_split = None, split
    if oracle:
        log.warning("%s", ORACLE_WARNING)
        if data is not None or recipe.validation.data is None:
            labelled = few
        else:
            labelled_split = recipe.validation.split
            labelled = open_dataset(recipe.validation.data, root=root)
            labelled = _some(labelled, labelled_split, images)
    return Sets(few, split, source, source_split, labelled, labelled_split)


def _some(dataset: PreparedDataset, split: str, most: int) -> PreparedDataset:
    """Return a data set whose `split` is at most `most` evenly spaced images of it."""
    samples = dataset.split(split)
    if not samples:
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    chosen = tuple(samples[place] for place in evenly_spaced(len(samples), most))
    return replace(dataset, splits={**dataset.splits, split: chosen})


def refuse_others(candidates: Sequence[Candidate], *, same_target: bool) -> Recipe:
    """Return the first candidate's recipe, after refusing what does not compare with it.

    Notes the step of each candidate.

    Raises:
        UsageError: A candidate has other classes, or `same_target` and another target.
        CheckpointError: One cannot be read.
    """
    first: Checkpoint | None = None
    for candidate in candidates:
        read = build.find_checkpoint(candidate.checkpoint)
        candidate.step = read.step
        first = first or read
        if read.classes["names"] != first.classes["names"]:
            raise UsageError(
                f"{read.path}: its classes differ from those of {first.path}; only networks with "
                "the same classes can be compared"
            )
        mine, theirs = (each.recipe["target"]["data"] for each in (read, first))
        if same_target and mine != theirs:
            raise UsageError(
                f"{read.path}: was adapted to {mine}, {first.path} to {theirs}; say with --data "
                "on which images to compare them"
            )
    assert first is not None
    return from_dict(first.recipe)
