"""From what a generator did to a window, to the mask of the defect."""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity

from defectgen.windows import FloatArray

BoolArray = NDArray[np.bool_]

_DISSIMILAR = 0.08  # 1 - SSIM below this is not seen as a defect
_VISIBLE = 10 / 127.5  # a change of 10 gray levels of 255, in units of [-1, 1]
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


def changed(before: FloatArray, after: FloatArray) -> BoolArray:
    """The mask of what visibly changed between two windows, [S, S]; all False if nothing did.

    The SSIM difference, cut at Otsu's threshold; SSIM looks around each pixel, so what it finds is trimmed to
    where the gray values themselves changed; then cleaned.

    Args:
        before, after: [C, S, S] in [-1, 1].
    """
    soft = difference(before, after)
    if soft.max() < _DISSIMILAR:
        return np.zeros(soft.shape, np.bool_)
    level = np.abs(after - before).max(axis=0)
    unlike = soft > max(threshold_otsu(soft), _DISSIMILAR)
    return clean(unlike & (level > max(_VISIBLE, 0.2 * float(level.max()))))


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
