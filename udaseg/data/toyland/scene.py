"""What is drawn at random for a whole image: light, weather, street and camera."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from udaseg.data.toyland.canvas import Board, Camera, Canvas, Spot
from udaseg.data.toyland.city import City, Color, Span

Rng = np.random.Generator


@dataclass(frozen=True)
class Light:
    """The light and weather of one image."""

    kind: str  # "sunny", "overcast", "dusk", "low sun", "haze" or "rain"
    left: float  # brightness of surfaces on the left, which face right
    right: float  # brightness of surfaces on the right, which face left
    front: float  # brightness of surfaces that face the camera
    zenith: Color  # of the sky
    rim: Color  # of the sky at the horizon, and of haze
    clouds: float  # share of the sky
    gain: Color  # brightness of the whole image, per colour
    haze_m: float = 420.0  # distance at which haze hides two thirds of the colour
    wet: float = 0.0  # how mirror-like the road is, 0 to 1
    streaks: int = 0  # number of rain streaks
    lamps: float = 0.0  # share of lit windows

    def on_side(self, x: float) -> float:
        """Return the brightness of surfaces that face the street from x."""
        return self.left if x < 0 else self.right


@dataclass(frozen=True)
class StreetPlan:
    """The layout of one street, in metres."""

    half_road: float
    sidewalk: float
    crossing: float | None  # distance of the cross street, if there is one
    crossing_width: float

    @property
    def front(self) -> float:
        """Distance of the facades from the middle of the road."""
        return self.half_road + self.sidewalk


@dataclass(frozen=True)
class Scene:
    """All that the objects of one image share."""

    city: City
    light: Light
    plan: StreetPlan
    canvas: Canvas
    rng: Rng

    def color(self, palette: Color, jitter: float = 14.0) -> Color:
        """Return a random colour of the palette with random jitter."""
        color: Color = palette[self.rng.integers(len(palette))]
        value, warm = self.rng.normal(0.0, jitter), self.rng.normal(0.0, jitter / 3)
        shift: Color = np.array([warm, 0.0, -warm])
        return color + value + shift

    def board(self, at: Spot) -> Board:
        """Return an upright plane at (x, z)."""
        return Board(self.canvas, at)


def draw_scene(city: City, rng: Rng, size: tuple[int, int]) -> Scene:
    """Return the scene of one image, with an empty canvas; the order of all draws matters."""
    light = _draw_light(city, rng)
    plan = StreetPlan(
        half_road=rng.uniform(*city.half_road_m),
        sidewalk=rng.uniform(*city.sidewalk_m),
        crossing=rng.uniform(16, 34) if rng.random() < 0.55 else None,
        crossing_width=rng.uniform(8, 12),
    )
    camera = Camera(
        size=size,
        eye_m=rng.uniform(*city.eye_m),
        focal_px=rng.uniform(*city.focal) * size[1],
        horizon_px=rng.uniform(*city.horizon) * size[0],
        offset_m=rng.uniform(0.0, 0.55) * plan.half_road,
        roll=np.deg2rad(rng.uniform(*city.roll_deg)),
        curve=rng.uniform(*city.curve),
    )
    return Scene(city, light, plan, Canvas(camera), rng)


class _Weather(NamedTuple):
    """One kind of weather of the target city."""

    chance: float
    gain: tuple[float, float, float]
    zenith: tuple[float, float, float]
    rim: tuple[float, float, float]
    clouds: Span = (0.1, 0.6)
    contrast: float = 0.05  # between the sides of the street
    lamps: float = 0.0


_WEATHER = {
    "overcast": _Weather(
        0.3, (0.90, 0.92, 0.96), (172, 186, 204), (214, 220, 226), clouds=(0.3, 0.9)
    ),
    "dusk": _Weather(0.15, (0.80, 0.75, 0.86), (104, 122, 178), (226, 180, 156), lamps=0.5),
    "low sun": _Weather(0.2, (1.02, 0.91, 0.78), (140, 170, 208), (246, 216, 170), contrast=0.26),
    "haze": _Weather(0.15, (0.97, 0.95, 0.91), (178, 194, 212), (222, 222, 216)),
    "rain": _Weather(
        0.2, (0.83, 0.87, 0.93), (150, 164, 182), (196, 204, 212), clouds=(0.3, 0.9), lamps=0.2
    ),
}


def _draw_light(city: City, rng: Rng) -> Light:
    swap, level = rng.random() < 0.5, rng.uniform(0.90, 1.08)
    if city.domain == "source":
        blue = rng.uniform(-14, 14)
        return Light(
            kind="sunny",
            left=0.78 if swap else 1.06,
            right=1.06 if swap else 0.78,
            front=rng.uniform(0.86, 1.0),
            zenith=np.array([92 + blue, 150 + blue, 226]),
            rim=np.array([196 + blue, 218, 240]),
            clouds=rng.uniform(0.0, 0.95),
            gain=np.full(3, level),
            haze_m=900.0,
        )
    kind = str(rng.choice(list(_WEATHER), p=[weather.chance for weather in _WEATHER.values()]))
    weather = _WEATHER[kind]
    warm = rng.uniform(-0.03, 0.05)
    darker, brighter = 0.88 - weather.contrast, 0.88 + weather.contrast
    rain = kind == "rain"
    return Light(
        kind=kind,
        left=darker if swap else brighter,
        right=brighter if swap else darker,
        front=rng.uniform(0.78, 0.92),
        zenith=np.array(weather.zenith),
        rim=np.array(weather.rim),
        clouds=rng.uniform(*weather.clouds),
        gain=level * np.add(weather.gain, [warm, 0.0, -warm]),
        # the haze is drawn in any weather
        haze_m={"haze": rng.uniform(70, 130), "rain": 180.0}.get(kind, 420.0),
        wet=rng.uniform(0.3, 0.6) if rain else 0.0,
        streaks=int(rng.integers(40, 140)) if rain else 0,
        lamps=weather.lamps,
    )
