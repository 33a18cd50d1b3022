"""Sky, road, buildings, fences and trees of a toyland street."""

from dataclasses import dataclass

import cv2
import numpy as np

from udaseg.data.toyland.canvas import FAR_M, Canvas, Points, cells, shaded
from udaseg.data.toyland.city import City, Color, Light, Span
from udaseg.data.toyland.classes import BUILDING, FENCE, ROAD, SIDEWALK, SKY, VEGETATION
from udaseg.data.toyland.tiles import TILE_PX, tile

Rng = np.random.Generator

END_M = 130.0
"""The street ends here, at a row of distant houses and trees."""


DETAIL_M = 60.0
"""Beyond this distance windows, leaves and clumps would be finer than a pixel."""


@dataclass(frozen=True)
class Plan:
    """Where things are in one street.

    Attributes:
        half_road: Half of the road's width in metres.
        sidewalk: Width of each sidewalk in metres.
        crossing: Distance of the cross street, or None.
        crossing_width: Its width.
    """

    half_road: float
    sidewalk: float
    crossing: float | None
    crossing_width: float

    @property
    def front(self) -> float:
        """Distance of the facades from the road's middle."""
        return self.half_road + self.sidewalk


def between(rng: Rng, span: Span) -> float:
    """Return a uniform draw of `span`."""
    return float(rng.uniform(*span))


def choice(rng: Rng, colors: tuple[Color, ...], jitter: float = 14.0) -> Color:
    """Return one of `colors`, a little changed."""
    red, green, blue = colors[int(rng.integers(len(colors)))]
    value, warm = rng.normal(0.0, jitter), rng.normal(0.0, jitter / 3)
    return red + value + warm, green + value, blue + value - warm


def paint_sky(canvas: Canvas, light: Light, rng: Rng) -> None:
    """Fill the image with sky: a gradient to the rim, and clouds that flatten with distance."""
    height, width = canvas.camera.size  # a sky has no edges, so it is painted small
    rows = np.linspace(0.0, 1.0, height)[:, None, None]
    rim = canvas.camera.horizon_px / canvas.camera.size[0]
    share = np.clip(rows / rim, 0.0, 1.0) ** 1.3
    sky = np.array(light.zenith) * (1 - share) + np.array(light.rim) * share
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


def paint_ground(canvas: Canvas, city: City, plan: Plan, light: Light, rng: Rng) -> None:
    """Paint road, markings, curbs and sidewalks to the end of the street."""
    paving, asphalt = choice(rng, city.paving), choice(rng, city.asphalt, 8.0)
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
    _curbs(canvas, plan, shaded(paving, 1.12), shaded(paving, 0.62))
    _markings(canvas, city, plan, rng)
    if light.kind in ("sunny", "low sun"):
        reach = plan.front * rng.uniform(0.15, 1.0)
        side_x = -plan.front if light.left < light.right else plan.front
        edge = side_x - np.sign(side_x) * reach
        shadow = np.array([[side_x, 0, 1.5], [edge, 0, 1.5], [edge, 0, 110], [side_x, 0, 110]])
        canvas.shade(shadow, 0.66)


def _strip(canvas: Canvas, left: float, right: float, color: Color, train_id: int) -> None:
    z = np.geomspace(1.3, FAR_M, 40)
    down = np.stack([np.full_like(z, left), np.zeros_like(z), z], 1)
    back = np.stack([np.full_like(z, right), np.zeros_like(z), z], 1)[::-1]
    pixels = canvas.camera.project(np.concatenate([down, back]))
    canvas.polygon(pixels, color, train_id, FAR_M)


def _curbs(canvas: Canvas, plan: Plan, top: Color, face: Color) -> None:
    z = np.geomspace(1.5, 110.0, 24)
    for side in (-1.0, 1.0):
        x = side * plan.half_road
        for inner, outer, color in ((x, x + side * 0.3, top), (x - side * 0.06, x, face)):
            line = np.stack([np.full_like(z, inner), np.zeros_like(z), z], 1)
            back = line[::-1] + np.array([outer - inner, 0.0, 0.0])
            canvas.face(np.concatenate([line, back]), color, SIDEWALK)


def _markings(canvas: Canvas, city: City, plan: Plan, rng: Rng) -> None:
    lanes = 4 if plan.half_road > 5.6 else 2
    white = shaded(city.marking, float(rng.uniform(0.88, 1.0)))
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


def paint_lots(canvas: Canvas, city: City, plan: Plan, light: Light, rng: Rng) -> None:
    """Paint what lines the street on both sides, far to near."""
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
    plan: Plan,
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
    for z in np.arange(far, near, -rng.uniform(4.0, 7.0)):
        back = x + side * rng.uniform(3.0, 7.0)
        tree(canvas, city, light, rng, (back, float(z)), rng.uniform(4.0, 8.5))
    if kind == 1:
        fence(canvas, city, light, rng, place, plan.front)
    elif kind == 2:
        hedge(canvas, city, light, rng, place, plan.front)
    else:
        green = shaded(choice(rng, city.foliage), 1.05)
        lawn = [[x, 0, near], [x + side * 60, 0, near], [x + side * 60, 0, far], [x, 0, far]]
        canvas.face(np.array(lawn), green, VEGETATION)
        for z in np.linspace(far, near, 3):
            tree(canvas, city, light, rng, (x + side * 2.0, float(z)), rng.uniform(3.5, 7.0))


def _backdrop(canvas: Canvas, city: City, light: Light, rng: Rng) -> None:
    for z in (END_M + 60, END_M + 10):
        x = -150.0
        while x < 150:
            width, height = rng.uniform(8, 22), rng.uniform(5, 16)
            if rng.random() < 0.7:
                wall = shaded(choice(rng, city.walls), light.front * 0.9)
                shape = [[x, 0, z], [x + width, 0, z], [x + width, height, z], [x, height, z]]
                canvas.face(np.array(shape), wall, BUILDING)
            else:
                green = shaded(choice(rng, city.foliage), light.front)
                centers = np.stack([np.linspace(0, width, 4), np.full(4, 2.5)], 1)
                crowns = np.stack([np.full(4, width / 4), rng.uniform(2.5, 5.0, 4)], 1)
                canvas.discs((x, z), centers, crowns, [green] * 4, VEGETATION)
            x += width * 0.95


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
    high, color = rng.uniform(1.5, 2.6), choice(rng, city.fences, 8)
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
    if at[1] > DETAIL_M:
        clumps, sizes = clumps[::3], sizes[::3] * 1.5
    specks = rng.uniform(-1, 1, (26, 2)) * 0.8
    tones = rng.uniform(-1, 1, 26)

    def crown(spots: Points) -> Points:
        x, y = spots.T
        narrow = 1.0 - 0.45 * (y + 1) if conical else np.sqrt(np.maximum(1.0 - 0.6 * y * y, 0.1))
        return np.stack([x * narrow * wide, bole + radius + y * radius * 0.95], 1)

    light_of = light.front * (0.86 + 0.16 * clumps[:, 1] - 0.10 * clumps[:, 0] * toward)
    greens = [shaded(green, float(tone)) for tone in light_of]
    canvas.discs(at, crown(clumps), sizes, greens, VEGETATION)
    # leaves finer than a pixel are left out
    if canvas.camera.focal_px * radius / max(at[1], 1.0) > 0.05 * canvas.camera.size[0]:
        light_of = light.front * (0.95 + 0.2 * specks[:, 1] + 0.25 * city.texture * tones)
        leaves = [shaded(green, float(tone)) for tone in light_of]
        small = np.broadcast_to(np.array([0.16, 0.1]) * radius, (26, 2))
        canvas.discs(at, crown(specks), small, leaves)
