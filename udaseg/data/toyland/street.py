"""Sky, road, buildings, fences and trees of a toyland street."""

from dataclasses import dataclass

import cv2
import numpy as np

from udaseg.data.toyland.canvas import (
    FAR_M,
    TILE_PX,
    Canvas,
    Points,
    Rng,
    draw_color,
    scale_color,
    tile,
)
from udaseg.data.toyland.city import BUILDING, ROAD, SIDEWALK, SKY, VEGETATION, City, Color, Light
from udaseg.data.toyland.lots import building, fence, hedge, tree

END_M = 95.0
"""Length of the street, which ends at a row of distant houses and trees."""


@dataclass(frozen=True)
class StreetPlan:
    """The layout of one street.

    Attributes:
        half_road: Half of the road's width in metres.
        sidewalk: Width of each sidewalk in metres.
        crossing: Distance of the cross street in metres, or None.
        crossing_width: Width of the cross street in metres.
    """

    half_road: float
    sidewalk: float
    crossing: float | None
    crossing_width: float

    @property
    def front(self) -> float:
        """Distance of the facades from the middle of the road."""
        return self.half_road + self.sidewalk


def paint_sky(canvas: Canvas, light: Light, rng: Rng) -> None:
    """Fill the image with sky: a gradient to the horizon, and clouds that flatten with distance."""
    height, width = canvas.camera.size  # a sky has no sharp edges, so a small one is enough
    rows = np.linspace(0.0, 1.0, height)[:, None, None]
    rim = canvas.camera.horizon_px / canvas.camera.size[0]
    share = np.clip(rows / rim, 0.0, 1.0) ** 1.3
    sky = np.array(light.zenith) * (1 - share) + np.array(light.rim) * share
    sky = sky / np.array(light.gain)  # the gain must not darken the sky, which lights the street
    sky = np.broadcast_to(sky, (height, width, 3)).astype(np.float32)
    offset = rng.uniform(0, TILE_PX, 2)
    tone = rng.uniform(0.75, 1.0) if light.clouds > 0.6 else 1.0
    ahead = 1.0 / (1.12 - share[:, :, 0])
    columns = (np.linspace(-1.0, 1.0, width)[None] * ahead * 38 + offset[0]) % TILE_PX
    lines = np.broadcast_to((ahead * 42 + offset[1]) % TILE_PX, (height, width))
    cover = cv2.remap(
        tile("clouds"),
        columns.astype(np.float32),
        lines.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    alpha = np.clip((cover - 1.3 + 2.2 * light.clouds) * 0.9, 0.0, 0.9)[..., None]
    cloud = np.array(light.rim) * 0.4 + np.array([250, 250, 252]) * 0.6 * tone * light.gain[1]
    painted = np.clip(sky * (1 - alpha) + cloud * alpha, 0, 255).astype(np.uint8)
    cv2.resize(painted, canvas.image.shape[1::-1], dst=canvas.image)
    canvas.label[:] = SKY


def paint_ground(canvas: Canvas, city: City, plan: StreetPlan, light: Light, rng: Rng) -> None:
    """Paint road, markings, curbs and sidewalks to the end of the street."""
    paving, asphalt = draw_color(rng, city.paving), draw_color(rng, city.asphalt, 8.0)
    _strip(canvas, -300.0, 300.0, paving, SIDEWALK)
    _strip(canvas, -plan.half_road, plan.half_road, asphalt, ROAD)
    if plan.crossing is not None:
        near, far = plan.crossing, plan.crossing + plan.crossing_width
        side = np.array([[-200, 0, near], [200, 0, near], [200, 0, far], [-200, 0, far]], float)
        canvas.face(side, asphalt, ROAD)
    canvas.ground_depth()
    canvas.ground_texture(tile("asphalt"), ROAD, city.texture * 0.30, 1.0)
    style = "paving" if city.domain == "source" else "slabs"
    canvas.ground_texture(tile(style), SIDEWALK, city.texture * 0.35, 1.0)
    _curbs(canvas, plan, scale_color(paving, 1.12), scale_color(paving, 0.62))
    _markings(canvas, city, plan, rng)
    if light.kind in ("sunny", "low sun"):
        reach = plan.front * rng.uniform(0.15, 1.0)
        side_x = -plan.front if light.left < light.right else plan.front
        edge = side_x - np.sign(side_x) * reach
        shadow = np.array([[side_x, 0, 1.5], [edge, 0, 1.5], [edge, 0, 110], [side_x, 0, 110]])
        canvas.darken(shadow, 0.66)


def _strip(canvas: Canvas, left: float, right: float, color: Color, train_id: int) -> None:
    z = np.geomspace(1.3, FAR_M, 40)
    down = np.stack([np.full_like(z, left), np.zeros_like(z), z], 1)
    back = np.stack([np.full_like(z, right), np.zeros_like(z), z], 1)[::-1]
    pixels = canvas.camera.project(np.concatenate([down, back]))
    canvas.polygon(pixels, color, train_id, FAR_M)


def _curbs(canvas: Canvas, plan: StreetPlan, top: Color, face: Color) -> None:
    z = np.geomspace(1.5, 110.0, 24)
    for side in (-1.0, 1.0):
        x = side * plan.half_road
        for inner, outer, color in ((x, x + side * 0.3, top), (x - side * 0.06, x, face)):
            line = np.stack([np.full_like(z, inner), np.zeros_like(z), z], 1)
            back = line[::-1] + np.array([outer - inner, 0.0, 0.0])
            canvas.face(np.concatenate([line, back]), color, SIDEWALK)


def _markings(canvas: Canvas, city: City, plan: StreetPlan, rng: Rng) -> None:
    lanes = 4 if plan.half_road > 5.6 else 2
    white = scale_color(city.marking, float(rng.uniform(0.88, 1.0)))
    phase, dash, gap = rng.uniform(0, 6), rng.uniform(2.0, 3.5), rng.uniform(2.5, 5.0)
    starts = np.arange(1.5 + phase % 3, 100.0, dash + gap)
    quads: list[Points] = []
    for lane in range(1, lanes):
        x = -plan.half_road + 2 * plan.half_road * lane / lanes
        solid = lane == lanes // 2 and bool(rng.random() < 0.35)
        spans = [(z, z + 3) for z in np.arange(1.5, 100, 3)] if solid else []
        for first, last in spans or [(z, z + dash) for z in starts]:
            quads.append(_ground_quad(x - 0.08, x + 0.08, first, last))
    if rng.random() < 0.6:
        for side in (-1, 1):
            x = side * (plan.half_road - 0.45)
            quads += [_ground_quad(x - 0.06, x + 0.06, z, z + 3) for z in np.arange(1.5, 90, 3)]
    canvas.faces(np.array(quads), white)
    if plan.crossing is not None:
        z = plan.crossing
        stripes = np.arange(-plan.half_road + 0.5, plan.half_road - 0.4, 1.0)
        canvas.faces(np.array([_ground_quad(x, x + 0.5, z - 4.0, z - 1.4) for x in stripes]), white)
        canvas.face(_ground_quad(-plan.half_road, 0.0, z - 5.4, z - 5.0), white)


def _ground_quad(left: float, right: float, near: float, far: float) -> Points:
    return np.array([[left, 0, near], [right, 0, near], [right, 0, far], [left, 0, far]], float)


def paint_lots(canvas: Canvas, city: City, plan: StreetPlan, light: Light, rng: Rng) -> None:
    """Paint the lots on both sides of the street, from far to near."""
    _backdrop(canvas, city, light, rng)
    lots: list[tuple[float, float, float]] = []
    for side in (-1.0, 1.0):
        z = 3.0 + rng.uniform(0, 6)
        while z < END_M:
            length = rng.uniform(8.0, 18.0)
            free = plan.crossing is None or z + length < plan.crossing or z > plan.crossing
            if not free:
                length = max(float(plan.crossing or z) - z - 1.0, 0.0)
            if length > 2.5:
                lots.append((z, z + length, side))
            z += length + (0.0 if rng.random() < 0.8 else rng.uniform(1.0, 4.0))
            if not free:
                z = float(plan.crossing or z) + plan.crossing_width + 1.0
    for near, far, side in sorted(lots, reverse=True):
        _lot(canvas, city, plan, light, rng, (near, far, side))


def _lot(
    canvas: Canvas,
    city: City,
    plan: StreetPlan,
    light: Light,
    rng: Rng,
    place: tuple[float, float, float],
) -> None:
    near, far, side = place
    kind = int(rng.choice(4, p=city.lots))
    if kind == 0:
        building(canvas, city, light, rng, place, plan.front)
        return
    x = side * plan.front
    for z in np.arange(far, near, -rng.uniform(7.0, 12.0)):
        back = x + side * rng.uniform(3.0, 7.0)
        tree(canvas, city, light, rng, (back, float(z)), rng.uniform(4.0, 8.5))
    if kind == 1:
        fence(canvas, city, light, rng, place, plan.front)
    elif kind == 2:
        hedge(canvas, city, light, rng, place, plan.front)
    else:
        green = scale_color(draw_color(rng, city.foliage), 1.05)
        lawn = [[x, 0, near], [x + side * 60, 0, near], [x + side * 60, 0, far], [x, 0, far]]
        canvas.face(np.array(lawn), green, VEGETATION)
        for z in np.linspace(far, near, 2):
            tree(canvas, city, light, rng, (x + side * 2.0, float(z)), rng.uniform(3.5, 7.0))


def _backdrop(canvas: Canvas, city: City, light: Light, rng: Rng) -> None:
    for z in (END_M + 60, END_M + 10):
        x = -150.0
        while x < 150:
            width, height = rng.uniform(8, 22), rng.uniform(5, 16)
            if rng.random() < 0.7:
                wall = scale_color(draw_color(rng, city.walls), light.front * 0.9)
                shape = [[x, 0, z], [x + width, 0, z], [x + width, height, z], [x, height, z]]
                canvas.face(np.array(shape), wall, BUILDING)
            else:
                green = scale_color(draw_color(rng, city.foliage), light.front)
                centers = np.stack([np.linspace(0, width, 4), np.full(4, 2.5)], 1)
                crowns = np.stack([np.full(4, width / 4), rng.uniform(2.5, 5.0, 4)], 1)
                canvas.discs((x, z), centers, crowns, [green] * 4, VEGETATION)
            x += width * 0.95
