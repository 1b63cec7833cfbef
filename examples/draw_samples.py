"""Draws the sample images that ship with defectgen: five products, five categories of defects, and their masks.

    python examples/draw_samples.py [--out examples/samples] [--seed 7] [--each 8] [PRODUCT ...]

Each product is a height map with colours, of which a small renderer makes an image under one lamp. A defect changes the
height, the colour and the gloss, and its mask marks the pixels that look different for that. The same seed draws the
same images.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from drawing import defects, surfaces
from drawing.board import board
from drawing.defects import Defect
from drawing.scene import Array, Pixels, Rng, Scene, develop, deviation, expose, render
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing

MARGIN = 34  # pixels from the border of the image to the middle of a defect
LINES = ("crack", "scratch")  # between which the surface is flawless; the others cover all that they surround
SEEN = 2.8  # times the noise of the camera: changes that are larger belong to the mask


@dataclass(frozen=True)
class Product:
    """How to draw a product, the size and bits of its images, and which categories of defects it has."""

    surface: Callable[[Rng, tuple[int, int]], Scene]
    size: tuple[int, int]  # rows, columns
    defects: tuple[str, ...]
    normals: int = 16
    bits: int = 8
    gamma: float = 2.2
    grain: float = 0.008  # the camera's noise where it is bright
    quality: int = 92  # of JPEG, which holds images of 8 bits


KINDS: dict[str, Defect] = {
    "crack": defects.crack,
    "scratch": defects.scratch,
    "chip": defects.chip,
    "stain": defects.stain,
    "spot": defects.spot,
}
PRODUCTS = {
    "steel": Product(surfaces.steel, (240, 320), ("crack", "scratch", "spot", "stain"), gamma=1),
    "ceramic": Product(surfaces.ceramic, (256, 256), ("crack", "scratch", "spot", "chip")),
    "fabric": Product(surfaces.fabric, (256, 288), ("stain", "spot")),
    "cast": Product(surfaces.cast, (264, 264), ("crack", "chip", "spot"), bits=16, gamma=1, grain=0.004),
    "board": Product(board, (720, 1024), ("scratch", "stain", "chip"), normals=10, grain=0.005, quality=84),
}


def draw(seed: int, name: str, kind: str, index: int) -> tuple[Pixels, NDArray[np.uint8]]:
    """An image, [H, W] or [H, W, 3], and its mask, [H, W] of 0 and 255; `kind` is a category or "normals"."""
    product = PRODUCTS[name]
    rng = np.random.default_rng([seed, list(PRODUCTS).index(name), ["normals", *KINDS].index(kind), index])
    scene = product.surface(rng, product.size)
    mask = np.zeros(product.size, np.uint8)
    if kind in product.defects:
        center = place(rng, scene, kind)
        part, where = scene.around(center, MARGIN + 16)
        flawless = develop(render(part), part.scale, product.gamma)
        corner = np.array([where[0].start, where[1].start]) * part.scale
        KINDS[kind](rng, part, center - corner)
        changed = develop(render(part), part.scale, product.gamma)
        mask[where] = differs(flawless, changed, product.grain, 12 if kind in LINES else 1000)
    return expose(rng, develop(render(scene), scene.scale, product.gamma), product.bits, product.grain), mask


def place(rng: Rng, scene: Scene, kind: str) -> Array:
    """A point y, x in cells for the middle of a defect, away from the borders of the image."""
    low, high = np.full(2, MARGIN * scene.scale), np.array(scene.height.shape) - MARGIN * scene.scale
    points = scene.rims if kind == "chip" and len(scene.rims) and rng.random() < 0.75 else scene.places
    points = points[((points > low) & (points < high)).all(axis=1)]
    return points[rng.integers(len(points))] if len(points) else rng.uniform(low, high)


def differs(flawless: Array, picture: Array, grain: float, gap: int) -> NDArray[np.uint8]:
    """255 where two pictures differ by more than noise and in gaps of up to `gap` pixels, else 0; no lone pixels."""
    change = (np.abs(picture - flawless) / deviation(flawless)).max(axis=2)
    seen = binary_closing(np.pad(change > SEEN * grain, 1), np.ones((3, 3)))[1:-1, 1:-1].astype(np.uint8)
    filled = np.maximum(seen, parts(1 - seen, 0, gap, 4))
    return parts(filled, 6, seen.size, 8) * np.uint8(255)


def parts(mask: NDArray[np.uint8], low: int, high: int, neighbours: int) -> NDArray[np.uint8]:
    """The connected parts of a mask, 0 and 1, that have from `low` to `high` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=neighbours)
    kept = [k for k in range(1, count) if low <= stats[k, cv2.CC_STAT_AREA] <= high]
    return np.isin(labels, kept).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", nargs="*", metavar="PRODUCT", help=f"{', '.join(PRODUCTS)}  [default: all]")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "samples")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--each", type=int, default=8, help="images of a category")
    arguments = parser.parse_args()
    for name in arguments.products or PRODUCTS:
        product = PRODUCTS[name]
        for kind, count in {"normals": product.normals, **dict.fromkeys(product.defects, arguments.each)}.items():
            for index in range(count):
                save(arguments.out, arguments.seed, name, kind, index)


def save(out: Path, seed: int, name: str, kind: str, index: int) -> None:
    """Draw an image to `out`/NAME/normals, or to `out`/NAME/defects/KIND with its mask in `out`/NAME/masks/KIND."""
    image, mask = draw(seed, name, kind, index)
    folder = out / name / (kind if kind == "normals" else f"defects/{kind}")
    folder.mkdir(parents=True, exist_ok=True)
    if PRODUCTS[name].bits == 8:
        Image.fromarray(image).save(folder / f"{index:03}.jpg", quality=PRODUCTS[name].quality)
    else:
        Image.fromarray(image).save(folder / f"{index:03}.png", optimize=True)
    if kind != "normals":
        masks = out / name / "masks" / kind
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(masks / f"{index:03}.png", optimize=True)


if __name__ == "__main__":
    main()
