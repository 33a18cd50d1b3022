"""Random draws shared by all parts of toyland."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.labels.classes import IGNORE
from udaseg.data.toyland.city import Color, Span

Rng = np.random.Generator


def draw_uniform(rng: Rng, span: Span) -> float:
    """Return a uniform random number from `span`."""
    return float(rng.uniform(*span))


def draw_color(rng: Rng, colors: tuple[Color, ...], jitter: float = 14.0) -> Color:
    """Return one of `colors` with random jitter."""
    red, green, blue = colors[int(rng.integers(len(colors)))]
    value, warm = rng.normal(0.0, jitter), rng.normal(0.0, jitter / 3)
    return red + value + warm, green + value, blue + value - warm


TILE_PX = 256
"""Rows and columns of every tile."""

TILE_M = 6.0
"""Side of a tile in the world, in metres."""

Tile = NDArray[np.float32]


@lru_cache(maxsize=16)
def tile(name: str) -> Tile:
    """Return the (256, 256) tile `name`, with about zero mean and a range of about [-1, 1].

    Raises:
        ValueError: There is no such tile.
    """
    makers: dict[str, Callable[[], Tile]] = {
        "asphalt": lambda: 0.6 * noise(0.2, 1) + 0.5 * noise(1.5, 2),
        "paving": lambda: _blocks(16, 16, 0.5, 3, stagger=False),
        "slabs": lambda: _blocks(32, 16, 0.7, 4, stagger=True),
        "plaster": lambda: 0.5 * noise(1.2, 5),
        "panels": lambda: _blocks(128, 64, 0.15, 6, stagger=False),
        "bricks": lambda: _blocks(20, 8, 0.6, 7, stagger=True) + 0.3 * noise(0.8, 8),
        "stucco": lambda: 0.5 * noise(0.5, 9) + 0.6 * noise(2.0, 10),
        "planks": lambda: _blocks(12, 256, 0.5, 11, stagger=False),
        "leaves": lambda: np.tanh(2.0 * noise(0.9, 12)),
        "clouds": lambda: noise(1.7, 13),
    }
    if name not in makers:
        raise ValueError(f"no tile '{name}'; available: {', '.join(makers)}")
    texture = np.ascontiguousarray(makers[name](), dtype=np.float32)
    texture.flags.writeable = False  # cached and shared
    return texture


def noise(smoothness: float, seed: int) -> Tile:
    """Return periodic noise of unit deviation whose amplitude falls as frequency^-smoothness."""
    white = np.random.default_rng(seed).standard_normal((TILE_PX, TILE_PX))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE_PX), np.fft.fftfreq(TILE_PX)))
    frequency[0, 0] = np.inf
    shaped = np.fft.ifft2(np.fft.fft2(white) * frequency**-smoothness).real
    return np.asarray(shaped / shaped.std(), np.float32)


def _blocks(width: int, height: int, tint: float, seed: int, *, stagger: bool) -> Tile:
    """Return blocks of `width` x `height` pixels with dark joints, each with its own tint."""
    rows, columns = TILE_PX // height, TILE_PX // width
    tints = np.random.default_rng(seed).uniform(-tint, tint, (rows, columns))
    blocks = np.empty((TILE_PX, TILE_PX), np.float32)
    for row in range(rows):
        line = cv2.resize(
            tints[row : row + 1].astype(np.float32),
            (TILE_PX, height),
            interpolation=cv2.INTER_NEAREST,
        )
        line[:, :: max(width, 2)] = -1.0
        line[0] = -1.0
        blocks[row * height : (row + 1) * height] = np.roll(
            line, (width // 2) * (row % 2) if stagger else 0, axis=1
        )
    return blocks


Points = NDArray[np.float64]
NEAR_M = 1.2
FAR_M = 400.0

OVERSAMPLING = 2
"""Factor by which the image is painted larger and then averaged; the label is not enlarged."""

_SHIFT = 4
_CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 20, False)), np.sin(np.linspace(0, 2 * np.pi, 20, False))], 1
)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera over a street; x points right, y up, z ahead, in metres.

    Attributes:
        size: Image height and width in pixels.
        eye_m: Height above the road.
        focal_px: Focal length.
        horizon_px: Row of the horizon in the middle column.
        offset_m: Offset of the camera to the right of the middle of the road.
        roll: Rotation in radians.
        curve: The street bends sideways by `curve * z * z` metres.
    """

    size: tuple[int, int]
    eye_m: float
    focal_px: float
    horizon_px: float
    offset_m: float
    roll: float
    curve: float

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

    def ground(
        self, columns: NDArray[np.float32], rows: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return x and z of the road points at pixels; above the horizon, z is `FAR_M`."""
        right, down = columns - self.size[1] / 2, rows - self.horizon_px
        cosine, sine = math.cos(self.roll), math.sin(self.roll)
        right, down = cosine * right + sine * down, cosine * down - sine * right
        z = self.focal_px * self.eye_m / np.maximum(down, self.focal_px * self.eye_m / FAR_M)
        return right * z / self.focal_px + self.offset_m - self.curve * z * z, z


class Canvas:
    """Paints shapes of the world from far to near; later shapes hide earlier ones.

    Attributes:
        camera: Camera that views the world.
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

    def face(self, corners: Points, color: Color | None, train_id: int | None = None) -> None:
        """Paint a polygon (N, 3) of the world; without `train_id`, only its colour."""
        depth_m = float(corners[:, 2].sum()) / len(corners)
        self.polygon(self.camera.project(corners), color, train_id, depth_m)

    def faces(self, corners: Points, color: Color) -> None:
        """Paint the colour of polygons (M, N, 3) that do not overlap."""
        if len(corners):
            fixed = _to_fixed_point(self.camera.project(corners), OVERSAMPLING)
            cv2.fillPoly(self.image, list(fixed), _rgb(color), cv2.LINE_8, _SHIFT)

    def board(
        self, at: tuple[float, float], shape: Any, color: Color | None, train_id: int | None = None
    ) -> None:
        """Paint an upright flat shape (N, 2) at (x, z) that faces the camera."""
        shape = np.asarray(shape, np.float64)
        self.face(_upright(at, shape), color, train_id)

    def discs(
        self,
        at: tuple[float, float],
        centers: Points,
        radii: Points,
        colors: Sequence[Color],
        train_id: int | None = None,
    ) -> None:
        """Paint ellipses with centers (N, 2) and radii (N, 2) on a board, in order."""
        shapes = centers[:, None] + _CIRCLE * radii[:, None]
        pixels = self.camera.project(_upright(at, shapes))
        large, plain = _to_fixed_point(pixels, OVERSAMPLING), _to_fixed_point(pixels)
        for outline, color in zip(large, colors, strict=True):
            cv2.fillPoly(self.image, [outline], _rgb(color), cv2.LINE_8, _SHIFT)
        for outline in plain if train_id is not None else ():
            cv2.fillPoly(self.label, [outline], int(train_id or 0), cv2.LINE_8, _SHIFT)
            cv2.fillPoly(self.depth, [outline], at[1], cv2.LINE_8, _SHIFT)

    def ring(
        self,
        at: tuple[float, float],
        center: tuple[float, float],
        radius: float,
        width: float,
        color: Color,
    ) -> None:
        """Paint a ring on a board, colour only."""
        closed = np.concatenate([_CIRCLE, _CIRCLE[:1]])
        outline = np.concatenate(
            [closed * (radius + width / 2), closed[::-1] * (radius - width / 2)]
        )
        self.board(at, np.asarray(center) + outline, color)

    def disc(
        self,
        at: tuple[float, float],
        center: tuple[float, float],
        radius: float | tuple[float, float],
        color: Color | None,
        train_id: int | None = None,
    ) -> None:
        """Paint an ellipse on a board; `radius` is one number, or one per direction."""
        self.board(at, np.asarray(center) + _CIRCLE * np.asarray(radius), color, train_id)

    def bar(
        self,
        at: tuple[float, float],
        start: tuple[float, float],
        end: tuple[float, float],
        width: float,
        color: Color | None,
        train_id: int | None = None,
    ) -> None:
        """Paint a straight bar of `width` metres on a board."""
        first, last = np.asarray(start, np.float64), np.asarray(end, np.float64)
        along = last - first
        across = np.array([-along[1], along[0]]) * (0.5 * width / max(np.hypot(*along), 1e-6))
        shape = [first - across, last - across, last + across, first + across]
        self.board(at, shape, color, train_id)

    def polygon(
        self, pixels: Points, color: Color | None, train_id: int | None, depth_m: float
    ) -> None:
        """Paint a polygon (N, 2) in pixels of the image."""
        if color is not None:
            fixed = _to_fixed_point(pixels, OVERSAMPLING)
            cv2.fillPoly(self.image, [fixed], _rgb(color), cv2.LINE_8, _SHIFT)
        if train_id is not None:
            fixed = _to_fixed_point(pixels)
            cv2.fillPoly(self.label, [fixed], int(train_id), cv2.LINE_8, _SHIFT)
            cv2.fillPoly(self.depth, [fixed], float(depth_m), cv2.LINE_8, _SHIFT)

    def darken(self, corners: Points, factor: float) -> None:
        """Multiply the colours inside a polygon (N, 3), for a shadow or dirt."""
        pixels = self.camera.project(corners) * OVERSAMPLING
        region = self._region_of(pixels)
        if region is not None:
            part, mask = region
            dark = cv2.convertScaleAbs(part, alpha=factor)
            cv2.copyTo(dark, mask, part)

    def texture(
        self, quad: Points, tile: Tile, size_m: tuple[float, float], strength: float
    ) -> None:
        """Multiply a painted quad (4, 3) by a tile, in the perspective of the quad.

        Args:
            quad: Corners bottom left, bottom right, top right, top left.
            tile: The texture.
            size_m: Length and height of the quad in metres.
            strength: Strength; fades where the texture would be finer than a pixel.
        """
        pixels = (self.camera.project(quad) * OVERSAMPLING).astype(np.float32)
        per_tile = TILE_PX / TILE_M
        flat = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
        flat *= np.array(size_m, np.float32) * per_tile
        px_per_m = float(abs(pixels[3, 1] - pixels[0, 1])) / max(size_m[1], 1e-3)
        strength *= float(np.clip(px_per_m / (OVERSAMPLING * self.camera.size[0] / 16), 0.0, 1.0))
        region = self._region_of(pixels.astype(np.float64))
        if region is None or strength < 0.02 or cv2.contourArea(pixels) < 4:
            return
        part, mask = region
        corner = np.floor(np.maximum(pixels.min(0), 0))
        warp = cv2.getPerspectiveTransform(flat, (pixels - corner).astype(np.float32))
        warped = cv2.warpPerspective(
            tile, warp, part.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        self._multiply(part, warped * strength, mask)

    def ground_texture(self, tile: Tile, train_id: int, strength: float, scale: float) -> None:
        """Multiply the pixels of the ground class `train_id` by a tile on the ground."""
        height, width = self.image.shape[:2]
        x, z = self._ground
        top = height - len(z)
        mask = cv2.resize(self.label, (width, height), interpolation=cv2.INTER_NEAREST)[top:]
        per_m = TILE_PX / TILE_M * scale
        sampled = cv2.remap(
            tile,
            np.remainder(x * per_m, TILE_PX),
            np.remainder(z * per_m, TILE_PX),
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_WRAP,
        )
        fade = np.clip(self.camera.focal_px / self.camera.size[1] * 12 / z, 0.12, 1.0)
        self._multiply(
            self.image[top:], sampled * (strength * fade), (mask == train_id).astype(np.uint8)
        )

    @cached_property
    def _ground(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
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

    def image_at_size(self) -> NDArray[np.float32]:
        """Return the anti-aliased image (H, W, 3) as float, 0 to 255."""
        height, width = self.camera.size
        small = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.float32)

    def _region_of(self, pixels: Points) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Return the part of the image around a polygon and the mask of the polygon in it."""
        height, width = self.image.shape[:2]
        low = np.maximum(np.floor(pixels.min(0)), 0).astype(int)
        high = np.minimum(np.ceil(pixels.max(0)) + 1, (width, height)).astype(int)
        if (high - low < 2).any():
            return None
        part = self.image[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros(part.shape[:2], np.uint8)
        cv2.fillPoly(mask, [_to_fixed_point(pixels - low)], 1, cv2.LINE_8, _SHIFT)
        return part, mask

    @staticmethod
    def _multiply(part: NDArray[np.uint8], change: Any, mask: NDArray[np.uint8]) -> None:
        factor = np.where(mask > 0, np.float32(1.0) + change, np.float32(1.0))
        factor = factor.astype(np.float32, copy=False)
        part[:] = cv2.multiply(part, cv2.merge((factor, factor, factor)), dtype=cv2.CV_8U)


def sub_quads(quad: Points, across: Points, up: Points) -> Points:
    """Return the sub-quads (len(across) * len(up), 4, 3) of a quad (4, 3).

    Args:
        quad: Corners bottom left, bottom right, top right, top left.
        across: (A, 2) start and end of each column, as shares of the length.
        up: (U, 2) start and end of each row, as shares of the height.
    """
    a, u = np.asarray(across, np.float64), np.asarray(up, np.float64)
    a_corner = a[:, None, [0, 1, 1, 0], None]
    u_corner = u[None, :, [0, 0, 1, 1], None]
    low = quad[0] + (quad[1] - quad[0]) * a_corner
    high = quad[3] + (quad[2] - quad[3]) * a_corner
    return np.asarray(low + (high - low) * u_corner).reshape(-1, 4, 3)


def scale_color(color: Color, factor: float) -> Color:
    """Return `color` multiplied by `factor`."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def _upright(at: tuple[float, float], shape: Points) -> Points:
    """Return an upright flat shape (..., 2) as world points (..., 3) at (x, z)."""
    corners = np.empty((*shape.shape[:-1], 3))
    corners[..., 0] = shape[..., 0] + at[0]
    corners[..., 1] = shape[..., 1]
    corners[..., 2] = at[1]
    return corners


def _rgb(color: Color) -> tuple[int, int, int]:
    red, green, blue = color
    return (
        int(min(max(red, 0.0), 255.0)),
        int(min(max(green, 0.0), 255.0)),
        int(min(max(blue, 0.0), 255.0)),
    )


def _to_fixed_point(pixels: Points, scale: int = 1) -> NDArray[np.int32]:
    """Return pixel coordinates in OpenCV's fixed point, limited to the range it can clip."""
    limit = 8000.0 * (1 << _SHIFT)
    fixed = pixels * float(scale << _SHIFT) - float(1 << (_SHIFT - 1))
    fixed = np.minimum(np.maximum(fixed, -limit), limit)
    return np.ascontiguousarray(np.rint(fixed), dtype=np.int32)
