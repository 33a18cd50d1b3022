"""Vehicles and people of toyland."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from udaseg.data.toyland.canvas import Board, Points, Spot, sub_quads
from udaseg.data.toyland.city import BICYCLE, BUS, CAR, PERSON, Color
from udaseg.data.toyland.scene import Scene

Heading = Literal["ahead", "toward", "left", "right"]
Size = tuple[float, float, float]
"""Length, height and width, in metres."""

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
_ENDS = ("front", "rear")
_LONG_SIDES = ("left", "right")


@dataclass(frozen=True)
class _Body:
    """The body of a vehicle, which paints the sides that the camera sees."""

    scene: Scene
    at: Spot
    heading: Heading
    color: Color
    train_id: int

    def place(self, local: Points) -> Points:
        """Return world points of (..., length, height, width) offsets in metres."""
        ahead = np.array(_TURN[self.heading])
        across = np.array([ahead[1], -ahead[0]])
        flat = self.at + local[..., :1] * ahead + local[..., 2:] * across
        return np.stack([flat[..., 0], local[..., 1], flat[..., 1]], axis=-1)

    def box(self, low: Size, high: Size, taper: Size) -> dict[str, Points]:
        """Paint a box and return its visible sides; `taper` narrows rear, front, width upwards."""
        rear, front, width = taper
        local = np.array(low) + _UNITS * np.subtract(high, low)
        above = _UNITS[..., 1]
        local[..., 0] += above * np.where(_UNITS[..., 0] > 0, -front, rear)
        local[..., 2] += above * np.where(_UNITS[..., 2] > 0, -width, width)
        world = self.place(local)
        x, y = np.moveaxis(self.scene.canvas.camera.project(world), -1, 0)
        following = [1, 2, 3, 0]
        area = (x * y[:, following] - y * x[:, following]).sum(axis=1)
        seen = {name: world[i] for i, name in enumerate(_SIDES) if area[i] < 0}
        # from far to near
        visible = dict(sorted(seen.items(), key=lambda side: side[1][:, 2].mean(), reverse=True))
        for name, quad in visible.items():
            color = self.color * self._brightness(name, quad)
            self.scene.canvas.face(quad, color, self.train_id)
        return visible

    def _brightness(self, name: str, quad: Points) -> float:
        if name == "top":
            return 1.08
        if np.ptp(quad[[0, 1], 2]) < 0.5:
            return self.scene.light.front
        return self.scene.light.on_side(quad[:, 0].mean())

    def wheels(self, side: Points, radius: float, shares: tuple[float, float]) -> None:
        """Paint wheels on a visible long side."""
        start, along = side[0], side[1] - side[0]
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        unit = along / np.linalg.norm(along)
        for share in shares:
            hub = start + along * share
            for size, color in ((radius, TIRE), (radius * 0.55, (136, 138, 140))):
                rim = hub + np.cos(turn)[:, None] * unit * size
                rim[:, 1] = radius + np.sin(turn) * size
                self.scene.canvas.face(rim, color, self.train_id)

    def shadow(self, length: float, width: float) -> None:
        """Darken the road under the vehicle."""
        left, right = -0.25 - (width / 2 - 0.1), width - (width / 2 - 0.1)
        corners = [[-0.3, 0, left], [length, 0, left], [length, 0, right], [-0.3, 0, right]]
        self.scene.canvas.darken(self.place(np.array(corners)), 0.5)

    def end(self, name: str, quad: Points) -> None:
        """Paint bumper, lamps, plate and grille on the front or rear."""
        lamp = (255, 250, 226)
        if name == "rear":
            on = self.scene.light.kind in ("dusk", "rain", "haze")
            lamp = (255, 60, 40) if on else (190, 26, 24)
        panels = self.scene.canvas.panels
        panels(quad, (0.0, 1.0), (0.0, 0.3), (48, 48, 50))
        panels(quad, [(0.04, 0.22), (0.78, 0.96)], (0.52, 0.82), lamp)
        panels(quad, (0.36, 0.64), (0.3, 0.48), (232, 232, 216))
        if name == "front":
            panels(quad, (0.28, 0.72), (0.54, 0.76), (34, 34, 38))


def car(scene: Scene, at: Spot, heading: Heading) -> None:
    """Paint a car: body, cabin with windows, lamps, plate and wheels."""
    rng, panels = scene.rng, scene.canvas.panels
    body = _Body(scene, at, heading, scene.color(scene.city.cars, 10), CAR)
    tall, roomy = scene.city.car_shape
    length, width = rng.uniform(3.9, 4.8), rng.uniform(1.75, 1.95)
    waist, roof = 0.92 * tall, 1.48 * tall + rng.uniform(-0.06, 0.22)
    is_van = rng.random() < 0.22
    body.shadow(length, width)
    half = width / 2
    for x in (length * 0.2, length * 0.8):
        under = np.array([[x, 0, -half], [x, 0.4, -half], [x, 0.4, half], [x, 0, half]])
        scene.canvas.face(body.place(under), TIRE, CAR)
    rear_cabin = 0.1 if is_van else rng.uniform(0.2, 0.8) / roomy
    low = (rear_cabin, waist - 0.04, -half + 0.06)
    high = (length * (0.82 if is_van else 0.72), roof + 0.25 * is_van, half - 0.06)
    cabin = body.box(low, high, (0.15 if is_van else 0.5, 0.8, 0.14))
    cabin.pop("top", None)
    for name, quad in cabin.items():
        panes = [(0.06, 0.94)] if name in _ENDS else [(0.08, 0.46), (0.52, 0.92)]
        panels(quad, panes, (0.12, 0.86), GLASS)
        panels(quad, panes[0], (0.6, 0.82), 0.5 * scene.light.rim)
    hull = body.box((0, 0.26, -half), (length, waist, half), (0.08, 0.15, 0.05))
    for name, quad in hull.items():
        if name in _LONG_SIDES:
            panels(quad, (0.0, 1.0), (0.0, 0.16), (40, 40, 42))
            body.wheels(quad, 0.33, (0.18, 0.80))
        elif name in _ENDS:
            body.end(name, quad)


def bus(scene: Scene, at: Spot, heading: Heading) -> None:
    """Paint a bus: a long box with a band of windows, doors and a line sign."""
    rng, panels = scene.rng, scene.canvas.panels
    color, trim = scene.color(scene.city.buses, 8), scene.color(scene.city.buses, 8)
    length, high = rng.uniform(9.5, 12.0), rng.uniform(2.9, 3.4)
    body = _Body(scene, at, heading, color, BUS)
    body.shadow(length, 2.5)
    count = rng.integers(5, 8)
    panes = (np.arange(count)[:, None] + [0.06, 0.94]) / count
    sides = body.box((0, 0.35, -1.25), (length, high, 1.25), (0.05, 0.1, 0.05))
    for name, quad in sides.items():
        if name in _LONG_SIDES:
            panels(quad, (0, 1), (0.3, 0.4), trim)
            panels(quad, panes, (0.44, 0.84), GLASS)
            panels(quad, panes[::3], (0.06, 0.84), (58, 66, 76))
            body.wheels(quad, 0.48, (0.2, 0.76))
        elif name in _ENDS:
            panels(quad, (0.06, 0.94), (0.34 if name == "front" else 0.5, 0.8), GLASS)
            panels(quad, (0.2, 0.8), (0.85, 0.95), (30, 30, 32))
            panels(quad, (0.3, 0.7), (0.87, 0.93), (250, 190, 60))
            body.end(name, sub_quads(quad, (0, 1), (0, 0.34))[0])


def person(scene: Scene, at: Spot) -> None:
    """Paint a walking or standing person."""
    rng, front, board = scene.rng, scene.light.front, scene.board(at)
    high, facing = rng.uniform(1.6, 1.95), rng.choice([-1.0, 1.0])
    shirt = scene.color(scene.city.clothes) * front
    trousers = scene.color(scene.city.clothes) * 0.7 * front
    skin = np.array(((222, 180, 150), (150, 106, 80), (196, 150, 116))[rng.integers(3)]) * front
    stride = rng.uniform(0.02, 0.3)
    hip, neck = 0.5 * high, 0.84 * high
    for foot in (-stride, stride):
        board.bar((foot * 0.3, hip), (foot, 0.03), 0.19, trousers, PERSON)
        board.bar((foot - 0.05, 0.05), (foot + 0.13 * facing, 0.05), 0.1, TIRE, PERSON)
    torso = [(-0.2, hip - 0.06), (0.2, hip - 0.06), (0.26, neck), (-0.26, neck)]
    board.shape(torso, shirt, PERSON)
    for side in (-1.0, 1.0):
        hand = (side * 0.27 + stride * 0.6 * facing, hip - 0.05)
        board.bar((side * 0.24, neck - 0.05), hand, 0.13, shirt * 0.82, PERSON)
    board.disc((0, 0.93 * high), (0.13, 0.16), skin, PERSON)
    hair = [(-0.14, 0.95 * high), (0.14, 0.95 * high), (0.1, 1.02 * high), (-0.1, 1.02 * high)]
    board.shape(hair, (60, 44, 34), PERSON)
    if rng.random() < 0.3:
        bag = scene.color(scene.city.clothes)
        board.rectangle((-0.14, 0.14), (hip + 0.1, neck - 0.1), bag, PERSON)


def bicycle(scene: Scene, at: Spot, has_rider: bool) -> None:
    """Paint a bicycle from the side; the rider, if any, has the class person."""
    board = scene.board(at)
    paint, facing = scene.color(scene.city.cars), scene.rng.choice([-1.0, 1.0])
    radius, reach = 0.38, 0.58 * facing
    rear, front = (-reach, radius), (reach, radius)
    seat, bars, pedals = (-reach * 0.45, 0.98), (reach * 0.72, 1.08), (0.0, 0.36)
    for x, y in (rear, front):
        board.disc((x, y), radius, None, BICYCLE)
        board.ring((x, y), radius, 0.09, TIRE)
        board.bar((x - radius, y), (x + radius, y), 0.03, (150, 150, 152))
        board.bar((x, y - radius), (x, y + radius), 0.03, (150, 150, 152))
    board.shape([rear, pedals, bars, seat], None, BICYCLE)
    upper, lower = (bars[0] * 0.9, 0.92), (bars[0] * 0.9, 0.85)
    tubes = [(rear, seat), (rear, pedals), (pedals, seat), (seat, upper), (pedals, lower)]
    for start, end in [*tubes, (front, bars)]:
        board.bar(start, end, 0.07, paint, BICYCLE)
    board.bar((seat[0] - 0.14, 1.0), (seat[0] + 0.14, 1.0), 0.08, TIRE, BICYCLE)
    board.bar((bars[0] - 0.12, 1.1), (bars[0] + 0.08, 1.1), 0.06, TIRE, BICYCLE)
    if has_rider:
        _rider(scene, board, seat[0], bars)


def _rider(scene: Scene, board: Board, seat_x: float, bars: Spot) -> None:
    city, front = scene.city, scene.light.front
    shirt, trousers = scene.color(city.clothes) * front, scene.color(city.clothes) * (front * 0.7)
    hip, neck = (seat_x, 1.08), (seat_x + 0.42 * (bars[0] - seat_x), 1.62)
    knee = (seat_x + 0.6 * (bars[0] - seat_x), 0.84)
    board.bar(hip, knee, 0.2, trousers, PERSON)
    board.bar(knee, (0.0, 0.26), 0.16, trousers, PERSON)
    board.bar(hip, neck, 0.36, shirt, PERSON)
    board.bar((neck[0], neck[1] - 0.08), bars, 0.13, shirt * 0.82, PERSON)
    x, y = neck[0] + 0.1 * np.sign(bars[0]), neck[1] + 0.2
    board.disc((x, y), (0.13, 0.16), (206, 160, 130), PERSON)
    board.disc((x, y + 0.08), (0.16, 0.1), scene.color(city.cars), PERSON)
