"""Scores of how unlike each pixel of an image is to a defect-free version of it.

`SSIM` is the paper's (isu-gan.txt, "Structural similarity"). `DIFFERENCE` forgives edges that lie up to two pixels
elsewhere, as on any two products, which SSIM takes for defects, and sees smooth stains, to which SSIM is blind. Those
by features of a network are in `inspection.features`.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.ssim import WINDOW, ssim_map
from defectgen.imaging.windows import FloatArray, Limits, value_range, widened

Rows = Callable[[int, int], FloatArray]
"""Returns the scores of the rows from the first to before the last, [rows, W] in [0, 2].

Exactly equal to those of the whole map if the first is a multiple of `ssim.STRIP`.
"""

COMPARING: Final = ("ssim", "difference", "features")
"""The kinds that compare an image with a defect-free version."""
LEARNED: Final = ("simulated", "memory", "classifier")
"""The kinds that learn from flawless images and known defects, and need no defect-free version."""
SHIFT: Final = 2
"""Pixels by which an edge may be elsewhere than in the defect-free version."""
_EDGE = SHIFT + 1  # pixels along the edges that cannot be compared
_BLUR = 13, 1.5  # side of the kernel and standard deviation in pixels: single pixels are noise


class Scorer(Protocol):
    """A kind of score map."""

    @property
    def name(self) -> str: ...

    @property
    def pixels(self) -> int:
        """The score of an image is the greatest that so many pixels reach: about as many as one pixel affects."""

    @property
    def uncalibrated(self) -> float | None:
        """The threshold for golden images if none is calibrated."""

    def __call__(self, photograph: DecodedImage, repaired: Pixels | None) -> Rows:
        """The score map of an image and its defect-free version, of the same shape. Alpha is ignored."""


class _SSIM:
    name, pixels, uncalibrated = "ssim", WINDOW**2, 0.5

    def __call__(self, photograph: DecodedImage, repaired: Pixels | None) -> Rows:
        x, y, (low, high) = _colors(photograph, repaired)

        def rows(top: int, bottom: int) -> FloatArray:
            first = max(top - WINDOW // 2, 0)
            a, b = (each[first : bottom + WINDOW // 2] for each in (x, y))
            if photograph.depth == 16:  # what is above the range, such as a hot spot, stays above it
                a, b = (each.astype(np.float32) - np.float32(low) for each in (a, b))
            similar = ssim_map(a, b, high - low, rows=(top - first, bottom - first))
            return np.subtract(1, similar, out=similar)

        return rows


class _Difference:
    """The least difference of each pixel's gray values over shifts of up to two pixels, as a part of the value range.

    Symmetric: it is the greater of those in both directions, so that neither a missing line nor a new one is excused by
    its surroundings. Blurred; the greatest of the channels.
    """

    name, pixels, uncalibrated = "difference", 9, 0.2

    def __call__(self, photograph: DecodedImage, repaired: Pixels | None) -> Rows:
        x, y, (low, high) = _colors(photograph, repaired)
        side, deviation = _BLUR
        reach = SHIFT + side // 2

        def rows(top: int, bottom: int) -> FloatArray:
            first = max(top - reach, 0)
            a, b = (each[first : bottom + reach] for each in (x, y))
            unlike = cv2.max(cv2.absdiff(a, _nearest(a, b)), cv2.absdiff(b, _nearest(b, a)))
            unlike = np.atleast_3d(unlike).max(axis=2).astype(np.float32)
            # What lies beyond the image's edges may be the same, but is not known.
            unlike[: max(_EDGE - first, 0)] = unlike[max(len(x) - _EDGE - first, 0) :] = 0
            unlike[:, :_EDGE] = unlike[:, -_EDGE:] = 0
            blurred = cv2.GaussianBlur(unlike, (side, side), deviation)[top - first : bottom - first]
            return np.minimum(blurred * np.float32(1 / (high - low)), 2)

        return rows


def _nearest(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """What comes nearest to each value of `x` within the range of the values of `y` around the same place."""
    around = np.ones((2 * SHIFT + 1, 2 * SHIFT + 1), np.uint8)
    return np.asarray(cv2.min(cv2.max(x, cv2.erode(y, around)), cv2.dilate(y, around)))


def _colors(photograph: DecodedImage, repaired: Pixels | None) -> tuple[NDArray[Any], NDArray[Any], Limits]:
    """The colors of both, [H, W, C], and their common value range."""
    assert repaired is not None, "a score that compares needs a defect-free version"
    images = photograph, DecodedImage(repaired)
    x, y = (np.ascontiguousarray(each.colors) for each in images)
    return x, y, widened(*map(value_range, images))


SSIM: Final[Scorer] = _SSIM()
DIFFERENCE: Final[Scorer] = _Difference()
