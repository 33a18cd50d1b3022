"""Data sets as the plan of a run needs them: nothing is rendered, written or prepared.

A built-in data set that is not prepared is stood in for by its published counts and sizes.
"""

from pathlib import Path

from udaseg.data.datasets.catalog import builtin_names, read_builtin
from udaseg.data.datasets.index import PreparedDataset, Sample, read_index
from udaseg.data.prepare.locate import prepared_folder
from udaseg.data.prepare.prepare import find_declaration, prepare
from udaseg.data.prepare.rules import TOYLAND, PrepareOptions
from udaseg.data.toyland.writer import DEFAULT_COUNTS, TOYLAND_SIZE
from udaseg.sizes import Size

_NOWHERE = Path("not prepared")

SIZES: dict[str, Size] = {
    "acdc": (1080, 1920),
    "bdd100k": (720, 1280),
    "camvid": (360, 480),
    "camvid-original": (720, 960),
    "cityscapes": (1024, 2048),
    "dark-zurich": (1080, 1920),
    "gta5": (1052, 1914),
    "kitti-semantics": (375, 1242),
    "loveda": (1024, 1024),
    "loveda-rural": (1024, 1024),
    "loveda-urban": (1024, 1024),
    "mapillary": (2448, 3264),
    "synscapes": (720, 1440),
    "synthia": (760, 1280),
    "synthia19": (760, 1280),
    "toyland": TOYLAND_SIZE,
    "toyland-target": TOYLAND_SIZE,
}
"""(height, width) of the images of built-in data sets; of most of them, where sizes differ."""


def planned_dataset(data: str, *, root: Path) -> PreparedDataset | None:
    """Return a data set for a plan; None for a folder of images, which is read as it is.

    Args:
        data: A prepared name, a dataset YAML, a built-in name, or something else.
        root: Folder of the prepared data sets.

    Raises:
        SomeDataFailed: The files of a dataset YAML are damaged, a `DataError`.
    """
    is_yaml = data.endswith((".yaml", ".yml"))
    name = find_declaration(data, root).name if is_yaml else data
    if (folder := prepared_folder(name, root)) is not None:
        return read_index(folder)
    if is_yaml:
        (report,) = prepare(data, root=root, options=PrepareOptions(check_only=True))
        return report.dataset
    return _stand_in(data) if data in builtin_names() else None


def is_stand_in(dataset: PreparedDataset) -> bool:
    """Return whether a data set is not prepared, and has published counts and sizes."""
    return dataset.folder == _NOWHERE


def _stand_in(name: str) -> PreparedDataset:
    declaration = read_builtin(name)
    counts = dict(declaration.expected_counts)
    if name in TOYLAND:
        city = "source" if name == "toyland" else "target"
        counts = {split: DEFAULT_COUNTS[f"{city}/{split}"] for split in ("train", "val")}
    height, width = SIZES[name]
    classes = None if declaration.table is None else declaration.table.classes
    count = 0 if classes is None else len(classes)
    pixels = (height * width // max(1, count),) * count  # how often a class is, is not published
    sample = Sample("image", "label" if count else None, height, width, pixels)
    splits = {split: (sample,) * number for split, number in counts.items()}
    return PreparedDataset(name, _NOWHERE, _NOWHERE, classes, splits, bits=0)
