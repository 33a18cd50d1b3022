"""Image I/O: exact ids in every encoding, damage reported, no partially written files."""

import os
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.files.headers import refuse_damaged_image
from udaseg.data.files.images import (
    image_orientation,
    image_size,
    read_image,
    read_stored_image,
    write_png,
)
from udaseg.data.files.orientation import to_upright
from udaseg.data.labels.read import read_label_ids, read_train_ids
from udaseg.errors import DataError

IDS = np.array([[0, 7, 34, 255], [1, 2, 33, 254], [128, 64, 8, 11]])


@pytest.fixture
def saved(tmp_path):
    def save(data, name="x.png"):
        return files.put(tmp_path / name, data)

    return save


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (files.palette_png(IDS), IDS),
        (files.palette_png(IDS, seed=9), IDS),  # a shuffled palette does not change ids
        (files.palette_png(IDS, colors=3), IDS),  # ids beyond the palette
        (files.gray_png(IDS), IDS),
        (files.gray_png(IDS * 257, 16), IDS * 257),  # includes 65535
        (files.gray_png(np.array([[300, 65535, 0]]), 16), [[300, 65535, 0]]),
        (files.gray_png(np.array([[0, 1, 1, 0, 1]]), 1), [[0, 1, 1, 0, 1]]),
        (files.gray_png(np.array([[0, 1, 2, 3, 1]]), 2), [[0, 1, 2, 3, 1]]),
        (files.gray_png(np.array([[0, 5, 15, 7]]), 4), [[0, 5, 15, 7]]),
    ],
    ids=["palette", "shuffled", "short", "gray8", "gray16", "wide", "gray1", "gray2", "gray4"],
)
def test_ids_are_what_was_stored_whatever_the_form(saved, data, expected):
    ids = read_label_ids(saved(data), "ids")
    assert np.issubdtype(ids.dtype, np.integer)
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_palette_of_few_bits_keeps_its_indices(saved, depth):
    ids = np.arange(2**depth)[None]
    image = Image.fromarray(ids.astype(np.uint8)).convert("P")
    image.putpalette([9, 9, 9] * 2**depth)
    data = files.coded(image, "PNG", bits=depth)
    assert data[24] == depth
    np.testing.assert_array_equal(read_label_ids(saved(data), "ids"), ids)


def test_transparency_in_a_palette_changes_no_id(saved):
    image = Image.fromarray(IDS.astype(np.uint8)).convert("P")
    data = files.coded(image, "PNG", transparency=7)
    assert b"tRNS" in data
    np.testing.assert_array_equal(read_label_ids(saved(data), "ids"), IDS)


def test_an_interlaced_label_reads_the_same(saved):
    # a 1x1 image has one pixel in seven passes: the smallest valid Adam7 file
    data = files.png([b"\x21"], 1, 8, 0)
    body = bytearray(data)
    body[28] = 1
    body[29:33] = files.chunk(b"IHDR", bytes(body[16:29]))[-4:]
    np.testing.assert_array_equal(read_label_ids(saved(bytes(body)), "ids"), [[0x21]])


def test_synthia_is_the_first_channel_of_sixteen_bits(saved):
    ids = np.array([[0, 3, 22], [21, 15, 300]])
    np.testing.assert_array_equal(read_label_ids(saved(files.synthia_png(ids)), "synthia"), ids)


def test_colours_become_one_number_each(saved):
    pixels = np.array([[[128, 64, 0], [0, 0, 0]], [[255, 255, 255], [1, 2, 3]]], np.uint8)
    data = files.coded(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(
        read_label_ids(saved(data), "rgb"), [[0x804000, 0], [0xFFFFFF, 0x010203]]
    )


@pytest.mark.parametrize(
    ("mode", "label_format", "said"),
    [
        ("RGB", "ids", "the image is RGB; use label_format rgb"),
        ("RGBA", "ids", "the image is RGBA"),
        ("LA", "ids", "the image is LA"),
        ("L", "rgb", "needs colours, but the image is L"),
        ("L", "synthia", "needs three channels"),
    ],
)
def test_a_form_that_cannot_hold_ids_is_refused_by_name(saved, mode, label_format, said):
    color = (1, 2) if mode == "LA" else (1, 2, 3, 4)[: len(mode)] if len(mode) > 1 else 1
    path = saved(files.coded(Image.new(mode, (3, 2), color), "PNG"))
    with pytest.raises(DataError, match=said) as caught:
        read_label_ids(path, label_format)
    assert str(path) in str(caught.value)


def test_a_jpeg_is_no_label(saved):
    path = saved(files.coded(Image.new("L", (8, 8)), "JPEG"), "x.jpg")
    with pytest.raises(DataError, match="JPEG compression changes ids"):
        read_label_ids(path, "ids")


def test_every_flipped_bit_of_a_label_is_noticed(saved):
    whole = files.palette_png(np.random.default_rng(0).integers(0, 34, (12, 15)), colors=34)
    rng = np.random.default_rng(1)
    for position in rng.choice(8 * len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(DataError):
            read_label_ids(saved(bytes(damaged)), "ids")


_PICTURE = Image.fromarray(files.noise(40, 56))
_THUMB = files.coded(_PICTURE.resize((16, 16)), "JPEG")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.png", files.image_png(40, 56)),
        ("x.jpg", files.coded(_PICTURE, "JPEG")),
        ("x.jpg", files.coded(_PICTURE, "JPEG", progressive=True)),
        ("x.jpg", files.coded(_PICTURE, "JPEG", exif=b"Exif\0\0" + _THUMB)),  # has an end marker
        ("x.webp", files.coded(_PICTURE, "WEBP", lossless=True)),
        pytest.param(
            *("x.tif", files.coded(_PICTURE, "TIFF")),
            marks=pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # Pillow warns too
        ),
        ("x.bmp", files.coded(_PICTURE, "BMP")),
    ],
    ids=["png", "jpeg", "progressive", "thumbnail", "webp", "tiff", "bmp"],
)
def test_a_cut_image_is_never_read(saved, name, data):
    assert read_image(saved(data, name)).shape == (40, 56, 3)
    for length in np.unique(np.linspace(0, len(data) - 1, 60).astype(int)):
        path = saved(data[:length], name)
        with pytest.raises(DataError, match=name):
            read_image(path)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + _THUMB}])
def test_a_cut_jpeg_is_noticed_before_a_decoder_fills_the_rest_with_grey(tmp_path, how):
    data = files.coded(_PICTURE, "JPEG", **how)
    refuse_damaged_image(tmp_path, data)
    refuse_damaged_image(tmp_path, data + b"what a camera adds")
    for length in range(2, len(data), 7):
        with pytest.raises(DataError, match="cut off"):
            refuse_damaged_image(tmp_path, data[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_the_size_is_in_the_header(saved, kind):
    path = saved(files.coded(_PICTURE, kind))
    assert image_size(path) == (40, 56)


def test_the_size_of_a_large_file_costs_no_memory(saved):
    path = saved(files.image_png(40, 56) + bytes(8_000_000))
    tracemalloc.start()
    try:
        assert image_size(path) == (40, 56)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_decoded_as_stored_and_read_upright(saved, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = files.coded(_PICTURE, "JPEG", quality=95)
    turned = files.coded(_PICTURE, "JPEG", quality=95, exif=exif)
    a, b = saved(plain, "a.jpg"), saved(turned, "b.jpg")
    assert image_size(b) == (40, 56)
    stored, found = read_stored_image(b)
    assert found == image_orientation(b) == orientation
    np.testing.assert_array_equal(stored, read_image(a))
    np.testing.assert_array_equal(read_image(b), to_upright(stored, orientation))


def test_colours_come_in_the_order_red_green_blue(saved):
    image = Image.new("RGB", (2, 1), (200, 100, 50))
    assert read_image(saved(files.coded(image, "PNG")))[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (files.gray_png(np.full((2, 2), 77)), [77, 77, 77]),
        (files.gray_png(np.full((2, 2), 77 * 256 + 5), 16), [77, 77, 77]),
        (files.coded(Image.new("RGBA", (2, 2), (9, 8, 7, 0)), "PNG"), [9, 8, 7]),
        (files.coded(Image.new("LA", (2, 2), (9, 3)), "PNG"), [9, 9, 9]),
        (files.coded(Image.new("1", (2, 2), 1), "PNG"), [255, 255, 255]),
        (files.coded(Image.new("RGB", (2, 2), (9, 8, 7)).quantize(4), "PNG"), [9, 8, 7]),
    ],
    ids=["gray", "gray16", "rgba", "la", "bit", "palette"],
)
def test_every_kind_of_image_becomes_rgb(saved, data, expected):
    image = read_image(saved(data))
    assert image.dtype == np.uint8
    assert image.shape == (2, 2, 3)
    assert image[1, 1].tolist() == expected


def test_a_huge_image_is_refused_from_its_header(saved):
    for width, height in ((30_000, 30_000), (2**31 - 1, 2), (65_536, 65_536)):
        data = bytearray(files.image_png(2, 2))
        data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        data[29:33] = files.chunk(b"IHDR", bytes(data[16:29]))[-4:]
        for read in (image_size, read_image, lambda path: read_label_ids(path, "ids")):
            with pytest.raises(DataError, match=f"{width}x{height} is more than 100,000,000"):
                read(saved(bytes(data)))


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "text", "dangling", "loop", "pipe"])
def test_what_is_no_image_is_refused_with_the_true_reason(tmp_path, kind):
    path = tmp_path / "x.png"
    reason = {
        "missing": "no such file",
        "empty": "is empty",
        "folder": "is a folder",
        "text": "is not a readable image",
        "dangling": "is a broken link",
        "loop": "is a broken link|cannot be read",
        "pipe": "is not a regular file",
    }[kind]
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello\n" * 10)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    for read in (read_image, image_size, lambda path: read_label_ids(path, "ids"), read_train_ids):
        if kind == "text" and read is read_train_ids:
            reason = "cannot be decoded; run `udaseg prepare` again"
        with pytest.raises(DataError, match=reason) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_nothing_but_the_error_is_printed_about_a_damaged_file(saved, capfd):
    data = files.coded(_PICTURE, "TIFF")
    with pytest.raises(DataError):
        read_image(saved(data[: len(data) // 2], "x.tif"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_a_written_png_reads_back_the_same(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "new" / "x.png", pixels)
    read = read_train_ids if len(shape) == 2 else read_image
    np.testing.assert_array_equal(read(tmp_path / "new" / "x.png"), pixels)
    with Image.open(tmp_path / "new" / "x.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


def test_a_written_palette_keeps_the_ids_and_shows_the_colours(tmp_path):
    pixels = np.array([[0, 1], [2, 1]], np.uint8)
    write_png(tmp_path / "x.png", pixels, palette=((9, 9, 9), (1, 2, 3), (7, 7, 7)))
    np.testing.assert_array_equal(read_label_ids(tmp_path / "x.png", "ids"), pixels)
    assert read_image(tmp_path / "x.png")[0, 1].tolist() == [1, 2, 3]


def test_writing_never_goes_through_a_link_to_another_file(tmp_path):
    original = files.put(tmp_path / "mine.png", b"precious")
    (tmp_path / "x.png").symlink_to(original)
    write_png(tmp_path / "x.png", np.zeros((2, 2), np.uint8))
    assert original.read_bytes() == b"precious"
    assert not (tmp_path / "x.png").is_symlink()


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.int64), np.zeros((2, 2), bool)])
def test_only_bytes_are_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "x.png", wrong)


def test_a_prepared_label_has_one_channel(saved):
    with pytest.raises(DataError, match="is not a prepared label"):
        read_train_ids(saved(files.image_png()))


def test_genuine_files_read_as_an_independent_decoder_reads_them(sample_data):
    paths = sorted((sample_data / "layouts").rglob("*labelIds.png"))
    paths += sorted((sample_data / "layouts/generated/gta5/labels").glob("*.png"))
    assert len(paths) >= 4
    for path in paths:
        with Image.open(path) as opened:
            expected = np.asarray(opened)
        np.testing.assert_array_equal(read_label_ids(path, "ids"), expected)
        assert image_size(path) == expected.shape


def test_the_genuine_synthia_label_holds_its_class_in_the_first_channel(sample_data):
    path = sample_data / "layouts/real/synthia/RAND_CITYSCAPES/GT/LABELS/0000000.png"
    if not path.is_file():
        pytest.skip("no genuine SYNTHIA label")
    ids = read_label_ids(path, "synthia")
    bgr = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ids, bgr[:, :, 2])
    assert 3 < len(np.unique(ids)) <= 23
