"""Street furniture of toyland: lamps, traffic lights, signs and bins."""

import numpy as np

from udaseg.data.labels.classes import IGNORE
from udaseg.data.toyland.canvas import Spot
from udaseg.data.toyland.city import POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN
from udaseg.data.toyland.scene import Scene


def lamp_post(scene: Scene, at: Spot) -> None:
    """Paint a street lamp with an arm over the road."""
    board, rng = scene.board(at), scene.rng
    color, high = scene.color(scene.city.poles, 6) * scene.light.front, rng.uniform(5.5, 7.5)
    arm = -np.sign(at[0]) * rng.uniform(1.0, 2.0)
    board.bar((0, 0), (0, high), 0.3, color, POLE)
    board.bar((0, 0), (0, 1.0), 0.4, color * 0.85, POLE)
    board.bar((0, high), (arm, high + 0.25), 0.2, color, POLE)
    head = (255, 226, 150) if scene.light.lamps else (216, 216, 210)
    board.bar((arm * 0.7, high + 0.2), (arm * 1.3, high + 0.24), 0.2, head, POLE)


def traffic_light(scene: Scene, at: Spot) -> None:
    """Paint a traffic light on a pole, sometimes a second one on an arm over the road."""
    board, rng = scene.board(at), scene.rng
    color = scene.color(scene.city.poles, 6) * scene.light.front
    housing, phase = scene.color(scene.city.housing, 5), rng.integers(3)
    arm = -np.sign(at[0]) * rng.uniform(2.0, 3.5) if rng.random() < 0.5 else 0.0
    high = 5.6 if arm else 3.4
    board.bar((0, 0), (0, high), 0.3, color, POLE)
    heads = [(0.0, 2.5)]
    if arm:
        board.bar((0, high), (arm, high), 0.22, color, POLE)
        heads.append((arm, high - 0.9))
    for x, y in heads:
        board.rectangle((x - 0.42, x + 0.42), (y, y + 1.75), housing, TRAFFIC_LIGHT)
        for lamp, bright in enumerate(((50, 240, 110), (255, 196, 40), (255, 50, 40))):
            shown = np.array(bright) * (1.0 if lamp == phase else 0.25)
            board.disc((x, y + 0.35 + 0.53 * lamp), 0.24, shown)


_DARK, _LIGHT = (40, 40, 44), (240, 240, 240)

# corners, rotation, colours of the rim, the middle and the mark
_SIGNS = {
    "ring": (20, 0.0, (206, 26, 34), (240, 238, 232), _DARK),
    "square": (4, np.pi / 4, (236, 238, 240), (34, 88, 186), _LIGHT),
    "diamond": (4, 0.0, (240, 240, 236), (246, 196, 30), _DARK),
    "octagon": (8, np.pi / 8, (240, 236, 232), (200, 24, 30), _LIGHT),
    "triangle": (3, np.pi / 2, (200, 30, 34), (246, 226, 110), _DARK),
    "blue": (20, 0.0, (226, 230, 236), (30, 74, 160), _LIGHT),
}


def traffic_sign(scene: Scene, at: Spot) -> None:
    """Paint a traffic sign on a pole."""
    board, rng, city = scene.board(at), scene.rng, scene.city
    corners, start, *colors = _SIGNS[city.signs[rng.integers(len(city.signs))]]
    rim, middle, mark = np.array(colors) * scene.light.front
    color, y = scene.color(city.poles, 6) * scene.light.front, rng.uniform(2.3, 2.9)
    board.bar((0, 0), (0, y + 0.3), 0.22, color, POLE)
    size = rng.uniform(0.52, 0.70)
    turn = start + np.arange(corners) * 2 * np.pi / corners
    outline, center = np.stack([np.cos(turn), np.sin(turn)], 1) * size, np.array([0.0, y + 0.3])
    board.shape(center + outline, rim, TRAFFIC_SIGN)
    board.shape(center + outline * 0.74, middle)
    board.bar((-size * 0.3, y + 0.25), (size * 0.3, y + 0.25), size * 0.3, mark)


def bin_or_box(scene: Scene, at: Spot) -> None:
    """Paint a litter bin or letter box; it has no class, so its label is `IGNORE`."""
    board, rng = scene.board(at), scene.rng
    color = np.array(((70, 90, 70), (190, 160, 40), (84, 84, 88))[rng.integers(3)])
    high, half = rng.uniform(0.9, 1.3), rng.uniform(0.25, 0.4)
    board.rectangle((-half, half), (0, high), color * scene.light.front, IGNORE)
    board.rectangle((-half, half), (high * 0.85, high), color * (scene.light.front * 0.7))
