"""Renders one toyland image: draws a street, adds objects and photographs it."""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from udaseg.data.toyland import furniture, street, traffic
from udaseg.data.toyland.canvas import Spot
from udaseg.data.toyland.city import CITIES, Domain
from udaseg.data.toyland.lots import tree
from udaseg.data.toyland.scene import Scene, draw_scene
from udaseg.data.toyland.weather import paint_bonnet, photograph

Thing = tuple[float, Callable[[], None]]
"""Distance of an object, and what paints it."""


def render(
    domain: Domain, *, seed: int, split: str, index: int, size: tuple[int, int] = (128, 256)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return one image and its label; the same arguments give the same bytes.

    Args:
        domain: The city.
        seed: Seed of the whole benchmark.
        split: Any name; images of different splits are unrelated.
        index: Index of the image in its split.
        size: Height and width; every size of the same aspect ratio shows the same street.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) uint8 train ids of the label table toyland13 or `IGNORE`.
    """
    if domain not in CITIES:
        raise ValueError(f"domain must be 'source' or 'target', got {domain!r}")
    if size[0] < 32 or size[1] < 64:
        raise ValueError(f"size must be at least (32, 64), got {size}")
    code = [seed, list(CITIES).index(domain), zlib.crc32(split.encode()), index]
    # the sensor draws more numbers for a larger image, so it has its own stream
    layout, sensor = np.random.default_rng(code).spawn(2)
    scene = draw_scene(CITIES[domain], layout, size)
    street.paint_sky(scene)
    street.paint_ground(scene)
    street.paint_lots(scene)
    things = [*_furniture(scene), *_vehicles(scene), *_people(scene)]
    for _, paint in sorted(things, key=itemgetter(0), reverse=True):
        paint()
    image = scene.canvas.image_at_size()
    if layout.random() < scene.city.bonnet:
        paint_bonnet(scene, image)
    return photograph(scene, image, sensor), scene.canvas.label


def _furniture(scene: Scene) -> Iterator[Thing]:
    rng, plan = scene.rng, scene.plan

    def thing(paint: Callable[..., None], at: Spot) -> Thing:
        return at[1], partial(paint, scene, at)

    for side in (-1.0, 1.0):
        curb = side * (plan.half_road + 0.45)
        gap, start = rng.uniform(22, 38), rng.uniform(9, 24)
        for z in np.arange(start, 45, gap):
            yield thing(furniture.lamp_post, (curb, z))
        z = rng.uniform(7, 20)
        while z < 45:
            paint = partial(tree, scene, (side * (plan.half_road + 1.0), z), rng.uniform(4.5, 8.0))
            yield z, paint
            z += rng.uniform(*scene.city.tree_gap_m)
        for _ in range(rng.integers(0, 3)):
            at = (side * (plan.half_road + 0.6), rng.uniform(7, 20))
            yield thing(furniture.traffic_sign, at)
        if rng.random() < 0.35:
            at = (side * (plan.half_road + 1.2), rng.uniform(9, 22))
            yield thing(furniture.bin_or_box, at)
        if plan.crossing is not None and rng.random() < 0.85:
            yield thing(furniture.traffic_light, (curb, plan.crossing - 2.0))
            if rng.random() < 0.5:
                far_side = plan.crossing + plan.crossing_width + 0.5
                yield thing(furniture.traffic_light, (curb, far_side))
        elif rng.random() < 0.25:
            yield thing(furniture.traffic_light, (curb, rng.uniform(10, 22)))


def _vehicles(scene: Scene) -> Iterator[Thing]:
    rng, plan = scene.rng, scene.plan
    parked = rng.random(2) < scene.city.parked
    headings: tuple[tuple[float, traffic.Heading, bool], ...] = (
        (1.0, "ahead", parked[1]),
        (-1.0, "toward", parked[0]),
    )
    for side, heading, parking in headings:
        z = rng.uniform(6, 16)
        while z < 42 and parking:
            if plan.crossing is None or not -6 < plan.crossing - z < 14:
                yield _vehicle(scene, False, (side * (plan.half_road - 1.0), z), heading)
            z += rng.uniform(5.6, 14)
        lane = (plan.half_road - (2.2 if parking else 0.0)) / 2
        z = rng.uniform(10, 24)
        while z < 55:
            is_bus = rng.random() < 0.16
            at = (side * max(lane * rng.uniform(0.9, 1.05), 1.1), z)
            yield _vehicle(scene, is_bus, at, heading)
            z += rng.uniform(14, 45)
    if plan.crossing is not None and rng.random() < 0.5:
        is_bus = rng.random() < 0.4
        across: traffic.Heading = "left" if rng.random() < 0.5 else "right"
        at = (rng.uniform(-9, 9), plan.crossing + plan.crossing_width / 2)
        yield _vehicle(scene, is_bus, at, across)


def _vehicle(scene: Scene, is_bus: bool, at: Spot, heading: traffic.Heading) -> Thing:
    paint, length = (traffic.bus, 11.0) if is_bus else (traffic.car, 4.5)
    # a vehicle is placed by its rear, but an oncoming one is nearest at its front
    rear = at[1] + length if heading == "toward" else at[1]
    return at[1], partial(paint, scene, (at[0], rear), heading)


def _people(scene: Scene) -> Iterator[Thing]:
    rng, plan = scene.rng, scene.plan
    for _ in range(rng.integers(1, 7)):
        side = rng.choice([-1.0, 1.0])
        x = side * (plan.half_road + rng.uniform(0.4, plan.sidewalk - 0.2))
        for shift in (0.0, 0.75) if rng.random() < 0.35 else (0.0,):
            at = (x + shift, rng.uniform(8, 24))
            yield at[1], partial(traffic.person, scene, at)
    if plan.crossing is not None:
        for _ in range(rng.integers(0, 4)):
            at = (rng.uniform(-plan.half_road, plan.half_road), plan.crossing - 2.7)
            yield at[1], partial(traffic.person, scene, at)
    for _ in range(rng.integers(0, 4)):
        has_rider = rng.random() < 0.6
        side = rng.choice([-1.0, 1.0])
        edge = rng.uniform(-1.2, -0.5) if has_rider else rng.uniform(0.6, 1.6)
        at = (side * (plan.half_road + edge), rng.uniform(7, 22))
        yield at[1], partial(traffic.bicycle, scene, at, has_rider)
