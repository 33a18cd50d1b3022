"""Weather, lens and sensor, which turn a painted street into a photograph."""

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.labels.classes import IGNORE
from udaseg.data.toyland.canvas import Floats
from udaseg.data.toyland.city import ROAD
from udaseg.data.toyland.scene import Rng, Scene


def photograph(scene: Scene, image: Floats, rng: Rng) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB: `image` (H, W, 3), 0 to 255, through the air, lens and sensor."""
    city, light, depth = scene.city, scene.light, scene.canvas.depth
    if light.wet:
        image = _wet_road(scene, image)
    haze = 1.0 - np.exp(-depth / light.haze_m)
    haze = np.where(depth >= 399.0, 0.0, haze)[..., None].astype(np.float32)
    image = image * (1 - haze) + light.rim.astype(np.float32) * haze
    image = image * light.gain.astype(np.float32)
    if light.streaks:
        image = _rain(image, light.streaks, rng)
    blur = rng.uniform(*city.lens_blur) * (image.shape[0] / 128)
    if blur > 0.15:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.float32)
    if city.vignette:
        image = image * _vignette(image.shape[0], image.shape[1], city.vignette)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(*city.sensor_noise)
    shot = np.clip(image + noise, 0, 255).astype(np.uint8)
    if city.jpeg_quality is None:
        return shot
    quality = int(rng.integers(*city.jpeg_quality))
    _, coded = cv2.imencode(".jpg", shot[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def _wet_road(scene: Scene, image: Floats) -> Floats:
    height, width = image.shape[:2]
    smeared = cv2.GaussianBlur(image, (0, 0), sigmaX=height / 100, sigmaY=height / 18)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    above = np.clip(2 * scene.canvas.camera.horizon_px - rows, 0, height - 1).astype(np.float32)
    mirrored = cv2.remap(smeared, columns, above, cv2.INTER_LINEAR)
    weight = np.where(scene.canvas.label == ROAD, np.float32(scene.light.wet), np.float32(0.0))
    weight = np.asarray(cv2.GaussianBlur(weight, (0, 0), height / 160))[..., None]
    return np.asarray(image * (1 - weight) * (1 - 0.12 * weight) + mirrored * weight, np.float32)


def _rain(image: Floats, streaks: int, rng: Rng) -> Floats:
    height, width = image.shape[:2]
    veil = np.zeros((height, width), np.uint8)
    slant = rng.uniform(-0.25, 0.25)
    for x, y, long in rng.random((streaks, 3)):
        down = (0.03 + 0.07 * long) * height
        start = (int(x * width), int(y * height))
        end = (int(x * width + slant * down), int(y * height + down))
        cv2.line(veil, start, end, int(120 + 100 * long), max(height // 160, 1), cv2.LINE_AA)
    alpha = veil[..., None].astype(np.float32) / 255 * 0.28
    return np.asarray(image * (1 - alpha) + 210 * alpha, np.float32)


def _vignette(height: int, width: int, strength: float) -> Floats:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return np.asarray(1.0 - strength * ((x * x + y * y) / 2) ** 1.5, np.float32)[..., None]


def paint_bonnet(scene: Scene, image: Floats) -> None:
    """Paint the bonnet of the ego car along the bottom edge, with the label `IGNORE`."""
    label, rng = scene.canvas.label, scene.rng
    height, width = label.shape
    share = rng.uniform(0.05, 0.11)
    x = np.linspace(0, width, 40)
    top = height - share * height * (1.0 - 0.75 * ((x / width - 0.5) * 2) ** 2)
    outline = np.stack([np.append(x, [width, 0]), np.append(top, [height, height])], 1)
    edge = np.stack([x, top + 0.018 * height], 1)
    bonnet, sheen = (np.round(points * 16).astype(np.int32) for points in (outline, edge))
    tone = rng.uniform(26, 70)
    color = (tone, tone, tone * 1.1)
    cv2.fillPoly(image, [bonnet], color, cv2.LINE_AA, 4)
    cv2.fillPoly(label, [bonnet], IGNORE, cv2.LINE_8, 4)
    bright = (tone * 2, tone * 2, tone * 2.2)
    cv2.polylines(image, [sheen], False, bright, max(height // 100, 1), cv2.LINE_AA, 4)
