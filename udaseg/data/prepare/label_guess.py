"""Guess how label files belong to images, in which format they are, and which classes they have."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import TypeVar

import numpy as np

from udaseg.data.files.images import IMAGE_SUFFIXES, image_size, read_bytes
from udaseg.data.labels.formats import label_suffixes, object_format
from udaseg.data.labels.objects.drawing import BACKGROUND, read_document
from udaseg.data.labels.objects.shared import read_shared
from udaseg.data.labels.read import read_label_ids
from udaseg.data.labels.tables import LabelId, builtin_label_table
from udaseg.errors import DataError

_T = TypeVar("_T")
MAX_SAMPLE = 50
_DOCUMENTS = (".json", ".xml")
_MAX_IDS = 254
_ENDING = re.compile(r"[_\-. ][A-Za-z][\w\-. ]*$")
_PREFERRED = ("labeltrainids", "labelids", "mask", "label", "gt", "seg")
_AVOIDED = ("instance", "color", "colour", "rgb", "overlay", "vis")


@dataclass(frozen=True)
class LabelGroup:
    """Label files that are named alike.

    Attributes:
        paths: The file of each image that has one.
        image_ending: Ending of the stems of images, before which names agree.
        label_ending: Ending of the stems of labels.
        suffix: Suffix of the label files.
    """

    paths: Mapping[Path, Path]
    image_ending: str
    label_ending: str
    suffix: str


@dataclass
class LabelContent:
    """What a sample of the labels holds.

    Attributes:
        label_format: The format.
        pixels: Pixels of each id or label.
    """

    label_format: str
    pixels: Counter[LabelId] = field(default_factory=Counter)

    def share(self, number: LabelId) -> float:
        """Return the share of the pixels that an id or a label has."""
        return self.pixels[number] / max(1, self.pixels.total())


def group_labels(images: Sequence[Path], labels: Iterable[Path]) -> LabelGroup | None:
    """Return the label files that belong to the most images; None if no name agrees.

    A label belongs to the image whose stem, without an ending that all images share, begins its own
    stem. Of groups for equally many images, one with ids wins over one of colours or instances.
    """
    endings = _common_ending([path.stem for path in images])
    groups: dict[tuple[str, str, str], dict[Path, Path]] = {}
    labels = list(labels)
    for image_ending in dict.fromkeys([endings, ""]):
        cores: dict[str, list[Path]] = {}
        for image in images:
            cores.setdefault(image.stem.removesuffix(image_ending), []).append(image)
        for label in labels:
            core = _longest_core(label.stem, cores)
            if core is not None:
                key = (image_ending, label.stem.removeprefix(core), label.suffix.lower())
                image = max(cores[core], key=lambda each: _shared_parts(each, label))
                groups.setdefault(key, {}).setdefault(image, label)
    if not groups:
        return None
    best = max(groups, key=lambda key: (len(groups[key]), _preference(key[1], key[2])))
    image_ending, label_ending, suffix = best
    return LabelGroup(groups[best], image_ending, label_ending, suffix)


def _common_ending(stems: Sequence[str]) -> str:
    """Return the ending with letters that all stems share, such as `_leftImg8bit`."""
    shared = commonprefix([stem[::-1] for stem in stems])[::-1]  # noqa: RUF071  # of characters
    found = _ENDING.search(shared) if len(stems) > 1 else None
    return "" if found is None else found[0]


def _longest_core(stem: str, cores: Mapping[str, object]) -> str | None:
    for end in range(len(stem), 0, -1):
        rest = stem[end:]
        # `img1` is not the beginning of `img10`
        if stem[:end] in cores and not (rest[:1].isdigit() and stem[end - 1].isdigit()):
            return stem[:end]
    return None


def _shared_parts(one: Path, other: Path) -> int:
    return len(set(one.parent.parts) & set(other.parent.parts))


def _preference(ending: str, suffix: str) -> tuple[bool, bool, int, int]:
    lower = ending.lower()
    liked = next((len(_PREFERRED) - at for at, word in enumerate(_PREFERRED) if word in lower), 0)
    is_avoided = any(word in lower for word in _AVOIDED)
    return not is_avoided, suffix not in (".json", ".txt", ".xml"), liked, -len(ending)


def file_format(path: Path) -> str | None:
    """Return the format of a JSON or XML label file; None if it has none that is read."""
    if path.suffix.lower() == ".xml":
        return "cvat" if b"<annotations" in read_bytes(path)[:4096] else None
    document = read_document(path, read_bytes(path))
    if isinstance(document, list):
        document = document[0] if document else None
        is_task = isinstance(document, dict) and {"data", "annotations"} <= document.keys()
        return "label_studio" if is_task else None
    if not isinstance(document, dict):
        return None
    forms = {
        "coco": {"images", "annotations", "categories"},
        "labelme": {"shapes"},
        "cityscapes_polygons": {"imgHeight", "objects"},
        "label_studio": {"data", "annotations"},
    }
    return next((name for name, keys in forms.items() if keys <= document.keys()), None)


def sample_content(pairs: Mapping[Path, Path]) -> LabelContent:
    """Return the format and the ids or labels of a sample of label files.

    Args:
        pairs: The label file of each image.

    Raises:
        DataError: The files are in no format that is read.
    """
    chosen = _sampled(list(pairs.items()))
    first = chosen[0][1]
    if is_document(first):
        label_format = file_format(first)
        found = object_format(label_format or "")
        if label_format is None or found is None:
            raise DataError(f"{first}: is not a label file of a format that is read")
        content = LabelContent(label_format)
        for image, label in chosen:
            for labelled in found.read(label, read_bytes(label)):
                content.pixels.update(labelled.draw(labelled.size or image_size(image)).pixels())
        return content
    return _sample_ids([label for _, label in chosen])


def sample_shared(path: Path) -> LabelContent:
    """Return the format and the labels of a file that is about several images.

    Raises:
        DataError: It is in no such format.
    """
    label_format = file_format(path) if is_document(path) else None
    found = object_format(label_format or "")
    if label_format is None or found is None or not found.shared:
        raise DataError(
            f"{path}: is not a file of COCO, CVAT for images or Label Studio; of other labels, "
            "name the folder"
        )
    content = LabelContent(label_format)
    for labelled in _sampled(read_shared(path, found.read).images):
        if labelled.size is not None:
            content.pixels.update(labelled.draw(labelled.size).pixels())
    return content


def _sampled(items: Sequence[_T]) -> Sequence[_T]:
    """Return at most `MAX_SAMPLE` of the items, at equal distances."""
    return items[:: max(1, len(items) // MAX_SAMPLE)][:MAX_SAMPLE]


def _sample_ids(labels: Sequence[Path]) -> LabelContent:
    errors: list[DataError] = []
    for label_format in ("ids", "rgb", "synthia"):
        content = LabelContent(label_format)
        try:
            for label in labels:
                values, counts = np.unique(read_label_ids(label, label_format), return_counts=True)
                content.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        except DataError as error:
            errors.append(error)
            continue
        if len(content.pixels) > _MAX_IDS:
            problem = f"{labels[0]}: labels hold {len(content.pixels)} ids; is this a label?"
            raise DataError(problem)
        return content
    raise errors[0]


def is_document(path: Path) -> bool:
    """Return whether a file can have the labels of several images by its suffix."""
    return path.suffix.lower() in _DOCUMENTS


def is_label_file(path: Path) -> bool:
    """Return whether a file can be a label by its suffix."""
    known = {*IMAGE_SUFFIXES, *(label_suffixes("ids") or ()), *_DOCUMENTS}
    return path.suffix.lower() in known and path.name not in CLASS_FILES


CLASS_FILES = (
    *("_classes.csv", "class_dict.csv", "labelmap.txt", "labels.txt", "classes.txt"),
    *("label_classes.json", "classes.json", "meta.json"),
)
"""Names of files in which tools list the classes."""

_MIN_KNOWN = 5


def known_table(content: LabelContent, label_ending: str) -> str | None:
    """Return the built-in table whose classes the labels have; None if none fits for certain.

    Several tables use the same ids, so ids count only if the files are named as the published ones
    are. Colours and names of objects identify a table by themselves.
    """
    ending, has_objects = label_ending.lower(), object_format(content.label_format) is not None
    if "labeltrainids" in ending:
        name = "trainids19"
    elif content.label_format == "rgb":
        name = "camvid-colors"
    elif "labelids" in ending or has_objects:
        name = "cityscapes19"
    else:
        return None
    table = builtin_label_table(name)
    if has_objects:
        groups: Sequence[Iterable[LabelId]] = [[name] for name in table.classes.names]
        known: set[LabelId] = {*table.classes.names, BACKGROUND}
    else:
        groups = table.ids
        known = {*table.ignore, *(number for ids in table.ids for number in ids)}
    occurring = sum(not content.pixels.keys().isdisjoint(group) for group in groups)
    return name if occurring >= _MIN_KNOWN and content.pixels.keys() <= known else None
