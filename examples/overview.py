"""Windows around defects of several folders side by side, without their masks.

    python examples/overview.py rows OUT.jpg TITLE=FOLDER [TITLE=FOLDER ...]
    python examples/overview.py blind OUT REAL SYNTHETIC [--seed 1]

Windows show 72 pixels of the image (--side), and defects that fit into them; where most of a category do not, parts.

A folder is a dataset made by defectgen, or holds a folder of defects for each category, with `masks` beside it. `rows`
writes a row of nine windows for each, the first of each category in turn; nothing is chosen. `blind` writes OUT.png, 40
numbered windows, half of them from SYNTHETIC, in a random order, and OUT.txt, the numbers of those: whoever has seen
neither marks the synthetic ones, and is right with half of them by chance. Samples on normals of their own are taken
first: two defects on the same ground give both away.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectgen.evaluation.data import LabeledImage, load_mask, read_synthetic
from defectgen.imaging.images import read_image

Pixels = NDArray[np.uint8]

TILE = 108  # pixels, its side in the picture of rows
COLUMNS, EACH = 9, 20
WIDE, LARGE = 8, 144  # windows side by side in the blind test, and their side


def defects(folder: Path, count: int, side: int, *, apart: bool = False) -> list[LabeledImage]:
    """The first defects of a folder that fit into a window, of each category in turn; any if most are longer.

    Args:
        apart: first those on normals of their own.
    """
    found: dict[str, list[tuple[LabeledImage, bool]]] = {}
    for image in read_synthetic(folder).images:
        mask = load_mask(image.mask, read_image(image.path).pixels.shape[:2])
        if mask.any() and side <= min(mask.shape):
            fits = max(cv2.boundingRect(mask.astype(np.uint8))[2:]) < side
            found.setdefault(image.category, []).append((image, fits))
    of = {
        category: [image for image, fits in mine if fits or 2 * sum(fits for _, fits in mine) < len(mine)]
        for category, mine in found.items()
    }
    if not of:
        raise SystemExit(f"{folder}: no image is as large as a window of {side} pixels; see --side")
    in_turn = [mine[k] for k in range(max(map(len, of.values()))) for mine in of.values() if k < len(mine)]
    if apart:
        used = Counter[Path]()

        def before(image: LabeledImage) -> int:
            used[image.source or image.path] += 1
            return used[image.source or image.path]

        in_turn.sort(key=before)
    return sorted(in_turn[:count], key=lambda image: image.category)


def window(image: LabeledImage, side: int, tile: int) -> Pixels:
    """`side` pixels around the defect, or around the middle pixel of one that is longer, [tile, tile, 3]."""
    pixels = read_image(image.path).as_rgb()
    mask = load_mask(image.mask, pixels.shape[:2]).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if max(width, height) >= side:
        at = np.argwhere(mask)
        (top, left), width, height = at[np.abs(at - at.mean(axis=0)).sum(axis=1).argmin()], 1, 1
    y = int(np.clip(top + (height - side) // 2, 0, mask.shape[0] - side))
    x = int(np.clip(left + (width - side) // 2, 0, mask.shape[1] - side))
    return np.asarray(cv2.resize(pixels[y : y + side, x : x + side], (tile, tile), interpolation=cv2.INTER_CUBIC))


def rows(out: Path, folders: Sequence[str], side: int) -> None:
    lines = []
    for each in folders:
        title, _, folder = each.partition("=")
        label = np.full((TILE, TILE, 3), 255, np.uint8)
        cv2.putText(label, title, (4, TILE // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        tiles = [window(image, side, TILE) for image in defects(Path(folder), COLUMNS, side)]
        tiles += [np.full_like(label, 255)] * (COLUMNS - len(tiles))
        lines.append(np.hstack([label, *tiles]))
    Image.fromarray(np.vstack(lines)).save(out, quality=88)


def blind(out: Path, real: Path, synthetic: Path, side: int, seed: int) -> None:
    both = [
        (image, folder is synthetic)
        for folder in (real, synthetic)
        for image in defects(folder, EACH, side, apart=True)
    ]
    order = np.random.default_rng(seed).permutation(len(both))
    sheet = np.full((-(-len(both) // WIDE) * (LARGE + 18), WIDE * (LARGE + 6), 3), 255, np.uint8)
    for number, k in enumerate(order):
        y, x = number // WIDE * (LARGE + 18), number % WIDE * (LARGE + 6)
        sheet[y : y + LARGE, x : x + LARGE] = window(both[k][0], side, LARGE)
        at = (x + 3, y + LARGE + 14)
        cv2.putText(sheet, str(number + 1), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    Image.fromarray(sheet).save(out.with_suffix(".png"))
    made = [number + 1 for number, k in enumerate(order) if both[k][1]]
    out.with_suffix(".txt").write_text(" ".join(map(str, made)) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("rows")
    first.add_argument("out", type=Path)
    first.add_argument("folders", nargs="+", metavar="TITLE=FOLDER")
    second = commands.add_parser("blind")
    for name in ("out", "real", "synthetic"):
        second.add_argument(name, type=Path)
    second.add_argument("--seed", type=int, default=1)
    for each in (first, second):
        each.add_argument("--side", type=int, default=72, help="pixels of the image that a window shows")
    options = parser.parse_args()
    if options.command == "rows":
        rows(options.out, options.folders, options.side)
    else:
        blind(options.out, options.real, options.synthetic, options.side, options.seed)


if __name__ == "__main__":
    main()
