"""Defect masks, computed from what a generator changed in a window."""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity

from defectgen.imaging.components import Components
from defectgen.imaging.windows import BoolArray, FloatArray

_DISSIMILAR = 0.08  # 1 - SSIM below this does not count as a defect
VISIBLE = 10 / 255
"""The smallest visible change, as a fraction of the range from black to white."""
_SHORT = 32  # pixels; the shorter side of a small image on which an object is found
_LINE = 3.0  # a piece that is so many times longer than wide is a line
_ASTRAY = 0.006  # of its length, by which a line that is no smooth arc strays from one
SMALLEST = 6  # pixels; smaller pieces are noise


def depth(mask: BoolArray) -> float:
    """The distance of a mask's innermost pixel from the outside, including beyond the array."""
    padded = np.pad(mask, 1).astype(np.uint8)
    return float(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5).max())


def difference(before: FloatArray, after: FloatArray) -> FloatArray:
    """The dissimilarity of two windows at each pixel, 1 - SSIM (Wang et al. 2004): [S, S] in [0, 1].

    Args:
        before, after: [C, S, S] in [-1, 1].
    """
    _, similarity = structural_similarity(
        before, after, data_range=2.0, channel_axis=0, gaussian_weights=True, sigma=1.0,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return np.clip(1 - similarity.mean(axis=0), 0, 1).astype(np.float32)


def mask_from_difference(before: FloatArray, after: FloatArray) -> BoolArray:
    """The mask of the visible difference between two windows, [S, S]. All False if there is none.

    Thresholds the SSIM difference by Otsu's method. SSIM also responds around a change, so the mask is limited to
    pixels whose own values changed. Then it is cleaned (`clean`).

    Args:
        before, after: [C, S, S] in [-1, 1].
    """
    soft = difference(before, after)
    if soft.max() < _DISSIMILAR:
        return np.zeros(soft.shape, np.bool_)
    dissimilar = soft > max(threshold_otsu(soft), _DISSIMILAR)
    return clean(dissimilar & _visible(before, after))


def mask_from_map(before: FloatArray, after: FloatArray, m: FloatArray) -> BoolArray:
    """The mask of a spatial distribution map: where the map is high and the change is visible. [S, S].

    Args:
        before, after: [C, S, S] in [-1, 1].
        m: the map, [S, S] in [0, 1]. High means more than half of its maximum.
    """
    return clean((m > 0.5 * m.max()) & _visible(before, after))


def wanders(mask: BoolArray) -> bool:
    """Whether a defect, [H, W], bends as it likes: False if it is made of lines that are straight, or smooth arcs.

    A line is a piece that is much longer than wide.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    astray, length = 0.0, 0
    for label in 1 + np.flatnonzero(statistics[1:, cv2.CC_STAT_AREA] >= SMALLEST):
        at = np.argwhere(labels == label).astype(float)
        at -= at.mean(axis=0)
        spread, axes = np.linalg.eigh(at.T @ at / len(at))
        if spread[1] < _LINE**2 * max(spread[0], 1 / 12):
            return True
        across, along = (at @ axes).T
        steps = np.rint(along - along.min()).astype(int)
        middle = np.bincount(steps, across) / np.maximum(np.bincount(steps), 1)
        x = np.linspace(-1, 1, len(middle))
        arc = np.polynomial.Polynomial.fit(x, middle, 2)(x)
        # Pixels show a straight line with steps of half of one.
        astray += max(0.0, float((middle - arc).std()) - 0.5)
        length += len(middle)
    return astray >= _ASTRAY * length


def _visible(before: FloatArray, after: FloatArray) -> BoolArray:
    """Where a change is visible, and not weak compared with the strongest one: [S, S]."""
    level = np.abs(after - before).max(axis=0)
    visible: BoolArray = level > max(2 * VISIBLE, 0.2 * float(level.max()))
    return visible


def visible_part(
    before: FloatArray, after: FloatArray, defect_mask: BoolArray, unit: float, *, annotated: bool
) -> BoolArray:
    """The part of a defect mask, [H, W], where the blended patch is visible.

    Args:
        before, after: the image before and after blending, [H, W, C].
        unit: one gray level of an 8-bit image, in the units of `before` and `after`.
        annotated: the mask was drawn by a person or a network, so its outline is right wherever the patch is
            visible. Only parts away from any visible change are removed.
    """
    if not defect_mask.any():
        return defect_mask
    change = np.asarray(cv2.GaussianBlur(after - before, (0, 0), 1.0)).reshape(before.shape)
    strength = np.abs(change).max(axis=2)
    visible = defect_mask & (
        strength > max(VISIBLE * 255 * unit, 0.25 * float(np.quantile(strength[defect_mask], 0.98)))
    )
    inner = depth(defect_mask)
    if not annotated:
        size = 2 * int(inner / 4) + 1
        disc = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)
        closed = cv2.morphologyEx(visible.astype(np.uint8), cv2.MORPH_CLOSE, disc)
        return defect_mask & clean(closed > 0)
    size = 2 * max(3, int(inner)) + 1  # keeps the flat middle of a large defect, whose border is visible
    invisible = defect_mask & (cv2.dilate(visible.astype(np.uint8), np.ones((size, size), np.uint8)) == 0)
    # Only long parts are removed, and separate ones: a mask with many small bites would be ragged.
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(invisible.view(np.uint8))
    long = statistics[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) > 2 * size
    kept = defect_mask & ~(invisible & long[parts])
    _, pieces = cv2.connectedComponents(kept.view(np.uint8))
    return kept & np.isin(pieces, np.unique(pieces[visible]))


def foreground(pixels: NDArray[np.generic]) -> BoolArray:
    """The mask of the object in front of a plain background, [H, W]. All True if there is no such background.

    The background is what resembles the image's border. It counts as plain if the border is uniform and other
    pixels differ clearly from it.

    Args:
        pixels: [H, W, C], 8 or 16 bits.
    """
    height, width = pixels.shape[:2]
    shrink = max(1, max(height, width) // 512)
    size = [min(side, max(side // shrink, _SHORT)) for side in (width, height)]  # a line scan keeps its short side
    small = cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    small = np.asarray(cv2.GaussianBlur(small, (0, 0), 1.5)).reshape(*small.shape[:2], -1)
    edge = np.ones(small.shape[:2], np.bool_)
    edge[3:-3, 3:-3] = False
    distance = np.abs(small - np.median(small[edge], axis=0)).max(axis=2)
    threshold = float(threshold_otsu(distance))
    if float(np.quantile(distance[edge], 0.9)) > 0.5 * threshold or not (distance > threshold).any():
        return np.ones((height, width), np.bool_)
    found = cv2.morphologyEx((distance > threshold).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(found), outlines, -1, 1, cv2.FILLED)
    if not filled.any():
        return np.ones((height, width), np.bool_)
    return cv2.resize(filled, (width, height), interpolation=cv2.INTER_NEAREST) > 0


def clean(mask: BoolArray) -> BoolArray:
    """A mask without gaps of one pixel, small holes and small pieces (below `SMALLEST` pixels). [S, S]."""
    binary = np.ascontiguousarray(mask, np.bool_).view(np.uint8)
    solid = np.asarray(cv2.morphologyEx(binary, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), np.uint8)
    _drop_small(solid, connectivity=8)
    np.subtract(1, solid, out=solid)
    _drop_small(solid, connectivity=4)
    return solid == 0


def _drop_small(mask: NDArray[np.uint8], *, connectivity: int) -> None:
    """Set the pieces with less than `SMALLEST` pixels to 0."""
    components = Components(mask, connectivity)
    keep = components.areas >= SMALLEST
    for rows, labels in components:
        mask[rows] = keep[labels]


def feather(mask: BoolArray, width: float) -> FloatArray:
    """Weights of a mask with soft edges: 1 on the mask and one pixel around, then falling to 0 over `width` pixels.

    Returns [S, S] in [0, 1].
    """
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(1 - (distance - 1) / width, 0, 1).astype(np.float32)
