"""Textures of toyland: small periodic tiles, computed once per process."""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

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
