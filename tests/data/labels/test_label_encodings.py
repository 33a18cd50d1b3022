"""Label files in every encoding: correct ids, or an error that names the encoding."""

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_label_ids, read_train_ids
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.prepare.convert import to_train_ids
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError

SIZE = (13, 21)  # not multiples of 8, so every pass of an interlaced PNG has a partial block


def channels(ids, depth, count, color):
    """Return a PNG with ids in the first channel and noise in the others."""
    others = np.random.default_rng(7).integers(0, 2**depth, (*ids.shape, count - 1))
    stacked = np.concatenate([ids[..., None], others], 2)
    kind = ">u2" if depth == 16 else "u1"
    return files.png([row.astype(kind).tobytes() for row in stacked], ids.shape[1], depth, color)


def painted(ids, count):
    """Return a PNG with one random colour per id, and an alpha channel if `count` is 4."""
    table = np.random.default_rng(3).integers(0, 256, (256, 3))
    picture = table[ids].astype(np.uint8)
    if count == 4:
        picture = np.concatenate([picture, np.full((*ids.shape, 1), 255, np.uint8)], 2)
    rows = [row.tobytes() for row in picture]
    return files.png(rows, ids.shape[1], 8, {3: 2, 4: 6}[count])


# name: (largest id, encoder, name in the error message)
ENCODINGS = {
    "palette": (33, files.palette_png, "palette"),
    "gray": (33, files.gray_png, "gray"),
    "RGB-coded": (33, lambda ids: painted(ids, 3), "RGB"),
    "RGBA": (33, lambda ids: painted(ids, 4), "RGBA"),
    "LA": (33, lambda ids: channels(ids, 8, 2, 4), "LA|gray with alpha"),
    "1-bit": (1, lambda ids: files.gray_png(ids, 1), "1-bit gray"),
    "4-bit": (15, lambda ids: files.gray_png(ids, 4), "4-bit gray"),
    "16-bit gray": (33, lambda ids: files.gray_png(ids, 16), "16-bit gray"),
    "16-bit RGB": (22, files.synthia_png, "RGB; use label_format synthia for ids in 16-bit RGB"),
    "interlaced gray": (33, lambda ids: files.interlaced_png(ids, 8, 0), "8-bit gray"),
    "interlaced palette": (
        33,
        lambda ids: files.interlaced_png(ids, 8, 3, files.palette_chunk()),
        "8-bit palette",
    ),
    "interlaced 16-bit RGB": (
        22,
        lambda ids: files.interlaced_png(np.repeat(ids[..., None], 3, 2) * [1, 7, 0], 16, 2),
        "RGB; use label_format synthia",
    ),
}
ONE_CHANNEL = {
    *("palette", "gray", "1-bit", "4-bit", "16-bit gray", "interlaced gray", "interlaced palette")
}
THREE_OF_SIXTEEN = {"16-bit RGB", "interlaced 16-bit RGB"}
SETS = {
    "cityscapes": (
        "cityscapes/leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png",
        ONE_CHANNEL,
    ),
    "gta5": ("gta5/images/00001.png", "gta5/labels/00001.png", ONE_CHANNEL),
    "synthia": ("synthia/RGB/0000000.png", "synthia/GT/LABELS/0000000.png", THREE_OF_SIXTEEN),
}
TABLES = {"cityscapes": "cityscapes19", "gta5": "cityscapes19", "synthia": "synthia16"}


def test_an_interlaced_file_is_what_an_independent_decoder_takes_it_for(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256, SIZE)
    path = files.put(tmp_path / "x.png", files.interlaced_png(ids, 8, 0))
    with Image.open(path) as opened:
        assert opened.info.get("interlace") == 1
        np.testing.assert_array_equal(np.asarray(opened), ids)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_its_ids_or_is_refused_by_name(tmp_path, name, encoding):
    image, label, readable = SETS[name]
    largest, make, called = ENCODINGS[encoding]
    ids = np.random.default_rng(1).integers(0, largest + 1, SIZE)
    files.put(tmp_path / image, files.image_png(*SIZE))
    path = files.put(tmp_path / label, make(ids))
    if encoding not in readable:
        with pytest.raises(DataError, match=called) as caught:
            prepare_dataset(name, root=tmp_path)
        assert str(path) in str(caught.value)
        return
    dataset = prepare_dataset(name, root=tmp_path).dataset
    (sample,) = dataset.split("train")
    table = builtin_label_table(TABLES[name])
    meant = {raw_id: index for index, listed in enumerate(table.ids) for raw_id in listed}
    expected = [[meant.get(int(number), IGNORE) for number in row] for row in ids]
    np.testing.assert_array_equal(read_train_ids(dataset.label_path(sample)), expected)


def test_colours_of_sixteen_bits_are_refused_not_halved(tmp_path):
    path = files.put(tmp_path / "x.png", files.synthia_png(np.array([[3, 4]])))
    with pytest.raises(DataError, match="rgb needs 8 bits, but the image is 16-bit RGB"):
        read_label_ids(path, "rgb")


@pytest.mark.parametrize("extra", ["none", "transparent"])
def test_colours_are_read_from_rgb_rgba_and_palettes_alike(tmp_path, extra):
    table = np.array([[0, 0, 0], [128, 64, 128], [255, 1, 2], [7, 8, 9]], np.uint8)
    ids = np.random.default_rng(2).integers(0, 4, SIZE)
    picture = Image.fromarray(table[ids])
    alpha = picture.convert("RGBA")
    if extra == "transparent":
        alpha.putalpha(0)
    indexed = Image.fromarray(ids.astype(np.uint8)).convert("P")
    indexed.putpalette(table.ravel().tolist())
    how = {"transparency": 1} if extra == "transparent" else {}
    wide = table.astype(np.int64)
    expected = (wide[:, 0] << 16 | wide[:, 1] << 8 | wide[:, 2])[ids]
    for image, more in ((picture, {}), (alpha, {}), (indexed, how)):
        path = files.put(tmp_path / "x.png", files.coded(image, "PNG", **more))
        np.testing.assert_array_equal(read_label_ids(path, "rgb"), expected)


# ids that are in no table


def test_every_unknown_id_is_counted_by_itself(tmp_path):
    counts = {number: number - 33 for number in range(35, 255)}
    counts |= {300: 3, 65535: 2, -1: 5}
    ids = np.repeat(list(counts), list(counts.values()))
    np.random.default_rng(0).shuffle(ids)
    labels, unknown = to_train_ids(ids[None], builtin_label_table("cityscapes19"))
    assert (labels == IGNORE).all()
    assert unknown == counts


@pytest.mark.parametrize(
    ("stored", "counted"),
    [(35, 35), (128, 128), (254, 254), (300, 300), (65535, 65535), (-1, -1), (-1000, -1000)],
)
def test_unknown_ids_stop_a_published_set_whatever_holds_them(tmp_path, stored, counted):
    ids = np.full(SIZE, 7, np.int32)
    ids[2, 3:7] = stored
    image, label, _ = SETS["gta5"]
    files.put(tmp_path / image, files.image_png(*SIZE))
    if stored < 0:  # only TIFF can store negative ids
        data, label = files.coded(Image.fromarray(ids), "TIFF"), "gta5/labels/00001.tif"
        (tmp_path / "own").mkdir()
        yaml = files.dataset_yaml(
            tmp_path, "name: own\nbase: gta5\nroot: gta5\nlabels: labels/*.tif\n"
        )
        name = str(yaml)
    else:
        data, name = files.gray_png(ids, 8 if stored < 256 else 16), "gta5"
    files.put(tmp_path / label, data)
    with pytest.raises(DataError, match=f"  {counted}: 4 pixels, first in .*00001") as caught:
        prepare_dataset(name, root=tmp_path)
    assert caught.value.exit_code == 3


# IM9: palettes do not affect ids


@pytest.mark.parametrize("how", ["shuffled", "short", "transparent", "empty colours"])
def test_a_palette_never_moves_an_id(tmp_path, how):
    ids = np.random.default_rng(5).integers(0, 34, SIZE)
    transparent = files.chunk(b"tRNS", bytes(range(34)))
    rows = [row.astype(np.uint8).tobytes() for row in ids]
    data = {
        "shuffled": lambda: files.palette_png(ids, seed=11),
        "short": lambda: files.palette_png(ids, colors=5),
        "transparent": lambda: files.png(rows, SIZE[1], 8, 3, files.palette_chunk(), transparent),
        "empty colours": lambda: files.png(rows, SIZE[1], 8, 3, files.chunk(b"PLTE", bytes(768))),
    }[how]()
    path = files.put(tmp_path / "x.png", data)
    np.testing.assert_array_equal(read_label_ids(path, "ids"), ids)
