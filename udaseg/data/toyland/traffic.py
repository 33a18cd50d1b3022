"""Vehicles and people of toyland."""

from typing import Literal

import numpy as np

from udaseg.data.toyland.canvas import Canvas, Points, Rng, draw_color, scale_color, sub_quads
from udaseg.data.toyland.city import BICYCLE, BUS, CAR, PERSON, City, Color, Light

At = tuple[float, float]
Heading = Literal["ahead", "toward", "left", "right"]
GLASS = (44, 54, 66)
TIRE = (26, 26, 28)
_TURN = {"ahead": (0.0, 1.0), "toward": (0.0, -1.0), "right": (1.0, 0.0), "left": (-1.0, 0.0)}

# corners of a box as (length, height, width) in {0, 1}; the corners of a side are ordered bottom
# left, bottom right, top right, top left, seen from outside
_SIDES = {
    "front": ((1, 0, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1)),
    "rear": ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    "left": ((1, 0, 0), (0, 0, 0), (0, 1, 0), (1, 1, 0)),
    "right": ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)),
    "top": ((0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 1, 0)),
}
_UNITS = np.array(list(_SIDES.values()), float)


class _Body:
    """The body of a vehicle, which paints the sides that the camera sees."""

    def __init__(self, canvas: Canvas, light: Light, at: At, heading: Heading) -> None:
        self.canvas, self.light, self.at = canvas, light, at
        self.ahead = np.array(_TURN[heading])
        self.across = np.array([self.ahead[1], -self.ahead[0]])

    def place(self, local: Points) -> Points:
        """Return world points of (..., length, height, width) offsets in metres."""
        flat = np.asarray(self.at) + local[..., :1] * self.ahead + local[..., 2:] * self.across
        return np.stack([flat[..., 0], local[..., 1], flat[..., 1]], axis=-1)

    def box(
        self,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        taper: tuple[float, float, float],
        color: Color,
        train_id: int,
    ) -> dict[str, Points]:
        """Paint a box and return its visible sides; `taper` narrows rear, front, width upwards."""
        local = np.array(low) + _UNITS * (np.array(high) - low)
        above = _UNITS[..., 1]
        local[..., 0] += above * np.where(_UNITS[..., 0] > 0, -taper[1], taper[0])
        local[..., 2] += above * np.where(_UNITS[..., 2] > 0, -taper[2], taper[2])
        world = self.place(local)
        x, y = np.moveaxis(self.canvas.camera.project(world), -1, 0)
        following = [1, 2, 3, 0]
        area = (x * y[:, following] - y * x[:, following]).sum(axis=1)
        seen = [
            (float(quad[:, 2].mean()), name, quad)
            for name, quad, turned in zip(_SIDES, world, area, strict=True)
            if turned < 0
        ]
        visible = {}
        for _, name, quad in sorted(seen, key=lambda side: -side[0]):
            self.canvas.face(quad, scale_color(color, self.brightness(name, quad)), train_id)
            visible[name] = quad
        return visible

    def brightness(self, name: str, world: Points) -> float:
        """Return the brightness of a side in the light."""
        if name == "top":
            return 1.08
        if np.ptp(world[[0, 1], 2]) < 0.5:
            return self.light.front
        return self.light.left if world[:, 0].mean() < 0 else self.light.right

    def wheels(self, side: Points, radius: float, shares: tuple[float, ...], train_id: int) -> None:
        """Paint wheels on a visible long side."""
        start, along = side[0], side[1] - side[0]
        turn = np.linspace(0, 2 * np.pi, 14, False)
        unit = along / np.linalg.norm(along)
        for share in shares:
            hub = start + along * share
            for size, color in ((radius, TIRE), (radius * 0.55, (136, 138, 140))):
                rim = hub + np.cos(turn)[:, None] * unit * size
                rim[:, 1] = radius + np.sin(turn) * size
                self.canvas.face(rim, color, train_id)


def _shadow(canvas: Canvas, body: _Body, length: float, width: float) -> None:
    grown = np.array([[-0.3, 0, -0.25], [length, 0, -0.25], [length, 0, width], [-0.3, 0, width]])
    grown[:, 2] -= width / 2 - 0.1
    canvas.darken(body.place(grown), 0.5)


def car(canvas: Canvas, city: City, light: Light, rng: Rng, at: At, heading: Heading) -> None:
    """Paint a car: body, cabin with windows, lamps, plate and wheels."""
    color = draw_color(rng, city.cars, 10)
    tall, roomy = city.car_shape
    length, width = rng.uniform(3.9, 4.8), rng.uniform(1.75, 1.95)
    waist, roof = 0.92 * tall, 1.48 * tall + rng.uniform(-0.06, 0.22)
    van = bool(rng.random() < 0.22)
    body = _Body(canvas, light, at, heading)
    _shadow(canvas, body, length, width)
    half = width / 2
    for step in (0.2, 0.8):
        under = np.array([[0, 0, -half], [0, 0.4, -half], [0, 0.4, half], [0, 0, half]])
        canvas.face(body.place(under + np.array([length * step, 0.0, 0.0])), TIRE, CAR)
    rear_cabin = 0.1 if van else rng.uniform(0.2, 0.8) / roomy
    cabin_end = length * (0.82 if van else 0.72)
    cabin = body.box(
        (rear_cabin, waist - 0.04, -half + 0.06),
        (cabin_end, roof + 0.25 * van, half - 0.06),
        (0.15 if van else 0.5, 0.8, 0.14),
        color,
        CAR,
    )
    for name, quad in cabin.items():
        if name == "top":
            continue
        panes = np.array([[0.06, 0.94]]) if name in ("front", "rear") else _PANES
        canvas.faces(sub_quads(quad, panes, np.array([[0.12, 0.86]])), GLASS)
        sheen = tuple(0.5 * c for c in light.rim)
        canvas.faces(
            sub_quads(quad, panes[:1], np.array([[0.6, 0.82]])), (sheen[0], sheen[1], sheen[2])
        )
    hull = body.box((0, 0.26, -half), (length, waist, half), (0.08, 0.15, 0.05), color, CAR)
    for name, quad in hull.items():
        if name in ("left", "right"):
            canvas.faces(
                sub_quads(quad, np.array([[0.0, 1.0]]), np.array([[0.0, 0.16]])), (40, 40, 42)
            )
            body.wheels(quad, 0.33, (0.18, 0.80), CAR)
        elif name in ("front", "rear"):
            _car_end(canvas, quad, name == "rear", light)


_PANES = np.array([[0.08, 0.46], [0.52, 0.92]])
_LAMPS = np.array([[0.04, 0.22], [0.78, 0.96]])


def _car_end(canvas: Canvas, quad: Points, rear: bool, light: Light) -> None:
    on = light.kind in ("dusk", "rain", "haze")
    lamp = ((255, 60, 40) if on else (190, 26, 24)) if rear else (255, 250, 226)
    canvas.faces(sub_quads(quad, np.array([[0.0, 1.0]]), np.array([[0.0, 0.3]])), (48, 48, 50))
    canvas.faces(sub_quads(quad, _LAMPS, np.array([[0.52, 0.82]])), lamp)
    canvas.faces(
        sub_quads(quad, np.array([[0.36, 0.64]]), np.array([[0.3, 0.48]])), (232, 232, 216)
    )
    if not rear:
        canvas.faces(
            sub_quads(quad, np.array([[0.28, 0.72]]), np.array([[0.54, 0.76]])), (34, 34, 38)
        )


def bus(canvas: Canvas, city: City, light: Light, rng: Rng, at: At, heading: Heading) -> None:
    """Paint a bus: a long box with a band of windows, doors and a line sign."""
    color, trim = draw_color(rng, city.buses, 8), draw_color(rng, city.buses, 8)
    length, high = rng.uniform(9.5, 12.0), rng.uniform(2.9, 3.4)
    body = _Body(canvas, light, at, heading)
    _shadow(canvas, body, length, 2.5)
    sides = body.box((0, 0.35, -1.25), (length, high, 1.25), (0.05, 0.1, 0.05), color, BUS)
    count = int(rng.integers(5, 8))
    for name, quad in sides.items():
        if name in ("left", "right"):
            panes = (np.arange(count)[:, None] + [0.06, 0.94]) / count
            canvas.faces(sub_quads(quad, np.array([[0, 1]]), np.array([[0.3, 0.4]])), trim)
            canvas.faces(sub_quads(quad, panes, np.array([[0.44, 0.84]])), GLASS)
            canvas.faces(sub_quads(quad, panes[::3], np.array([[0.06, 0.84]])), (58, 66, 76))
            body.wheels(quad, 0.48, (0.2, 0.76), BUS)
        elif name in ("front", "rear"):
            glass = np.array([[0.34, 0.8]]) if name == "front" else np.array([[0.5, 0.8]])
            canvas.faces(sub_quads(quad, np.array([[0.06, 0.94]]), glass), GLASS)
            canvas.faces(
                sub_quads(quad, np.array([[0.2, 0.8]]), np.array([[0.85, 0.95]])), (30, 30, 32)
            )
            canvas.faces(
                sub_quads(quad, np.array([[0.3, 0.7]]), np.array([[0.87, 0.93]])), (250, 190, 60)
            )
            _car_end(
                canvas,
                sub_quads(quad, np.array([[0, 1]]), np.array([[0, 0.34]]))[0],
                name == "rear",
                light,
            )


def person(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a walking or standing person."""
    high, facing = rng.uniform(1.6, 1.95), float(rng.choice([-1.0, 1.0]))
    shirt, trousers = draw_color(rng, city.clothes), scale_color(draw_color(rng, city.clothes), 0.7)
    skin = scale_color(
        ((222, 180, 150), (150, 106, 80), (196, 150, 116))[int(rng.integers(3))], light.front
    )
    stride = rng.uniform(0.02, 0.3)
    shirt, trousers = scale_color(shirt, light.front), scale_color(trousers, light.front)
    hip, neck = 0.5 * high, 0.84 * high
    for foot in (-stride, stride):
        canvas.bar(at, (foot * 0.3, hip), (foot, 0.03), 0.19, trousers, PERSON)
        canvas.bar(at, (foot - 0.05, 0.05), (foot + 0.13 * facing, 0.05), 0.1, TIRE, PERSON)
    torso = [(-0.2, hip - 0.06), (0.2, hip - 0.06), (0.26, neck), (-0.26, neck)]
    canvas.board(at, torso, shirt, PERSON)
    for side in (-1.0, 1.0):
        hand = (side * 0.27 + stride * 0.6 * facing, hip - 0.05)
        canvas.bar(at, (side * 0.24, neck - 0.05), hand, 0.13, scale_color(shirt, 0.82), PERSON)
    canvas.disc(at, (0, 0.93 * high), (0.13, 0.16), skin, PERSON)
    hair = [(-0.14, 0.95 * high), (0.14, 0.95 * high), (0.1, 1.02 * high), (-0.1, 1.02 * high)]
    canvas.board(at, hair, (60, 44, 34), PERSON)
    bag = bool(rng.random() < 0.3)
    if bag:
        pack = [(-0.14, hip + 0.1), (0.14, hip + 0.1), (0.14, neck - 0.1), (-0.14, neck - 0.1)]
        canvas.board(at, pack, draw_color(rng, city.clothes), PERSON)


def bicycle(canvas: Canvas, city: City, light: Light, rng: Rng, at: At, has_rider: bool) -> None:
    """Paint a bicycle from the side; the rider, if any, has the class person."""
    paint, facing = draw_color(rng, city.cars), float(rng.choice([-1.0, 1.0]))
    radius, reach = 0.38, 0.58 * facing
    hubs = [(-reach, radius), (reach, radius)]
    seat, bars, pedals = (-reach * 0.45, 0.98), (reach * 0.72, 1.08), (0.0, 0.36)
    for hub in hubs:
        canvas.disc(at, hub, radius, None, BICYCLE)
        canvas.ring(at, hub, radius, 0.09, TIRE)
        canvas.bar(at, (hub[0] - radius, hub[1]), (hub[0] + radius, hub[1]), 0.03, (150, 150, 152))
        canvas.bar(at, (hub[0], hub[1] - radius), (hub[0], hub[1] + radius), 0.03, (150, 150, 152))
    canvas.board(at, [hubs[0], pedals, bars, seat], None, BICYCLE)
    tubes = [(hubs[0], seat), (hubs[0], pedals), (pedals, seat), (seat, (bars[0] * 0.9, 0.92))]
    for start, end in [*tubes, (pedals, (bars[0] * 0.9, 0.85)), (hubs[1], bars)]:
        canvas.bar(at, start, end, 0.07, paint, BICYCLE)
    canvas.bar(at, (seat[0] - 0.14, 1.0), (seat[0] + 0.14, 1.0), 0.08, TIRE, BICYCLE)
    canvas.bar(at, (bars[0] - 0.12, 1.1), (bars[0] + 0.08, 1.1), 0.06, TIRE, BICYCLE)
    if has_rider:
        _rider(canvas, city, light, rng, at, (seat, bars, pedals))


def _rider(
    canvas: Canvas,
    city: City,
    light: Light,
    rng: Rng,
    at: At,
    frame: tuple[At, At, At],
) -> None:
    seat, bars, pedals = frame
    shirt = scale_color(draw_color(rng, city.clothes), light.front)
    trousers = scale_color(draw_color(rng, city.clothes), light.front * 0.7)
    hip, neck = (seat[0], 1.08), (seat[0] + 0.42 * (bars[0] - seat[0]), 1.62)
    knee = (seat[0] + 0.6 * (bars[0] - seat[0]), 0.84)
    canvas.bar(at, hip, knee, 0.2, trousers, PERSON)
    canvas.bar(at, knee, (pedals[0], pedals[1] - 0.1), 0.16, trousers, PERSON)
    canvas.bar(at, hip, neck, 0.36, shirt, PERSON)
    canvas.bar(at, (neck[0], neck[1] - 0.08), bars, 0.13, scale_color(shirt, 0.82), PERSON)
    head = (neck[0] + 0.1 * np.sign(bars[0]), neck[1] + 0.2)
    canvas.disc(at, head, (0.13, 0.16), (206, 160, 130), PERSON)
    canvas.disc(at, (head[0], head[1] + 0.08), (0.16, 0.1), draw_color(rng, city.cars), PERSON)
