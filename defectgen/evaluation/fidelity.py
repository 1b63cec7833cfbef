"""Fidelity: how closely synthetic defects resemble real ones, measured on windows around defects.

The sliced Wasserstein distance needs no network. The other figures compare features: those of EfficientNet-Lite0, which
ships with the package, or those of the networks that papers use (FID, KID, LPIPS), if the user gives their files.
Figures of EfficientNet-Lite0 have its name (`lite0_kid`), because they are not comparable with those in papers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from defectgen.evaluation.data import Example
from defectgen.imaging.windows import BoolArray, FloatArray, defect_pieces
from defectgen.nn.features import Extractor, Features, Lite0, embed, lite0

WINDOW = 64  # pixels of a window around a defect
_LEVELS = 3  # levels of the pyramid: 64, 32 and 16 pixels
_PATCH = 7  # side of a patch in pixels
_PATCHES_PER_WINDOW = 64  # for each level
_MAX_PATCHES = 8192  # for each set and level
_DIRECTIONS = 256  # random projections
_NEIGHBOR = 3  # k of precision and recall


def window_around(x: FloatArray, mask: BoolArray) -> FloatArray:
    """Window around the largest defect of a mask, [C, 64, 64], mirrored beyond the edges; large defects are reduced."""
    box, _ = max(defect_pieces(mask), key=lambda piece: int(piece[1].sum()))
    side = max(WINDOW, round(1.2 * max(box.width, box.height)))
    pad = [(0, 0), (side // 2, side - side // 2), (side // 2, side - side // 2)]
    y, x0 = round(box.y + (box.height - 1) / 2), round(box.x + (box.width - 1) / 2)
    window = np.pad(x, pad, mode="symmetric")[:, y : y + side, x0 : x0 + side]
    if side == WINDOW:
        return window
    small = cv2.resize(window.transpose(1, 2, 0), (WINDOW, WINDOW), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.reshape(WINDOW, WINDOW, -1).transpose(2, 0, 1))


def windows_around(examples: Sequence[Example]) -> FloatArray:
    """`window_around` the defects of several examples, [N, C, 64, 64]."""
    return np.stack([window_around(each.x, each.mask) for each in examples])


# --- Without a network -----------------------------------------------------------------------------------------


def sliced_wasserstein(real: FloatArray, made: FloatArray, seed: int = 0) -> float:
    """Sliced Wasserstein distance between the patches of two sets, times 1000 (Karras et al. 2018, section 5).

    It is the mean over three levels of a Laplacian pyramid. Patches have 7 x 7 pixels; their channels are normalized by
    the mean and standard deviation of the real ones. Both sets contribute the same number of patches.

    Args:
        real, made: [N, C, S, S] in [-1, 1].
    """
    rng = np.random.default_rng(seed)
    distances = []
    for ours, theirs in zip(_pyramid(real), _pyramid(made), strict=True):
        a, b = _patches(ours, rng), _patches(theirs, rng)
        count = min(len(a), len(b), _MAX_PATCHES)
        a, b = (rng.permutation(each)[:count] for each in (a, b))
        mean, spread = a.mean(axis=(0, 2), keepdims=True), a.std(axis=(0, 2), keepdims=True) + 1e-6
        a, b = (((each - mean) / spread).reshape(count, -1) for each in (a, b))
        lines = rng.normal(size=(a.shape[1], _DIRECTIONS)).astype(np.float32)
        lines /= np.linalg.norm(lines, axis=0)
        distances.append(float(np.abs(np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)).mean()))
    return 1000 * float(np.mean(distances))


def _pyramid(images: FloatArray) -> list[FloatArray]:
    """The levels of a Laplacian pyramid, [N, C, S, S] each; the coarsest is the reduced image."""
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
    """64 random patches of each image: [N * 64, C, 49]."""
    count, channels, side, _ = images.shape
    corners = rng.integers(0, side - _PATCH + 1, (count, _PATCHES_PER_WINDOW, 2))
    views = np.lib.stride_tricks.sliding_window_view(images, (_PATCH, _PATCH), axis=(2, 3))
    index = np.arange(count)[:, None]
    chosen = views[index, :, corners[..., 0], corners[..., 1]]
    return np.ascontiguousarray(chosen.reshape(count * _PATCHES_PER_WINDOW, channels, -1), np.float32)


# --- With features ---------------------------------------------------------------------------------------------


def fid(real: Features, made: Features) -> float:
    """The Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6). Features [N, D] with N >= 2."""
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
    """The share of each set that lies in the manifold of the other (Kynkaanniemi et al. 2019, eqs. 1 and 2), k = 3."""
    return _coverage(made, real), _coverage(real, made)


def _coverage(points: Features, others: Features) -> float:
    own = _distances(others, others)
    k = min(_NEIGHBOR, len(others) - 1)
    radii = np.sort(own, axis=1)[:, k]  # index 0 is the distance of a point from itself
    return float((_distances(points, others) <= radii[None]).any(axis=1).mean())


def clustered_lpips(real: Features, made: Features) -> float:
    """The mean distance within the clusters around the real images (DFMGAN, section 4.2); near 0 for copies.

    Clusters of one image have no pairs and do not count.

    Args:
        real, made: features [N, D] whose squared distance is LPIPS.
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


# --- All figures of a category ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """Windows [N, C, 64, 64] with what the network sees of each."""

    windows: FloatArray
    features: Features
    perceptual: Features


class Figures:
    """Compares windows around the synthetic and the real defects of a category.

    Each figure comes with a floor, measured between two halves of the real defects, and a yardstick, measured with
    cut-outs of the same real defects: `swd`, `swd_floor`, `swd_cutouts`.
    """

    def __init__(self, device: torch.device, networks: Mapping[str, Extractor], seed: int) -> None:
        self.network, self._networks, self._seed = lite0(device), networks, seed

    def of_category(
        self, real: Sequence[Example], cut_outs: FloatArray | None
    ) -> Callable[[Sequence[Example]], dict[str, float]]:
        """The figures of a category as a function of its synthetic defects. The rest is measured here, once.

        Args:
            cut_outs: windows [N, C, 64, 64], or None for no yardstick.
        """
        ours = self._view(windows_around(real))
        half = np.random.default_rng(self._seed).permutation(len(real))
        beside: dict[str, float] = {}
        if len(real) > 3:
            floor = self._compare(*(self._view(ours.windows[half[start::2]]) for start in (0, 1)))
            beside |= {f"{name}_floor": value for name, value in floor.items()}
        if cut_outs is not None:
            yardstick = self._compare(ours, self._view(cut_outs))
            beside |= {f"{name}_cutouts": value for name, value in yardstick.items()}

        def measure(made: Sequence[Example]) -> dict[str, float]:
            theirs = self._view(windows_around(made))
            sizes = {"real": float(len(real)), "synthetic": float(len(made))}
            figures = self._compare(ours, theirs)
            return {**sizes, **figures, **beside, **self._paper_metrics(ours.windows, theirs.windows)}

        return measure

    def _view(self, windows: FloatArray) -> "_View":
        large = upsampled(windows)
        return _View(windows, embed(self.network, large), perceptual(self.network, large))

    def _compare(self, real: "_View", made: "_View") -> dict[str, float]:
        value, spread = kid_with_spread(real.features, made.features, self._seed)
        precision, recall = precision_and_recall(real.features, made.features)
        return {
            "swd": sliced_wasserstein(real.windows, made.windows, self._seed),
            "lite0_kid": value,
            "lite0_kid_spread": spread,
            "lite0_precision": precision,
            "lite0_recall": recall,
            "lite0_variety": clustered_lpips(real.perceptual, made.perceptual),
        }

    def _paper_metrics(self, real: FloatArray, made: FloatArray) -> dict[str, float]:
        found: dict[str, float] = {}
        if "inception" in self._networks:
            a, b = (self._networks["inception"](windows) for windows in (real, made))
            precision, recall = precision_and_recall(a, b)
            found |= {"fid": fid(a, b), "kid": kid(a, b), "precision": precision, "recall": recall}
        if "lpips" in self._networks:
            a, b = (self._networks["lpips"](windows) for windows in (real, made))
            found["clustered_lpips"] = clustered_lpips(a, b)
        return found


def kid_with_spread(real: Features, made: Features, seed: int, draws: int = 20) -> tuple[float, float]:
    """KID, and its standard deviation over random subsets of 80 percent of each set."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(draws):
        parts = [each[rng.permutation(len(each))[: max(2, round(0.8 * len(each)))]] for each in (real, made)]
        values.append(kid(*parts))
    return kid(real, made), float(np.std(values))


@torch.no_grad()
def perceptual(network: Lite0, images: FloatArray) -> Features:
    """Features [N, D] whose Euclidean distance is perceptual (Zhang et al. 2018, eq. 1).

    The maps at strides 8 and 16 have equal weights, and their channels are normalized to length 1 at each position.

    Args:
        images: [N, C, H, W] in [-1, 1].
    """
    device = next(network.parameters()).device
    rows = []
    for image in images:
        maps = network(torch.from_numpy(image[None]).to(device))[1:3]
        parts = [F.normalize(each[0], dim=0) / (each.shape[2] * each.shape[3] * len(maps)) ** 0.5 for each in maps]
        rows.append(torch.cat([part.flatten() for part in parts]).cpu().numpy())
    return np.stack(rows).astype(np.float64)


def upsampled(windows: FloatArray) -> FloatArray:
    """Windows at twice their size, because the network was trained on objects that fill the image."""
    x = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(windows)), scale_factor=2, mode="bilinear", align_corners=False
    )
    return np.asarray(x.numpy(), np.float32)
