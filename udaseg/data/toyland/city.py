"""The 13 classes of toyland, with the names and colours of Cityscapes."""

from dataclasses import dataclass
from typing import Literal

from udaseg.data.labels.classes import ClassSpace

CLASSES = ClassSpace(
    names=(
        "road",
        "sidewalk",
        "building",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "sky",
        "person",
        "car",
        "bus",
        "bicycle",
    ),
    colors=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (70, 130, 180),
        (220, 20, 60),
        (0, 0, 142),
        (0, 60, 100),
        (119, 11, 32),
    ),
)
(
    ROAD,
    SIDEWALK,
    BUILDING,
    FENCE,
    POLE,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    VEGETATION,
    SKY,
    PERSON,
    CAR,
    BUS,
    BICYCLE,
) = range(13)
Domain = Literal["source", "target"]
Color = tuple[float, float, float]
Span = tuple[float, float]


@dataclass(frozen=True)
class City:
    """The appearance of one domain; a span is the (low, high) of a uniform distribution.

    Attributes:
        eye_m: Camera height.
        focal: Focal length as a share of the image width.
        horizon: Row of the horizon as a share of the image height.
        roll_deg: Camera roll.
        curve: Bend of the street, in metres sideways per square metre ahead.
        half_road_m: Half of the road's width.
        sidewalk_m: Width of each sidewalk.
        building_m: Height of the buildings.
        lots: Probabilities of a building, a fence, a hedge and an open lot along the street.
        tree_gap_m: Distance between street trees.
        walls: Facade colours.
        facade_tiles: Names of the facade textures.
        texture: Strength of textures, 0 to 1.
        pitched_roofs: Probability of a pitched roof.
        car_shape: Body height and cabin length, relative to a saloon car.
        lens_blur: Blur of the camera in pixels of a 128-row image.
        sensor_noise: Standard deviation of the noise, on the scale of 0 to 255.
        jpeg_quality: Quality of the camera's compression; None keeps the clean image.
        vignette: Darkening of the corners.
        bonnet: Probability that the bonnet of the ego car is in view.
    """

    domain: Domain
    eye_m: Span
    focal: Span
    horizon: Span
    roll_deg: Span
    curve: Span
    half_road_m: Span
    sidewalk_m: Span
    building_m: Span
    lots: tuple[float, float, float, float]
    tree_gap_m: Span
    walls: tuple[Color, ...]
    facade_tiles: tuple[str, ...]
    texture: float
    pitched_roofs: float
    roofs: tuple[Color, ...]
    asphalt: tuple[Color, ...]
    paving: tuple[Color, ...]
    marking: Color
    foliage: tuple[Color, ...]
    fences: tuple[Color, ...]
    poles: tuple[Color, ...]
    housing: tuple[Color, ...]
    signs: tuple[str, ...]
    cars: tuple[Color, ...]
    car_shape: tuple[float, float]
    buses: tuple[Color, ...]
    clothes: tuple[Color, ...]
    lens_blur: Span
    sensor_noise: Span
    jpeg_quality: tuple[int, int] | None
    vignette: float
    bonnet: float


SOURCE = City(
    domain="source",
    eye_m=(1.45, 1.75),
    focal=(1.00, 1.15),
    horizon=(0.42, 0.48),
    roll_deg=(-0.3, 0.3),
    curve=(-0.0008, 0.0008),
    half_road_m=(4.6, 6.4),
    sidewalk_m=(3.6, 5.6),
    building_m=(7.0, 22.0),
    lots=(0.48, 0.30, 0.10, 0.12),
    tree_gap_m=(16.0, 38.0),
    walls=(
        (214, 188, 150),
        (196, 142, 108),
        (222, 212, 196),
        (168, 174, 182),
        (178, 112, 88),
        (204, 196, 142),
        (152, 138, 128),
        (232, 226, 218),
        (142, 152, 166),
        (206, 164, 156),
    ),
    facade_tiles=("plaster", "panels"),
    texture=0.30,
    pitched_roofs=0.15,
    roofs=((150, 84, 66), (110, 100, 98)),
    asphalt=((104, 104, 108), (120, 118, 116), (92, 94, 100)),
    paving=((186, 180, 170), (172, 172, 174), (196, 184, 164)),
    marking=(240, 240, 236),
    foliage=((72, 138, 48), (92, 150, 54), (58, 120, 56), (110, 156, 62)),
    fences=((226, 222, 212), (160, 116, 76), (134, 96, 66), (176, 170, 164)),
    poles=((132, 136, 140), (150, 150, 148), (96, 100, 104)),
    housing=((34, 36, 34), (48, 52, 40)),
    signs=("ring", "square", "diamond", "octagon"),
    cars=(
        (196, 36, 34),
        (36, 74, 160),
        (236, 236, 236),
        (52, 54, 60),
        (226, 180, 40),
        (64, 130, 84),
        (170, 176, 184),
        (226, 112, 40),
    ),
    car_shape=(1.0, 1.0),
    buses=((236, 168, 36), (206, 52, 44), (60, 120, 190), (84, 160, 96)),
    clothes=(
        (190, 44, 52),
        (44, 76, 160),
        (236, 226, 210),
        (60, 60, 66),
        (226, 160, 50),
        (70, 140, 100),
    ),
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
    building_m=(7.0, 16.0),
    lots=(0.60, 0.26, 0.06, 0.08),
    tree_gap_m=(18.0, 44.0),
    walls=(
        (156, 92, 74),
        (138, 116, 100),
        (176, 160, 136),
        (120, 84, 74),
        (150, 146, 140),
        (186, 172, 140),
        (112, 106, 104),
        (170, 130, 100),
    ),
    facade_tiles=("bricks", "bricks", "stucco"),
    texture=0.60,
    pitched_roofs=0.60,
    roofs=((110, 62, 50), (74, 72, 76), (92, 80, 70)),
    asphalt=((92, 90, 90), (78, 80, 86), (108, 104, 98)),
    paving=((146, 140, 134), (132, 134, 138), (158, 146, 132)),
    marking=(216, 212, 200),
    foliage=((66, 92, 44), (92, 104, 46), (116, 104, 44), (54, 80, 48)),
    fences=((64, 68, 66), (146, 142, 134), (112, 84, 64), (84, 90, 88)),
    poles=((74, 78, 76), (60, 60, 62), (112, 108, 102)),
    housing=((30, 32, 34), (60, 66, 46), (84, 76, 30)),
    signs=("ring", "triangle", "square", "blue"),
    cars=(
        (54, 58, 64),
        (206, 206, 202),
        (120, 124, 130),
        (30, 32, 36),
        (104, 34, 36),
        (44, 62, 96),
        (150, 140, 120),
    ),
    car_shape=(1.14, 1.16),
    buses=((196, 190, 170), (172, 52, 44), (70, 110, 90), (222, 176, 60)),
    clothes=(
        (48, 50, 56),
        (84, 66, 60),
        (60, 72, 104),
        (130, 120, 110),
        (150, 60, 54),
        (176, 160, 70),
    ),
    lens_blur=(0.25, 0.50),
    sensor_noise=(1.5, 3.5),
    jpeg_quality=(60, 88),
    vignette=0.22,
    bonnet=0.6,
)
CITIES: dict[Domain, City] = {"source": SOURCE, "target": TARGET}


@dataclass(frozen=True)
class Light:
    """The light and weather of one image.

    Attributes:
        kind: "sunny", "overcast", "dusk", "low sun", "haze" or "rain".
        left: Brightness of surfaces on the left, which face right.
        right: Brightness of surfaces on the right, which face left.
        front: Brightness of surfaces that face the camera.
        zenith: Sky colour at the zenith.
        rim: Sky colour at the horizon, and the colour of haze.
        clouds: Share of the sky covered by clouds.
        gain: Brightness of the whole image, per colour.
        haze_m: Distance at which haze hides two thirds of the colour.
        wet: How mirror-like the road is, 0 to 1.
        streaks: Number of rain streaks.
        lamps: Share of lit windows.
    """

    kind: str
    left: float
    right: float
    front: float
    zenith: Color
    rim: Color
    clouds: float
    gain: Color
    haze_m: float
    wet: float = 0.0
    streaks: int = 0
    lamps: float = 0.0
