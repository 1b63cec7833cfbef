"""The area under the ROC curve, of scores and of their histograms."""

import numpy as np
from numpy.typing import NDArray


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float | None:
    """The probability that one of the `positive` scores is above one of the `negative`; equal ones count half.

    None if there are none of either.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below, not_above = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negative)))


def histogram_auroc(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> float | None:
    """The same of histograms, from the lowest score to the highest. Scores in the same bin are equal."""
    pairs = float(positive.sum()) * float(negative.sum())
    below = np.cumsum(negative.astype(np.float64)) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else None
