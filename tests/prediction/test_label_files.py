"""Files of annotation tools that `predict` writes are read back to the same pixels."""

import json
import os
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.files.images import write_png
from udaseg.data.files.orientation import to_upright
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.read import read_train_ids
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import EnvironmentFault
from udaseg.prediction.label_files import write_label_files
from udaseg.prediction.outputs import Job

SIZE = (20, 30)
NAMES = ("road", "background", "car <1>", "tree")
COLORS = ((0, 0, 0), (9, 9, 9), (200, 0, 30), (200, 0, 30))


def _masks():
    holes = np.full(SIZE, 1)
    holes[2:18, 3:27] = 0
    holes[5:9, 8:15] = 2  # a hole of the road, with a hole of its own
    holes[6:8, 10:12] = 0
    holes[0, 29] = holes[19, 0] = 2
    holes[12:14, 4:20] = IGNORE
    noise = np.random.default_rng(1).choice([0, 1, 2, 3, IGNORE], SIZE)
    return {"a.jpg": holes, "deep/a.png": noise, "deep/b.png": np.full(SIZE, 3)}


@pytest.fixture
def masks(tmp_path):
    """Write images and masks of ids; return the jobs and the upright ids of each image."""
    jobs, upright = [], {}
    for number, (name, ids) in enumerate(_masks().items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 0 else 1
        Image.fromarray(files.noise(*SIZE, number)).save(path, exif=exif)
        mask = (tmp_path / "masks/ids" / name).with_suffix(".png")
        write_png(mask, ids.astype(np.uint8))
        jobs.append(Job(path, {"ids": mask}))
        upright[name] = to_upright(ids.astype(np.uint8), 6 if number == 0 else 1)
    failed = Job(tmp_path / "photos/bad.png", {"ids": tmp_path / "masks/ids/bad.png"})
    return [*jobs, failed], upright


def _write(tmp_path, jobs, kind):
    classes = ClassSpace(NAMES, COLORS)
    write_label_files([kind], jobs, tmp_path / "photos", tmp_path / "masks", classes)


def _prepared(tmp_path, labels, label_format, classes="[road, background, car <1>, tree]"):
    text = f"name: back\nimages: photos/**/*\nlabels: {labels}\nlabel_format: {label_format}\n"
    yaml = files.dataset_yaml(tmp_path, f"{text}classes: {classes}\n")
    dataset = prepare_dataset(str(yaml), root=tmp_path / "data").dataset
    return {
        sample.image.removeprefix("photos/"): read_train_ids(dataset.label_path(sample))
        for sample in dataset.splits["train"]
    }


def _without_ignored(ids):
    return np.where(ids == IGNORE, 1, ids)  # pixels without an object are background


def _assert_equal(read, upright):
    assert read.keys() == upright.keys()
    for name, ids in upright.items():
        np.testing.assert_array_equal(read[name], _without_ignored(ids), name)


def test_coco(tmp_path, masks):
    pytest.importorskip("faster_coco_eval")
    jobs, upright = masks
    _write(tmp_path, jobs, "coco")
    _assert_equal(_prepared(tmp_path, "masks/coco.json", "coco"), upright)
    document = json.loads((tmp_path / "masks/coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == list(upright)
    assert [category["name"] for category in document["categories"]] == ["road", "car <1>", "tree"]
    tree = document["annotations"][-1]
    assert (tree["bbox"], tree["area"], tree["iscrowd"]) == ([0.0, 0.0, 30.0, 20.0], 600, 0)


def test_labelme(tmp_path, masks):
    jobs, upright = masks
    _write(tmp_path, jobs, "labelme")
    _assert_equal(_prepared(tmp_path, "masks/labelme/**/*.json", "labelme"), upright)
    path = tmp_path / "masks/labelme/deep/a.json"
    document = json.loads(path.read_text())
    image = os.path.normpath(path.parent / document["imagePath"])
    assert Path(image) == tmp_path / "photos/deep/a.png"
    assert {shape["label"] for shape in document["shapes"]} == {"road", "car <1>", "tree"}


def test_label_studio(tmp_path, masks):
    jobs, upright = masks
    _write(tmp_path, jobs, "label-studio")
    path = tmp_path / "masks/label-studio.json"
    tasks = json.loads(path.read_text())
    assert tasks[1]["data"] == {"image": "/data/local-files/?d=deep/a.png"}
    # a person accepts the predictions, and exports the project
    exported = [{**task, "annotations": task["predictions"], "predictions": []} for task in tasks]
    (tmp_path / "export.json").write_text(json.dumps(exported))
    _assert_equal(_prepared(tmp_path, "export.json", "label_studio"), upright)
    interface = ET.parse(tmp_path / "masks/label-studio.xml").getroot()
    (brushes,) = interface.findall("BrushLabels")
    (result, *_) = tasks[0]["predictions"][0]["result"]
    assert (brushes.get("name"), brushes.get("toName")) == (result["from_name"], result["to_name"])
    assert [label.get("value") for label in brushes] == ["road", "car <1>", "tree"]
    assert brushes[1].get("background") == "#c8001e"


def test_cvat(tmp_path, masks):
    jobs, upright = masks
    _write(tmp_path, jobs, "cvat")
    with zipfile.ZipFile(tmp_path / "masks/cvat.zip") as archive:
        archive.extractall(tmp_path / "cvat")
    assert (tmp_path / "cvat/ImageSets/Segmentation/default.txt").read_text().split() == [
        "a",
        "deep/a",
        "deep/b",
    ]
    lines = (tmp_path / "cvat/labelmap.txt").read_text().splitlines()
    assert lines[:2] == ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    assert len({line.split(":")[1] for line in lines[1:]}) == len(lines[1:]) == 4
    read = _prepared(tmp_path, "cvat/SegmentationClass/**/*.png", "rgb", "cvat/labelmap.txt")
    order = np.array([NAMES.index(name) for name in ("background", "road", "car <1>", "tree")])
    _assert_equal({name: order[ids] for name, ids in read.items()}, upright)


def test_datumaro_reads_the_masks_for_cvat(tmp_path, masks):
    """CVAT reads an uploaded "Segmentation mask 1.1" with this library."""
    datumaro = pytest.importorskip("datumaro", reason="needs pip install datumaro")
    jobs, upright = masks
    _write(tmp_path, jobs, "cvat")
    with zipfile.ZipFile(tmp_path / "masks/cvat.zip") as archive:
        archive.extractall(tmp_path / "cvat")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "cvat"), "voc_segmentation")
    labels = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    read = {}
    for item in dataset:
        ids = np.full(upright[_name(upright, item.id)].shape, NAMES.index("background"))
        for mask in item.annotations:
            ids[mask.image.astype(bool)] = NAMES.index(labels[mask.label])
        read[_name(upright, item.id)] = ids
    _assert_equal(read, upright)


def _name(names, stem):
    (name,) = (each for each in names if Path(each).with_suffix("").as_posix() == stem)
    return name


def test_the_command_writes_them_after_the_masks(tmp_path, masks, monkeypatch):
    import udaseg
    from tests.prediction.test_predict_api import small_model

    pytest.importorskip("faster_coco_eval")
    monkeypatch.chdir(tmp_path)
    options = udaseg.PredictOptions(save="coco,labelme")
    summary = udaseg.predict("photos", small_model(), out="new", options=options)
    assert {kind: str(path) for kind, path in summary.folders.items()} == {
        "ids": "new/ids",
        "coco": "new/coco.json",
        "labelme": "new/labelme",
    }
    assert all(path.exists() for path in summary.folders.values())
    saved = json.loads(Path("new/prediction.json").read_text())["save"]
    assert saved == ["ids", "coco", "labelme"]
    before = Path("new/coco.json").read_bytes()
    Path("new/coco.json").unlink()
    options = udaseg.PredictOptions(save="coco,labelme", resume=True)
    assert udaseg.predict("photos", small_model(), out="new", options=options).kept == 3
    assert Path("new/coco.json").read_bytes() == before


def test_geotiffs_need_their_extra(tmp_path, masks, monkeypatch):
    import udaseg

    monkeypatch.setattr("udaseg.data.files.bands.find_spec", lambda _: None)
    options = udaseg.PredictOptions(save="geotiff")
    with pytest.raises(EnvironmentFault, match=r"needs rasterio: pip install 'udaseg\[geo\]'"):
        udaseg.predict(tmp_path / "photos", "no_run", out=tmp_path / "new", options=options)
    assert not (tmp_path / "new").exists()


def test_geotiffs_are_opened_in_the_same_place(tmp_path, masks, caplog):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import Affine

    jobs, _ = masks
    transform = Affine(0.1, 0, 481000.5, 0, -0.1, 5531000.25)
    photo, mask = tmp_path / "photos/city/potsdam.TIF", tmp_path / "masks/ids/city/potsdam.png"
    photo.parent.mkdir()
    kind = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 20, "width": 30}
    with rasterio.open(photo, "w", crs="EPSG:25833", transform=transform, **kind) as file:
        file.write(np.moveaxis(files.noise(*SIZE, 5), 2, 0))
    ids = _masks()["deep/a.png"]
    write_png(mask, ids.astype(np.uint8))
    plain = tmp_path / "photos/plain.tif"
    files.put(plain, files.coded(Image.fromarray(files.noise(*SIZE, 6)), "TIFF"))
    more = [Job(photo, {"ids": mask}), Job(plain, {"ids": mask})]
    _write(tmp_path, [*jobs, *more], "geotiff")
    (written,) = (tmp_path / "masks/geotiff").rglob("*.*")
    assert written == tmp_path / "masks/geotiff/city/potsdam.tif"
    with rasterio.open(written) as file, rasterio.open(photo) as image:
        assert (file.crs, file.transform, file.bounds) == (image.crs, transform, image.bounds)
        assert (file.nodata, file.colormap(1)[2]) == (IGNORE, (200, 0, 30, 255))
        np.testing.assert_array_equal(file.read(1), ids)
    assert "4 images have no place on earth" in caplog.text
