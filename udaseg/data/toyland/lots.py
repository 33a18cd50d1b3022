"""What stands beside a toyland street: buildings, fences, hedges and trees."""

from dataclasses import dataclass

import numpy as np

from udaseg.data.toyland.canvas import Paint, Points, Spot, sub_quads
from udaseg.data.toyland.city import BUILDING, FENCE, VEGETATION, Color
from udaseg.data.toyland.scene import Scene

DETAIL_M = 60.0
"""Distance beyond which windows, leaves and clumps would be finer than a pixel."""


@dataclass(frozen=True)
class Lot:
    """A piece of ground along the street."""

    near: float
    far: float
    side: float  # -1 is left, 1 is right
    x: float  # of the edge towards the street

    def wall(self, height: float) -> Points:
        """Return the quad (4, 3) along the street."""
        corners = [(0, self.near), (0, self.far), (height, self.far), (height, self.near)]
        return np.array([(self.x, y, z) for y, z in corners])


@dataclass(frozen=True)
class _Wall:
    quad: Points
    length: float
    height: float
    brightness: float


def building(scene: Scene, lot: Lot) -> None:
    """Paint a building: its end wall, its street wall with windows, and its roof."""
    city, light, canvas, rng = scene.city, scene.light, scene.canvas, scene.rng
    x, near, far, high = lot.x, lot.near, lot.far, rng.uniform(*city.building_m)
    depth = rng.uniform(10.0, 16.0)
    color = scene.color(city.walls)
    tile = city.facade_tiles[rng.integers(len(city.facade_tiles))]
    lit_share = light.lamps if rng.random() < light.lamps * 2 else 0.0
    back = x + lot.side * depth
    corners = [[x, 0, near], [back, 0, near], [back, high, near], [x, high, near]]
    end = _Wall(np.array(corners), depth, high, light.front)
    _facade(scene, end, color, tile, lit_share)
    street = _Wall(lot.wall(high), far - near, high, light.on_side(x))
    if rng.random() < city.pitched_roofs:
        peak = high + rng.uniform(2.0, 4.0)
        middle, eaves = x + lot.side * depth / 2, x - lot.side * 0.4
        roof = scene.color(city.roofs) * street.brightness
        gable = [[x, high, near], [back, high, near], [middle, peak, near]]
        canvas.face(gable, color * light.front, BUILDING)
        slope = [[eaves, high, near], [eaves, high, far], [middle, peak, far], [middle, peak, near]]
        canvas.face(slope, roof, BUILDING)
    _facade(scene, street, color, tile, lit_share)
    cornice = color * (street.brightness * 0.8)
    canvas.panels(street.quad, (0, 1), (1 - 0.6 / high, 1.0), cornice)
    _ground_floor(scene, street)


def _facade(scene: Scene, wall: _Wall, color: Color, tile: str, lit_share: float) -> None:
    """Paint a wall with its windows; lamps shine in some of them."""
    canvas, city, light, rng = scene.canvas, scene.city, scene.light, scene.rng
    canvas.face(wall.quad, color * wall.brightness, BUILDING)
    canvas.texture(wall.quad, tile, (wall.length, wall.height), city.texture * 0.4)
    pitch, floor = rng.uniform(2.2, 3.4), rng.uniform(2.9, 3.5)
    columns, floors = max(int(wall.length / pitch), 1), max(int((wall.height - 4.2) / floor), 1)
    wide, tall = rng.uniform(*city.window), rng.uniform(0.5, 0.66)
    across = (np.arange(columns)[:, None] + [0.5 - wide / 2, 0.5 + wide / 2]) / columns
    up = np.arange(floors)[:, None] + [0.2, 0.2 + tall]
    up = 3.8 / wall.height + up * floor / wall.height
    up = up[up[:, 1] < 0.985]
    if not len(up) or wall.quad[:, 2].min() > DETAIL_M:
        return
    glass = 0.45 * light.zenith * rng.uniform(0.35, 0.8) + 26
    frame = np.array((226, 222, 214) if rng.random() < 0.6 else (84, 76, 70)) * wall.brightness
    around = np.array([-0.07, 0.07]) / columns, np.array([-0.09, 0.09]) * floor / wall.height
    canvas.panels(wall.quad, across + around[0], up + around[1], frame)
    panes = sub_quads(wall.quad, across, up)
    canvas.faces(panes, glass)
    lit = rng.random(len(panes)) < lit_share
    canvas.faces(panes[lit], (250, 208, 128))
    upper = sub_quads(wall.quad, across, np.stack([up.mean(1), up[:, 1]], 1))
    reflecting = rng.random(len(upper)) < 0.4
    canvas.faces(upper[reflecting & ~lit], 0.55 * light.rim)


def _ground_floor(scene: Scene, wall: _Wall) -> None:
    """Paint shops, or doors."""
    has_shops, count = scene.rng.random() < 0.45, max(int(wall.length / 3.5), 1)
    base, awning = scene.color(scene.city.cars, 20), scene.color(scene.city.cars, 20)
    edges = (np.arange(count)[:, None] + [0.12, 0.88]) / count

    def band(across: Points | Spot, low: float, high: float, color: Paint) -> None:
        scene.canvas.panels(wall.quad, across, (low / wall.height, high / wall.height), color)

    if has_shops:
        band((0, 1), 0, 3.6, base * (0.8 * wall.brightness))
        band(edges, 0.5, 2.6, (62, 70, 78))
        if scene.light.lamps:
            band(edges, 1.5, 2.5, (216, 184, 122))
        band(edges, 2.6, 3.3, awning * wall.brightness)
    else:
        doors = edges.mean(1, keepdims=True) + np.array([-0.5, 0.5]) / wall.length
        band(doors, 0.1, 2.3, (74, 58, 48))
        band((0, 1), 0, 0.7, np.array((132, 128, 122)) * wall.brightness)


def fence(scene: Scene, lot: Lot) -> None:
    """Paint a fence or wall along the street: pickets, boards, railings or concrete."""
    canvas, city, rng = scene.canvas, scene.city, scene.rng
    high, length = rng.uniform(1.9, 3.0), lot.far - lot.near
    color = scene.color(city.fences, 8)
    brightness, quad = scene.light.on_side(lot.x), lot.wall(high)
    canvas.face(quad, color * brightness, FENCE)
    canvas.texture(quad, city.fence_tile, (length, high), city.texture * 0.3)
    count, posts = max(int(length / 0.55), 1), max(int(length / 3.0), 1)
    gaps = (np.arange(count)[:, None] + [0.35, 0.65]) / count
    rows = [[0.12, 0.42], [0.52, 0.88]]
    if rng.random() >= 0.65:  # without holes
        gaps, rows = gaps - np.array([0.0, 0.22]) / count, [[0.0, 1.0]]
    canvas.panels(quad, gaps, rows, color * (brightness * 0.52))
    edges = (np.arange(posts + 1)[:, None] + [-0.05, 0.05]) / posts
    canvas.panels(quad, edges.clip(0, 1), (0, 1), color * (brightness * 1.15))
    canvas.panels(quad, (0, 1), (0.92, 1.0), color * (brightness * 0.8))


def hedge(scene: Scene, lot: Lot) -> None:
    """Paint a hedge along the street."""
    rng, canvas, length = scene.rng, scene.canvas, lot.far - lot.near
    high, green = rng.uniform(1.0, 2.4), scene.color(scene.city.foliage)
    top, z = high + rng.normal(0, 0.08, 12), np.linspace(lot.near, lot.far, 12)
    upper = np.stack([np.full(12, lot.x), top, z], 1)
    lower = upper[::-1] * [1, 0, 1]
    outline = np.concatenate([upper, lower])
    canvas.face(outline, green * (scene.light.on_side(lot.x) * 0.85), VEGETATION)
    quad = np.array([lower[-1], lower[0], upper[-1], upper[0]])
    canvas.texture(quad, "leaves", (length, high), 0.25 + 0.2 * scene.city.texture)


def tree(scene: Scene, at: Spot, high: float) -> None:
    """Paint a tree: a trunk and a crown of leaf clumps, lighter towards the light."""
    city, light, rng, board = scene.city, scene.light, scene.rng, scene.board(at)
    green = scene.color(city.foliage, 10)
    bole = high * rng.uniform(0.28, 0.42)
    trunk = np.array((98, 76, 56)) * light.front
    board.bar((0, 0), (rng.normal(0, 0.1), bole * 1.3), 0.07 * high**0.75, trunk, VEGETATION)
    conical = rng.random() < city.conical
    radius = (high - bole) / 2
    wide = radius * rng.uniform(0.85, 1.2)
    toward = 1.0 if light.right > light.left else -1.0
    clumps = rng.uniform(-1, 1, (16, 2)) * [0.75, 0.8]
    clumps = clumps[np.argsort(clumps[:, 1])]
    sizes = radius * rng.uniform(0.3, 0.5, (16, 1)) * [1.0, 1.0]
    skip = 3 if at[1] > DETAIL_M else 2 if at[1] > DETAIL_M / 2 else 1
    clumps, sizes = clumps[::skip], sizes[::skip] * (0.75 + 0.25 * skip)
    leaves = rng.uniform(-1, 1, (26, 2)) * 0.8
    tones = rng.uniform(-1, 1, 26)

    def in_crown(spots: Points) -> Points:
        x, y = spots.T
        narrow = 1.0 - 0.45 * (y + 1) if conical else np.sqrt(np.maximum(1.0 - 0.6 * y * y, 0.1))
        return np.stack([x * narrow * wide, bole + radius + y * radius * 0.95], 1)

    shade = light.front * (0.86 + 0.16 * clumps[:, 1] - 0.10 * clumps[:, 0] * toward)
    board.discs(in_crown(clumps), sizes, green * shade[:, None], VEGETATION)
    camera = scene.canvas.camera
    # skip leaves that would be finer than a pixel
    if camera.focal_px * radius / max(at[1], 1.0) > 0.05 * camera.size[0]:
        shade = light.front * (0.95 + 0.2 * leaves[:, 1] + 0.25 * city.texture * tones)
        size = np.broadcast_to(np.array([0.16, 0.1]) * radius, (26, 2))
        board.discs(in_crown(leaves), size, green * shade[:, None])
