"""A canvas that shows shapes of a world in metres as a camera sees them, and its textures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from udaseg.data.labels.classes import IGNORE
from udaseg.data.toyland.city import Color

TILE_PX = 256
"""Rows and columns of every tile."""

TILE_M = 6.0
"""Side of a tile in the world, in metres."""

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Paint = Color | tuple[float, float, float]
Spot = tuple[float, float]
"""x and z of an object on the ground, or right and up on a board, in metres."""

NEAR_M = 1.2
FAR_M = 400.0
_SHIFT = 4

OVERSAMPLING = 2
"""Factor by which the image is painted larger and then averaged; the label is not enlarged."""


@lru_cache(maxsize=16)
def tile(name: str) -> Floats:
    """Return the (256, 256) tile `name`, with about zero mean and a range of about [-1, 1]."""
    makers: dict[str, Callable[[], Floats]] = {
        "asphalt": lambda: 0.6 * _noise(0.2, 1) + 0.5 * _noise(1.5, 2),
        "paving": lambda: _blocks(16, 16, 0.5, 3),
        "slabs": lambda: _blocks(32, 16, 0.7, 4, stagger=True),
        "plaster": lambda: 0.5 * _noise(1.2, 5),
        "panels": lambda: _blocks(128, 64, 0.15, 6),
        "bricks": lambda: _blocks(20, 8, 0.6, 7, stagger=True) + 0.3 * _noise(0.8, 8),
        "stucco": lambda: 0.5 * _noise(0.5, 9) + 0.6 * _noise(2.0, 10),
        "planks": lambda: _blocks(12, 256, 0.5, 11),
        "leaves": lambda: np.tanh(2.0 * _noise(0.9, 12)),
        "clouds": lambda: _noise(1.7, 13),
    }
    texture = makers[name]()
    texture.flags.writeable = False  # cached and shared
    return texture


def _noise(smoothness: float, seed: int) -> Floats:
    """Return periodic noise of unit deviation whose amplitude falls as frequency^-smoothness."""
    white = np.random.default_rng(seed).standard_normal((TILE_PX, TILE_PX))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE_PX), np.fft.fftfreq(TILE_PX)))
    frequency[0, 0] = np.inf
    shaped = np.fft.ifft2(np.fft.fft2(white) * frequency**-smoothness).real
    return np.asarray(shaped / shaped.std(), np.float32)


def _blocks(width: int, height: int, tint: float, seed: int, *, stagger: bool = False) -> Floats:
    """Return blocks of `width` x `height` pixels with dark joints, each with its own tint."""
    rows, columns = TILE_PX // height, TILE_PX // width
    tints = np.random.default_rng(seed).uniform(-tint, tint, (rows, columns)).astype(np.float32)
    pixels = np.arange(TILE_PX)
    blocks = tints[pixels // height][:, pixels * columns // TILE_PX]
    blocks[:, ::width] = -1.0
    blocks[::height] = -1.0
    if stagger:
        odd = pixels // height % 2 == 1
        blocks[odd] = np.roll(blocks[odd], width // 2, axis=1)
    return np.ascontiguousarray(blocks)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera over a street; x points right, y up, z ahead, in metres."""

    size: tuple[int, int]  # height and width of the image
    eye_m: float  # height above the road
    focal_px: float
    horizon_px: float  # row of the horizon in the middle column
    offset_m: float  # to the right of the middle of the road
    roll: float  # in radians
    curve: float  # the street bends sideways by curve * z * z metres

    def project(self, points: Points) -> Points:
        """Return the pixels (..., 2) of world points (..., 3); clamps points that are too near."""
        # few array operations, because it runs about a thousand times per image
        z = np.minimum(np.maximum(points[..., 2], NEAR_M), FAR_M)
        scale = self.focal_px / z
        right = (points[..., 0] - self.offset_m + self.curve * z * z) * scale
        down = (self.eye_m - points[..., 1]) * scale
        cosine, sine = math.cos(self.roll), math.sin(self.roll)
        pixels = np.empty((*z.shape, 2))
        pixels[..., 0] = self.size[1] / 2 + cosine * right - sine * down
        pixels[..., 1] = self.horizon_px + sine * right + cosine * down
        return pixels

    def ground(self, columns: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Return x and z of the road points at pixels; above the horizon, z is `FAR_M`."""
        right, down = columns - self.size[1] / 2, rows - self.horizon_px
        cosine, sine = math.cos(self.roll), math.sin(self.roll)
        right, down = cosine * right + sine * down, cosine * down - sine * right
        z = self.focal_px * self.eye_m / np.maximum(down, self.focal_px * self.eye_m / FAR_M)
        return right * z / self.focal_px + self.offset_m - self.curve * z * z, z


class Canvas:
    """Paints shapes of the world from far to near; later shapes hide earlier ones.

    Attributes:
        image: (2H, 2W, 3) uint8 RGB.
        label: (H, W) uint8 train ids.
        depth: (H, W) float32 metres.
    """

    def __init__(self, camera: Camera) -> None:
        height, width = camera.size
        self.camera = camera
        self.image = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING, 3), np.uint8)
        self.label = np.full((height, width), IGNORE, np.uint8)
        self.depth = np.full((height, width), FAR_M, np.float32)

    def face(self, corners: ArrayLike, color: Paint | None, train_id: int | None = None) -> None:
        """Paint a polygon (N, 3) of the world; without `train_id`, only its colour."""
        corners = np.asarray(corners, np.float64)
        colors = None if color is None else [color]
        depth_m = corners[:, 2].sum() / len(corners)
        self.polygons(self.camera.project(corners)[None], colors, train_id, depth_m)

    def polygons(
        self,
        pixels: Points,
        colors: Sequence[Paint] | Color | None,
        train_id: int | None,
        depth_m: float,
    ) -> None:
        """Paint polygons (M, N, 2) in pixels of the image, each in its own colour, in order."""
        if colors is not None:
            outlines = _fixed_point(pixels, OVERSAMPLING)
            for outline, color in zip(outlines, _rgb(colors), strict=True):
                cv2.fillPoly(self.image, [outline], color, cv2.LINE_8, _SHIFT)
        if train_id is not None:
            for outline in _fixed_point(pixels):
                cv2.fillPoly(self.label, [outline], train_id, cv2.LINE_8, _SHIFT)
                cv2.fillPoly(self.depth, [outline], depth_m, cv2.LINE_8, _SHIFT)

    def faces(self, corners: Points, color: Paint) -> None:
        """Paint the colour of polygons (M, N, 3) that do not overlap."""
        if len(corners):
            fixed = _fixed_point(self.camera.project(corners), OVERSAMPLING)
            cv2.fillPoly(self.image, list(fixed), _rgb(color), cv2.LINE_8, _SHIFT)

    def panels(self, quad: Points, across: ArrayLike, up: ArrayLike, color: Paint) -> None:
        """Paint the colour of some parts of a quad; see `sub_quads`."""
        self.faces(sub_quads(quad, across, up), color)

    def darken(self, corners: Points, factor: float) -> None:
        """Multiply the colours inside a polygon (N, 3), for a shadow."""
        region = self._region_of(self.camera.project(corners) * OVERSAMPLING)
        if region is not None:
            part, mask = region
            cv2.copyTo(cv2.convertScaleAbs(part, alpha=factor), mask, part)

    def texture(self, quad: Points, name: str, size_m: Spot, strength: float) -> None:
        """Multiply a painted quad (4, 3) by a tile, in the perspective of the quad.

        Args:
            quad: Corners bottom left, bottom right, top right, top left.
            name: Name of the tile.
            size_m: Length and height of the quad.
            strength: Fades where the texture would be finer than a pixel.
        """
        pixels = (self.camera.project(quad) * OVERSAMPLING).astype(np.float32)
        px_per_m = float(abs(pixels[3, 1] - pixels[0, 1])) / max(size_m[1], 1e-3)
        strength *= float(np.clip(px_per_m / (OVERSAMPLING * self.camera.size[0] / 16), 0.0, 1.0))
        region = self._region_of(pixels.astype(np.float64))
        if region is None or strength < 0.02 or cv2.contourArea(pixels) < 4:
            return
        part, mask = region
        flat = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
        flat *= np.array(size_m, np.float32) * (TILE_PX / TILE_M)
        corner = np.floor(np.maximum(pixels.min(0), 0))
        warp = cv2.getPerspectiveTransform(flat, (pixels - corner).astype(np.float32))
        warped = cv2.warpPerspective(
            tile(name), warp, part.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        _multiply(part, warped * strength, mask > 0)

    def ground_texture(self, name: str, train_id: int, strength: float) -> None:
        """Multiply the pixels of the ground class `train_id` by a tile on the ground."""
        height, width = self.image.shape[:2]
        x, z = self._ground
        top = height - len(z)
        label = cv2.resize(self.label, (width, height), interpolation=cv2.INTER_NEAREST)[top:]
        columns, rows = (np.remainder(axis * (TILE_PX / TILE_M), TILE_PX) for axis in (x, z))
        sampled = cv2.remap(
            tile(name), columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP
        )
        fade = np.clip(self.camera.focal_px / self.camera.size[1] * 12 / z, 0.12, 1.0)
        _multiply(self.image[top:], sampled * (strength * fade), label == train_id)

    @cached_property
    def _ground(self) -> tuple[Floats, Floats]:
        """Road coordinates of the image rows from just above the horizon downwards."""
        height, width = self.image.shape[:2]
        top = max(int(self.camera.horizon_px * OVERSAMPLING) - height // 16, 0)
        rows = np.arange(top, height, dtype=np.float32)[:, None] / np.float32(OVERSAMPLING)
        columns = np.arange(width, dtype=np.float32)[None] / np.float32(OVERSAMPLING)
        return self.camera.ground(columns, rows)

    def ground_depth(self) -> None:
        """Set the depth of the rows below the horizon to that of the road."""
        z = self._ground[1][::OVERSAMPLING, ::OVERSAMPLING]
        self.depth[-len(z) :] = z

    def image_at_size(self) -> Floats:
        """Return the anti-aliased image (H, W, 3), 0 to 255."""
        size = self.camera.size[::-1]
        return np.asarray(cv2.resize(self.image, size, interpolation=cv2.INTER_AREA), np.float32)

    def _region_of(self, pixels: Points) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Return the part of the image around a polygon and the mask of the polygon in it."""
        height, width = self.image.shape[:2]
        low = np.maximum(np.floor(pixels.min(0)), 0).astype(int)
        high = np.minimum(np.ceil(pixels.max(0)) + 1, (width, height)).astype(int)
        if (high - low < 2).any():
            return None
        part = self.image[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros(part.shape[:2], np.uint8)
        cv2.fillPoly(mask, [_fixed_point(pixels - low)], 1, cv2.LINE_8, _SHIFT)
        return part, mask


_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


@dataclass(frozen=True)
class Board:
    """An upright plane at (x, z) that faces the camera; its points are (right, up) in metres."""

    canvas: Canvas
    at: Spot

    def shape(self, corners: ArrayLike, color: Paint | None, train_id: int | None = None) -> None:
        """Paint a polygon (N, 2)."""
        self.canvas.face(self._in_world(np.asarray(corners, np.float64)), color, train_id)

    def rectangle(
        self, across: Spot, up: Spot, color: Paint | None, train_id: int | None = None
    ) -> None:
        """Paint a rectangle between two positions to the right, and two upwards."""
        (left, right), (low, high) = across, up
        corners = [(left, low), (right, low), (right, high), (left, high)]
        self.shape(corners, color, train_id)

    def bar(
        self, start: Spot, end: Spot, width: float, color: Paint, train_id: int | None = None
    ) -> None:
        """Paint a straight bar."""
        first, last = np.array(start), np.array(end)
        along = last - first
        across = np.array([-along[1], along[0]]) * (0.5 * width / max(np.hypot(*along), 1e-6))
        corners = [first - across, last - across, last + across, first + across]
        self.shape(corners, color, train_id)

    def disc(
        self, center: Spot, radius: ArrayLike, color: Paint | None, train_id: int | None = None
    ) -> None:
        """Paint an ellipse; `radius` is one number, or one per direction."""
        self.shape(np.array(center) + _CIRCLE * radius, color, train_id)

    def discs(
        self,
        centers: Points,
        radii: Points,
        colors: Color,
        train_id: int | None = None,
    ) -> None:
        """Paint ellipses with centers (N, 2) and radii (N, 2), in order."""
        shapes = self._in_world(centers[:, None] + _CIRCLE * radii[:, None])
        pixels = self.canvas.camera.project(shapes)
        self.canvas.polygons(pixels, colors, train_id, self.at[1])

    def ring(self, center: Spot, radius: float, width: float, color: Paint) -> None:
        """Paint the colour of a ring."""
        closed = np.concatenate([_CIRCLE, _CIRCLE[:1]])
        outline = [closed * (radius + width / 2), closed[::-1] * (radius - width / 2)]
        self.shape(np.array(center) + np.concatenate(outline), color)

    def _in_world(self, points: Points) -> Points:
        world = np.empty((*points.shape[:-1], 3))
        world[..., 0] = points[..., 0] + self.at[0]
        world[..., 1] = points[..., 1]
        world[..., 2] = self.at[1]
        return world


def sub_quads(quad: Points, across: ArrayLike, up: ArrayLike) -> Points:
    """Return the sub-quads (A * U, 4, 3) of a quad (4, 3).

    Args:
        quad: Corners bottom left, bottom right, top right, top left.
        across: (A, 2) start and end of each column, as shares of the length; (2,) if only one.
        up: (U, 2) start and end of each row, as shares of the height; (2,) if only one.
    """
    columns = np.atleast_2d(np.asarray(across, np.float64))[:, None, [0, 1, 1, 0], None]
    rows = np.atleast_2d(np.asarray(up, np.float64))[None, :, [0, 0, 1, 1], None]
    low = quad[0] + (quad[1] - quad[0]) * columns
    high = quad[3] + (quad[2] - quad[3]) * columns
    return np.asarray(low + (high - low) * rows).reshape(-1, 4, 3)


def _multiply(part: NDArray[np.uint8], change: Floats, mask: NDArray[np.bool_]) -> None:
    factor = np.where(mask, np.float32(1.0) + change, np.float32(1.0)).astype(np.float32)
    part[:] = cv2.multiply(part, cv2.merge((factor, factor, factor)), dtype=cv2.CV_8U)


def _rgb(colors: Any) -> Any:
    """Return one or several colours as integers for OpenCV."""
    return np.minimum(np.maximum(colors, 0), 255).astype(int).tolist()


def _fixed_point(pixels: Points, scale: int = 1) -> NDArray[np.int32]:
    """Return pixel coordinates in OpenCV's fixed point, limited to the range it can clip."""
    limit = 8000.0 * (1 << _SHIFT)
    fixed = pixels * float(scale << _SHIFT) - float(1 << (_SHIFT - 1))
    fixed = np.minimum(np.maximum(fixed, -limit), limit)
    return np.ascontiguousarray(np.rint(fixed), dtype=np.int32)
