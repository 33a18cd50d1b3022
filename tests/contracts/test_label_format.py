"""The built-in label formats keep the contract."""

import numpy as np
import pytest
from PIL import Image

from tests.contracts.label_format import LabelFormatContract, make_ids
from tests.support import files
from udaseg.data.labels import ids, rgb, synthia
from udaseg.data.labels.formats import BUILT_IN, object_format
from udaseg.errors import DataError

COLORS = np.random.default_rng(4).permutation(2**24)[:256]
PACKED = (COLORS >> 16, COLORS >> 8 & 255, COLORS & 255)
JPEG = files.coded(Image.fromarray(files.noise(13, 21)), "JPEG")
GRAY_JPEG = files.coded(Image.fromarray(files.noise(13, 21)).convert("L"), "JPEG")
SMALL = make_ids((13, 21), 19)


def _painted(labels):
    """Return the pixels of labels in colours."""
    return np.stack([channel[labels] for channel in PACKED], 2).astype(np.uint8)


class PngContract(LabelFormatContract):
    """A PNG has checksums, so a changed byte must never be read as another id."""

    def test_a_changed_byte_is_refused_with_its_path(self, put):
        data = self.encode(make_ids((13, 21), self.count))
        for position in range(0, len(data), 5):
            changed = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
            path = put(changed)
            with pytest.raises(DataError) as caught:
                self.read(path, changed)
            assert str(path) in str(caught.value), position


class _Ids(PngContract):
    def read(self, path, data):
        return ids.read(path, data)

    def wrong_forms(self):
        return {
            "colours": files.image_png(13, 21),
            "colours of 16 bits": files.synthia_png(SMALL),
            "JPEG": JPEG,
            "grey JPEG": GRAY_JPEG,
            "alpha": files.coded(Image.fromarray(files.noise(9, 9)).convert("LA"), "PNG"),
        }


class TestIdsInGray(_Ids):
    count = 256

    def encode(self, labels):
        return files.gray_png(labels)


class TestIdsInSixteenBits(_Ids):
    count = 1000

    def encode(self, labels):
        return files.gray_png(labels, 16)


class TestIdsInFourBits(_Ids):
    count = 16

    def encode(self, labels):
        return files.gray_png(labels, 4)


class TestIdsInAPalette(_Ids):
    count = 256

    def encode(self, labels):
        return files.palette_png(labels)


class _Rgb(PngContract):
    def read(self, path, data):
        return rgb.read(path, data)

    def stored(self, labels):
        return COLORS[labels]

    def wrong_forms(self):
        return {
            "grey": files.gray_png(SMALL),
            "colours of 16 bits": files.synthia_png(SMALL),
            "JPEG": JPEG,
        }


class TestColours(_Rgb):
    count = 256

    def encode(self, labels):
        return files.coded(Image.fromarray(_painted(labels)), "PNG")


class TestColoursOfAPalette(_Rgb):
    count = 30

    def encode(self, labels):
        image = Image.fromarray(labels.astype(np.uint8)).convert("P")
        image.putpalette(np.stack(PACKED, 1).astype(np.uint8).tobytes())
        return files.coded(image, "PNG")


class TestSynthia(PngContract):
    count = 300

    def read(self, path, data):
        return synthia.read(path, data)

    def encode(self, labels):
        return files.synthia_png(labels)

    def wrong_forms(self):
        return {
            "grey": files.gray_png(SMALL),
            "grey of 16 bits": files.gray_png(SMALL, 16),
            "palette": files.palette_png(SMALL),
            "colours of 8 bits": files.image_png(13, 21),
            "JPEG": JPEG,
        }


def test_every_built_in_format_is_a_member_here():
    members = {"ids", "rgb", "synthia"}  # formats of objects: data/labels/test_object_formats.py
    assert {name for name in BUILT_IN if object_format(name) is None} == members
