"""LoveDA and ISPRS, on generated files in their published layouts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.labels.read import read_train_ids
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.recipe.library import list_recipes

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = (16, 16)


def _loveda(root):
    """Write both domains with equal names; ids of a label start at the number of its image."""
    for split, labelled in (("Train", True), ("Val", True), ("Test", False)):
        for place, number in (("Urban", 0), ("Urban", 1), ("Rural", 0)):
            folder = root / "LoveDA" / split / place
            files.put(folder / f"images_png/{number}.png", files.image_png(*SIZE, number))
            if labelled:
                ids = np.arange(8).repeat(2)[:, None].repeat(16, 1)
                ids = ids if place == "Urban" else ids[::-1]
                files.put(folder / f"masks_png/{number}.png", files.gray_png(ids))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("loveda", {"train": 3, "val": 3, "test": 3}),
        ("loveda-urban", {"train": 2, "val": 2, "test": 2}),
        ("loveda-rural", {"train": 1, "val": 1, "test": 1}),
    ],
)
def test_loveda_is_prepared_by_its_domains(tmp_path, name, counts):
    _loveda(tmp_path)
    report = prepare_dataset(name, root=tmp_path)
    assert report.counts == counts
    assert report.unlabelled == ("test",)
    assert report.classes[:2] == ("background", "building")
    for sample in report.dataset.splits["train"]:
        label = read_train_ids(report.dataset.label_path(sample))
        expected = np.array([255, 0, 1, 2, 3, 4, 5, 6]).repeat(2)
        expected = expected if "Urban" in sample.image else expected[::-1]
        np.testing.assert_array_equal(label[:, 0], expected)


def test_recipes_of_loveda_adapt_from_urban_to_rural():
    names = [entry.name for entry in list_recipes() if entry.name.startswith("loveda")]
    assert {"loveda_urban_rural/rccr", "loveda_urban_rural/source_only"} <= set(names)


COLORS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]


@pytest.mark.parametrize(
    ("name", "images", "labels", "areas"),
    [
        (
            "potsdam",
            "3_Ortho_IRRG/top_potsdam_{}_IRRG.tif",
            "5_Labels_all/top_potsdam_{}_label.tif",
            ("2_10", "7_9", "7_13"),
        ),
        (
            "vaihingen",
            "top/top_mosaic_09cm_area{}.tif",
            "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE/top_mosaic_09cm_area{}.tif",
            ("1", "37", "38"),
        ),
    ],
)
def test_isprs_is_prepared_from_its_mosaics(tmp_path, monkeypatch, name, images, labels, areas):
    monkeypatch.setenv("UDASEG_ISPRS", str(tmp_path))
    ids = np.random.default_rng(0).integers(0, 6, SIZE)
    for number, area in enumerate(areas):
        picture = Image.fromarray(files.noise(*SIZE, number))
        files.put(tmp_path / images.format(area), files.coded(picture, "TIFF"))
        colors = Image.fromarray(np.array(COLORS, np.uint8)[ids])
        files.put(tmp_path / labels.format(area), files.coded(colors, "TIFF"))
    yaml = REPOSITORY / "recipes/datasets" / f"{name}.yaml"
    report = prepare_dataset(str(yaml), root=tmp_path / "data")
    assert report.counts == {"train": 2, "val": 1}
    (sample,) = report.dataset.splits["val"]
    label = read_train_ids(report.dataset.label_path(sample))
    np.testing.assert_array_equal(label, np.where(ids == 5, 255, ids))
    splits = read_declaration(yaml).splits
    assert not set(splits["train"]) & set(splits["val"])
    assert [len(rule) for rule in splits.values()] == ([24, 14] if name == "potsdam" else [16, 17])
