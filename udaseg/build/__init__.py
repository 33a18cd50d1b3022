"""Build models, objectives and training setups from a recipe."""

from udaseg.build.batches import batches, crops
from udaseg.build.objectives import objective, segmenter
from udaseg.build.run import (
    LoadedRun,
    class_document,
    device_of,
    device_type,
    find_checkpoint,
    load_run,
    of_all_ranks,
    run,
    trained_groups,
    trainer,
    workers,
)

__all__ = [
    "LoadedRun",
    "batches",
    "class_document",
    "crops",
    "device_of",
    "device_type",
    "find_checkpoint",
    "load_run",
    "objective",
    "of_all_ranks",
    "run",
    "segmenter",
    "trained_groups",
    "trainer",
    "workers",
]
