"""Draws defects of no particular kind on flawless images, for a classifier to learn from where none are known.

They only have to differ from the surface, in as many ways as possible: in brightness, in grain, or by being a part of
another place. As in DRAEM (Zavrtanik et al., ICCV 2021) and NSA (Schlüter et al., ECCV 2022).
"""

import math
from typing import Any, Final

import cv2
import numpy as np

from defectgen.imaging.images import DecodedImage
from defectgen.imaging.windows import BoolArray, FloatArray, value_range

SIDE: Final = 1024
"""Side in pixels of the part of a large image that is used."""
_RADII = 2.0, 0.2  # the least, in pixels, and the greatest, as a part of the shorter side
_LEAST = 6  # pixels of a defect


def simulated(photograph: DecodedImage, rng: np.random.Generator) -> tuple[DecodedImage, BoolArray]:
    """A flawless image, or a part of it, with one or two defects, and their mask, [H, W]; alpha is left out."""
    whole = photograph.colors
    top, left = (int(rng.integers(0, max(side - SIDE, 0) + 1)) for side in whole.shape[:2])
    part: Any = whole[top : top + SIDE, left : left + SIDE]
    values: FloatArray = part.astype(np.float32)
    low, high = value_range(photograph)
    deviation = max(float(values.std()), (high - low) / 50)
    mask = np.zeros(values.shape[:2], np.bool_)
    for _ in range(int(rng.integers(1, 3))):
        shape = _shape(values.shape[0], values.shape[1], rng)
        if np.count_nonzero(shape) < _LEAST:
            continue
        soft = cv2.GaussianBlur(shape, (0, 0), float(rng.uniform(0.5, 1.5)))
        other = _other(values, deviation, rng)
        values += (other - values) * soft[..., None]
        mask |= soft > 0.5
    spoiled: Any = np.clip(np.rint(values), 0, np.iinfo(part.dtype).max).astype(part.dtype)
    return DecodedImage(spoiled if spoiled.shape[2] == 3 else spoiled[..., 0], limits=photograph.limits), mask


def _other(values: FloatArray, deviation: float, rng: np.random.Generator) -> FloatArray:
    """What the surface becomes inside a defect: lighter or darker, a part of elsewhere, or of another grain."""
    height, width, channels = values.shape
    kind = rng.integers(3)
    if kind == 0:
        tint = rng.uniform(0.5, 1, channels) if channels > 1 else np.ones(1)
        return np.asarray(values + rng.choice([-1, -1, 1]) * rng.uniform(1, 4) * deviation * tint, np.float32)
    if kind == 1:
        by = int(rng.integers(height)), int(rng.integers(width))
        turned = values[::-1, ::-1] if rng.random() < 0.5 else values[:, ::-1]
        return np.roll(turned, by, (0, 1))
    grain = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), 1.5)[..., None]
    level = rng.uniform(0, 1) * values.mean(axis=(0, 1))
    return np.asarray(level + grain * 3 * deviation * rng.uniform(0.2, 1), np.float32)


def _shape(height: int, width: int, rng: np.random.Generator) -> FloatArray:
    """The shape of a defect, [H, W] of 0 and 1: a pit, a crack, an irregular patch, or a bite out of an edge."""
    shape = np.zeros((height, width), np.float32)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    most = max(_RADII[1] * min(height, width), 2 * _RADII[0])

    def radius() -> float:
        return math.exp(rng.uniform(math.log(_RADII[0]), math.log(most)))

    kind = rng.integers(4)
    if kind == 0:
        axes = int(radius()) + 1, int(radius()) + 1
        cv2.ellipse(shape, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    elif kind == 1:
        steps, step = int(rng.integers(4, 20)), max(most / 3, 5)
        turns = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.5, steps))
        lengths = rng.uniform(0.3, 1, steps) * step
        path = np.array((x, y)) + np.cumsum(
            np.stack([lengths * np.cos(turns), lengths * np.sin(turns)], axis=1), axis=0
        )
        cv2.polylines(shape, [path.astype(np.int32)], False, 1, int(rng.integers(1, 4)))
    elif kind == 2:
        size = max(radius(), 3) / 1.5
        rough = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), size)
        rows, columns = np.arange(height)[:, None] - y, np.arange(width)[None] - x
        near = (rows**2 + columns**2) / (2 * (3 * size) ** 2)
        shape[rough / max(float(rough.std()), 1e-6) - near > 0.5] = 1
    else:
        reach = 1.5 * radius()
        y, x = ((0, x), (height - 1, x), (y, 0), (y, width - 1))[rng.integers(4)]
        turns = np.linspace(0, 2 * math.pi, 12, endpoint=False)
        lengths = reach * rng.uniform(0.5, 1.2, 12)
        outline = np.stack([x + lengths * np.cos(turns), y + lengths * np.sin(turns)], axis=1)
        cv2.fillPoly(shape, [outline.astype(np.int32)], 1)
    return shape
