"""Buildings, fences, hedges and trees along a toyland street."""

import numpy as np

from udaseg.data.toyland.canvas import Canvas, Points, cells, shaded
from udaseg.data.toyland.city import City, Light
from udaseg.data.toyland.classes import BUILDING, FENCE, VEGETATION
from udaseg.data.toyland.draws import Rng, between, choice
from udaseg.data.toyland.tiles import tile

DETAIL_M = 60.0
"""Distance beyond which windows, leaves and clumps would be finer than a pixel."""


def building(
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    place: tuple[float, float, float],
    front: float,
) -> None:
    """Paint a building: its end wall, its street wall with windows, and its roof."""
    near, far, side = place
    x, high = side * front, between(rng, city.building_m)
    depth = rng.uniform(10.0, 16.0)
    wall = choice(rng, city.walls)
    texture = tile(city.facade_tiles[int(rng.integers(len(city.facade_tiles)))])
    turn = light.left if side < 0 else light.right
    lit = rng.random() < light.lamps * 2
    end = np.array([[x, 0, near], [x + side * depth, 0, near]], float)
    end = np.concatenate([end, end[::-1] + np.array([0.0, high, 0.0])])
    canvas.face(end, shaded(wall, light.front), BUILDING)
    canvas.texture(end, texture, (depth, high), city.texture * 0.4)
    _windows(canvas, city, light, rng, end, (depth, high), lit, light.front)
    street = np.array([[x, 0, near], [x, 0, far], [x, high, far], [x, high, near]], float)
    if rng.random() < city.pitched_roofs:
        peak = high + rng.uniform(2.0, 4.0)
        middle, roof = x + side * depth / 2, shaded(choice(rng, city.roofs), turn)
        gable = np.array([[x, high, near], [x + side * depth, high, near], [middle, peak, near]])
        canvas.face(gable, shaded(wall, light.front), BUILDING)
        slope = [[x - side * 0.4, high, near], [x - side * 0.4, high, far]]
        slope += [[middle, peak, far], [middle, peak, near]]
        canvas.face(np.array(slope), roof, BUILDING)
    canvas.face(street, shaded(wall, turn), BUILDING)
    canvas.texture(street, texture, (far - near, high), city.texture * 0.4)
    _windows(canvas, city, light, rng, street, (far - near, high), lit, turn)
    top = cells(street, np.array([[0, 1]]), np.array([[1 - 0.6 / high, 1.0]]))
    canvas.faces(top, shaded(wall, turn * 0.8))
    _ground_floor(canvas, city, light, rng, street, (far - near, high), turn)


def _windows(
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    quad: Points,
    size_m: tuple[float, float],
    lit: bool,
    turn: float,
) -> None:
    pitch, floor = rng.uniform(2.2, 3.4), rng.uniform(2.9, 3.5)
    columns, floors = max(int(size_m[0] / pitch), 1), max(int((size_m[1] - 4.2) / floor), 1)
    wide = rng.uniform(0.4, 0.68) if city.domain == "source" else rng.uniform(0.32, 0.52)
    tall = rng.uniform(0.5, 0.66)
    across = (np.arange(columns)[:, None] + [0.5 - wide / 2, 0.5 + wide / 2]) / columns
    base = 3.8 / size_m[1]
    up = base + (np.arange(floors)[:, None] + [0.2, 0.2 + tall]) * floor / size_m[1]
    up = up[up[:, 1] < 0.985]
    if not len(up) or quad[:, 2].min() > DETAIL_M:
        return
    glass = rng.uniform(0.35, 0.8)
    frame = across + np.array([-0.07, 0.07]) / columns
    rim = up + np.array([-0.09, 0.09]) * floor / size_m[1]
    pale = bool(rng.random() < 0.6)
    canvas.faces(cells(quad, frame, rim), shaded((226, 222, 214) if pale else (84, 76, 70), turn))
    panes = cells(quad, across, up)
    dark = tuple(0.45 * c * glass + 26 for c in light.zenith)
    canvas.faces(panes, (dark[0], dark[1], dark[2]))
    bright = rng.random(len(panes)) < (light.lamps if lit else 0.0)
    canvas.faces(panes[bright], (250, 208, 128))
    upper = cells(quad, across, np.stack([up.mean(1), up[:, 1]], 1))
    reflecting = rng.random(len(upper)) < 0.4
    sheen = tuple(0.55 * c for c in light.rim)
    canvas.faces(upper[reflecting & ~bright], (sheen[0], sheen[1], sheen[2]))


def _ground_floor(
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    quad: Points,
    size_m: tuple[float, float],
    turn: float,
) -> None:
    shops, count = bool(rng.random() < 0.45), max(int(size_m[0] / 3.5), 1)
    color = shaded(choice(rng, city.cars, 20), 0.8 * turn)
    awning = choice(rng, city.cars, 20)
    edges = (np.arange(count)[:, None] + [0.12, 0.88]) / count
    high = size_m[1]
    if shops:
        canvas.faces(cells(quad, np.array([[0, 1]]), np.array([[0, 3.6 / high]])), color)
        canvas.faces(cells(quad, edges, np.array([[0.5, 2.6]]) / high), (62, 70, 78))
        if light.lamps:
            canvas.faces(cells(quad, edges, np.array([[1.5, 2.5]]) / high), (216, 184, 122))
        canvas.faces(cells(quad, edges, np.array([[2.6, 3.3]]) / high), shaded(awning, turn))
    else:
        door = edges.mean(1, keepdims=True) + np.array([-0.5, 0.5]) / size_m[0]
        canvas.faces(cells(quad, door, np.array([[0.1, 2.3]]) / high), (74, 58, 48))
        base = cells(quad, np.array([[0, 1]]), np.array([[0, 0.7 / high]]))
        canvas.faces(base, shaded((132, 128, 122), turn))


def fence(
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    place: tuple[float, float, float],
    front: float,
) -> None:
    """Paint a fence or wall along the street: pickets, boards, railings or concrete."""
    near, far, side = place
    high, color = rng.uniform(1.9, 3.0), choice(rng, city.fences, 8)
    turn = light.left if side < 0 else light.right
    quad = np.array([[0, 0, near], [0, 0, far], [0, high, far], [0, high, near]], float)
    quad[:, 0] = side * front
    canvas.face(quad, shaded(color, turn), FENCE)
    style = "planks" if city.domain == "source" else "stucco"
    canvas.texture(quad, tile(style), (far - near, high), city.texture * 0.3)
    count = max(int((far - near) / 0.55), 1)
    gaps = (np.arange(count)[:, None] + [0.35, 0.65]) / count
    open_fence = bool(rng.random() < 0.65)
    rows = np.array([[0.12, 0.42], [0.52, 0.88]]) if open_fence else np.array([[0.0, 1.0]])
    if not open_fence:
        gaps = gaps * [[1.0, 1.0]] - np.array([0.0, 0.22]) / count
    canvas.faces(cells(quad, gaps, rows), shaded(color, turn * 0.52))
    posts = max(int((far - near) / 3.0), 1)
    edges = (np.arange(posts + 1)[:, None] + [-0.05, 0.05]) / posts
    canvas.faces(cells(quad, edges.clip(0, 1), np.array([[0.0, 1.0]])), shaded(color, turn * 1.15))
    canvas.faces(
        cells(quad, np.array([[0, 1]]), np.array([[0.92, 1.0]])), shaded(color, turn * 0.8)
    )


def hedge(
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    place: tuple[float, float, float],
    front: float,
) -> None:
    """Paint a hedge along the street."""
    near, far, side = place
    high, green = rng.uniform(1.0, 2.4), choice(rng, city.foliage)
    turn = light.left if side < 0 else light.right
    z = np.linspace(near, far, 12)
    top = high + rng.normal(0, 0.08, 12)
    upper = np.stack([np.full(12, side * front), top, z], 1)
    lower = upper[::-1] * [1, 0, 1]
    canvas.face(np.concatenate([upper, lower]), shaded(green, turn * 0.85), VEGETATION)
    quad = np.array([lower[-1], lower[0], upper[-1], upper[0]])
    canvas.texture(quad, tile("leaves"), (far - near, high), 0.25 + 0.2 * city.texture)


def tree(
    canvas: Canvas, city: City, light: Light, rng: Rng, at: tuple[float, float], high: float
) -> None:
    """Paint a tree: a trunk and a crown of leaf clumps, lighter towards the light."""
    green = choice(rng, city.foliage, 10)
    trunk = shaded((98, 76, 56), light.front)
    bole = high * rng.uniform(0.28, 0.42)
    canvas.bar(at, (0, 0), (rng.normal(0, 0.1), bole * 1.3), 0.07 * high**0.75, trunk, VEGETATION)
    conical = bool(rng.random() < (0.2 if city.domain == "source" else 0.45))
    radius = (high - bole) / 2
    wide = radius * rng.uniform(0.85, 1.2)
    toward = 1.0 if light.right > light.left else -1.0
    clumps = rng.uniform(-1, 1, (16, 2)) * [0.75, 0.8]
    clumps = clumps[np.argsort(clumps[:, 1])]
    sizes = radius * rng.uniform(0.3, 0.5, (16, 1)) * [1.0, 1.0]
    skip = 3 if at[1] > DETAIL_M else 2 if at[1] > DETAIL_M / 2 else 1
    clumps, sizes = clumps[::skip], sizes[::skip] * (0.75 + 0.25 * skip)
    specks = rng.uniform(-1, 1, (26, 2)) * 0.8
    tones = rng.uniform(-1, 1, 26)

    def crown(spots: Points) -> Points:
        x, y = spots.T
        narrow = 1.0 - 0.45 * (y + 1) if conical else np.sqrt(np.maximum(1.0 - 0.6 * y * y, 0.1))
        return np.stack([x * narrow * wide, bole + radius + y * radius * 0.95], 1)

    light_of = light.front * (0.86 + 0.16 * clumps[:, 1] - 0.10 * clumps[:, 0] * toward)
    greens = [shaded(green, float(tone)) for tone in light_of]
    canvas.discs(at, crown(clumps), sizes, greens, VEGETATION)
    # skip leaves that would be finer than a pixel
    if canvas.camera.focal_px * radius / max(at[1], 1.0) > 0.05 * canvas.camera.size[0]:
        light_of = light.front * (0.95 + 0.2 * specks[:, 1] + 0.25 * city.texture * tones)
        leaves = [shaded(green, float(tone)) for tone in light_of]
        small = np.broadcast_to(np.array([0.16, 0.1]) * radius, (26, 2))
        canvas.discs(at, crown(specks), small, leaves)
