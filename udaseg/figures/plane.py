"""Features in the plane, by PCA and t-SNE, and their picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.labels.classes import ClassSpace
from udaseg.display.pictures import ImageArray, comparison_sheet, legend
from udaseg.errors import DataError, EnvironmentFault

_SIDE = 640
_MARGIN = 16
_RADIUS = 3
_FRAME = (200, 200, 200)
_TSNE_INPUTS = 50
_PERPLEXITY = 30.0
_MIN_POINTS = 5
_TITLES = ("PCA", "t-SNE")
DOMAIN_COLORS = {"source": (31, 119, 180), "target": (255, 127, 14)}
_Color = tuple[int, int, int]


@dataclass(frozen=True)
class Plane:
    """Positions of points in the plane.

    Attributes:
        pca: (N, 2), the first two principal components.
        tsne: (N, 2), by t-SNE of the first 50 components.
        variance: The share of the variance that the two components hold.
    """

    pca: NDArray[np.float64]
    tsne: NDArray[np.float64]
    variance: float


def check_packages() -> None:
    """Raise an `EnvironmentFault` if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise EnvironmentFault("features: needs scikit-learn: pip install 'udaseg[features]'")


def to_plane(vectors: NDArray[np.float32]) -> Plane:
    """Return the positions of vectors (N, C) in the plane; the same for the same vectors.

    t-SNE begins with the principal components and has a perplexity of 30, or a third of the points
    if there are fewer than 90.

    Raises:
        DataError: There are fewer than 5 vectors.
    """
    if len(vectors) < _MIN_POINTS:
        raise DataError(f"features: {len(vectors)} labelled cells are too few; use more images")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    pca = PCA(min(_TSNE_INPUTS, *vectors.shape), random_state=0)
    reduced = pca.fit_transform(vectors.astype(np.float64))
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3),
        init="pca",
        learning_rate="auto",
        random_state=0,
    )
    variance = float(pca.explained_variance_ratio_[:2].sum())
    return Plane(reduced[:, :2], np.asarray(tsne.fit_transform(reduced), np.float64), variance)


def plane_picture(
    plane: Plane,
    classes: ClassSpace,
    class_of: NDArray[np.int64],
    is_target: NDArray[np.bool_],
) -> ImageArray:
    """Return an RGB picture: PCA and t-SNE, above by class and below by domain.

    Args:
        plane: Positions of N points.
        classes: Names and colours of the classes.
        class_of: (N,) class of each point.
        is_target: (N,) whether it is of the target.
    """
    by_class = np.array(classes.colors, np.uint8)[class_of]
    by_domain = np.array(list(DOMAIN_COLORS.values()), np.uint8)[is_target.astype(int)]
    rows = [
        [_scatter(positions, colors, is_target) for positions in (plane.pca, plane.tsne)]
        for colors in (by_class, by_domain)
    ]
    sheet = comparison_sheet(rows, [f"{name}; source: dots, target: rings" for name in _TITLES])
    present = [classes.names[index] for index in np.unique(class_of)]
    colors = dict(zip(classes.names, classes.colors, strict=True))
    shown: Mapping[str, _Color] = {name: colors[name] for name in present} | DOMAIN_COLORS
    return np.vstack([sheet, legend(list(shown), list(shown.values()), sheet.shape[1])])


def _scatter(
    positions: NDArray[np.float64], colors: NDArray[np.uint8], is_ring: NDArray[np.bool_]
) -> ImageArray:
    """Return a square with a dot or a ring at each position, in an order that hides no group."""
    picture = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    cv2.rectangle(picture, (0, 0), (_SIDE - 1, _SIDE - 1), _FRAME)
    low, high = positions.min(0), positions.max(0)
    scale = (_SIDE - 2 * _MARGIN) / max(float((high - low).max()), 1e-12)
    pixels = (positions - (low + high) / 2) * scale * (1, -1) + _SIDE / 2
    for index in np.random.default_rng(0).permutation(len(positions)):
        center = int(pixels[index, 0]), int(pixels[index, 1])
        color = tuple(int(part) for part in colors[index])
        thickness = 1 if is_ring[index] else cv2.FILLED
        cv2.circle(picture, center, _RADIUS, color, thickness, cv2.LINE_AA)
    return picture
