"""How well an inspection agrees with labels: figures of images, and of pixels where there are true masks.

Scores of pixels are counted in fixed bins, so that the figures of any number of images need the same small memory. A
figure that is undefined, such as the precision if nothing is found, is None.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.components import Components
from defectgen.imaging.windows import BoolArray, FloatArray
from defectgen.ranking import auroc, histogram_auroc

BINS = 2**16
"""Bins of the scores of pixels, from 0 to 2. Scores in the same bin count as equal."""
HIGHEST = 2.0
"""The highest score."""
_FALSE_POSITIVES = 0.3  # the rate up to which AUPRO integrates
_AT_ONCE = 2**20  # pixels


@dataclass(frozen=True)
class Judged:
    """An image with a label and a verdict. `categories` are those of its defects; a flawless one has none."""

    categories: tuple[str, ...]
    score: float
    defective: bool


def image_figures(images: Sequence[Judged]) -> dict[str, Any]:
    """The figures of verdicts and scores.

    `auroc` is the probability that a defective image scores above a flawless one; `best_f1` is that of the threshold
    which suits these images best, `best_threshold`. `categories` has the same for each, against all flawless images.
    """
    defects, normals = ([each for each in images if bool(each.categories) == kind] for kind in (True, False))
    found, alarms = (sum(each.defective for each in of_kind) for of_kind in (defects, normals))
    scores, flawless = _scores(defects), _scores(normals)
    best = best_threshold(scores, flawless)
    categories = sorted({name for each in defects for name in each.categories})
    return {
        "images": len(images),
        "normals": len(normals),
        "defects": len(defects),
        "accuracy": _ratio(found + len(normals) - alarms, len(images)),
        "precision": _ratio(found, found + alarms),
        "recall": _ratio(found, len(defects)),
        "f1": _ratio(2 * found, len(defects) + found + alarms),
        "auroc": auroc(scores, flawless),
        "best_threshold": None if best is None else best[0],
        "best_f1": None if best is None else best[1],
        "false_alarms": alarms,
        "false_alarm_rate": _ratio(alarms, len(normals)),
        "categories": {
            name: _of_category([each for each in defects if name in each.categories], flawless) for name in categories
        },
    }


def _of_category(defects: Sequence[Judged], flawless: NDArray[np.float64]) -> dict[str, Any]:
    found = sum(each.defective for each in defects)
    return {
        "images": len(defects),
        "found": found,
        "recall": _ratio(found, len(defects)),
        "auroc": auroc(_scores(defects), flawless),
    }


def best_threshold(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> tuple[float, float] | None:
    """The threshold with the highest F1, where scores above it count as positive, and that F1.

    Between two scores the threshold is in the middle. Of several thresholds the highest is taken, which has the fewest
    false alarms. None if there are no positives with a score above 0.
    """
    levels = np.unique(np.concatenate([[0.0], positive, negative]))
    if not len(positive) or positive.max() <= 0:
        return None
    thresholds = (levels[:-1] + levels[1:]) / 2
    hits, alarms = ((len(each) - np.searchsorted(np.sort(each), thresholds, "right")) for each in (positive, negative))
    f1 = 2 * hits / (hits + alarms + len(positive))
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return float(thresholds[best]), float(f1[best])


def _scores(images: Sequence[Judged]) -> NDArray[np.float64]:
    return np.array([each.score for each in images], np.float64)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


# --- Pixels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Histograms of the scores of pixels, [BINS], of one or several images, which can be added.

    `regions` are the connected components of the true masks. `overlap` has the share of each region in each bin, summed
    over the regions, so that large ones count as much as small ones. `found` are the pixels of the inspection's masks,
    and `hits` those among them that are true.
    """

    defective: NDArray[np.int64]
    flawless: NDArray[np.int64]
    overlap: NDArray[np.float64]
    images: int = 0
    regions: int = 0
    found: int = 0
    hits: int = 0

    @classmethod
    def none(cls) -> "PixelCounts":
        """Those of no image."""
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS))

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(
            self.defective + other.defective, self.flawless + other.flawless, self.overlap + other.overlap,
            self.images + other.images, self.regions + other.regions, self.found + other.found, self.hits + other.hits,
        )  # fmt: skip


def count_pixels(strips: Iterable[tuple[slice, FloatArray]], truth: BoolArray, found: BoolArray) -> PixelCounts:
    """The histograms of an image.

    Args:
        strips: the score map from top to bottom: rows, and their scores, [rows, W], 0 to 2.
        truth: the true mask, [H, W].
        found: the mask of the inspection, [H, W].
    """
    components = Components(truth)
    shares = 1 / np.maximum(components.areas, 1)
    weights = [np.zeros(0), *(shares[labels[truth[rows]]] for rows, labels in components)]
    weight = np.concatenate(weights)  # of each true pixel, row by row
    counts, taken = PixelCounts.none(), 0
    for rows, scores in strips:
        step = max(1, _AT_ONCE // scores.shape[1])
        for top in range(0, len(scores), step):
            marked = truth[rows][top : top + step]
            bins = _bins(scores[top : top + step])
            true = bins[marked]
            counts.defective[:] += np.bincount(true, minlength=BINS)
            counts.flawless[:] += np.bincount(bins[~marked], minlength=BINS)
            counts.overlap[:] += np.bincount(true, weight[taken : taken + len(true)], minlength=BINS)
            taken += len(true)
    return PixelCounts(
        counts.defective, counts.flawless, counts.overlap, images=1, regions=len(components) - 1,
        found=int(np.count_nonzero(found)), hits=int(np.count_nonzero(found & truth)),
    )  # fmt: skip


def _bins(scores: FloatArray) -> NDArray[np.int32]:
    return np.clip(scores * np.float32(BINS / HIGHEST), 0, BINS - 1).astype(np.int32)


def pixel_figures(counts: PixelCounts) -> dict[str, Any]:
    """The figures of pixels: `auroc` and `aupro` of the scores, `f1` of the masks that the inspection found."""
    defective = int(counts.defective.sum())
    return {
        "images": counts.images,
        "regions": counts.regions,
        "auroc": histogram_auroc(counts.defective, counts.flawless),
        "f1": _ratio(2 * counts.hits, defective + counts.found),
        "aupro": _aupro(counts),
    }


def _aupro(counts: PixelCounts) -> float | None:
    """The area under the per-region overlap curve up to a false positive rate of 0.3, divided by 0.3.

    Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5. At each threshold, the overlap is the
    share of a region's pixels above it, averaged over the regions; the false positive rate is the share of all flawless
    pixels above it.
    """
    flawless = counts.flawless.sum()
    if not counts.regions or not flawless:
        return None
    rate, overlap = (
        np.concatenate([[0.0], np.cumsum(each[::-1]) / total])
        for each, total in ((counts.flawless, flawless), (counts.overlap, counts.regions))
    )
    inside = rate < _FALSE_POSITIVES
    end = np.interp(_FALSE_POSITIVES, rate, overlap)
    x, y = np.append(rate[inside], _FALSE_POSITIVES), np.append(overlap[inside], end)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / _FALSE_POSITIVES)
