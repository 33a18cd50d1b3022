"""Sky, road and lots of a toyland street."""

import math

import cv2
import numpy as np
from numpy.typing import ArrayLike

from udaseg.data.toyland.canvas import FAR_M, TILE_PX, Points, tile
from udaseg.data.toyland.city import BUILDING, ROAD, SIDEWALK, SKY, VEGETATION
from udaseg.data.toyland.lots import Lot, building, fence, hedge, tree
from udaseg.data.toyland.scene import Scene

END_M = 95.0
"""Length of the street, which ends at a row of distant houses and trees."""


def paint_sky(scene: Scene) -> None:
    """Fill the image with sky: a gradient to the horizon, and clouds that flatten with distance."""
    canvas, light, rng = scene.canvas, scene.light, scene.rng
    height, width = canvas.camera.size  # a sky has no sharp edges, so a small one is enough
    rows = np.linspace(0.0, 1.0, height)[:, None, None]
    share = np.clip(rows / (canvas.camera.horizon_px / height), 0.0, 1.0) ** 1.3
    # the gain must not darken the sky, which lights the street
    sky = (light.zenith * (1 - share) + light.rim * share) / light.gain
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
    cloud = light.rim * 0.4 + np.array([250, 250, 252]) * 0.6 * tone * light.gain[1]
    painted = np.clip(sky * (1 - alpha) + cloud * alpha, 0, 255).astype(np.uint8)
    cv2.resize(painted, canvas.image.shape[1::-1], dst=canvas.image)
    canvas.label[:] = SKY


def paint_ground(scene: Scene) -> None:
    """Paint road, markings, curbs and sidewalks to the end of the street."""
    canvas, city, plan, light = scene.canvas, scene.city, scene.plan, scene.light
    paving, asphalt = scene.color(city.paving), scene.color(city.asphalt, 8.0)
    z = np.geomspace(1.3, FAR_M, 40)
    for half_width, color, train_id in ((300.0, paving, SIDEWALK), (plan.half_road, asphalt, ROAD)):
        pixels = canvas.camera.project(_strip(-half_width, half_width, z))
        canvas.polygons(pixels[None], [color], train_id, FAR_M)
    if plan.crossing is not None:
        far = plan.crossing + plan.crossing_width
        canvas.face(_ground_quad(-200, 200, plan.crossing, far), asphalt, ROAD)
    canvas.ground_depth()
    canvas.ground_texture("asphalt", ROAD, city.texture * 0.30)
    canvas.ground_texture(city.sidewalk_tile, SIDEWALK, city.texture * 0.35)
    z = np.geomspace(1.5, 110.0, 24)
    for side in (-1.0, 1.0):
        curb = side * plan.half_road
        canvas.face(_strip(curb, curb + side * 0.3, z), paving * 1.12, SIDEWALK)
        canvas.face(_strip(curb - side * 0.06, curb, z), paving * 0.62, SIDEWALK)
    _paint_markings(scene)
    if light.kind in ("sunny", "low sun"):
        reach = plan.front * scene.rng.uniform(0.15, 1.0)
        side = -1.0 if light.left < light.right else 1.0
        shadow = _ground_quad(side * plan.front, side * (plan.front - reach), 1.5, 110)
        canvas.darken(shadow, 0.66)


def _strip(left: float, right: float, z: Points) -> Points:
    """Return the polygon (2N, 3) on the ground between two lines along the street."""
    there = np.stack([np.full_like(z, left), np.zeros_like(z), z], 1)
    back = np.stack([np.full_like(z, right), np.zeros_like(z), z], 1)[::-1]
    return np.concatenate([there, back])


def _ground_quad(left: float, right: float, near: float, far: float) -> Points:
    return np.array([[left, 0, near], [right, 0, near], [right, 0, far], [left, 0, far]], float)


def _paint_markings(scene: Scene) -> None:
    canvas, plan, rng = scene.canvas, scene.plan, scene.rng
    lanes = 4 if plan.half_road > 5.6 else 2
    white = scene.city.marking * rng.uniform(0.88, 1.0)
    phase, dash, gap = rng.uniform(0, 6), rng.uniform(2.0, 3.5), rng.uniform(2.5, 5.0)
    quads: list[Points] = []

    def add_line(x: float, half_width: float, starts: ArrayLike, length: float) -> None:
        for z in np.asarray(starts):
            quads.append(_ground_quad(x - half_width, x + half_width, z, z + length))

    for lane in range(1, lanes):
        x = -plan.half_road + 2 * plan.half_road * lane / lanes
        if lane == lanes // 2 and rng.random() < 0.35:
            add_line(x, 0.08, np.arange(1.5, 100, 3), 3)
        else:
            add_line(x, 0.08, np.arange(1.5 + phase % 3, 100.0, dash + gap), dash)
    if rng.random() < 0.6:
        for side in (-1, 1):
            add_line(side * (plan.half_road - 0.45), 0.06, np.arange(1.5, 90, 3), 3)
    canvas.faces(np.array(quads), white)
    if plan.crossing is not None:
        z = plan.crossing
        stripes = np.arange(-plan.half_road + 0.5, plan.half_road - 0.4, 1.0)
        canvas.faces(np.array([_ground_quad(x, x + 0.5, z - 4.0, z - 1.4) for x in stripes]), white)
        canvas.face(_ground_quad(-plan.half_road, 0.0, z - 5.4, z - 5.0), white)


def paint_lots(scene: Scene) -> None:
    """Paint the lots on both sides of the street, from far to near."""
    _paint_backdrop(scene)
    rng, plan = scene.rng, scene.plan
    crossing = math.inf if plan.crossing is None else plan.crossing
    lots: list[tuple[float, float, float]] = []
    for side in (-1.0, 1.0):
        z = 3.0 + rng.uniform(0, 6)
        while z < END_M:
            length = rng.uniform(8.0, 18.0)
            meets_crossing = z <= crossing <= z + length
            if meets_crossing:
                length = max(crossing - z - 1.0, 0.0)
            if length > 2.5:
                lots.append((z, z + length, side))
            z += length + (0.0 if rng.random() < 0.8 else rng.uniform(1.0, 4.0))
            if meets_crossing:
                z = crossing + plan.crossing_width + 1.0
    for near, far, side in sorted(lots, reverse=True):
        _paint_lot(scene, Lot(near, far, side, side * plan.front))


def _paint_lot(scene: Scene, lot: Lot) -> None:
    rng, x = scene.rng, lot.x
    kind = rng.choice(4, p=scene.city.lots)
    if kind == 0:
        building(scene, lot)
        return
    for z in np.arange(lot.far, lot.near, -rng.uniform(7.0, 12.0)):
        back = x + lot.side * rng.uniform(3.0, 7.0)
        tree(scene, (back, z), rng.uniform(4.0, 8.5))
    if kind == 1:
        fence(scene, lot)
    elif kind == 2:
        hedge(scene, lot)
    else:
        green = scene.color(scene.city.foliage) * 1.05
        lawn = _ground_quad(x, x + lot.side * 60, lot.near, lot.far)
        scene.canvas.face(lawn, green, VEGETATION)
        for z in (lot.far, lot.near):
            tree(scene, (x + lot.side * 2.0, z), rng.uniform(3.5, 7.0))


def _paint_backdrop(scene: Scene) -> None:
    rng = scene.rng
    for z in (END_M + 60, END_M + 10):
        x = -150.0
        while x < 150:
            width, height = rng.uniform(8, 22), rng.uniform(5, 16)
            board = scene.board((x, z))
            if rng.random() < 0.7:
                wall = scene.color(scene.city.walls) * (scene.light.front * 0.9)
                board.rectangle((0, width), (0, height), wall, BUILDING)
            else:
                green = scene.color(scene.city.foliage) * scene.light.front
                centers = np.stack([np.linspace(0, width, 4), np.full(4, 2.5)], 1)
                crowns = np.stack([np.full(4, width / 4), rng.uniform(2.5, 5.0, 4)], 1)
                board.discs(centers, crowns, np.tile(green, (4, 1)), VEGETATION)
            x += width * 0.95
