"""Structural similarity and Otsu's threshold: faster equivalents of scikit-image's functions."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.windows import FloatArray

WINDOW = 9
"""Side of the SSIM window in pixels (ISU-GAN, "Structural similarity")."""


_K1, _K2 = 0.01, 0.03


STRIP = 64
"""Rows at a time, so that the intermediate results fit a core's cache."""


_BINS = 256


def ssim_map(
    x: NDArray[Any],
    y: NDArray[Any],
    data_range: float = 255.0,
    *,
    rows: tuple[int, int] | None = None,
    threads: int = 1,
) -> FloatArray:
    """The structural similarity of two images at each pixel, [H, W] in [-1, 1]; the mean of the channels.

    Equation 7 of ISU-GAN. Equals scikit-image's `structural_similarity(x, y, win_size=9, data_range=..., full=True)`
    within 1e-5: uniform window, sample covariance, mirrored edges.

    Args:
        x, y: [H, W] or [H, W, C], of equal shape, 8 or 16 bits.
        data_range: the difference between white and black.
        rows: only these, from the first to before the last, [rows, W]; None means all.
        threads: the number of threads, which share strips of the image.
    """
    x, y = (np.atleast_3d(image) for image in (x, y))
    first, last = rows or (0, len(x))
    result = np.zeros((last - first, x.shape[1]), np.float32)
    strips = [(top, min(top + STRIP, last)) for top in range(first, last, STRIP)]

    def work(strip: tuple[int, int]) -> None:
        into = result[strip[0] - first : strip[1] - first]
        for channel in range(x.shape[2]):
            into += _ssim_rows(x[..., channel], y[..., channel], *strip, data_range)
        if x.shape[2] > 1:
            into /= x.shape[2]

    if threads == 1:
        for strip in strips:
            work(strip)
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="ssim") as pool:
            list(pool.map(work, strips))
    return result


def _ssim_rows(x: NDArray[Any], y: NDArray[Any], top: int, bottom: int, data_range: float) -> FloatArray:
    """Rows `top` to `bottom` of the SSIM map of two single-channel images [H, W]."""
    reach, count = WINDOW // 2, WINDOW**2
    first, last = max(top - reach, 0), min(bottom + reach, len(x))
    middle = data_range / 2
    # Values relative to the middle gray keep the sums small: the variance is a small difference of large squares,
    # which single precision would lose.
    a, b = (image[first:last].astype(np.float32) - np.float32(middle) for image in (x, y))
    squares = cv2.add(cv2.multiply(a, a), cv2.multiply(b, b))
    rows = slice(top - first, bottom - first)
    sa, sb, ss, sp = (
        cv2.boxFilter(each, -1, (WINDOW, WINDOW), normalize=False, borderType=cv2.BORDER_REFLECT)[rows]
        for each in (a, b, squares, cv2.multiply(a, b))
    )
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    # Sample covariance. `covariance` and `variances` are both scaled by count², which cancels in the ratio.
    sample = count / (count - 1)
    product, powers = cv2.multiply(sa, sb), cv2.add(cv2.multiply(sa, sa), cv2.multiply(sb, sb))
    covariance = cv2.addWeighted(sp, 2 * sample * count, product, -2 * sample, c2 * count**2)
    variances = cv2.addWeighted(ss, sample * count, powers, -sample, c2 * count**2)
    total = cv2.add(sa, sb)
    luminance = 2 * middle / count, 2 * middle**2 + c1
    means = cv2.addWeighted(product, 2 / count**2, total, *luminance)
    mean_squares = cv2.addWeighted(powers, 1 / count**2, total, *luminance)
    return np.asarray(cv2.divide(cv2.multiply(means, covariance), cv2.multiply(mean_squares, variances)), np.float32)


def otsu(strips: Iterable[FloatArray], limits: tuple[float, float]) -> float:
    """Otsu's threshold of a score map that comes in strips, from 256 bins between its limits, as in scikit-image."""
    counts, centers = histogram(strips, limits)
    if len(centers) == 1:
        return float(centers[0])
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centers) / np.maximum(below, 1)
    mean_above = np.cumsum((counts * centers)[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[between.argmax()])


def limits_of(scores: FloatArray) -> tuple[float, float]:
    """The least and the greatest value of a score map."""
    low, high, _, _ = cv2.minMaxLoc(scores)
    return low, high


def histogram(
    strips: Iterable[FloatArray], limits: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The counts and centers of 256 bins between two limits, or of a single bin if these are equal."""
    low, high = limits
    if low == high:
        return np.array([float(sum(strip.size for strip in strips))]), np.array([low])
    # OpenCV excludes the upper end of the range.
    end = float(np.nextafter(np.float32(high), np.float32(np.inf)))
    counts = np.zeros(_BINS)
    for strip in strips:
        counts += cv2.calcHist([strip], [0], None, [_BINS], [low, end]).ravel()
    return counts, low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
