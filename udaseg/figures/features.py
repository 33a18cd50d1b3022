"""`udaseg features`: features of both domains in the plane, and what they say about classes."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from udaseg.data.files.images import write_png
from udaseg.display.progress import WorkProgress
from udaseg.errors import UsageError
from udaseg.evaluation.evaluate import variant_name
from udaseg.figures.cells import Domain, look_at, source_input
from udaseg.figures.distances import class_distances
from udaseg.figures.images import target_images
from udaseg.figures.plane import Plane, check_packages, plane_picture, to_plane
from udaseg.figures.pseudo_labels import quality_table, stored_quality
from udaseg.figures.table import NumberTable
from udaseg.files import csv_text, write_atomic, write_json, write_text
from udaseg.inference import trained_model
from udaseg.inference.pipeline import InferenceOptions
from udaseg.inference.trained_model import Model
from udaseg.recipe.methods import SelfTraining
from udaseg.runs.folder import run_folder_of
from udaseg.runs.leftovers import writing_in_run
from udaseg.selection.images import ImageSet, source_images
from udaseg.text import count_text, percent

log = logging.getLogger(__name__)

LOOKED_AT = (
    "Labels of the target were looked at for these numbers. They are for figures: whoever chooses "
    "a method, a setting or a checkpoint by them does not adapt without target labels."
)


@dataclass(frozen=True)
class FeatureOptions:
    """What to look at.

    Attributes:
        images: Maximum number of images of each domain, evenly spaced.
        points: Maximum number of cells of each class and domain in the plane.
        weights: `student` or `teacher`.
        out: Folder of the files; None is a folder in the run.
        device: Device to compute on.
        root: Folder of the prepared data.
    """

    images: int = 50
    points: int = 100
    weights: str = "student"
    out: str | os.PathLike[str] | None = None
    device: str = "auto"
    root: str | os.PathLike[str] = "data"


@dataclass(frozen=True)
class Features:
    """What the features of a run say about classes and domains.

    Attributes:
        facts: Network, images, and what classes of the target are taken from.
        source: Cosine distances within and between classes on the source.
        target: The same on the target, and the distances to the source.
        pseudo_labels: How right pseudo-labels are, by class; empty without target labels.
        plane: Positions of some cells in the plane.
        notes: What to keep in mind; says so if labels of the target were looked at.
        folder: `features.png`, `points.csv`, the tables as CSV, and all but the points as
            `features.json`.
    """

    facts: dict[str, str]
    source: NumberTable
    target: NumberTable
    pseudo_labels: Sequence[NumberTable]
    plane: Plane
    notes: Sequence[str]
    folder: Path

    @property
    def picture(self) -> Path:
        """The picture of the plane."""
        return self.folder / "features.png"

    @property
    def tables(self) -> tuple[NumberTable, ...]:
        """All tables, in the order in which they are shown."""
        return (self.source, self.target, *self.pseudo_labels)

    def to_json(self) -> dict[str, Any]:
        """Return facts, tables and notes as a JSON object."""
        return {
            "facts": self.facts,
            "tables": [{"title": table.title, "rows": table.rows} for table in self.tables],
            "notes": list(self.notes),
        }


def features(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    options: FeatureOptions | None = None,
) -> Features:
    """Return and write what the features of a run say about classes and domains.

    Features are the last feature map of the backbone, one vector for each cell, scaled to unit
    length. Source images are those of the `val` split of the recipe's source if it has one. Labels
    of the target are read for this look alone; without them, its classes are the predictions.

    Args:
        run: Run folder or checkpoint.
        data: The target; None takes the validation data of the recipe, else its target.
        split: Split of the target.
        options: What to look at.

    Raises:
        UsageError: A number is not positive.
        CheckpointError: There is no such network.
        DataError: Data cannot be read, or hold too few cells with a class.
        EnvironmentFault: scikit-learn is not installed.

    Example:
        seen = udaseg.features("runs/city-rccr")
        seen.target.rows["road"]["to the source"], seen.picture
    """
    check_packages()
    options = options or FeatureOptions()
    if options.points < 1:
        raise UsageError(f"points must be at least 1, got {options.points}")
    path, root = Path(run), Path(options.root)
    model = trained_model.load(path, weights=options.weights, device=options.device)
    target_set = target_images(model.recipe, data, split, options.images, root)
    confidences = _confidences(model)
    source, target = _look(model, target_set, tuple(confidences.values()), options)
    tables = [
        quality_table(title, model.classes.names, target.predictions[limit])
        for title, limit in confidences.items()
        if target.labelled
    ]
    tables += stored_quality(model, run_folder_of(path), options.images, root)
    plane = to_plane(np.concatenate([source.points.vectors, target.points.vectors]))
    on_source, on_target = class_distances(model.classes.names, source, target)
    seen = Features(
        facts=_facts(model, source, target, plane),
        source=on_source,
        target=on_target,
        pseudo_labels=tables,
        plane=plane,
        notes=[LOOKED_AT] if target.labelled or tables else [],
        folder=_folder(path, model, target_set, options),
    )
    with writing_in_run(run_folder_of(path)):
        _write(seen, model, source, target)
    log.info("features written to %s", seen.folder)
    return seen


def _look(
    model: Model, target: ImageSet, confidences: tuple[float, ...], options: FeatureOptions
) -> tuple[Domain, Domain]:
    """Return what the network makes of source and target."""
    source = source_images(model.recipe, options.images, Path(options.root))
    with WorkProgress("features", len(source.samples) + len(target.samples)) as progress:
        look = partial(look_at, model, points=options.points, on_image=progress.advance)
        return look(source, read=source_input), look(target, confidences=confidences)


def _folder(path: Path, model: Model, target: ImageSet, options: FeatureOptions) -> Path:
    """Return the folder of the files, by default beside other looks in the run."""
    if options.out is not None:
        return Path(options.out)
    run_folder = run_folder_of(path)
    checkpoint = "" if path.resolve() == run_folder.resolve() else model.checkpoint.stem
    name = f"{target.dataset.name}-{target.split}"
    name = variant_name(name, options.weights, InferenceOptions(), checkpoint=checkpoint)
    return run_folder / "features" / name


def _confidences(model: Model) -> dict[str, float]:
    """Return the lowest confidences of pixels to compare with the truth, by what they mean."""
    limits = {"predictions of all pixels": 0.0}
    method = model.recipe.method
    if isinstance(method, SelfTraining):
        limit = method.mixing.confidence
        limits[f"predictions with a confidence of {limit:g} or more (mixing.confidence)"] = limit
    return limits


def _facts(model: Model, source: Domain, target: Domain, plane: Plane) -> dict[str, str]:
    def images(domain: Domain) -> str:
        return ", ".join(
            (
                domain.images.dataset.name,
                domain.images.split,
                count_text(len(domain.images.samples), "image"),
                f"{domain.cells.sum()} cells with a class",
            )
        )

    return {
        "weights": f"{model.weights} at step {model.step}",
        "features": f"{model.segmenter.feature_channels} channels, unit length",
        "source": images(source),
        "target": images(target),
        "classes of the target": "its labels" if target.labelled else "the network's predictions",
        "variance in the two components of PCA": f"{percent(plane.variance)} %",
    }


def _write(seen: Features, model: Model, source: Domain, target: Domain) -> None:
    """Write the files of `seen.folder`."""
    class_of = np.concatenate([source.points.classes, target.points.classes])
    is_target = np.repeat([False, True], [len(source.points.classes), len(target.points.classes)])
    write_png(seen.picture, plane_picture(seen.plane, model.classes, class_of, is_target))
    points = _points_csv(seen.plane, model, (source, target))
    write_atomic(seen.folder / "points.csv", points.encode("utf-8", "surrogateescape"))
    write_text(seen.folder / "distances_source.csv", seen.source.to_csv())
    write_text(seen.folder / "distances_target.csv", seen.target.to_csv())
    for number, table in enumerate(seen.pseudo_labels, 1):
        write_text(seen.folder / f"pseudo_labels_{number}.csv", table.to_csv())
    write_json(seen.folder / "features.json", seen.to_json())


def _points_csv(plane: Plane, model: Model, domains: Sequence[Domain]) -> str:
    """Return the points with image, cell, class and prediction, and their positions."""
    places = ("domain", "image", "row", "column", "class", "predicted")
    lines: list[list[object]] = [[*places, "pca_1", "pca_2", "tsne_1", "tsne_2"]]
    positions = iter(np.hstack([plane.pca, plane.tsne]).tolist())
    names = model.classes.names
    for title, domain in zip(("source", "target"), domains, strict=True):
        points = domain.points
        rows = zip(points.places.tolist(), points.classes, points.predicted, strict=True)
        for (image, row, column), label, guess in rows:
            place = domain.images.samples[image].image, row, column
            numbers = (f"{value:.6g}" for value in next(positions))
            lines.append([title, *place, names[label], names[guess], *numbers])
    return csv_text(lines)
