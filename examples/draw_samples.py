"""Draws the sample images that ship with defectgen: two products, three categories of defects, and their masks.

    python examples/draw_samples.py [--out examples/samples] [--seed 7]

Surfaces are filtered noise under soft light. Defects are soft shapes that darken or brighten the surface and keep its
grain. The same seed draws the same images.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
Rng = np.random.Generator

NORMALS, DEFECTS = 14, 8
SIZES = [(240, 320), (256, 256), (300, 400), (200, 360)]
LONGEST = 50  # pixels, the length of a defect, which fits into a window of 64


def noise(rng: Rng, shape: tuple[int, int], sigma: float | tuple[float, float]) -> Array:
    """Smooth noise with mean 0 and standard deviation 1."""
    field = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return np.asarray((field - field.mean()) / field.std())


def light(rng: Rng, shape: tuple[int, int]) -> Array:
    """A brightness factor around 1: a gradual slope and a darker rim."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * x + np.sin(angle) * y
    return np.asarray(1 + 0.10 * slope - 0.06 * (x**2 + y**2) + 0.03 * noise(rng, shape, 40))


def steel(rng: Rng, shape: tuple[int, int]) -> Array:
    """Cold-rolled sheet, [H, W, 1]: fine lines along the rolling direction, faint bands, grain."""
    lines = noise(rng, shape, (60, 0.6)) * 0.030 + noise(rng, shape, (18, 0.8)) * 0.025
    bands = noise(rng, shape, (200, 14)) * 0.03
    grain = noise(rng, shape, 0.5) * 0.02
    return np.asarray((rng.uniform(0.48, 0.62) * light(rng, shape) * (1 + lines + bands + grain))[..., None])


def ceramic(rng: Rng, shape: tuple[int, int]) -> Array:
    """Unglazed tile, [H, W, 3]: a warm base color, clouds, and speckles of two sizes."""
    fine = np.clip(noise(rng, shape, 0.8) - 1.7, 0, None)
    coarse = np.clip(noise(rng, shape, 1.3) - 2.4, 0, None)
    value = 1 + 0.035 * noise(rng, shape, 12) + 0.02 * noise(rng, shape, 0.7) - 0.14 * fine - 0.2 * coarse
    base = np.array([0.70, 0.62, 0.52]) * rng.uniform(0.92, 1.08)
    tint = 1 + 0.012 * noise(rng, shape, 25)[..., None] * np.array([1.0, 0.2, -1.0])
    return np.asarray((light(rng, shape) * value)[..., None] * base * tint)


def path(rng: Rng, length: float, wander: float) -> Array:
    """Points one pixel apart on a wandering line, [N, 2] as x, y, centered at the origin."""
    steps = max(int(length), 4)
    turns = gaussian_filter(rng.normal(size=steps), 1.5, mode="wrap")
    angle = rng.uniform(0, np.pi) + wander * turns / turns.std() + rng.normal(0, wander / 4) * np.linspace(-1, 1, steps)
    points = np.cumsum(np.stack([np.cos(angle), np.sin(angle)], axis=1), axis=0)
    return np.asarray(points - points.mean(axis=0))


def stroke(canvas: Array, points: Array, widths: Array, strength: Array) -> None:
    """Paint a soft line into `canvas`; each pixel keeps the stronger value."""
    y, x = np.mgrid[: canvas.shape[0], : canvas.shape[1]]
    for (px, py), width, value in zip(points, widths, strength, strict=True):
        reach = int(np.ceil(width)) + 2
        rows = slice(max(int(py) - reach, 0), max(int(py) + reach + 1, 0))
        columns = slice(max(int(px) - reach, 0), max(int(px) + reach + 1, 0))
        distance = np.hypot(x[rows, columns] - px, y[rows, columns] - py)
        soft = np.clip(width + 0.5 - distance, 0, 1) * value
        canvas[rows, columns] = np.maximum(canvas[rows, columns], soft)


def crack(rng: Rng, shape: tuple[int, int], center: Array) -> Array:
    """A dark, wandering, branching line."""
    alpha = np.zeros(shape)
    points = path(rng, rng.uniform(34, LONGEST), 0.45)
    fade = np.sin(np.linspace(0.12, 0.97, len(points)) * np.pi)
    widths = (0.5 + rng.uniform(0.4, 1.0) * fade) * (1 + 0.3 * rng.normal(size=len(points)))
    stroke(alpha, points + center, np.clip(widths, 0.4, 1.8), 0.55 + 0.45 * fade)
    for _ in range(rng.integers(0, 3)):
        start = points[rng.integers(len(points) // 4, 3 * len(points) // 4)]
        branch = path(rng, rng.uniform(6, 16), 0.5)
        branch += start - branch[0]
        stroke(alpha, branch + center, np.linspace(0.8, 0.3, len(branch)), np.linspace(0.9, 0.4, len(branch)))
    return -0.55 * alpha


def scratch(rng: Rng, shape: tuple[int, int], center: Array) -> Array:
    """One to three nearly parallel bright lines with a dark side."""
    change = np.zeros(shape)
    points = path(rng, rng.uniform(24, LONGEST - 6), 0.03)
    along = points[-1] - points[0]
    across = np.array([-along[1], along[0]]) / np.hypot(*along)
    for i in range(rng.integers(1, 4)):
        cut = points[rng.integers(0, 5) : len(points) - rng.integers(0, 5)] + across * i * rng.uniform(2.5, 4)
        fade = np.clip(np.sin(np.linspace(0.05, 0.95, len(cut)) * np.pi) * 1.5, 0, 1)
        bright, dark = np.zeros(shape), np.zeros(shape)
        stroke(bright, cut + center, np.full(len(cut), rng.uniform(0.5, 1.0)), fade)
        stroke(dark, cut + center + across * 1.5, np.full(len(cut), 0.6), fade)
        change += rng.uniform(0.30, 0.50) * bright - 0.18 * dark
    return change


def spot(rng: Rng, shape: tuple[int, int], center: Array) -> Array:
    """A dark pit or stain with an uneven outline and, sometimes, a bright edge on the lit side."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    dx, dy = x - center[0], y - center[1]
    radius = rng.uniform(3.5, 10)
    stretch, turn = rng.uniform(0.7, 1.4), rng.uniform(0, np.pi)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) * stretch
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) / stretch
    angle = np.arctan2(v, u)
    outline = 1 + sum(rng.normal(0, 0.10 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4, 5))
    inside = 1 / (1 + np.exp((np.hypot(u, v) - radius * outline) / 0.7))
    change = -rng.uniform(0.30, 0.55) * inside * (1 + 0.25 * noise(rng, shape, 1.5) * inside)
    if rng.random() < 0.5:
        rim = np.exp(-(((np.hypot(u, v) - radius * outline - 1.2) / 1.0) ** 2)) * (dx + dy > 0)
        change = change + 0.18 * rim
    return np.asarray(np.where(np.abs(change) < 0.02, 0, change))


def draw(
    rng: Rng, surface: Callable[..., Array], defect: Callable[..., Array] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image, [H, W] or [H, W, 3], and its mask, [H, W] of 0 and 255."""
    shape = SIZES[rng.integers(len(SIZES))]
    pixels = surface(rng, shape)
    change = np.zeros(shape)
    if defect is not None:
        center = np.array([rng.uniform(LONGEST, shape[1] - LONGEST), rng.uniform(LONGEST, shape[0] - LONGEST)])
        change = defect(rng, shape, center)
    pixels = pixels * (1 + change[..., None]) + rng.normal(0, 0.006, pixels.shape)
    image = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return image[..., 0] if image.shape[2] == 1 else image, np.where(np.abs(change) > 0.08, 255, 0).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "samples")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    for p, surface in enumerate((steel, ceramic)):
        for k, defect in enumerate((None, crack, scratch, spot)):
            for i in range(DEFECTS if defect else NORMALS):
                image, mask = draw(np.random.default_rng([arguments.seed, p, k, i]), surface, defect)
                product = arguments.out / surface.__name__
                folder = product / "defects" / defect.__name__ if defect else product / "normals"
                save(folder / f"{i:03}.jpg", image)
                if defect:
                    save(product / "masks" / defect.__name__ / f"{i:03}.png", mask)


def save(file: Path, pixels: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 92} if file.suffix == ".jpg" else {"optimize": True}
    Image.fromarray(pixels).save(file, **options)


if __name__ == "__main__":
    main()
