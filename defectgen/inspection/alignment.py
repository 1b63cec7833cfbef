"""Brings a golden image into the place and light of an image of a line: no two photographs are taken alike."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.ssim import STRIP

_CROP = 1024  # pixels
_FARTHEST = 1 / 8  # of the shorter side
_GRID = 32  # blocks along each side
_ROUNDS = 5
_STRIP = 4 * STRIP  # rows


def aligned(photograph: DecodedImage, golden: Pixels) -> Pixels:
    """A golden image shifted by whole pixels and with the light of the image, of the same shape and type.

    The shift is that of phase correlation, if it makes the two more alike. What then has no counterpart is taken from
    the image itself, so that it cannot count as a defect. The light is a factor that changes evenly over the image, and
    an offset, for each channel; a defect, being small, does not affect them. Alpha is unchanged.
    """
    right, down = _shift(photograph, golden)
    result = photograph.pixels.copy()
    height, width = golden.shape[:2]
    (top, bottom), (left, end) = _overlap(down, height), _overlap(right, width)
    result[top:bottom, left:end] = golden[top - down : bottom - down, left - right : end - right]
    _light(photograph, result, (slice(top, bottom), slice(left, end)))
    return result


def _overlap(by: int, size: int) -> tuple[int, int]:
    return max(by, 0), size + min(by, 0)


def _shift(photograph: DecodedImage, golden: Pixels) -> tuple[int, int]:
    """How far to the right and down the golden image must go: of the whole images, then of their middle in detail."""
    step = -(-max(photograph.pixels.shape[:2]) // _CROP)
    x, y = (_gray(each, photograph.channels, step) for each in (photograph.pixels, golden))
    right, down = (step * by for by in _correlated(x, y))
    if step > 1:
        size = photograph.pixels.shape[:2]
        top, left = (max(0, (side - _CROP) // 2) for side in size)
        there = slice(top, top + _CROP), slice(left, left + _CROP)
        x = _gray(photograph.pixels[there], photograph.channels)
        y = _gray(_moved(golden, right, down)[there], photograph.channels)
        more = _correlated(x, y)
        right, down = right + more[0], down + more[1]
    return right, down


def _correlated(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[int, int]:
    """The shift of `y`, to the right and down, by phase correlation; none if it does not make them more alike."""
    if min(x.shape) < 16:
        return 0, 0
    window = cv2.createHanningWindow(x.shape[::-1], cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(y.copy(), x.copy(), window)  # some versions write into their arguments
    if not np.isfinite([right, down]).all():
        return 0, 0
    right, down = round(right), round(down)
    if max(abs(right), abs(down)) > _FARTHEST * min(x.shape):
        return 0, 0
    (top, bottom), (left, end) = _overlap(down, x.shape[0]), _overlap(right, x.shape[1])
    inside = x[top:bottom, left:end]
    before, after = (
        float(np.abs(inside - y[top - dy : bottom - dy, left - dx : end - dx]).mean())
        for dx, dy in ((0, 0), (right, down))
    )
    return (right, down) if after < before else (0, 0)


def _moved(golden: Pixels, right: int, down: int) -> Pixels:
    rows = np.clip(np.arange(golden.shape[0]) - down, 0, golden.shape[0] - 1)
    columns = np.clip(np.arange(golden.shape[1]) - right, 0, golden.shape[1] - 1)
    return golden[rows][:, columns]


def _gray(pixels: Pixels, channels: int, step: int = 1) -> NDArray[np.float32]:
    """The mean of the colors, [H / step, W / step]."""
    if step > 1:
        size = max(1, pixels.shape[1] // step), max(1, pixels.shape[0] // step)
        smaller: Any = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels = smaller
    return np.atleast_3d(pixels)[..., :channels].mean(axis=2, dtype=np.float32)


def _light(photograph: DecodedImage, golden: Pixels, inside: tuple[slice, slice]) -> None:
    """Change a golden image, in place, to the light of the image: a robust least-squares fit to the means of blocks."""
    channels, limit = photograph.channels, np.iinfo(golden.dtype).max
    part, model = photograph.pixels[inside], golden[inside]
    height, width = part.shape[:2]
    grid = min(_GRID, width), min(_GRID, height)
    x, y = (_blocks(each, grid, channels) for each in (part, model))
    v, u = np.meshgrid(np.linspace(-1, 1, grid[1]), np.linspace(-1, 1, grid[0]), indexing="ij")
    down, across = (np.linspace(-1, 1, size, dtype=np.float32) for size in (height, width))
    for channel in range(channels):
        factor, right, lower, offset = _fit(x[..., channel], y[..., channel], u, v)
        values = model if model.ndim == 2 else model[..., channel]
        for top in range(0, height, _STRIP):
            rows = slice(top, top + _STRIP)
            factors = factor + right * across[None] + lower * down[rows, None]
            values[rows] = np.clip(np.rint(values[rows] * factors.astype(np.float32) + np.float32(offset)), 0, limit)


def _blocks(pixels: Pixels, grid: tuple[int, int], channels: int) -> NDArray[np.float64]:
    means = np.asarray(cv2.resize(pixels, grid, interpolation=cv2.INTER_AREA), np.float64)
    return means.reshape(grid[1], grid[0], -1)[..., :channels]


def _fit(
    x: NDArray[np.float64], y: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """a, b, c, d such that (a + b u + c v) y + d is near x, by least squares with less weight for what is far off."""
    terms = np.stack([y, y * u, y * v, np.ones_like(y)], axis=-1).reshape(-1, 4)
    target, weights = x.ravel(), np.ones(x.size)
    found = np.array([1.0, 0, 0, 0])
    for _ in range(_ROUNDS):
        # Drawn toward no change, which is what remains where nothing can be learnt, as from an even image.
        system = terms.T @ (terms * weights[:, None]) + 1e-3 * np.diag([y.var() + 1, y.var() + 1, y.var() + 1, 1])
        found = np.array([1.0, 0, 0, 0]) + np.linalg.solve(system, terms.T @ (weights * (target - y.ravel())))
        off = np.abs(target - terms @ found)
        weights = 1 / np.maximum(off, 1.5 * np.median(off) + 1e-3)
        weights /= weights.mean()
    a, b, c, d = map(float, found)
    return a, b, c, d
