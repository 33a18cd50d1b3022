"""Street furniture of toyland: lamps, traffic lights, signs and bins."""

import numpy as np

from udaseg.data.labels.classes import IGNORE
from udaseg.data.toyland.canvas import (
    Canvas,
    Points,
    Rng,
    draw_color,
    draw_uniform,
    scale_color,
    sub_quads,
    tile,
)
from udaseg.data.toyland.city import (
    BUILDING,
    FENCE,
    POLE,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    VEGETATION,
    City,
    Light,
)

At = tuple[float, float]


def lamp_post(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a street lamp with an arm over the road."""
    color, high = scale_color(draw_color(rng, city.poles, 6), light.front), rng.uniform(5.5, 7.5)
    inward = -float(np.sign(at[0])) * rng.uniform(1.0, 2.0)
    canvas.bar(at, (0, 0), (0, high), 0.3, color, POLE)
    canvas.bar(at, (0, 0), (0, 1.0), 0.4, scale_color(color, 0.85), POLE)
    canvas.bar(at, (0, high), (inward, high + 0.25), 0.2, color, POLE)
    head = (255, 226, 150) if light.lamps else (216, 216, 210)
    canvas.bar(at, (inward * 0.7, high + 0.2), (inward * 1.3, high + 0.24), 0.2, head, POLE)


def traffic_light(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a traffic light on a pole, sometimes a second one on an arm over the road."""
    color = scale_color(draw_color(rng, city.poles, 6), light.front)
    housing, phase = draw_color(rng, city.housing, 5), int(rng.integers(3))
    arm = float(rng.uniform(2.0, 3.5)) if rng.random() < 0.5 else 0.0
    inward = -float(np.sign(at[0]))
    high = 5.6 if arm else 3.4
    canvas.bar(at, (0, 0), (0, high), 0.3, color, POLE)
    heads = [(0.0, 2.5)]
    if arm:
        canvas.bar(at, (0, high), (inward * arm, high), 0.22, color, POLE)
        heads.append((inward * arm, high - 0.9))
    for x, y in heads:
        outline = [(x - 0.42, y), (x + 0.42, y), (x + 0.42, y + 1.75), (x - 0.42, y + 1.75)]
        canvas.board(at, outline, housing, TRAFFIC_LIGHT)
        for lamp, bright in enumerate(((50, 240, 110), (255, 196, 40), (255, 50, 40))):
            shown = bright if lamp == phase else scale_color(bright, 0.25)
            canvas.disc(at, (x, y + 0.35 + 0.53 * lamp), 0.24, shown)


def traffic_sign(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a traffic sign on a pole."""
    kind = city.signs[int(rng.integers(len(city.signs)))]
    color, y = scale_color(draw_color(rng, city.poles, 6), light.front), rng.uniform(2.3, 2.9)
    canvas.bar(at, (0, 0), (0, y + 0.3), 0.22, color, POLE)
    tone, size = light.front, rng.uniform(0.52, 0.70)
    corners = {"triangle": 3, "diamond": 4, "square": 4, "octagon": 8}.get(kind, 20)
    start = {"triangle": np.pi / 2, "square": np.pi / 4, "octagon": np.pi / 8}.get(kind, 0.0)
    turn = start + np.arange(corners) * 2 * np.pi / corners
    unit = np.stack([np.cos(turn), np.sin(turn)], 1)
    outer, inner = {
        "ring": ((206, 26, 34), (240, 238, 232)),
        "square": ((236, 238, 240), (34, 88, 186)),
        "diamond": ((240, 240, 236), (246, 196, 30)),
        "octagon": ((240, 236, 232), (200, 24, 30)),
        "triangle": ((200, 30, 34), (246, 226, 110)),
        "blue": ((226, 230, 236), (30, 74, 160)),
    }[kind]
    center = np.array([0.0, y + 0.3])
    canvas.board(at, center + unit * size, scale_color(outer, tone), TRAFFIC_SIGN)
    canvas.board(at, center + unit * size * 0.74, scale_color(inner, tone))
    mark = (40, 40, 44) if kind in ("ring", "diamond", "triangle") else (240, 240, 240)
    canvas.bar(
        at, (-size * 0.3, y + 0.25), (size * 0.3, y + 0.25), size * 0.3, scale_color(mark, tone)
    )


def bin_or_box(canvas: Canvas, light: Light, rng: Rng, at: At) -> None:
    """Paint a litter bin or letter box; it has no class, so its label is `IGNORE`."""
    color = ((70, 90, 70), (190, 160, 40), (84, 84, 88))[int(rng.integers(3))]
    high, half = rng.uniform(0.9, 1.3), rng.uniform(0.25, 0.4)
    shape = [(-half, 0), (half, 0), (half, high), (-half, high)]
    canvas.board(at, shape, scale_color(color, light.front), IGNORE)
    lid = [(-half, high * 0.85), (half, high * 0.85), (half, high), (-half, high)]
    canvas.board(at, lid, scale_color(color, light.front * 0.7))


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
    x, high = side * front, draw_uniform(rng, city.building_m)
    depth = rng.uniform(10.0, 16.0)
    wall = draw_color(rng, city.walls)
    texture = tile(city.facade_tiles[int(rng.integers(len(city.facade_tiles)))])
    turn = light.left if side < 0 else light.right
    lit = rng.random() < light.lamps * 2
    end = np.array([[x, 0, near], [x + side * depth, 0, near]], float)
    end = np.concatenate([end, end[::-1] + np.array([0.0, high, 0.0])])
    canvas.face(end, scale_color(wall, light.front), BUILDING)
    canvas.texture(end, texture, (depth, high), city.texture * 0.4)
    _windows(canvas, city, light, rng, end, (depth, high), lit, light.front)
    street = np.array([[x, 0, near], [x, 0, far], [x, high, far], [x, high, near]], float)
    if rng.random() < city.pitched_roofs:
        peak = high + rng.uniform(2.0, 4.0)
        middle, roof = x + side * depth / 2, scale_color(draw_color(rng, city.roofs), turn)
        gable = np.array([[x, high, near], [x + side * depth, high, near], [middle, peak, near]])
        canvas.face(gable, scale_color(wall, light.front), BUILDING)
        slope = [[x - side * 0.4, high, near], [x - side * 0.4, high, far]]
        slope += [[middle, peak, far], [middle, peak, near]]
        canvas.face(np.array(slope), roof, BUILDING)
    canvas.face(street, scale_color(wall, turn), BUILDING)
    canvas.texture(street, texture, (far - near, high), city.texture * 0.4)
    _windows(canvas, city, light, rng, street, (far - near, high), lit, turn)
    top = sub_quads(street, np.array([[0, 1]]), np.array([[1 - 0.6 / high, 1.0]]))
    canvas.faces(top, scale_color(wall, turn * 0.8))
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
    canvas.faces(
        sub_quads(quad, frame, rim), scale_color((226, 222, 214) if pale else (84, 76, 70), turn)
    )
    panes = sub_quads(quad, across, up)
    dark = tuple(0.45 * c * glass + 26 for c in light.zenith)
    canvas.faces(panes, (dark[0], dark[1], dark[2]))
    bright = rng.random(len(panes)) < (light.lamps if lit else 0.0)
    canvas.faces(panes[bright], (250, 208, 128))
    upper = sub_quads(quad, across, np.stack([up.mean(1), up[:, 1]], 1))
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
    color = scale_color(draw_color(rng, city.cars, 20), 0.8 * turn)
    awning = draw_color(rng, city.cars, 20)
    edges = (np.arange(count)[:, None] + [0.12, 0.88]) / count
    high = size_m[1]
    if shops:
        canvas.faces(sub_quads(quad, np.array([[0, 1]]), np.array([[0, 3.6 / high]])), color)
        canvas.faces(sub_quads(quad, edges, np.array([[0.5, 2.6]]) / high), (62, 70, 78))
        if light.lamps:
            canvas.faces(sub_quads(quad, edges, np.array([[1.5, 2.5]]) / high), (216, 184, 122))
        canvas.faces(
            sub_quads(quad, edges, np.array([[2.6, 3.3]]) / high), scale_color(awning, turn)
        )
    else:
        door = edges.mean(1, keepdims=True) + np.array([-0.5, 0.5]) / size_m[0]
        canvas.faces(sub_quads(quad, door, np.array([[0.1, 2.3]]) / high), (74, 58, 48))
        base = sub_quads(quad, np.array([[0, 1]]), np.array([[0, 0.7 / high]]))
        canvas.faces(base, scale_color((132, 128, 122), turn))


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
    high, color = rng.uniform(1.9, 3.0), draw_color(rng, city.fences, 8)
    turn = light.left if side < 0 else light.right
    quad = np.array([[0, 0, near], [0, 0, far], [0, high, far], [0, high, near]], float)
    quad[:, 0] = side * front
    canvas.face(quad, scale_color(color, turn), FENCE)
    style = "planks" if city.domain == "source" else "stucco"
    canvas.texture(quad, tile(style), (far - near, high), city.texture * 0.3)
    count = max(int((far - near) / 0.55), 1)
    gaps = (np.arange(count)[:, None] + [0.35, 0.65]) / count
    open_fence = bool(rng.random() < 0.65)
    rows = np.array([[0.12, 0.42], [0.52, 0.88]]) if open_fence else np.array([[0.0, 1.0]])
    if not open_fence:
        gaps = gaps * [[1.0, 1.0]] - np.array([0.0, 0.22]) / count
    canvas.faces(sub_quads(quad, gaps, rows), scale_color(color, turn * 0.52))
    posts = max(int((far - near) / 3.0), 1)
    edges = (np.arange(posts + 1)[:, None] + [-0.05, 0.05]) / posts
    canvas.faces(
        sub_quads(quad, edges.clip(0, 1), np.array([[0.0, 1.0]])), scale_color(color, turn * 1.15)
    )
    canvas.faces(
        sub_quads(quad, np.array([[0, 1]]), np.array([[0.92, 1.0]])), scale_color(color, turn * 0.8)
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
    high, green = rng.uniform(1.0, 2.4), draw_color(rng, city.foliage)
    turn = light.left if side < 0 else light.right
    z = np.linspace(near, far, 12)
    top = high + rng.normal(0, 0.08, 12)
    upper = np.stack([np.full(12, side * front), top, z], 1)
    lower = upper[::-1] * [1, 0, 1]
    canvas.face(np.concatenate([upper, lower]), scale_color(green, turn * 0.85), VEGETATION)
    quad = np.array([lower[-1], lower[0], upper[-1], upper[0]])
    canvas.texture(quad, tile("leaves"), (far - near, high), 0.25 + 0.2 * city.texture)


def tree(
    canvas: Canvas, city: City, light: Light, rng: Rng, at: tuple[float, float], high: float
) -> None:
    """Paint a tree: a trunk and a crown of leaf clumps, lighter towards the light."""
    green = draw_color(rng, city.foliage, 10)
    trunk = scale_color((98, 76, 56), light.front)
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
    greens = [scale_color(green, float(tone)) for tone in light_of]
    canvas.discs(at, crown(clumps), sizes, greens, VEGETATION)
    # skip leaves that would be finer than a pixel
    if canvas.camera.focal_px * radius / max(at[1], 1.0) > 0.05 * canvas.camera.size[0]:
        light_of = light.front * (0.95 + 0.2 * specks[:, 1] + 0.25 * city.texture * tones)
        leaves = [scale_color(green, float(tone)) for tone in light_of]
        small = np.broadcast_to(np.array([0.16, 0.1]) * radius, (26, 2))
        canvas.discs(at, crown(specks), small, leaves)
