"""Renders one toyland image: draws a street, adds objects and photographs it."""

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from udaseg.data.toyland import lots, street, traffic
from udaseg.data.toyland.canvas import Camera, Canvas, Rng, draw_uniform
from udaseg.data.toyland.city import CITIES, City, Domain, Light
from udaseg.data.toyland.street import StreetPlan
from udaseg.data.toyland.weather import draw_light, paint_bonnet, photograph

_DOMAIN_CODES = {"source": 0, "target": 1}
Painter = Callable[[], None]
Things = list[tuple[float, Painter]]


def render(
    domain: Domain, *, seed: int, split: str, index: int, size: tuple[int, int] = (128, 256)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return one image and its label; the same arguments give the same bytes.

    Args:
        domain: "source" or "target".
        seed: Seed of the whole benchmark.
        split: Name of the split; images of different splits are unrelated.
        index: Index of the image in its split.
        size: Height and width; every size of the same aspect ratio shows the same street.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) uint8 train ids of `CLASSES` or `IGNORE`.

    Raises:
        ValueError: The domain is unknown, or the size is below 32 x 64.
    """
    if domain not in CITIES:
        raise ValueError(f"domain must be 'source' or 'target', got {domain!r}")
    if size[0] < 32 or size[1] < 64:
        raise ValueError(f"size must be at least (32, 64), got {size}")
    city = CITIES[domain]
    code = [seed, _DOMAIN_CODES[domain], zlib.crc32(split.encode()), index]
    # the sensor draws more numbers for a larger image, so it has its own stream
    layout, sensor = np.random.default_rng(code).spawn(2)
    light = draw_light(city, layout)
    plan = _draw_plan(city, layout)
    canvas = Canvas(_draw_camera(city, plan, layout, size))
    street.paint_sky(canvas, light, layout)
    street.paint_ground(canvas, city, plan, light, layout)
    street.paint_lots(canvas, city, plan, light, layout)
    things = _furniture(canvas, city, plan, light, layout)
    things += _traffic(canvas, city, plan, light, layout)
    things += _people(canvas, city, plan, light, layout)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    image = canvas.image_at_size()
    if layout.random() < city.bonnet:
        paint_bonnet(image, canvas.label, layout, float(layout.uniform(0.05, 0.11)))
    photo = photograph(
        image, canvas.label, canvas.depth, city, light, canvas.camera.horizon_px, sensor
    )
    return photo, canvas.label


def _draw_plan(city: City, rng: Rng) -> StreetPlan:
    return StreetPlan(
        half_road=draw_uniform(rng, city.half_road_m),
        sidewalk=draw_uniform(rng, city.sidewalk_m),
        crossing=float(rng.uniform(16, 34)) if rng.random() < 0.55 else None,
        crossing_width=float(rng.uniform(8, 12)),
    )


def _draw_camera(city: City, plan: StreetPlan, rng: Rng, size: tuple[int, int]) -> Camera:
    return Camera(
        size=size,
        eye_m=draw_uniform(rng, city.eye_m),
        focal_px=draw_uniform(rng, city.focal) * size[1],
        horizon_px=draw_uniform(rng, city.horizon) * size[0],
        offset_m=float(rng.uniform(0.0, 0.55)) * plan.half_road,
        roll=np.deg2rad(draw_uniform(rng, city.roll_deg)),
        curve=draw_uniform(rng, city.curve),
    )


def _furniture(canvas: Canvas, city: City, plan: StreetPlan, light: Light, rng: Rng) -> Things:
    things: Things = []
    for side in (-1.0, 1.0):
        curb = side * (plan.half_road + 0.45)
        gap, start = rng.uniform(22, 38), rng.uniform(9, 24)
        for z in np.arange(start, 45, gap):
            things.append(
                (float(z), partial(lots.lamp_post, canvas, city, light, rng, (curb, float(z))))
            )
        z = rng.uniform(7, 20)
        while z < 45:
            wide = side * (plan.half_road + 1.0)
            high = float(rng.uniform(4.5, 8.0))
            things.append(
                (float(z), partial(lots.tree, canvas, city, light, rng, (wide, float(z)), high))
            )
            z += draw_uniform(rng, city.tree_gap_m)
        for _ in range(int(rng.integers(0, 3))):
            at = (side * (plan.half_road + 0.6), float(rng.uniform(7, 20)))
            things.append((at[1], partial(lots.traffic_sign, canvas, city, light, rng, at)))
        if rng.random() < 0.35:
            at = (side * (plan.half_road + 1.2), float(rng.uniform(9, 22)))
            things.append((at[1], partial(lots.bin_or_box, canvas, light, rng, at)))
        if plan.crossing is not None and rng.random() < 0.85:
            at = (curb, plan.crossing - 2.0)
            things.append((at[1], partial(lots.traffic_light, canvas, city, light, rng, at)))
            if rng.random() < 0.5:
                at = (curb, plan.crossing + plan.crossing_width + 0.5)
                things.append((at[1], partial(lots.traffic_light, canvas, city, light, rng, at)))
        elif rng.random() < 0.25:
            at = (curb, float(rng.uniform(10, 22)))
            things.append((at[1], partial(lots.traffic_light, canvas, city, light, rng, at)))
    return things


def _traffic(canvas: Canvas, city: City, plan: StreetPlan, light: Light, rng: Rng) -> Things:
    things: Things = []
    parked = rng.random(2) < (0.45 if city.domain == "source" else 0.6)
    headings: tuple[tuple[float, traffic.Heading], ...] = ((1.0, "ahead"), (-1.0, "toward"))
    for side, heading in headings:
        parking = bool(parked[int(side > 0)])
        z = rng.uniform(6, 16)
        while z < 42 and parking:
            at = (side * (plan.half_road - 1.0), float(z))
            if plan.crossing is None or not -6 < plan.crossing - z < 14:
                things.append(_vehicle("car", canvas, city, light, rng, at, heading))
            z += rng.uniform(5.6, 14)
        lane = (plan.half_road - (2.2 if parking else 0.0)) / 2
        z = rng.uniform(10, 24)
        while z < 55:
            kind = "bus" if rng.random() < 0.16 else "car"
            at = (side * max(lane * rng.uniform(0.9, 1.05), 1.1), float(z))
            things.append(_vehicle(kind, canvas, city, light, rng, at, heading))
            z += rng.uniform(14, 45)
    if plan.crossing is not None and rng.random() < 0.5:
        kind = "bus" if rng.random() < 0.4 else "car"
        across: traffic.Heading = "left" if rng.random() < 0.5 else "right"
        at = (float(rng.uniform(-9, 9)), plan.crossing + plan.crossing_width / 2)
        things.append(_vehicle(kind, canvas, city, light, rng, at, across))
    return things


def _people(canvas: Canvas, city: City, plan: StreetPlan, light: Light, rng: Rng) -> Things:
    things: Things = []
    for _ in range(int(rng.integers(1, 7))):
        side = float(rng.choice([-1.0, 1.0]))
        x = side * (plan.half_road + float(rng.uniform(0.4, plan.sidewalk - 0.2)))
        for shift in (0.0, 0.75)[: 1 + int(rng.random() < 0.35)]:
            at = (x + shift, float(rng.uniform(8, 24)))
            things.append((at[1], partial(traffic.person, canvas, city, light, rng, at)))
    if plan.crossing is not None:
        for _ in range(int(rng.integers(0, 4))):
            x = float(rng.uniform(-plan.half_road, plan.half_road))
            at = (x, plan.crossing - 2.7)
            things.append((at[1], partial(traffic.person, canvas, city, light, rng, at)))
    for _ in range(int(rng.integers(0, 4))):
        has_rider = bool(rng.random() < 0.6)
        side = float(rng.choice([-1.0, 1.0]))
        edge = rng.uniform(-1.2, -0.5) if has_rider else rng.uniform(0.6, 1.6)
        at = (side * (plan.half_road + float(edge)), float(rng.uniform(7, 22)))
        paint = partial(traffic.bicycle, canvas, city, light, rng, at, has_rider)
        things.append((at[1], paint))
    return things


def _vehicle(
    kind: str,
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    at: tuple[float, float],
    heading: traffic.Heading,
) -> tuple[float, Painter]:
    paint = traffic.bus if kind == "bus" else traffic.car
    # a vehicle is placed by its rear, but an oncoming one is nearest at its front
    rear = at[1] + (0.0 if heading != "toward" else 11.0 if kind == "bus" else 4.5)
    return at[1], partial(paint, canvas, city, light, rng, (at[0], rear), heading)
