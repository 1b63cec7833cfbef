"""From what a generator did to a window, to the mask of the defect."""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity

from defectgen.imaging.windows import BoolArray, FloatArray

_DISSIMILAR = 0.08  # 1 - SSIM below this is not seen as a defect
VISIBLE = 10 / 255
"""Part of the range from black to white that a change must exceed to be seen."""
SMALLEST = 6  # pixels; a smaller piece is noise


def difference(before: FloatArray, after: FloatArray) -> FloatArray:
    """How unlike two windows are at each pixel: 1 - SSIM (Wang et al. 2004), in [0, 1], [S, S].

    Args:
        before, after: [C, S, S] in [-1, 1].
    """
    _, similarity = structural_similarity(
        before, after, data_range=2.0, channel_axis=0, gaussian_weights=True, sigma=1.0,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return np.clip(1 - similarity.mean(axis=0), 0, 1).astype(np.float32)


def mask_from_difference(before: FloatArray, after: FloatArray) -> BoolArray:
    """The mask of what visibly changed between two windows, [S, S]; all False if nothing did.

    The SSIM difference, cut at Otsu's threshold; SSIM looks around each pixel, so what it finds is trimmed to
    where the gray values themselves changed; then cleaned.

    Args:
        before, after: [C, S, S] in [-1, 1].
    """
    soft = difference(before, after)
    if soft.max() < _DISSIMILAR:
        return np.zeros(soft.shape, np.bool_)
    unlike = soft > max(threshold_otsu(soft), _DISSIMILAR)
    return clean(unlike & _shows(before, after))


def mask_from_map(before: FloatArray, after: FloatArray, m: FloatArray) -> BoolArray:
    """The mask of a spatial distribution map: where it is strong, and what it laid on can be seen. [S, S].

    Args:
        before, after: [C, S, S] in [-1, 1].
        m: [S, S] in [0, 1]; strong is half of its largest value.
    """
    return clean((m > 0.5 * m.max()) & _shows(before, after))


def _shows(before: FloatArray, after: FloatArray) -> BoolArray:
    """Where a change can be seen, and is not faint beside the strongest."""
    level = np.abs(after - before).max(axis=0)
    shows: BoolArray = level > max(2 * VISIBLE, 0.2 * float(level.max()))
    return shows


def visible_part(
    before: FloatArray, after: FloatArray, defect_mask: BoolArray, unit: float, *, annotated: bool
) -> BoolArray:
    """The part of a defect_mask, [H, W], where a blended content can be seen.

    Args:
        before, after: [H, W, C], with gray levels of 255 `unit` apart.
        annotated: the defect_mask is right where the content shows: only what lies apart from that is taken off.
    """
    if not defect_mask.any():
        return defect_mask
    change = np.asarray(cv2.GaussianBlur(after - before, (0, 0), 1.0)).reshape(before.shape)
    strength = np.abs(change).max(axis=2)
    shows = defect_mask & (strength > max(VISIBLE * 255 * unit, 0.25 * float(np.quantile(strength[defect_mask], 0.98))))
    depth = cv2.distanceTransform(np.pad(defect_mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5).max()
    if not annotated:
        side = 2 * int(depth / 4) + 1
        disc = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)
        closed = cv2.morphologyEx(shows.astype(np.uint8), cv2.MORPH_CLOSE, disc)
        return defect_mask & clean(closed > 0)
    side = 2 * max(3, int(depth)) + 1  # the flat middle of a large defect belongs to its visible border
    return defect_mask & (cv2.dilate(shows.astype(np.uint8), np.ones((side, side), np.uint8)) > 0)


def foreground(pixels: NDArray[np.generic]) -> BoolArray:
    """The object on a plain backdrop, [H, W]; all of the photograph where there is no such backdrop.

    The backdrop is what looks like the photograph's border, if the border is of one kind and something else is
    clearly apart from it.

    Args:
        pixels: [H, W, C] of any depth.
    """
    height, width = pixels.shape[:2]
    shrink = max(1, max(height, width) // 512)
    small = cv2.resize(pixels.astype(np.float32), (width // shrink, height // shrink), interpolation=cv2.INTER_AREA)
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
    """A mask with gaps of a pixel closed, holes of a few filled, and specks removed. [S, S]."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    solid = _without_small(np.asarray(closed, np.uint8), connectivity=8)
    return _without_small(1 - solid, connectivity=4) == 0


def _without_small(mask: NDArray[np.uint8], *, connectivity: int) -> NDArray[np.uint8]:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    keep = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST
    keep[0] = False
    return keep[labels].astype(np.uint8) if count > 1 else mask


def feather(mask: BoolArray, width: float) -> FloatArray:
    """Full strength on a mask and a pixel around it, falling to 0 over `width` pixels. [S, S] in [0, 1]."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(1 - (distance - 1) / width, 0, 1).astype(np.float32)
