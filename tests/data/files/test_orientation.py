"""The EXIF orientation of files: it is read from the header, and pixels are decoded as stored."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support import files, turned
from tests.support.turned import CONTAINERS, as_shown, as_stored, tagged
from udaseg.data.files.images import (
    image_orientation,
    image_size,
    read_image,
    read_stored_image,
)
from udaseg.data.files.orientation import orientation_of

_PICTURE = files.noise(200, 300)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_decoded_as_stored_and_turned_once(tmp_path, container, orientation):
    path = files.put(tmp_path / "a", tagged(_PICTURE, container, orientation))
    assert image_orientation(path) == orientation
    assert image_size(path) == (200, 300)
    stored, found = read_stored_image(path)
    assert found == orientation
    np.testing.assert_array_equal(stored, turned.decoded(_PICTURE, container))
    np.testing.assert_array_equal(read_image(path), as_shown(stored, orientation))


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "1", "P"])
@pytest.mark.parametrize("orientation", [2, 5, 6])
def test_a_tiff_of_every_form_is_turned_once(tmp_path, mode, orientation):
    picture = Image.fromarray(_PICTURE).convert("L")
    if mode == "I;16":
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) << 8) + 5)
    else:
        picture = picture.convert(mode)
    plain, tagged_file = (
        files.put(tmp_path / str(tag), files.coded(picture, "TIFF", tiffinfo={274: tag}))
        for tag in (1, orientation)
    )
    stored, found = read_stored_image(tagged_file)
    assert found == orientation
    np.testing.assert_array_equal(stored, read_image(plain))
    np.testing.assert_array_equal(read_image(tagged_file), as_shown(stored, orientation))


def _tiff(order, *, big=False, kind=3, value=6):
    """Return tags with the orientation alone, in either byte order, classic or big."""
    number = {3: "H", 4: "I"}[kind]
    width = 8 if big else 4
    tag = struct.pack(f"{order}HH{'Q' if big else 'I'}{number}", 274, kind, 1, value)
    tag += bytes(width - struct.calcsize(number))
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, 1) + tag
    return mark + struct.pack(f"{order}HIH", 42, 8, 1) + tag


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("how", [{}, {"big": True}, {"kind": 4}])
def test_tags_are_read_in_every_form(order, how):
    assert orientation_of(_tiff(order, **how)) == 6
    assert orientation_of(_tiff(order, **how, value=9)) == 1


def test_a_png_may_have_its_tags_behind_its_pixels():
    data = files.image_png()
    end = len(data) - 12
    chunk = files.chunk(b"eXIf", _tiff(">"))
    assert orientation_of(data[:end] + chunk + data[end:]) == 6


def test_other_application_data_of_a_jpeg_is_passed_over():
    data = files.coded(Image.fromarray(_PICTURE), "JPEG")
    segments = [b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0" + _tiff("<", value=8)]
    head = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in segments)
    assert orientation_of(data[:2] + head + data[2:]) == 8


@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_tags_are_no_error(container):
    data = tagged(_PICTURE[:8, :8], container, 6)
    rng = np.random.default_rng(0)
    for length in range(0, len(data), 3):
        assert orientation_of(data[:length]) in (1, 6)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            damaged[place] = rng.integers(0, 256)
        assert orientation_of(bytes(damaged)) in range(1, 9)


@pytest.mark.parametrize("container", ["tiff", "png"])
def test_decoders_agree_that_the_twin_is_upright(container):
    data = tagged(as_stored(_PICTURE, 6), container, 6)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(shown, _PICTURE)
    opened = Image.open(io.BytesIO(data))
    assert opened.getexif()[0x0112] == 6
