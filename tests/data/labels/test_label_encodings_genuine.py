"""Genuine label files are read exactly, unchanged and in every published encoding.

The counts were computed once by an independent decoder in plain Python (zlib, five PNG filters).
"""

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.labels.read import read_label_ids

GENUINE = {
    "cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png": {
        0: 9,
        1: 81534,
        3: 31634,
        4: 14664,
        7: 831082,
        8: 29195,
        11: 611938,
        17: 22846,
        20: 34863,
        21: 221654,
        22: 130185,
        23: 38722,
        24: 1588,
        25: 2270,
        26: 42659,
        33: 2309,
    },
    "cityscapes/gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png": {
        0: 92,
        1: 81534,
        3: 31634,
        4: 20907,
        5: 645,
        6: 29045,
        7: 843229,
        8: 25520,
        11: 425227,
        12: 7474,
        13: 26357,
        17: 20652,
        19: 193,
        20: 3340,
        21: 213801,
        22: 131641,
        23: 202997,
        26: 32864,
    },
    "cityscapes/gtFine/train/aachen/aachen_000002_000019_gtFine_labelIds.png": {
        0: 52,
        1: 81534,
        3: 31634,
        4: 16548,
        5: 1043,
        6: 1692,
        7: 724397,
        8: 160806,
        11: 323233,
        13: 13124,
        17: 9314,
        19: 239,
        20: 12239,
        21: 579568,
        22: 27531,
        23: 3476,
        24: 873,
        26: 109686,
        33: 163,
    },
    "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png": {
        1: 1890,
        2: 987,
        3: 764,
        4: 233,
        7: 9740,
        8: 2628,
        11: 12744,
        13: 44,
        17: 396,
        20: 188,
        21: 664,
        23: 581,
        24: 107,
        26: 1802,
    },
    "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png": {
        0: 9737,
        1: 2634,
        2: 12748,
        4: 43,
        5: 400,
        7: 190,
        8: 663,
        10: 579,
        11: 106,
        13: 1799,
        255: 3869,
    },
    "synthia/RAND_CITYSCAPES/GT/LABELS/0000000.png": {
        0: 63876,
        1: 98789,
        2: 79071,
        3: 372344,
        5: 3797,
        6: 238375,
        7: 6414,
        8: 105039,
        9: 28,
        12: 5067,
    },
    "kitti_semantics/training/semantic/000000_10.png": {
        4: 723,
        7: 116061,
        8: 7789,
        11: 98002,
        12: 4610,
        13: 17753,
        17: 1636,
        20: 1562,
        21: 116762,
        23: 14847,
        24: 513,
        26: 85390,
        27: 47,
        28: 55,
    },
    "kitti_semantics/training/semantic/000001_10.png": {
        4: 4705,
        7: 118209,
        8: 26014,
        11: 48174,
        12: 15543,
        13: 3311,
        17: 10553,
        19: 1147,
        20: 3327,
        21: 147635,
        22: 32237,
        23: 34390,
        24: 1390,
        26: 16390,
        28: 451,
        31: 161,
        32: 2113,
    },
    "kitti_semantics/training/semantic/000002_10.png": {
        4: 9094,
        7: 109629,
        8: 45285,
        11: 162855,
        17: 9380,
        19: 5749,
        20: 2751,
        21: 75631,
        22: 4720,
        23: 836,
        25: 9799,
        26: 12816,
        27: 947,
        33: 16258,
    },
    "kitti_semantics/training/semantic/000003_10.png": {
        4: 6722,
        7: 103086,
        8: 55585,
        11: 117681,
        17: 17607,
        20: 11282,
        21: 104113,
        22: 18958,
        25: 4755,
        26: 10227,
        27: 11486,
        32: 708,
        33: 3540,
    },
    "kitti_semantics/training/semantic/000004_10.png": {
        4: 562,
        7: 60224,
        9: 37373,
        11: 158742,
        13: 309,
        21: 45594,
        22: 2024,
        23: 6448,
        26: 154029,
        27: 99,
        33: 346,
    },
}


def genuine(sample_data, name):
    path = sample_data / "layouts/real" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path, read_label_ids(path, "synthia" if name.startswith("synthia") else "ids")


@pytest.mark.parametrize("name", GENUINE)
def test_a_genuine_label_holds_the_pixels_that_were_counted_by_hand(sample_data, name):
    _, ids = genuine(sample_data, name)
    values, counts = np.unique(ids, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == GENUINE[name]


COLORS = np.random.default_rng(9).permutation(256**3)[:65536]


def colored(ids):
    """Return an RGB PNG with one colour per id."""
    colors = COLORS[ids]
    picture = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], 2).astype(np.uint8)
    return files.coded(Image.fromarray(picture), "PNG", compress_level=1)


PUBLISHED = {
    "gray": ("ids", lambda ids: files.coded(Image.fromarray(ids.astype(np.uint8)), "PNG")),
    "palette": ("ids", files.palette_png),
    "16-bit gray": ("ids", lambda ids: files.coded(Image.fromarray(ids.astype(np.uint16)), "PNG")),
    "RGB": ("rgb", colored),
    "16-bit RGB": ("synthia", files.synthia_png),
    "interlaced palette": (
        "ids",
        lambda ids: files.interlaced_png(ids, 8, 3, files.palette_chunk()),
    ),
}


@pytest.mark.parametrize(
    "name", [name for name in GENUINE if "000000" in name or "0000000" in name]
)
@pytest.mark.parametrize("encoding", PUBLISHED)
def test_a_genuine_label_survives_every_published_encoding(sample_data, tmp_path, name, encoding):
    _, ids = genuine(sample_data, name)
    ids = np.ascontiguousarray(ids[::2, ::2])  # a quarter of the pixels is enough and fast
    label_format, encode = PUBLISHED[encoding]
    path = files.put(tmp_path / "x.png", encode(ids))
    expected = COLORS[ids] if label_format == "rgb" else ids
    np.testing.assert_array_equal(read_label_ids(path, label_format), expected)
