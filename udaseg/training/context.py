"""What all stages of a run share: its data sets, its folder, and where it continues."""

from dataclasses import dataclass
from pathlib import Path

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import ClassSpace
from udaseg.recipe.schema import Recipe
from udaseg.runs.checkpoint import Checkpoint
from udaseg.selection.candidates import EvaluationSets


@dataclass(frozen=True)
class RunData:
    """The data sets of a run.

    Attributes:
        source: Labelled training images.
        target: Images to adapt to, whose labels are not read; None trains on the source alone.
        validation: Labelled images to score, for reporting only; None scores nothing.
    """

    source: PreparedDataset
    target: PreparedDataset | None
    validation: PreparedDataset | None

    @property
    def classes(self) -> ClassSpace:
        """Classes of the source, which are the network's."""
        assert self.source.classes is not None
        return self.source.classes


@dataclass(frozen=True)
class RunContext:
    """Everything that the stages of a run share.

    Attributes:
        recipe: Recipe of the run.
        data: Data sets of the run.
        folder: Run folder.
        checkpoint: Where the run continues; None starts at step 0.
        fit_memory: Split steps into micro-batches until they fit in memory.
        criterion_sets: Images to compare checkpoints on; None keeps only the newest checkpoints.
    """

    recipe: Recipe
    data: RunData
    folder: Path
    checkpoint: Checkpoint | None
    fit_memory: bool
    criterion_sets: EvaluationSets | None

    @property
    def steps_done(self) -> int:
        """Number of steps completed by the checkpoint."""
        return 0 if self.checkpoint is None else self.checkpoint.step
