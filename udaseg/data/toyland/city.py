"""The two cities of toyland: their streets, buildings, vehicles, people and cameras, as data."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# train ids of the label table toyland13
ROAD, SIDEWALK, BUILDING, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = range(7)
VEGETATION, SKY, PERSON, CAR, BUS, BICYCLE = range(7, 13)

Domain = Literal["source", "target"]
Span = tuple[float, float]
Color = NDArray[np.float64]
"""Red, green and blue, 0 to 255; a palette is (N, 3)."""


def _palette(colors: str) -> Color:
    return np.array([list(bytes.fromhex(color)) for color in colors.split()], float)


@dataclass(frozen=True)
class City:
    """The appearance of one domain; a span is the (low, high) of a uniform distribution."""

    domain: Domain
    eye_m: Span  # height of the camera
    focal: Span  # focal length as a share of the image width
    horizon: Span  # row of the horizon as a share of the image height
    roll_deg: Span  # of the camera
    curve: Span  # bend of the street, in metres sideways per square metre ahead
    half_road_m: Span  # half of the road's width
    sidewalk_m: Span  # width of each sidewalk
    parked: float  # probability of cars parked on a side of the road
    building_m: Span  # height
    lots: tuple[float, float, float, float]  # probabilities: building, fence, hedge, open lot
    tree_gap_m: Span  # distance between street trees
    conical: float  # probability of a conical tree
    walls: Color
    facade_tiles: tuple[str, ...]
    fence_tile: str
    sidewalk_tile: str
    texture: float  # strength of all textures, 0 to 1
    window: Span  # width of a window as a share of its column
    pitched_roofs: float  # probability
    roofs: Color
    asphalt: Color
    paving: Color
    marking: Color
    foliage: Color
    fences: Color
    poles: Color
    housing: Color  # of traffic lights
    signs: tuple[str, ...]
    cars: Color
    car_shape: tuple[float, float]  # body height and cabin length, relative to a saloon car
    buses: Color
    clothes: Color
    lens_blur: Span  # in pixels of a 128-row image
    sensor_noise: Span  # standard deviation on the scale of 0 to 255
    jpeg_quality: tuple[int, int] | None  # None keeps the clean image
    vignette: float  # darkening of the corners
    bonnet: float  # probability that the bonnet of the ego car is in view


SOURCE = City(
    domain="source",
    eye_m=(1.45, 1.75),
    focal=(1.00, 1.15),
    horizon=(0.42, 0.48),
    roll_deg=(-0.3, 0.3),
    curve=(-0.0008, 0.0008),
    half_road_m=(4.6, 6.4),
    sidewalk_m=(3.6, 5.6),
    parked=0.45,
    building_m=(7.0, 22.0),
    lots=(0.48, 0.30, 0.10, 0.12),
    tree_gap_m=(16.0, 38.0),
    conical=0.2,
    walls=_palette("d6bc96 c48e6c ded4c4 a8aeb6 b27058 ccc48e 988a80 e8e2da 8e98a6 cea49c"),
    facade_tiles=("plaster", "panels"),
    fence_tile="planks",
    sidewalk_tile="paving",
    texture=0.30,
    window=(0.4, 0.68),
    pitched_roofs=0.15,
    roofs=_palette("965442 6e6462"),
    asphalt=_palette("68686c 787674 5c5e64"),
    paving=_palette("bab4aa acacae c4b8a4"),
    marking=_palette("f0f0ec")[0],
    foliage=_palette("488a30 5c9636 3a7838 6e9c3e"),
    fences=_palette("e2ded4 a0744c 866042 b0aaa4"),
    poles=_palette("84888c 969694 606468"),
    housing=_palette("222422 303428"),
    signs=("ring", "square", "diamond", "octagon"),
    cars=_palette("c42422 244aa0 ececec 34363c e2b428 408254 aab0b8 e27028"),
    car_shape=(1.0, 1.0),
    buses=_palette("eca824 ce342c 3c78be 54a060"),
    clothes=_palette("be2c34 2c4ca0 ece2d2 3c3c42 e2a032 468c64"),
    lens_blur=(0.0, 0.25),
    sensor_noise=(0.0, 1.5),
    jpeg_quality=None,
    vignette=0.0,
    bonnet=0.0,
)
TARGET = City(
    domain="target",
    eye_m=(1.20, 1.95),
    focal=(0.88, 1.02),
    horizon=(0.37, 0.47),
    roll_deg=(-2.2, 2.2),
    curve=(-0.0030, 0.0030),
    half_road_m=(4.0, 5.4),
    sidewalk_m=(2.6, 4.2),
    parked=0.6,
    building_m=(7.0, 16.0),
    lots=(0.60, 0.26, 0.06, 0.08),
    tree_gap_m=(18.0, 44.0),
    conical=0.45,
    walls=_palette("9c5c4a 8a7464 b0a088 78544a 96928c baac8c 706a68 aa8264"),
    facade_tiles=("bricks", "bricks", "stucco"),
    fence_tile="stucco",
    sidewalk_tile="slabs",
    texture=0.60,
    window=(0.32, 0.52),
    pitched_roofs=0.60,
    roofs=_palette("6e3e32 4a484c 5c5046"),
    asphalt=_palette("5c5a5a 4e5056 6c6862"),
    paving=_palette("928c86 84868a 9e9284"),
    marking=_palette("d8d4c8")[0],
    foliage=_palette("425c2c 5c682e 74682c 365030"),
    fences=_palette("404442 928e86 705440 545a58"),
    poles=_palette("4a4e4c 3c3c3e 706c66"),
    housing=_palette("1e2022 3c422e 544c1e"),
    signs=("ring", "triangle", "square", "blue"),
    cars=_palette("363a40 cececa 787c82 1e2024 682224 2c3e60 968c78"),
    car_shape=(1.14, 1.16),
    buses=_palette("c4beaa ac342c 466e5a deb03c"),
    clothes=_palette("303238 54423c 3c4868 82786e 963c36 b0a046"),
    lens_blur=(0.25, 0.50),
    sensor_noise=(1.5, 3.5),
    jpeg_quality=(60, 88),
    vignette=0.22,
    bonnet=0.6,
)
CITIES: dict[Domain, City] = {"source": SOURCE, "target": TARGET}
