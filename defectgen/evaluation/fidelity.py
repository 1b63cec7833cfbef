"""How near synthetic defects are to real ones: statistics of windows around defects, as functions of arrays.

The sliced Wasserstein distance needs nothing but the images. FID, KID, precision and recall, and LPIPS compare what
a network sees, and exist only where the user names that network's file: there is no number from random weights.
"""

import cv2
import numpy as np
from scipy.linalg import sqrtm

from defectgen.imaging.windows import BoolArray, FloatArray, defect_pieces
from defectgen.nn.features import Features

WINDOW = 64  # pixels of a window around a defect
_LEVELS = 3  # of the pyramid: 64, 32 and 16 pixels
_PATCH = 7  # pixels
_PATCHES = 64  # of each window and level
_MOST_PATCHES = 8192  # of each set and level
_DIRECTIONS = 256
_NEIGHBOUR = 3  # k of precision and recall


def window_around(x: FloatArray, mask: BoolArray) -> FloatArray:
    """The square around the largest defect of a mask, [C, 64, 64], mirrored beyond the edges; large ones are shrunk."""
    box, _ = max(defect_pieces(mask), key=lambda piece: int(piece[1].sum()))
    side = max(WINDOW, round(1.2 * max(box.width, box.height)))
    pad = [(0, 0), (side // 2, side - side // 2), (side // 2, side - side // 2)]
    y, x0 = round(box.y + (box.height - 1) / 2), round(box.x + (box.width - 1) / 2)
    window = np.pad(x, pad, mode="symmetric")[:, y : y + side, x0 : x0 + side]
    if side == WINDOW:
        return window
    small = cv2.resize(window.transpose(1, 2, 0), (WINDOW, WINDOW), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.reshape(WINDOW, WINDOW, -1).transpose(2, 0, 1))


# --- Without a network -----------------------------------------------------------------------------------------


def sliced_wasserstein(real: FloatArray, made: FloatArray, seed: int = 0) -> float:
    """The distance of the patches of two sets, at three scales, on random lines (Karras et al. 2018, section 5).

    The mean over the levels of a Laplacian pyramid, times 1000, of patches of 7 pixels whose channels are normalised
    by what the real ones have. Both sets count the same number of patches.

    Args:
        real, made: [N, C, S, S] in [-1, 1].
    """
    rng = np.random.default_rng(seed)
    distances = []
    for ours, theirs in zip(_pyramid(real), _pyramid(made), strict=True):
        a, b = _patches(ours, rng), _patches(theirs, rng)
        count = min(len(a), len(b), _MOST_PATCHES)
        a, b = (rng.permutation(each)[:count] for each in (a, b))
        mean, spread = a.mean(axis=(0, 2), keepdims=True), a.std(axis=(0, 2), keepdims=True) + 1e-6
        a, b = (((each - mean) / spread).reshape(count, -1) for each in (a, b))
        lines = rng.normal(size=(a.shape[1], _DIRECTIONS)).astype(np.float32)
        lines /= np.linalg.norm(lines, axis=0)
        distances.append(float(np.abs(np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)).mean()))
    return 1000 * float(np.mean(distances))


def _pyramid(images: FloatArray) -> list[FloatArray]:
    """The levels of a Laplacian pyramid, the coarsest one as it is; [N, C, S, S] each."""
    levels = []
    for level in range(_LEVELS):
        if level == _LEVELS - 1:
            levels.append(images)
            break
        small = np.stack([np.stack([cv2.pyrDown(plane) for plane in image]) for image in images])
        back = np.stack([np.stack([cv2.pyrUp(plane) for plane in image]) for image in small])
        levels.append(images - back)
        images = small
    return levels


def _patches(images: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Some patches of each image: [N * 64, C, 49]."""
    count, channels, side, _ = images.shape
    corners = rng.integers(0, side - _PATCH + 1, (count, _PATCHES, 2))
    views = np.lib.stride_tricks.sliding_window_view(images, (_PATCH, _PATCH), axis=(2, 3))
    index = np.arange(count)[:, None]
    chosen = views[index, :, corners[..., 0], corners[..., 1]]
    return np.ascontiguousarray(chosen.reshape(count * _PATCHES, channels, -1), np.float32)


# --- With features ---------------------------------------------------------------------------------------------


def fid(real: Features, made: Features) -> float:
    """The Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6). Features [N, D]; N of 2 or more."""
    means = real.mean(axis=0) - made.mean(axis=0)
    a, b = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    return float(means @ means + np.trace(a + b - 2 * np.real(sqrtm(a @ b))))


def kid(real: Features, made: Features) -> float:
    """The unbiased squared MMD under the cubic kernel (Binkowski et al. 2018, section 4). Features [N, D]."""

    def kernel(a: Features, b: Features) -> Features:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(real), len(made)
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(real, real), kernel(made, made))]
    return float(sum(within) - 2 * kernel(real, made).sum() / (n * m))


def precision_and_recall(real: Features, made: Features) -> tuple[float, float]:
    """The part of each set that lies among the other (Kynkaanniemi et al. 2019, eqs. 1 and 2), with k = 3."""
    return _among(made, real), _among(real, made)


def _among(points: Features, others: Features) -> float:
    own = _distances(others, others)
    k = min(_NEIGHBOUR, len(others) - 1)
    radii = np.sort(own, axis=1)[:, k]  # the first is a point's distance from itself
    return float((_distances(points, others) <= radii[None]).any(axis=1).mean())


def clustered_lpips(real: Features, made: Features) -> float:
    """The mean distance within the clusters around the real images (dfmgan.txt, section 4.2): near 0 for copies.

    Features whose squared distance is LPIPS, [N, D]. Clusters of one have no pair, and do not count.
    """
    nearest = _distances(made, real).argmin(axis=1)
    means = []
    for cluster in np.unique(nearest):
        mine = made[nearest == cluster]
        if len(mine) > 1:
            means.append(float((_distances(mine, mine) ** 2).sum() / (len(mine) * (len(mine) - 1))))
    return float(np.mean(means)) if means else 0.0


def _distances(a: Features, b: Features) -> Features:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
