"""Right colours of every kind of file: alpha, bands, 16 bits, floats, and data that end early."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.files import headers
from udaseg.data.files.folders import find_images
from udaseg.data.files.images import (
    IMAGE_SUFFIXES,
    image_header,
    image_orientation,
    read_image,
    read_values,
)
from udaseg.data.labels.read import read_label_ids
from udaseg.errors import DataError
from udaseg.prediction.inputs import resolve_inputs

COLORS = files.noise(12, 16)
SMOOTH = cv2.resize(files.noise(8, 12), (96, 64), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def saved(tmp_path):
    def save(data, name="x.png"):
        return files.put(tmp_path / name, data)

    return save


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=["png", "webp", "tiff", "tiff-lzw"],
)
def test_alpha_changes_no_colour(saved, kind, how, alpha):
    image = Image.fromarray(np.dstack([COLORS, np.full((12, 16), alpha, np.uint8)]), "RGBA")
    path = saved(files.coded(image, kind, **how))
    np.testing.assert_array_equal(read_image(path), COLORS)
    assert image_header(path).loss == ""


@pytest.mark.parametrize("alpha", [0, 40000])
@pytest.mark.parametrize("form", [files.deep_png, lambda values: files.tiff(values, 2, t338=2)])
def test_alpha_of_16_bits_changes_no_colour(saved, form, alpha):
    deep = COLORS.astype(np.uint16) * 257
    path = saved(form(np.dstack([deep, np.full((12, 16), alpha, np.uint16)])))
    np.testing.assert_array_equal(read_image(path), COLORS)


def test_16_bits_give_the_same_pixels_in_every_form(saved):
    values = np.random.default_rng(1).integers(0, 2**16, (12, 16, 3)).astype(np.uint16)
    compressed = cv2.imencode(".tiff", values[..., ::-1])[1].tobytes()
    for data in (files.deep_png(values), files.tiff(values, 2), compressed):
        np.testing.assert_array_equal(read_values(saved(data)), values)
        np.testing.assert_array_equal(read_image(saved(data)), values >> 8)
    gray = values[..., 0]
    for data in (files.deep_png(gray), files.tiff(gray[..., None], 1)):
        np.testing.assert_array_equal(read_values(saved(data)), np.dstack([gray] * 3))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_values_of_fewer_bits_are_scaled_by_their_own_range(saved, bits):
    deep = COLORS.astype(np.uint16) << (bits - 8)
    for data in (files.deep_png(deep), files.tiff(deep, 2)):
        np.testing.assert_array_equal(read_image(saved(data), bits=bits), COLORS)
    deep[3, 4, 1] = 2**bits
    with pytest.raises(DataError, match=rf"x\.png: its values reach {2**bits}, .* {bits} bits"):
        read_image(saved(files.deep_png(deep)), bits=bits)


@pytest.mark.parametrize("bits", [None, 8, 12])
def test_images_of_8_bits_know_no_other_range(saved, bits):
    path = saved(files.image_png(12, 16))
    np.testing.assert_array_equal(read_image(path, bits=bits), COLORS)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "uint32", "int16", "int8"])
def test_numbers_that_have_no_range_are_refused_by_their_name(saved, kind, bands):
    data = files.tiff(np.ones((12, 16, bands), kind), 1 if bands == 1 else 2)
    with pytest.raises(DataError, match=rf"x\.tif: {kind} TIFF is not read: store 8 or 16 bits"):
        read_image(saved(data, "x.tif"))


def test_a_label_may_be_a_tiff_of_32_bits(saved):
    from udaseg.data.labels.read import read_label_ids

    ids = np.array([[[-1], [70000], [3]]], np.int32)
    labels = read_label_ids(saved(files.tiff(ids, 1), "x.tif"), "ids")
    np.testing.assert_array_equal(labels, ids[..., 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_fourth_band_is_named_unless_it_is_alpha(saved, dtype):
    values = np.dstack([COLORS, COLORS[..., 0]]).astype(dtype)
    for extra, loss in (
        (0, "has 4 bands, of which the last is not read (`bands` chooses others)"),
        (1, ""),
        (2, ""),
    ):
        path = saved(files.tiff(values, 2, t338=extra))
        assert image_header(path).loss == loss
        if extra != 1:  # 1 is multiplied with the colours already
            np.testing.assert_array_equal(read_image(path), COLORS if dtype == "uint8" else 0)


@pytest.mark.parametrize(("bands", "photometric"), [(3, 1), (5, 2), (8, 1), (5, 5)])
def test_bands_without_a_known_order_are_refused(saved, bands, photometric):
    values = np.zeros((12, 16, bands), np.uint8)
    with pytest.raises(DataError, match=f"TIFF of {bands} bands is not read: name three of them"):
        read_image(saved(files.tiff(values, photometric)))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_and_named(saved, kind):
    how = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    path = saved(files.coded(Image.fromarray(COLORS).convert("CMYK"), kind, **how))
    assert np.abs(read_image(path).astype(int) - COLORS).max() <= 3
    assert image_header(path).loss == "is CMYK, converted to RGB without its profile"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_further_pages_are_named(saved, kind):
    pages = [Image.fromarray(part) for part in (COLORS, COLORS[::-1], COLORS[:, ::-1])]
    path = saved(files.coded(pages[0], kind, save_all=True, append_images=pages[1:], lossless=True))
    assert image_header(path).loss == "has 3 pages, of which only the first is read"
    np.testing.assert_array_equal(read_image(path), COLORS)


_COMPRESSIONS = [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"]


@pytest.mark.parametrize("compression", _COMPRESSIONS)
def test_a_tiff_whose_data_end_early_is_refused(saved, compression):
    data = files.coded(Image.fromarray(SMOOTH), "TIFF", compression=compression, strip_size=8000)
    with Image.open(io.BytesIO(data)) as opened:
        sizes = opened.tag_v2[279]
    assert read_image(saved(data)).shape == SMOOTH.shape
    shorter = _replace_last_number(data, 279, sizes[-1] // 2)
    with pytest.raises(DataError, match=r"the data of the TIFF end early|cannot be decoded"):
        read_image(saved(shorter))


@pytest.mark.parametrize("compression", _COMPRESSIONS)
def test_a_small_tiff_that_claims_to_be_huge_is_refused_from_its_header(saved, compression):
    data = files.coded(Image.fromarray(SMOOTH), "TIFF", compression=compression)
    for tag in (256, 257):
        data = _replace_last_number(data, tag, 9900)
    with pytest.raises(DataError, match="damaged: the data of the TIFF end early"):
        read_image(saved(data))


def test_a_deep_tiff_whose_data_end_early_is_refused(saved):
    data = cv2.imencode(".tiff", SMOOTH.astype(np.uint16) << 4)[1].tobytes()
    assert read_values(saved(data)).dtype == np.uint16
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(saved(_replace_last_number(data, 279, 100)))


def _replace_last_number(data, tag, number):
    """Return a TIFF with another last value of a tag of its first page."""
    changed, start = bytearray(data), int.from_bytes(data[4:8], "little")
    for entry in range(
        start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12
    ):
        found, kind, count = np.frombuffer(data[entry : entry + 8], "<u2")[[0, 1, 2]].tolist()
        if found == tag:
            size = {3: 2, 4: 4}[kind]
            inside = count * size <= 4
            at = entry + 8 if inside else int.from_bytes(data[entry + 8 : entry + 12], "little")
            at += (count - 1) * size
            changed[at : at + size] = number.to_bytes(size, "little")
    return bytes(changed)


@pytest.mark.parametrize(
    "how", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_blocks": 4}]
)
def test_a_jpeg_whose_data_end_early_is_refused_though_it_has_an_end(saved, how):
    data = files.coded(Image.fromarray(SMOOTH), "JPEG", quality=90, **how)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_allclose(read_image(saved(data)), np.asarray(opened), atol=1)
    for share in (0.4, 0.6, 0.8):
        with pytest.raises(DataError, match=r"end early|cannot be decoded"):
            read_image(saved(data[: int(len(data) * share)] + b"\xff\xd9"))


@pytest.mark.parametrize("how", [{}, {"progressive": True}])
def test_a_small_jpeg_that_claims_to_be_huge_is_refused_from_its_header(saved, how):
    data = bytearray(files.coded(Image.fromarray(SMOOTH[:8, :8]), "JPEG", **how))
    at = data.find(b"\xff\xc2" if how else b"\xff\xc0") + 5
    data[at : at + 4] = (9900).to_bytes(2, "big") * 2
    with pytest.raises(DataError, match="damaged: the data of the JPEG end early"):
        read_image(saved(bytes(data)))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (37, 53), (64, 17)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_no_complete_jpeg_is_refused(saved, size, subsampling):
    image = Image.fromarray(files.noise(*size))
    for how in ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 3}):
        for quality in (20, 95):
            data = files.coded(image, "JPEG", quality=quality, subsampling=subsampling, **how)
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            for more in (b"", b"what a camera adds\xff\xd9"):
                np.testing.assert_array_equal(read_image(saved(data + more)), expected)


def test_a_link_to_a_device_is_no_broken_link(tmp_path):
    path = tmp_path / "zero.png"
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"zero\.png: is not a regular file"):
        read_image(path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_read_upright(saved, orientation):
    if ".avif" not in IMAGE_SUFFIXES:
        pytest.skip("this Pillow does not read AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = files.coded(Image.fromarray(SMOOTH), "AVIF", quality=100, exif=exif)
    path = saved(data, "x.AVIF")
    assert image_orientation(path) == orientation
    assert (image_header(path).height, image_header(path).width) == SMOOTH.shape[:2]
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    upright = np.rot90(SMOOTH, turns)
    difference = np.abs(read_image(path).astype(int) - upright)
    assert difference.mean() < 3
    assert find_images(path.parent) == [path]
    with pytest.raises(DataError, match="AVIF and HEIC change ids"):
        read_label_ids(path, "ids")


def test_jpeg_2000_is_read_with_all_its_bits(saved):
    if ".jp2" not in IMAGE_SUFFIXES:
        pytest.skip("this Pillow does not read JPEG 2000")
    path = saved(files.coded(Image.fromarray(SMOOTH), "JPEG2000"), "x.jp2")
    np.testing.assert_array_equal(read_image(path), SMOOTH)
    deep = (SMOOTH[..., 0].astype(np.uint16) << 4) + 3
    path = saved(files.coded(Image.fromarray(deep), "JPEG2000"), "deep.jp2")
    np.testing.assert_array_equal(read_values(path), deep[..., None].repeat(3, 2))
    assert len(find_images(path.parent)) == 2
    ids = np.random.default_rng(0).integers(0, 34, (20, 30), np.uint8)
    path = saved(files.coded(Image.fromarray(ids), "JPEG2000"), "ids.jp2")
    np.testing.assert_array_equal(read_label_ids(path, "ids"), ids)


def test_heic_is_read_with_its_extra(saved):
    heif = pytest.importorskip("pillow_heif")
    headers.reads_heic()
    path = saved(files.coded(Image.fromarray(SMOOTH), "HEIF", quality=90), "x.HEIC")
    decoded = np.asarray(heif.read_heif(path))
    np.testing.assert_array_equal(read_image(path), decoded)
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 10
    assert find_images(path.parent) == [path]


def test_heic_without_its_extra_names_it(saved, monkeypatch, caplog):
    monkeypatch.setattr(headers, "reads_heic", lambda: False)
    path = saved(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "x.heic")
    with pytest.raises(DataError, match=r"is HEIC, which `pip install 'udaseg\[heic\]'` reads"):
        image_header(path)
    monkeypatch.setattr("udaseg.prediction.inputs.IMAGE_SUFFIXES", (".png",))
    saved(files.image_png(), "x.png")
    resolve_inputs([str(path.parent)])
    assert ".heic (1) (pip install 'udaseg[heic]' reads HEIC)" in caplog.text
