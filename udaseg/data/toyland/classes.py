"""The 13 classes of toyland, with the names and colours of Cityscapes."""

from udaseg.data.labels import ClassSpace

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
