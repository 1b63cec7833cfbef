"""Compares improved Poisson blending, and composing a whole image, with cv2.seamlessClone.

    python examples/benchmarks/blending.py [DEFECTS NORMALS]

The folders default to the sample images. Prints medians of alternating calls and their ratios to seamlessClone; below 1
is faster. A direct factorization of the same system gives the exact solution, and so the errors of both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from timing import medians

from defectgen.folders import read_defects, read_normals
from defectgen.imaging.images import read_image
from defectgen.imaging.poisson import Blender, blend
from defectgen.synthesis.pasted import ComposeRequest, compose
from defectgen.synthesis.stream import SampleSpec

SAMPLES = Path(__file__).parents[1] / "samples/steel"


def blob(size: int, part: float) -> NDArray[np.bool_]:
    """A lobed disc in the center that covers about the fraction `part` of the area, [size, size]."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    angle = np.arctan2(rows, columns)
    radius = np.sqrt(part / np.pi) * size * (1 + 0.15 * np.cos(3 * angle) + 0.1 * np.sin(5 * angle))
    return np.asarray(np.hypot(rows, columns) < radius)


def surface(rng: np.random.Generator, size: int, mean: float) -> NDArray[np.uint8]:
    """A smooth surface with noise, [size, size, 3]."""
    coarse = cv2.resize(rng.normal(0, 20, (6, 6, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(mean + coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)


def direct(patch: NDArray[np.uint8], mask: NDArray[np.bool_], background: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Plain Poisson blending by sparse factorization. The mask must not touch the border."""
    rows, columns = np.nonzero(mask)
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(len(rows))
    known = background.astype(float) - patch
    right = np.zeros((len(rows), 3))
    entries = [(np.full(len(rows), 4.0), np.arange(len(rows)), np.arange(len(rows)))]
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        neighbor = number[rows + dy, columns + dx]
        inside = neighbor >= 0
        entries.append((np.full(inside.sum(), -1.0), np.flatnonzero(inside), neighbor[inside]))
        right[~inside] += known[rows[~inside] + dy, columns[~inside] + dx]
    values, i, j = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    solution = splu(coo_matrix((values, (i, j))).tocsc()).solve(right)
    return np.clip(patch[mask] + solution, 0, 255)


def clone(patch: NDArray[np.uint8], mask: NDArray[np.bool_], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # A copy of the mask for each call, because seamlessClone overwrites it.
    middle = (background.shape[1] // 2, background.shape[0] // 2)
    pasted = cv2.seamlessClone(patch, background, mask.astype(np.uint8) * 255, middle, cv2.NORMAL_CLONE)
    return np.asarray(pasted, np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("defects", nargs="?", type=Path, default=SAMPLES / "defects")
    parser.add_argument("normals", nargs="?", type=Path, default=SAMPLES / "normals")
    parser.add_argument("--repeat", type=int, default=41)
    parser.add_argument("--num", type=int, default=100)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)

    for size in (256, 1024):
        mask = blob(size, 0.05)
        patch, background = surface(rng, size, 90), surface(rng, size, 150)
        blender = Blender(mask)

        calls: dict[str, Callable[[], object]] = {
            "seamlessClone": partial(clone, patch, mask, background),
            "improved": partial(blend, patch, mask, background),
            "improved, mask shared": partial(blender.blend, patch, background),
            "poisson": partial(blend, patch, mask, background, mode="poisson"),
            "factorization": partial(direct, patch, mask, background),
        }
        found = medians(calls, arguments.repeat)
        print(f"{size} x {size}, {mask.mean():.1%} of it, three channels")
        for name, value in found.items():
            print(f"  {name:24} {value:8.2f} ms   {value / found['seamlessClone']:6.2f} of seamlessClone")
        exact = direct(patch, mask, background)
        for name, image in (
            ("poisson", blend(patch, mask, background, mode="poisson")),
            ("seamlessClone", clone(patch, mask, background)),
        ):
            off = np.abs(image[mask] - exact)
            print(f"  {name:24} is off by {off.mean():.2f} gray levels on average, {off.max():.1f} at most")

    normals, defects = read_normals(arguments.normals), read_defects(arguments.defects)
    composition = compose(
        ComposeRequest(
            SampleSpec(defects.categories, arguments.num, normals, workers=1), defects, str(arguments.defects)
        )
    )
    samples = list(composition)  # decodes the images
    began = time.perf_counter()
    samples = list(composition)
    whole = 1000 * (time.perf_counter() - began) / len(samples)
    cloned: list[float] = []
    for sample in samples:
        source = read_image(Path(str(sample.provenance.source))).pixels
        defective, normal = (
            np.asarray(cv2.merge([each] * 3) if each.ndim == 2 else each, np.uint8) for each in (sample.image, source)
        )
        own = sample.mask.astype(np.uint8) * 255
        x, y, width, height = cv2.boundingRect(own)
        began = time.perf_counter()
        cv2.seamlessClone(defective, normal, own, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE)
        cloned.append(1000 * (time.perf_counter() - began))
    call = statistics.mean(cloned)
    print(f"{len(samples)} images composed of {arguments.defects}, one thread, without reading or writing files")
    print(f"  cut out, rotated, blended and masked {whole:8.2f} ms   {whole / call:6.2f} of seamlessClone")
    print(f"  seamlessClone alone, same masks      {call:8.2f} ms")


if __name__ == "__main__":
    main()
