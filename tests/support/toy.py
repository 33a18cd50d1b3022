"""Write and prepare a tiny toyland, once per test session."""

from collections.abc import Mapping
from pathlib import Path

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.toyland import writer
from udaseg.data.toyland.writer import write

COUNTS = {"source/train": 6, "source/val": 2, "target/train": 5, "target/val": 2}
SIZE = (64, 128)


def toy_root(root: Path, counts: Mapping[str, int] = COUNTS) -> Path:
    """Write and prepare a tiny toyland below `root`, and return `root`."""
    write(root / "toyland", seed=0, size=SIZE, counts=counts)
    for name in ("toyland", "toyland-target"):
        prepare_dataset(name, root=root)
    return root


def toy_pair(root: Path) -> tuple[PreparedDataset, PreparedDataset]:
    """Return the source and target datasets of the toyland below `root`."""
    return open_dataset("toyland", root=root), open_dataset("toyland-target", root=root)


TINY = [
    *("source.crop=[64, 64]", "target.crop=[64, 64]", "source.resize=null", "target.resize=null"),
    *("validation.resize=null", "model.backbone=mobilenet_v2", "model.output_stride=16"),
    *("model.weights=random", "batch.source=2", "batch.target=2", "machine.device=cpu"),
]
"""Overrides that make any shipped recipe small enough for a step in well under a second."""


SMALL = {
    "source.crop": (64, 64),
    "target.crop": [64, 64],
    "source.resize": None,
    "target.resize": None,
    "validation.resize": None,
    "batch": {"source": 2, "target": 2},
    "machine.device": "cpu",
    "machine.checkpoint_every": 1,
    "machine.log_every": 1,
    "machine.loggers": [],
}
"""Overrides of the Python API that make each step of a toyland run small, and written."""


def make_default_toyland_tiny() -> None:
    """Make `prepare toyland` in this process render the tiny toyland."""
    writer.DEFAULT_COUNTS.update(COUNTS)
    writer.TOYLAND_SIZE = SIZE
