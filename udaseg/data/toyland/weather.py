"""Light, weather and sensor, which turn a painted street into a photograph."""

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.labels.classes import IGNORE
from udaseg.data.toyland.canvas import Rng, draw_uniform
from udaseg.data.toyland.city import ROAD, City, Light

Image = NDArray[np.float32]

_CASTS = {
    "overcast": (0.90, 0.92, 0.96),
    "dusk": (0.80, 0.75, 0.86),
    "low sun": (1.02, 0.91, 0.78),
    "haze": (0.97, 0.95, 0.91),
    "rain": (0.83, 0.87, 0.93),
}
"""Gain of red, green and blue in each weather of the target city."""

_SKIES = {
    "overcast": ((172, 186, 204), (214, 220, 226)),
    "dusk": ((104, 122, 178), (226, 180, 156)),
    "low sun": ((140, 170, 208), (246, 216, 170)),
    "haze": ((178, 194, 212), (222, 222, 216)),
    "rain": ((150, 164, 182), (196, 204, 212)),
}
"""Colour of the sky at the zenith and at the horizon in each weather of the target city."""


def draw_light(city: City, rng: Rng) -> Light:
    """Return random light and weather for one image."""
    swap = bool(rng.random() < 0.5)
    level = float(rng.uniform(0.90, 1.08))
    if city.domain == "source":
        return _draw_sunshine(rng, swap, level)
    return _draw_target_weather(rng, swap, level)


def _draw_sunshine(rng: Rng, swap: bool, level: float) -> Light:
    """Return the light of the source city: sun from one side."""
    blue = rng.uniform(-14, 14)
    return Light(
        kind="sunny",
        left=0.78 if swap else 1.06,
        right=1.06 if swap else 0.78,
        front=float(rng.uniform(0.86, 1.0)),
        zenith=(92 + blue, 150 + blue, 226),
        rim=(196 + blue, 218, 240),
        clouds=float(rng.uniform(0.0, 0.95)),
        gain=(level, level, level),
        haze_m=900.0,
    )


def _draw_target_weather(rng: Rng, swap: bool, level: float) -> Light:
    """Return the light of the target city; the order of the draws determines its images."""
    kind = str(
        rng.choice(["overcast", "dusk", "low sun", "haze", "rain"], p=[0.3, 0.15, 0.2, 0.15, 0.2])
    )
    warm = rng.uniform(-0.03, 0.05)
    red, green, blue = _CASTS[kind]
    zenith, rim = _SKIES[kind]
    split = 0.26 if kind == "low sun" else 0.05
    return Light(
        kind=kind,
        left=0.88 - split if swap else 0.88 + split,
        right=0.88 + split if swap else 0.88 - split,
        front=float(rng.uniform(0.78, 0.92)),
        zenith=zenith,
        rim=rim,
        clouds=float(rng.uniform(0.3, 0.9))
        if kind in ("overcast", "rain")
        else rng.uniform(0.1, 0.6),
        gain=(level * (red + warm), level * green, level * (blue - warm)),
        # the haze is drawn in any weather
        haze_m={"haze": rng.uniform(70, 130), "rain": 180.0}.get(kind, 420.0),
        wet=float(rng.uniform(0.3, 0.6)) if kind == "rain" else 0.0,
        streaks=int(rng.integers(40, 140)) if kind == "rain" else 0,
        lamps={"dusk": 0.5, "rain": 0.2}.get(kind, 0.0),
    )


def photograph(
    image: Image,
    label: NDArray[np.uint8],
    depth: NDArray[np.float32],
    city: City,
    light: Light,
    horizon_px: float,
    rng: Rng,
) -> NDArray[np.uint8]:
    """Return the photograph of a painted street by the camera of `city`.

    Args:
        image: (H, W, 3) in [0, 255].
        label: (H, W) train ids, to find the road, which can be wet.
        depth: (H, W) in metres.
        city: City whose camera is used.
        light: Light and weather.
        horizon_px: Row of the horizon.
        rng: Source of the noise.

    Returns:
        (H, W, 3) uint8.
    """
    if light.wet:
        image = _wet_road(image, label, horizon_px, light.wet)
    haze = 1.0 - np.exp(-depth / light.haze_m)
    haze = np.where(depth >= 399.0, 0.0, haze)[..., None].astype(np.float32)
    image = image * (1 - haze) + np.array(light.rim, np.float32) * haze
    image = image * np.array(light.gain, np.float32)
    if light.streaks:
        image = _rain(image, light.streaks, rng)
    scale = image.shape[0] / 128
    blur = draw_uniform(rng, city.lens_blur) * scale
    if blur > 0.15:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.float32)
    if city.vignette:
        image = image * _vignette(image.shape[0], image.shape[1], city.vignette)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * draw_uniform(
        rng, city.sensor_noise
    )
    shot = np.clip(image + noise, 0, 255).astype(np.uint8)
    if city.jpeg_quality is None:
        return shot
    quality = int(rng.integers(*city.jpeg_quality))
    _, coded = cv2.imencode(".jpg", shot[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def _wet_road(image: Image, label: NDArray[np.uint8], horizon_px: float, strength: float) -> Image:
    height, width = image.shape[:2]
    smeared = cv2.GaussianBlur(image, (0, 0), sigmaX=height / 100, sigmaY=height / 18)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    above = np.clip(2 * horizon_px - rows, 0, height - 1).astype(np.float32)
    mirrored = cv2.remap(smeared, columns, above, cv2.INTER_LINEAR)
    weight = np.where(label == ROAD, np.float32(strength), np.float32(0.0))
    weight = np.asarray(cv2.GaussianBlur(weight, (0, 0), height / 160))[..., None]
    return np.asarray(image * (1 - weight) * (1 - 0.12 * weight) + mirrored * weight, np.float32)


def _rain(image: Image, streaks: int, rng: Rng) -> Image:
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


def _vignette(height: int, width: int, strength: float) -> Image:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return np.asarray(1.0 - strength * ((x * x + y * y) / 2) ** 1.5, np.float32)[..., None]


def paint_bonnet(image: Image, label: NDArray[np.uint8], rng: Rng, share: float) -> None:
    """Paint the bonnet of the ego car along the bottom edge, with the label `IGNORE`."""
    height, width = label.shape
    x = np.linspace(0, width, 40)
    arch = 1.0 - 0.75 * ((x / width - 0.5) * 2) ** 2
    top = height - share * height * arch
    outline = np.stack([np.append(x, [width, 0]), np.append(top, [height, height])], 1)
    fixed = np.round(outline * 16).astype(np.int32)
    tone = float(rng.uniform(26, 70))
    cv2.fillPoly(image, [fixed], (tone, tone, tone * 1.1), cv2.LINE_AA, 4)
    cv2.fillPoly(label, [fixed], IGNORE, cv2.LINE_8, 4)
    sheen = np.stack([x, top + 0.018 * height], 1)
    line = [np.round(sheen * 16).astype(np.int32)]
    cv2.polylines(
        image, line, False, (tone * 2, tone * 2, tone * 2.2), max(height // 100, 1), cv2.LINE_AA, 4
    )
