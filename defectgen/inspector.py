"""Inspection: an image against what it should look like, an SSIM score map, Otsu, a verdict (isu-gan.txt).

What it should look like is a golden image, or the image repaired by a network. The score map compares the two at
the image's own resolution, the verdict asks for more than Otsu, who splits any image in two: a score above a
threshold that flawless images stay below.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import masks
from defectgen.images import ImageError, Photograph, Pixels, read_photograph
from defectgen.windows import BoolArray, FloatArray, tone

Repair = Callable[[Path, Photograph], Pixels]
"""What an image should look like, as pixels of its own shape; raises ImageError where that cannot be told."""

WINDOW = 9
"""Side of the SSIM window ("Structural similarity")."""
_K1, _K2 = 0.01, 0.03
_STRIP = 64  # rows at a time: what is computed of them stays in a core's cache
_BINS = 256
UNCALIBRATED = 0.5
"""A threshold for golden images, where none was calibrated."""
_TRIM = 0.25  # of the largest change in a defect: less is not of it
_PIXELS = WINDOW**2  # a score is what so many pixels exceed: as many as see a single one that differs


def ssim_map(x: NDArray[Any], y: NDArray[Any], data_range: float = 255.0, *, threads: int = 1) -> FloatArray:
    """The structural similarity of two images at each pixel, [H, W] in [-1, 1]; of colours the mean (equation 7).

    Equal to scikit-image's `structural_similarity(x, y, win_size=9, data_range=..., full=True)` within 1e-5: a flat
    window, sample covariance, edges mirrored.

    Args:
        x, y: [H, W] or [H, W, C], of one shape, 8 or 16 bit.
        data_range: the difference between white and black.
        threads: to work on strips of the image with.
    """
    x, y = (np.atleast_3d(image) for image in (x, y))
    result = np.zeros(x.shape[:2], np.float32)
    strips = [(top, min(top + _STRIP, len(x))) for top in range(0, len(x), _STRIP)]

    def work(strip: tuple[int, int]) -> None:
        for channel in range(x.shape[2]):
            result[slice(*strip)] += _similar(x[..., channel], y[..., channel], *strip, data_range)
        if x.shape[2] > 1:
            result[slice(*strip)] /= x.shape[2]

    if threads == 1:
        for strip in strips:
            work(strip)
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="ssim") as pool:
            list(pool.map(work, strips))
    return result


def _similar(x: NDArray[Any], y: NDArray[Any], top: int, bottom: int, data_range: float) -> FloatArray:
    """Rows `top` to `bottom` of the map, of two planes."""
    reach, count = WINDOW // 2, WINDOW**2
    first, last = max(top - reach, 0), min(bottom + reach, len(x))
    middle = data_range / 2
    # Sums about the middle gray: smaller, so that single precision holds the small difference of large squares.
    a, b = (image[first:last].astype(np.float32) - np.float32(middle) for image in (x, y))
    squares = cv2.add(cv2.multiply(a, a), cv2.multiply(b, b))
    rows = slice(top - first, bottom - first)
    sa, sb, ss, sp = (
        cv2.boxFilter(each, -1, (WINDOW, WINDOW), normalize=False, borderType=cv2.BORDER_REFLECT)[rows]
        for each in (a, b, squares, cv2.multiply(a, b))
    )
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    # Sample covariances; all that follows is times count² or divided by it alike.
    sample = count / (count - 1)
    product, powers = cv2.multiply(sa, sb), cv2.add(cv2.multiply(sa, sa), cv2.multiply(sb, sb))
    covariance = cv2.addWeighted(sp, 2 * sample * count, product, -2 * sample, c2 * count**2)
    variances = cv2.addWeighted(ss, sample * count, powers, -sample, c2 * count**2)
    total = cv2.add(sa, sb)
    light = 2 * middle / count, 2 * middle**2 + c1
    means = cv2.addWeighted(product, 2 / count**2, total, *light)
    mean_squares = cv2.addWeighted(powers, 1 / count**2, total, *light)
    return np.asarray(cv2.divide(cv2.multiply(means, covariance), cv2.multiply(mean_squares, variances)), np.float32)


def otsu(scores: FloatArray) -> float:
    """Otsu's threshold of a score map, from 256 bins between its extremes, as scikit-image's."""
    counts, centres = _histogram(scores)
    if len(centres) == 1:
        return float(centres[0])
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = np.cumsum((counts * centres)[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[between.argmax()])


def _histogram(scores: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The counts and the centres of the bins; one bin if all scores are equal."""
    low, high, _, _ = cv2.minMaxLoc(scores)
    if low == high:
        return np.array([float(scores.size)]), np.array([low])
    # OpenCV leaves the upper end out.
    end = float(np.nextafter(np.float32(high), np.float32(np.inf)))
    counts = cv2.calcHist([scores], [0], None, [_BINS], [low, end]).ravel()
    return counts.astype(np.float64), low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS


@dataclass(frozen=True)
class Finding:
    """What was found on an image. `score` is how unlike the repaired image its worst place is, from 0 to 2."""

    path: Path
    photograph: Photograph
    score: float
    threshold: float
    mask: BoolArray
    """[H, W]; empty where nothing was found."""

    @property
    def defective(self) -> bool:
        return bool(self.score > self.threshold)


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be inspected, and why."""

    path: Path
    reason: str


def compare(photograph: Photograph, repaired: Pixels, *, threads: int = 1) -> FloatArray:
    """How unlike its repaired self a photograph is, 1 - SSIM, [H, W] in [0, 2]; alpha is left out."""
    low, high = tone(photograph)
    x, y = (np.atleast_3d(each)[..., : photograph.channels] for each in (photograph.pixels, repaired))
    if photograph.depth == 16:  # black and white where the photograph's own are
        x, y = (np.clip(each, low, high) - low for each in (x, y))
    similar = ssim_map(x, y, high - low, threads=threads)
    return np.subtract(1, similar, out=similar)


def score_of(unlike: FloatArray) -> float:
    """The level that 81 pixels exceed: how unlike the worst place is, of the size of SSIM's window."""
    worst = min(_PIXELS, unlike.size)
    if unlike.size <= 1 << 16:
        return float(np.partition(unlike.ravel(), -worst)[-worst])
    counts, centres = _histogram(unlike)
    exceeding = np.cumsum(counts[::-1])[::-1]
    least = centres[np.flatnonzero(exceeding >= worst)[-1]]
    top = unlike[unlike >= least - (centres[1] - centres[0] if len(centres) > 1 else 0)]
    return float(np.partition(top, -worst)[-worst])


def find(
    path: Path, photograph: Photograph, repaired: Pixels, threshold: float, *, border: int = 0, threads: int = 1
) -> Finding:
    """The verdict on a photograph, and its defects: what Otsu separates, where that holds a place above `threshold`.

    `border` are pixels along the photograph's edges that are not judged.
    """
    unlike = compare(photograph, repaired, threads=threads)
    if border:
        unlike[:border] = unlike[-border:] = 0
        unlike[:, :border] = unlike[:, -border:] = 0
    score = score_of(unlike)
    mask = np.zeros(unlike.shape, np.bool_)
    if score > threshold:
        mask = _defects(unlike, photograph.pixels, repaired, threshold)
    return Finding(path, photograph, score, threshold, mask)


def _defects(unlike: FloatArray, before: Pixels, after: Pixels, threshold: float) -> BoolArray:
    """The mask of what Otsu separates in a score map, where it holds a place above `threshold`."""
    count, labels = cv2.connectedComponents((unlike > otsu(unlike)).astype(np.uint8), connectivity=8)
    strong = np.zeros(count, np.bool_)
    strong[labels[unlike > threshold]] = True
    strong[0] = False
    mask: BoolArray = strong[labels]
    # SSIM looks around each pixel: what it finds is trimmed to where the gray values themselves changed.
    level = np.atleast_3d(cv2.absdiff(before, after)).max(axis=2)
    pieces, levels = labels[mask].astype(np.int64), level[mask].astype(np.float32)
    most = np.zeros(count, np.float32)
    np.maximum.at(most, pieces, levels)
    mask[mask] = levels > _TRIM * most[pieces]
    mask = masks.clean(mask)
    return mask if mask.any() else unlike > threshold


def inspect(
    paths: Iterable[Path | None], repair: Repair, threshold: float, *, border: int = 0, workers: int = 2
) -> Iterator[Finding | Unreadable]:
    """A finding for each image, in their order; several are read, repaired and compared at a time.

    None among the paths tells that no image is there at the moment: what is under way is then finished first.
    """
    queue: deque[Future[Finding | Unreadable]] = deque()
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="inspecting") as pool:
        try:
            for path in paths:
                if path is not None:
                    queue.append(pool.submit(_inspect, path, repair, threshold, border))
                while queue and (path is None or len(queue) > 2 * workers):
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _inspect(path: Path, repair: Repair, threshold: float, border: int) -> Finding | Unreadable:
    try:
        photograph = read_photograph(path)
        return find(path, photograph, repair(path, photograph), threshold, border=border)
    except ImageError as error:
        return Unreadable(path, error.reason if error.path == path else str(error))


def calibrate(findings: Iterable[Finding | Unreadable], share: float) -> float:
    """The score that `share` of the flawless images stays below or at."""
    scores = [finding.score for finding in findings if isinstance(finding, Finding)]
    return float(np.quantile(scores, share, method="higher"))


def golden(folder: Path) -> Repair:
    """Repair by a golden image of the same name in `folder`, or the one image that is in there."""
    return partial(_golden, folder)


def _golden(folder: Path, path: Path, photograph: Photograph) -> Pixels:
    reference = read_photograph(folder / path.name)
    if reference.pixels.shape != photograph.pixels.shape or reference.depth != photograph.depth:
        raise ImageError(
            path,
            f"is {_described(photograph)}, but its reference {folder / path.name} is {_described(reference)}",
        )
    return reference.pixels


def _described(photograph: Photograph) -> str:
    colours = "gray" if photograph.channels == 1 else "colour"
    return f"{photograph.width}x{photograph.height} {colours}, {photograph.depth} bit"
