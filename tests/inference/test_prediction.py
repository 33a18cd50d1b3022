"""A prediction holds classes, colours and shares, and is shown and saved."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import UsageError
from udaseg.inference.options import MASK_KINDS
from udaseg.inference.prediction import Prediction

LABELS = random_labels(24, 36)


@pytest.fixture
def prediction():
    return loaded_colors().predict(painted(LABELS))


@pytest.fixture
def unsure():
    """Return a prediction without a class in its left half."""
    ids = LABELS.copy()
    ids[:, :18] = 255
    return Prediction(ids, np.ones(LABELS.shape, np.float32), COLORS, painted(LABELS))


def test_arrays_and_names_say_what_each_pixel_is(prediction):
    assert prediction.ids.dtype == np.uint8
    assert prediction.confidence.dtype == np.float32
    assert (prediction.ids == LABELS).all()
    assert prediction.confidence.shape == LABELS.shape
    assert prediction.names == COLORS.names
    assert prediction.colors == COLORS.colors
    assert prediction.path is None


def test_colours_and_overlay(prediction, unsure):
    colors = np.array(COLORS.colors)[LABELS]
    assert (prediction.color() == colors).all()
    assert (prediction.overlay(1.0) == colors).all()
    assert (prediction.overlay(0.0) == painted(LABELS)).all()
    quarter = 0.75 * painted(LABELS) + 0.25 * colors
    assert np.abs(prediction.overlay(0.25) - quarter).max() <= 1
    assert (unsure.color()[:, :18] == 0).all()
    assert (unsure.overlay()[:, :18] == painted(LABELS)[:, :18]).all()


def test_counts_and_shares_are_of_each_class(prediction, unsure):
    assert prediction.counts() == {
        name: int((index == LABELS).sum()) for index, name in enumerate(COLORS.names)
    }
    assert sum(prediction.shares().values()) == pytest.approx(1)
    assert sum(unsure.shares().values()) == pytest.approx(0.5)


def test_its_text_is_short(prediction, unsure):
    text = repr(prediction)
    assert text.startswith("Prediction(36x24, ")
    assert "road" in text
    assert len(text) < 100
    frame = Prediction(
        unsure.ids, unsure.confidence, COLORS, unsure.image, path=Path("a/film.mp4"), frame=3
    )
    assert repr(frame).startswith("Prediction('a/film.mp4', frame 3, 36x24, ")


@pytest.mark.parametrize("size", [(24, 36), (1, 1), (3, 2000), (2000, 3), (1500, 1000)])
def test_the_plot_shows_image_classes_and_the_legend_of_what_occurs(size):
    labels = np.full(size, 2, np.uint8)
    plot = loaded_colors().predict(painted(labels)).plot()
    assert plot.mode == "RGB"
    assert max(plot.size) < 1500
    colors, counts = np.unique(np.asarray(plot).reshape(-1, 3), axis=0, return_counts=True)
    shown = {tuple(map(int, color)) for color, count in zip(colors, counts, strict=True) if count}
    assert {COLORS.colors[2], (0, 0, 255)} <= shown
    assert COLORS.colors[0] not in shown


def test_the_plot_is_upright():
    labels = np.zeros((20, 60), np.uint8)
    picture = Image.fromarray(painted(labels))
    picture.getexif()[0x0112] = 6
    prediction = loaded_colors().predict(picture)
    assert prediction.ids.shape == (20, 60)
    road = (np.asarray(prediction.plot()) == COLORS.colors[0]).all(-1)
    rows, columns = np.nonzero(road[:90])
    assert np.ptp(rows) + 1 == 60
    assert np.ptp(columns) + 1 == 20


def test_a_saved_mask_holds_ids_and_shows_colours(prediction, tmp_path):
    prediction.save(tmp_path / "deep/color.png")
    prediction.save(str(tmp_path / "ids.PNG"), kind="ids")
    with Image.open(tmp_path / "deep/color.png") as color:
        assert (np.asarray(color) == LABELS).all()
        assert (np.asarray(color.convert("RGB")) == prediction.color()).all()
    with Image.open(tmp_path / "ids.PNG") as ids:
        assert (np.asarray(ids) == LABELS).all()
    for kind in set(MASK_KINDS) - {"logits"}:
        prediction.save(tmp_path / f"{kind}.png", kind)
        assert (tmp_path / f"{kind}.png").is_file()


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("a.png", "colour", "kind must be any of .* did you mean 'color'"),
        ("a.png", "logits", "holds no logits"),
        ("a.jpg", "ids", "use .png"),
        ("a", "ids", "use .png"),
    ],
)
def test_what_cannot_be_saved_is_refused(prediction, tmp_path, path, kind, message):
    with pytest.raises(UsageError, match=message):
        prediction.save(tmp_path / path, kind)
    assert not list(tmp_path.iterdir())


def test_classes_without_label_ids_have_none_to_save(prediction, tmp_path):
    other = Prediction(
        prediction.ids,
        prediction.confidence,
        ClassSpace(("a", "b", "c"), COLORS.colors),
        prediction.image,
    )
    with pytest.raises(UsageError, match="no class a, b, c"):
        other.save(tmp_path / "a.png", kind="label-ids")
