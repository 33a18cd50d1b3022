"""Recipe to objects: the only room that knows both."""

from udaseg.build.batches import batches, crops
from udaseg.build.objectives import objective, segmenter
from udaseg.build.run import (
    LoadedRun,
    class_document,
    device_of,
    find_checkpoint,
    load_run,
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
    "find_checkpoint",
    "load_run",
    "objective",
    "run",
    "segmenter",
    "trained_groups",
    "trainer",
    "workers",
]
