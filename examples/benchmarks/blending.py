"""Improved Poisson blending against cv2.seamlessClone, and a whole composed image against it, as ratios of one run.

    python examples/benchmarks/blending.py [DEFECTS NORMALS]

The folders default to the samples; medians of alternating calls. A direct factorisation of the same system tells
how far the blender, and seamlessClone, are from the solution. A ratio below 1 is faster than seamlessClone.
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
    """A lobed disc in the middle, of about that part of the area."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    angle = np.arctan2(rows, columns)
    radius = np.sqrt(part / np.pi) * size * (1 + 0.15 * np.cos(3 * angle) + 0.1 * np.sin(5 * angle))
    return np.asarray(np.hypot(rows, columns) < radius)


def photograph(rng: np.random.Generator, size: int, mean: float) -> NDArray[np.uint8]:
    coarse = cv2.resize(rng.normal(0, 20, (6, 6, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(mean + coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)


def direct(content: NDArray[np.uint8], mask: NDArray[np.bool_], background: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Plain Poisson blending by a sparse factorisation; the mask lies well inside."""
    rows, columns = np.nonzero(mask)
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(len(rows))
    known = background.astype(float) - content
    right = np.zeros((len(rows), 3))
    entries = [(np.full(len(rows), 4.0), np.arange(len(rows)), np.arange(len(rows)))]
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        beside = number[rows + dy, columns + dx]
        inside = beside >= 0
        entries.append((np.full(inside.sum(), -1.0), np.flatnonzero(inside), beside[inside]))
        right[~inside] += known[rows[~inside] + dy, columns[~inside] + dx]
    values, i, j = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    solution = splu(coo_matrix((values, (i, j))).tocsc()).solve(right)
    return np.clip(content[mask] + solution, 0, 255)


def clone(content: NDArray[np.uint8], mask: NDArray[np.bool_], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # A mask of its own each time: seamlessClone writes into it.
    middle = (background.shape[1] // 2, background.shape[0] // 2)
    pasted = cv2.seamlessClone(content, background, mask.astype(np.uint8) * 255, middle, cv2.NORMAL_CLONE)
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
        content, background = photograph(rng, size, 90), photograph(rng, size, 150)
        blender = Blender(mask)

        calls: dict[str, Callable[[], object]] = {
            "seamlessClone": partial(clone, content, mask, background),
            "improved": partial(blend, content, mask, background),
            "improved, mask shared": partial(blender.blend, content, background),
            "poisson": partial(blend, content, mask, background, mode="poisson"),
            "factorisation": partial(direct, content, mask, background),
        }
        found = medians(calls, arguments.repeat)
        print(f"{size} x {size}, {mask.mean():.1%} of it, three channels")
        for name, value in found.items():
            print(f"  {name:24} {value:8.2f} ms   {value / found['seamlessClone']:6.2f} of seamlessClone")
        exact = direct(content, mask, background)
        for name, image in (
            ("poisson", blend(content, mask, background, mode="poisson")),
            ("seamlessClone", clone(content, mask, background)),
        ):
            off = np.abs(image[mask] - exact)
            print(f"  {name:24} is off by {off.mean():.2f} gray levels in the mean, {off.max():.1f} at most")

    normals, defects = read_normals(arguments.normals), read_defects(arguments.defects)
    composition = compose(
        ComposeRequest(SampleSpec(defects.categories, arguments.num, normals, workers=1), defects, arguments.defects)
    )
    samples = list(composition)  # decodes the photographs
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
    print(f"{len(samples)} images composed of {arguments.defects}, one thread, without reading and writing files")
    print(f"  cut out, turned, laid on and masked  {whole:8.2f} ms   {whole / call:6.2f} of seamlessClone")
    print(f"  seamlessClone alone, same masks      {call:8.2f} ms")


if __name__ == "__main__":
    main()
