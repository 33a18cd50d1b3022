"""Street furniture of toyland: lamps, traffic lights, signs and bins."""

import numpy as np

from udaseg.data.labels import IGNORE
from udaseg.data.toyland.canvas import Canvas, shaded
from udaseg.data.toyland.city import City, Light
from udaseg.data.toyland.classes import POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN
from udaseg.data.toyland.draws import Rng, choice

At = tuple[float, float]


def lamp_post(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a street lamp with an arm over the road."""
    color, high = shaded(choice(rng, city.poles, 6), light.front), rng.uniform(5.5, 7.5)
    inward = -float(np.sign(at[0])) * rng.uniform(1.0, 2.0)
    canvas.bar(at, (0, 0), (0, high), 0.3, color, POLE)
    canvas.bar(at, (0, 0), (0, 1.0), 0.4, shaded(color, 0.85), POLE)
    canvas.bar(at, (0, high), (inward, high + 0.25), 0.2, color, POLE)
    head = (255, 226, 150) if light.lamps else (216, 216, 210)
    canvas.bar(at, (inward * 0.7, high + 0.2), (inward * 1.3, high + 0.24), 0.2, head, POLE)


def traffic_light(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a traffic light on a pole, sometimes a second one on an arm over the road."""
    color = shaded(choice(rng, city.poles, 6), light.front)
    housing, phase = choice(rng, city.housing, 5), int(rng.integers(3))
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
            shown = bright if lamp == phase else shaded(bright, 0.25)
            canvas.disc(at, (x, y + 0.35 + 0.53 * lamp), 0.24, shown)


def traffic_sign(canvas: Canvas, city: City, light: Light, rng: Rng, at: At) -> None:
    """Paint a traffic sign on a pole."""
    kind = city.signs[int(rng.integers(len(city.signs)))]
    color, y = shaded(choice(rng, city.poles, 6), light.front), rng.uniform(2.3, 2.9)
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
    canvas.board(at, center + unit * size, shaded(outer, tone), TRAFFIC_SIGN)
    canvas.board(at, center + unit * size * 0.74, shaded(inner, tone))
    mark = (40, 40, 44) if kind in ("ring", "diamond", "triangle") else (240, 240, 240)
    canvas.bar(at, (-size * 0.3, y + 0.25), (size * 0.3, y + 0.25), size * 0.3, shaded(mark, tone))


def bin_or_box(canvas: Canvas, light: Light, rng: Rng, at: At) -> None:
    """Paint a litter bin or letter box; it has no class, so its label is `IGNORE`."""
    color = ((70, 90, 70), (190, 160, 40), (84, 84, 88))[int(rng.integers(3))]
    high, half = rng.uniform(0.9, 1.3), rng.uniform(0.25, 0.4)
    shape = [(-half, 0), (half, 0), (half, high), (-half, high)]
    canvas.board(at, shape, shaded(color, light.front), IGNORE)
    lid = [(-half, high * 0.85), (half, high * 0.85), (half, high), (-half, high)]
    canvas.board(at, lid, shaded(color, light.front * 0.7))
