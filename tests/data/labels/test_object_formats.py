"""Labels of annotation tools have the pixels that the tools themselves give them.

`tool_labels.json` was made once: its ids are those that labelme 6.3.1 (`shapes_to_label`) and
cityscapesScripts 2.3.0 (`createLabelImage`) draw from its files, and pycocotools 2.0.11 from its
polygons; its brushes are those that label-studio-converter 0.0.59 (`mask2rle`) writes of its ids.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from udaseg.data.labels.formats import object_format
from udaseg.data.labels.objects.label_studio import decode_brush, encode_brush
from udaseg.errors import DataError

TOOLS = json.loads(Path(__file__).with_name("tool_labels.json").read_text())
SIZE = (40, 56)


def _read(name, document):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return object_format(name).read(Path("labels.json"), data)


def _drawn(image, size=None):
    """Return the label of each pixel."""
    drawn = image.draw(image.size or size)
    return np.array(drawn.names)[drawn.positions]


def _coco(*segmentations, names=("car",), **image):
    annotations = [
        {"id": 10 + number, "image_id": 4, "category_id": 1 + number % len(names), "iscrowd": 0}
        | ({} if segmentation is None else {"segmentation": segmentation})
        for number, segmentation in enumerate(segmentations)
    ]
    return {
        "images": [{"id": 4, "file_name": "a/0.jpg", "height": SIZE[0], "width": SIZE[1]} | image],
        "categories": [{"id": 1 + number, "name": name} for number, name in enumerate(names)],
        "annotations": annotations,
    }


def _filled(polygon):
    """Return the pixels of a polygon as the library of COCO fills it."""
    coding = pytest.importorskip("faster_coco_eval.core.mask")
    return coding.decode(coding.merge(coding.frPyObjects([polygon], *SIZE))) > 0


def _mask_of(rows):
    return np.array([[int(digit, 16) for digit in row] for row in rows])


def _with_a_hole():
    mask = np.zeros(SIZE, np.uint8)
    mask[5:30, 10:50] = 1
    mask[12:20, 20:30] = 0
    mask[35:38, 2:6] = 1
    return mask


def _runs(mask):
    """Return the uncompressed RLE of COCO: column by column, beginning with zeros."""
    flat = mask.T.ravel()
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return {"size": list(SIZE), "counts": [0, *counts] if flat[0] else counts}


POLYGONS = TOOLS["pycocotools"]["polygons"]


def test_coco_polygons_and_rle_are_filled_as_pycocotools_does():
    coding = pytest.importorskip("faster_coco_eval.core.mask")
    mask = _with_a_hole()
    text = TOOLS["pycocotools"]["rle_with_a_hole"]
    assert coding.encode(np.asfortranarray(mask))["counts"].decode() == text["counts"]
    polygons = _mask_of(TOOLS["pycocotools"]["ids"])
    for segmentation, expected in ((POLYGONS, polygons), (_runs(mask), mask), (text, mask)):
        (image,) = _read("coco", _coco(segmentation))
        assert image.names == ("a/0.jpg",)
        assert image.size == SIZE
        np.testing.assert_array_equal(_drawn(image) == "car", expected > 0)


def test_later_annotations_cover_earlier_ones_and_empty_ones_cover_nothing():
    pytest.importorskip("faster_coco_eval")
    crowd = _runs(_with_a_hole())
    document = _coco(POLYGONS, crowd, [], [[3, 3, 9, 9]], names=("car", "person"))
    document["annotations"][1]["iscrowd"] = 1
    drawn = _drawn(_read("coco", document)[0])
    first, second = _mask_of(TOOLS["pycocotools"]["ids"]) > 0, _with_a_hole() > 0
    np.testing.assert_array_equal(drawn == "person", second)
    np.testing.assert_array_equal(drawn == "car", first & ~second)
    assert set(drawn[~(first | second)].tolist()) == {"background"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"images": []}, "is not a COCO file: 'categories' is missing"),
        (_coco(None) | {"annotations": [{"image_id": 4, "category_id": 1, "bbox": [0, 0, 3, 3]}]},
         "1 annotations are only boxes, without a segmentation"),
        (_coco({"size": [3, 4], "counts": [12]}), r"annotation 10: its size is \[3, 4\], that of"),
        (_coco({"size": list(SIZE), "counts": [3, 4]}),
         "annotation 10: its runs have 7 pixels, the image 2240"),
        (_coco("x"), "annotation 10: "),
        (b"{", "is not JSON"),
    ],
)  # fmt: skip
def test_a_coco_file_that_cannot_be_drawn_is_refused(document, said):
    pytest.importorskip("faster_coco_eval")
    with pytest.raises(DataError, match=f"^labels.json: {said}"):
        _drawn(_read("coco", document)[0])


def test_labelme_shapes_are_drawn_as_labelme_draws_them():
    (image,) = _read("labelme", TOOLS["labelme"]["file"])
    assert image.size == SIZE
    names = np.array(["background", "road", "car", "sign", "pole"])
    ids = _mask_of(TOOLS["labelme"]["ids"])
    np.testing.assert_array_equal(_drawn(image), names[ids])
    assert set(np.unique(ids)) == {0, 1, 2, 3, 4}


def test_a_labelme_file_of_before_has_neither_size_nor_type():
    document = {"shapes": [{"label": "a", "points": [[1, 1], [6, 1], [6, 4], [1, 4]]}]}
    (image,) = _read("labelme", document)
    assert image.size is None
    assert (_drawn(image, (8, 9)) == "a").sum() == 24


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"points": [[0, 0], [1, 1]]}, "shape 1: a polygon of 2 points cannot be drawn"),
        ({"points": [[0, 0]], "shape_type": "points"}, "shape 1: a points of 1 points cannot"),
        ({"points": [[0, "x"]]}, "shape 1: could not convert"),
        ({"points": [[0, 0], [1, 1]], "shape_type": "mask"}, "shape 1: 'mask' is missing"),
    ],
)
def test_a_labelme_shape_that_cannot_be_drawn_is_named(shape, said):
    (image,) = _read("labelme", {"shapes": [{"label": "a", **shape}]})
    with pytest.raises(DataError, match=re.escape(f"labels.json: {said}")):
        image.draw((8, 9))


def test_cityscapes_polygons_are_drawn_as_cityscapesscripts_draws_them():
    (image,) = _read("cityscapes_polygons", TOOLS["cityscapes_polygons"]["file"])
    label_ids = {"background": 0, "ego vehicle": 1, "road": 7, "polegroup": 18, "traffic sign": 20}
    label_ids |= {"sky": 23, "person": 24, "car": 26}
    drawn = image.draw(image.size)
    ids = np.array([label_ids[name] for name in drawn.names])[drawn.positions]
    expected = [list(map(int, row.split())) for row in TOOLS["cityscapes_polygons"]["ids"]]
    np.testing.assert_array_equal(ids, expected)
    assert {1, 7, 18, 24, 26} <= set(np.unique(ids).tolist())
    assert 23 not in ids  # deleted


def _cvat(*shapes):
    text = "".join(shapes)
    return (
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta/>'
        f'<image id="0" name="a/0.jpg" width="{SIZE[1]}" height="{SIZE[0]}">{text}</image>'
        '<image id="1" name="1.jpg" width="5" height="4"></image></annotations>'
    ).encode()


def test_cvat_shapes_are_drawn_by_their_z_order():
    coding = pytest.importorskip("faster_coco_eval.core.mask")
    # a mask as CVAT writes it: rows of a box, beginning with pixels outside
    part = np.array([[0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    points = "5.30,4.10;33.80,6.90;28.20,31.40;7.00,25.50"
    images = _read("cvat", _cvat(
        '<mask label="car" source="manual" occluded="0" rle="1, 5, 1, 4, 1" left="10" top="8" '
        'width="4" height="3" z_order="1"></mask>',
        f'<polygon label="road" points="{points}" z_order="0"><attribute name="x">1</attribute>'
        '</polygon>',
        '<box label="car" xtl="40.0" ytl="2.0" xbr="50.0" ybr="9.0" z_order="0"></box>',
        '<polyline label="lane" points="1,1;2,2" z_order="9"></polyline>',
        '<points label="nose" points="1,1" z_order="9"></points>',
    ))  # fmt: skip
    assert [image.names for image in images] == [("a/0.jpg",), ("1.jpg",)]
    mask = np.zeros(SIZE, bool)
    mask[8:11, 10:14] = part
    box = _filled([40.0, 2.0, 50.0, 2.0, 50.0, 9.0, 40.0, 9.0])
    road = (_mask_of(TOOLS["pycocotools"]["first"]) > 0) & ~mask & ~box
    drawn = _drawn(images[0])
    np.testing.assert_array_equal(drawn == "car", mask | box)
    np.testing.assert_array_equal(drawn == "road", road)
    assert mask[8, 11]
    assert not mask[9, 12]  # a hole, through which the road is seen
    assert drawn[9, 12] == "road"
    assert set(_drawn(images[1]).ravel()) == {"background"}
    # as datumaro reads the mask: runs over the columns of the turned box
    runs = {"counts": [1, 5, 1, 4, 1], "size": [4, 3]}
    np.testing.assert_array_equal(coding.decode(coding.frPyObjects(runs, 4, 3)).T, part)


def test_ellipses_and_turned_boxes_of_cvat_have_their_place_and_area():
    pytest.importorskip("faster_coco_eval")
    (image, _) = _read("cvat", _cvat(
        '<ellipse label="e" cx="14.0" cy="20.0" rx="9.0" ry="5.0" rotation="90.0"/>',
        '<box label="b" xtl="30.0" ytl="15.0" xbr="50.0" ybr="25.0" rotation="90.0"/>',
    ))  # fmt: skip
    drawn = _drawn(image)
    for label, center, area, height in (("e", (14, 20), np.pi * 45, 18), ("b", (40, 20), 200, 20)):
        ys, xs = np.nonzero(drawn == label)
        assert abs(len(ys) - area) < 20
        assert abs(np.ptp(ys) + 1 - height) < 2
        assert (abs(xs.mean() + 0.5 - center[0]) < 0.7) & (abs(ys.mean() + 0.5 - center[1]) < 0.7)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<annotations><track></track></annotations>", "is CVAT for video; export the task as"),
        (b"<annotations></annotations>", "has no image; export the task as CVAT for images 1.1"),
        (b"<annotations>", "is not XML: "),
        (_cvat('<mask label="car" rle="1,5" left="0" top="0" width="4" height="3"/>'),
         "a mask of car: cannot reshape"),
        (_cvat('<mask label="car" rle="0,12" left="54" top="0" width="4" height="3"/>'),
         "a mask of car: a mask reaches to row 3, column 58, outside of the image"),
        (_cvat('<polygon label="car"/>'), "a polygon of car: 'points' is missing"),
        (_cvat("<polygon/>"), "image a/0.jpg: 'label' is missing"),
    ],
)  # fmt: skip
def test_a_cvat_file_that_cannot_be_drawn_is_refused(data, said):
    pytest.importorskip("faster_coco_eval")
    with pytest.raises(DataError, match=f"^labels.json: {re.escape(said)}"):
        _drawn(_read("cvat", data)[0])


def _region(kind, value, size=(30, 44), label="car"):
    return {
        "id": "x1", "type": kind, "from_name": "tag", "to_name": "image", "image_rotation": 0,
        "original_width": size[1], "original_height": size[0],
        "value": {**value, kind: [label]},
    }  # fmt: skip


def _task(*regions, image="/data/upload/3/0a1b2c3d-street%201.jpg", **more):
    annotation = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": list(regions)}
    return {"id": 7, "data": {"image": image}, "annotations": [annotation], **more}


def test_brushes_of_label_studio_are_read_as_its_converter_reads_them():
    brushes = TOOLS["label_studio"]
    task = _task(*(
        _region("brushlabels", {"format": "rle", "rle": brush["rle"]}, label=label)
        for label, brush in brushes.items()
    ))  # fmt: skip
    (image,) = _read("label_studio", [task])
    car, tree = (np.array([[int(x) for x in row] for row in b["ids"]]) for b in brushes.values())
    drawn = _drawn(image)
    np.testing.assert_array_equal(drawn == "tree", tree > 0)
    np.testing.assert_array_equal(drawn == "car", (car > 0) & (tree == 0))


def test_our_brushes_are_those_of_the_converter():
    for brush in TOOLS["label_studio"].values():
        mask = np.array([[int(digit) for digit in row] for row in brush["ids"]]) > 0
        values = decode_brush(encode_brush(mask)).reshape(30, 44, 4)
        np.testing.assert_array_equal(values, decode_brush(brush["rle"]).reshape(30, 44, 4))
        np.testing.assert_array_equal(values, np.repeat(mask[..., None], 4, 2) * 255)
    large = np.zeros((300, 400), bool)  # runs of more than 2^16 values
    large[10:290, 20:380] = True
    large[100:200, 100:200] = False
    for rle in (encode_brush(large), TOOLS["label_studio_large_rle"]):
        np.testing.assert_array_equal(decode_brush(rle).reshape(300, 400, 4)[..., 3] > 0, large)


def test_polygons_boxes_and_ellipses_of_label_studio_are_in_percent():
    pytest.importorskip("faster_coco_eval")
    percent = [[10.0, 20.0], [60.0, 20.0], [35.0, 90.0]]
    (image,) = _read("label_studio", [_task(
        _region("polygonlabels", {"points": percent, "closed": True}, SIZE, "road"),
        _region("rectanglelabels",
                {"x": 50.0, "y": 10.0, "width": 25.0, "height": 30.0, "rotation": 0}, SIZE, "box"),
        _region("ellipselabels",
                {"x": 80.0, "y": 80.0, "radiusX": 10.0, "radiusY": 15.0, "rotation": 0}, SIZE, "e"),
        _region("keypointlabels", {"x": 1.0, "y": 1.0, "width": 0.5}, SIZE),
    )])  # fmt: skip
    drawn = _drawn(image)
    box = _filled([28.0, 4.0, 42.0, 4.0, 42.0, 16.0, 28.0, 16.0])
    road = _filled([part for x, y in percent for part in (x * 0.56, y * 0.4)])
    np.testing.assert_array_equal(drawn == "box", box)
    np.testing.assert_array_equal(drawn == "road", road & ~box)
    ys, xs = np.nonzero(drawn == "e")
    assert abs(len(ys) - np.pi * 5.6 * 6.0) < 15
    assert abs(xs.mean() - 44.8) < 0.6
    assert abs(ys.mean() - 32.0) < 0.6
    assert "car" not in drawn


def test_a_task_of_label_studio_counts_with_one_annotation():
    def brush(label, **more):
        value = {"format": "rle", "rle": TOOLS["label_studio"]["car"]["rle"]}
        return {"result": [_region("brushlabels", value, label=label)], **more}

    def labels(*annotations):
        task = {"data": {"image": "s3://b/0.png"}, "annotations": list(annotations)}
        images = _read("label_studio", task)
        return [sorted(set(_drawn(image).ravel()) - {"background"}) for image in images]

    assert labels(brush("a"), brush("b")) == [["b"]]
    assert labels(brush("a", ground_truth=True), brush("b")) == [["a"]]
    assert labels(brush("a"), brush("b", was_cancelled=True)) == [["a"]]
    assert labels(brush("a", was_cancelled=True)) == []
    assert labels() == []


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"image": "/data/upload/3/0a1b2c3d-street%201.jpg"},
         ("/data/upload/3/0a1b2c3d-street 1.jpg", "/data/upload/3/street 1.jpg")),
        ({"id": 3, "img": "/data/local-files/?d=drive/a/0.png"}, ("drive/a/0.png",)),
        ({"text": "no image", "image": "s3://bucket/a/0.tif"}, ("/a/0.tif",)),
    ],
)  # fmt: skip
def test_a_task_of_label_studio_names_its_image(data, names):
    (image,) = _read("label_studio", [_task() | {"data": data}])
    assert image.names == names
    assert image.size is None


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([{"image": "0.jpg", "tag": []}], "task 1 has no data or annotations; export the project"),
        ([_task(_region("brushlabels", {"rle": [1, 2]}))], "task 1: "),
        ([_task(_region("brushlabels", {"rle": TOOLS["label_studio"]["car"]["rle"][:40]}))],
         "task 1: "),
        ([_task(_region("bitmasklabels", {"imageDataURL": "data:image/png;base64,"}))],
         "task 1: a region was drawn with BitMask"),
    ],
)  # fmt: skip
def test_a_label_studio_file_that_cannot_be_drawn_is_refused(document, said):
    with pytest.raises(DataError, match=f"^labels.json: {said}"):
        _drawn(_read("label_studio", document)[0])
