"""Structural similarity and Otsu's threshold, as scikit-image's but faster."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.windows import FloatArray

WINDOW = 9
"""Side of the SSIM window ("Structural similarity")."""


_K1, _K2 = 0.01, 0.03


_STRIP = 64  # rows at a time: what is computed of them stays in a core's cache


_BINS = 256


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
    # SourceImage covariances; all that follows is times count² or divided by it alike.
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
    counts, centres = histogram(scores)
    if len(centres) == 1:
        return float(centres[0])
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = np.cumsum((counts * centres)[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[between.argmax()])


def histogram(scores: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The counts and the centres of the bins; one bin if all scores are equal."""
    low, high, _, _ = cv2.minMaxLoc(scores)
    if low == high:
        return np.array([float(scores.size)]), np.array([low])
    # OpenCV leaves the upper end out.
    end = float(np.nextafter(np.float32(high), np.float32(np.inf)))
    counts = cv2.calcHist([scores], [0], None, [_BINS], [low, end]).ravel()
    return counts.astype(np.float64), low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
