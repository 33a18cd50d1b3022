"""Random draws shared by all parts of toyland."""

import numpy as np

from udaseg.data.toyland.city import Color, Span

Rng = np.random.Generator


def between(rng: Rng, span: Span) -> float:
    """Return a uniform random number from `span`."""
    return float(rng.uniform(*span))


def choice(rng: Rng, colors: tuple[Color, ...], jitter: float = 14.0) -> Color:
    """Return one of `colors` with random jitter."""
    red, green, blue = colors[int(rng.integers(len(colors)))]
    value, warm = rng.normal(0.0, jitter), rng.normal(0.0, jitter / 3)
    return red + value + warm, green + value, blue + value - warm
