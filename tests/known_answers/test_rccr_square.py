"""The CutMix square of RCCR's release: its side, and the last place that it never uses."""

from unittest import mock

import numpy as np
import pytest
import torch

from tests.known_answers.reader import answer
from udaseg.methods.mixing import square_mask


def _squares(corner):
    """Return (top, left, side) in px for each share and place of the case."""
    case, rows = answer("rccr/cutmix_square"), []
    for share in case.inputs["share"].tolist():
        for place in case.constants["v"]:
            drawn = torch.tensor([share, place, place], dtype=torch.float64)
            with mock.patch("torch.rand", lambda *_, drawn=drawn, **__: drawn):
                mask = square_mask(1, (512, 512), 8, torch.Generator(), per="batch", corner=corner)
            rows_in, columns_in = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
            rows.append([int(rows_in[0]) * 8, int(columns_in[0]) * 8, len(rows_in) * 8])
    return np.array(rows).reshape(-1, len(case.constants["v"]), 3)


@pytest.mark.parametrize("corner", ["released", "all"])
def test_the_square_has_the_side_and_the_places_of_the_release_or_all(corner):
    case, squares = answer("rccr/cutmix_square"), _squares(corner)
    case.expect("side", squares[:, 0, 2])
    case.expect("top_left_side", squares, variation=corner == "all")
    assert case.differs("top_left_side", squares) == (corner == "all")


def test_a_released_square_never_touches_the_last_row():
    for seed in range(200):
        numbers = torch.Generator().manual_seed(seed)
        mask = square_mask(4, (64, 96), 8, numbers, per="image", corner="released")
        smaller = mask.any(2).sum(1) < 8
        assert not mask[smaller, -1].any()
        assert not mask[..., -1].any()
