"""Pictures have the requested colours at the requested positions."""

import numpy as np
import pytest

from udaseg.display.pictures import color_mask, comparison_sheet, confidence_image, legend, overlay

COLORS = ((128, 64, 128), (0, 0, 142))


def plain(height, width, color):
    return np.full((height, width, 3), color, np.uint8)


def test_each_class_has_its_colour_and_no_class_is_black():
    mask = color_mask(np.array([[0, 1, 255, 7]], np.uint8), COLORS)
    assert mask.tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, 200), (1.0, 100), (0.5, 150)])
def test_an_overlay_lies_between_image_and_mask(opacity, expected):
    blend = overlay(plain(2, 3, 200), plain(2, 3, 100), opacity=opacity)
    assert (blend == expected).all()


def test_confidence_becomes_grey():
    grey = confidence_image(np.array([[0.0, 0.5, 1.0, 1.01, np.nan]], np.float32))
    assert grey.tolist() == [[0, 128, 255, 255, 0]]


def test_a_sheet_holds_every_picture_under_a_title():
    colors = [[(10, 0, 0), (20, 0, 0)], [(30, 0, 0), (40, 0, 0)]]
    sheet = comparison_sheet(
        [[plain(30, 80, c) for c in row] for row in colors], ["image", "truth"]
    )
    for row in colors:
        for color in row:
            assert (sheet == color).all(-1).sum() == 30 * 80
    left = np.argwhere((sheet == (10, 0, 0)).all(-1))[0][1]
    assert left < np.argwhere((sheet == (20, 0, 0)).all(-1))[0][1]
    titles = sheet[: np.argwhere((sheet == (10, 0, 0)).all(-1))[0][0]]
    assert (titles[:, :80] < 128).any()
    assert (titles[:, 86:] < 128).any()


def test_a_row_of_another_size_is_fitted_without_new_colours():
    rows = [[plain(20, 40, 10)] * 2, [plain(40, 20, 30)] * 2]
    sheet = comparison_sheet(rows, ["a", "b"])
    assert (sheet == 30).all(-1).sum() == 2 * 40 * 80
    below = sheet[30:]
    assert set(np.unique(below)) <= {10, 30, 255}


def test_a_long_title_stays_over_its_column():
    sheet = comparison_sheet(
        [[plain(10, 60, 0), plain(10, 60, 0)]], ["a very long title indeed", ""]
    )
    assert (sheet[:20, 62:] == 255).all()
    assert (sheet[:20, :60] < 200).any()


def test_the_legend_shows_every_colour():
    strip = legend(["road", "car"], COLORS, 320)
    assert strip.shape[1] == 320
    for color in COLORS:
        assert (strip == color).all(-1).sum() >= 14 * 14
