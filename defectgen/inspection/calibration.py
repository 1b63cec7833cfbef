"""Sets the threshold of an inspection by flawless images and, if there are any, known defects."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from defectgen.errors import BadInputError
from defectgen.inspection.inspector import Criteria, Finding, Unreadable
from defectgen.inspection.scores import Scorer
from defectgen.inspection.scoring import BINS, HIGHEST, PixelCounts, best_threshold
from defectgen.ranking import auroc

SHARE: Final = 0.99
"""The fraction of the flawless images that pass, if it is not given and no defects are known."""
BORDERS: Final = (4, 8, 16, 32)
"""Borders in pixels that a calibration tries."""
_PIXELS = 0.999  # fraction of the pixels of flawless images below the floor
_FOLDS = 5
_RESAMPLED = 200
_SURE = 0.95
_BENT = 20  # scores of a tail, from which on its shape can be told
_TAIL = 0.1, 10  # fraction of the flawless scores that are the tail, and at least so many
_GAIN = 0.02  # in AUROC, for which a border is worth what it hides
_LOWER = 0.7  # of the threshold without a border


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what is known about it. The figures of known defects are None without any.

    `low` and `high` are the limits of the 95% confidence interval of the threshold, by resampling the images.
    """

    scorer: Scorer
    threshold: float
    low: float
    high: float
    floor: float
    border: int
    normals: int
    defects: int = 0
    auroc: float | None = None
    f1: float | None = None
    """Of the verdicts on images that each threshold was not chosen by, in five folds; as the next two."""
    false_alarm_rate: float | None = None
    recall: float | None = None
    suggested_border: int | None = None
    """A border with which the threshold could be much lower."""

    @property
    def criteria(self) -> Criteria:
        """How to judge by it."""
        return Criteria(self.threshold, self.scorer, self.border, self.floor)

    @property
    def quality(self) -> tuple[float, float]:
        """The greater, the better it tells defects from flawless images."""
        return (round(self.auroc or 0.0, 3), self.f1 or 0.0)


def calibrate(
    scorer: Scorer,
    findings: Iterable[Finding | Unreadable],
    defective: Collection[str] = (),
    *,
    share: float | None = None,
    border: int | None = None,
    seed: int = 0,
) -> Calibration:
    """The threshold with the best F1; without defects, or with `share`, the one that this share of normals passes.

    The share is that of an exponential tail, fitted to the highest scores, since a few images do not show the highest
    that are to come.

    Args:
        findings: of flawless images and known defects, judged with `Criteria.borders` = `BORDERS`. If their pixels are
            counted, the floor is set by them.
        defective: the paths of those with defects, as text.
        border: pixels that are ignored in `findings`; None if the best border is to be chosen by known defects.

    Raises:
        BadInputError: none of the flawless images can be read.
    """
    rows, bad_rows, unreadable = list[tuple[float, ...]](), list[bool](), list[Unreadable]()
    counts = PixelCounts.none()
    for each in findings:
        if isinstance(each, Unreadable):
            unreadable.append(each)
            continue
        rows.append((each.score, *each.bordered))
        bad_rows.append(str(each.path) in defective)
        if each.pixels is not None:
            counts += each.pixels
    bad = np.array(bad_rows, np.bool_)
    if not (~bad).any():
        named = "; ".join(f"{each.path}: {each.reason}" for each in unreadable[:3])
        more = f"; and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise BadInputError(f"no readable image to calibrate on ({named or 'there are none'}{more})")
    widths = (border or 0, *(BORDERS if border is None else ()))
    columns = dict(zip(widths, np.array(rows).T, strict=False))
    columns = {wide: scores for wide, scores in columns.items() if not np.isnan(scores).any()}
    chosen = widths[0]
    suggested = None
    if bad.any():
        gain = {wide: auroc(scores[bad], scores[~bad]) or 0.0 for wide, scores in columns.items()}
        best = max(gain, key=lambda wide: (round(gain[wide], 3), -wide))
        chosen = best if gain[best] > gain[chosen] + _GAIN else chosen
    else:
        levels = {wide: tail(scores, share or SHARE) for wide, scores in columns.items()}
        suggested = next((wide for wide, level in levels.items() if level < _LOWER * levels[chosen]), None)
    scores = columns[chosen]
    threshold = _threshold(scores, bad, share)
    rng = np.random.default_rng(seed)
    resampled = [_threshold(*_drawn(scores, bad, rng), share) for _ in range(_RESAMPLED)]
    low, high = np.quantile(resampled, [(1 - _SURE) / 2, (1 + _SURE) / 2])
    known = _cross_validated(scores, bad, share) if bad.any() else {}
    return Calibration(
        scorer=scorer, threshold=threshold, low=float(low), high=float(high), floor=_floor(counts, threshold),
        border=chosen, normals=int((~bad).sum()), defects=int(bad.sum()), suggested_border=suggested,
        auroc=auroc(scores[bad], scores[~bad]) if bad.any() else None, **known,
    )  # fmt: skip


def tail(scores: NDArray[np.float64], share: float) -> float:
    """The score that a share of flawless images does not exceed, by an exponential tail fitted to their highest scores.

    The tail is a tenth of the scores, but at least ten, or half if there are fewer; one of twenty or more may have an
    end. Below it, and for a share of 1, it is the quantile itself.
    """
    ordered = np.sort(scores)[::-1]
    count = min(max(math.ceil(_TAIL[0] * len(ordered)), _TAIL[1]), len(ordered) // 2)
    beyond = (1 - share) * len(ordered)
    if not count or beyond >= count or share == 1:
        return float(np.quantile(scores, share, method="higher"))
    start = float(ordered[count])
    excess = ordered[:count] - start
    mean, variance = float(excess.mean()), float(excess.var())
    times = count / max(beyond, 1e-3)
    if count < _BENT or not variance:
        return min(start + mean * math.log(times), HIGHEST)
    # By its moments, a generalized Pareto distribution whose tail is exponential or ends, as scores do.
    shape = min(max((1 - mean**2 / variance) / 2, -1.0), 0.0)
    scale = mean * (1 - shape)
    return min(start + scale * (math.log(times) if shape == 0 else (times**shape - 1) / shape), HIGHEST)


def _threshold(scores: NDArray[np.float64], bad: NDArray[np.bool_], share: float | None) -> float:
    if share is None and bad.any() and (best := best_threshold(scores[bad], scores[~bad])) is not None:
        return best[0]
    return tail(scores[~bad], share or SHARE)


def _drawn(
    scores: NDArray[np.float64], bad: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """As many flawless images and as many defects, drawn with replacement."""
    chosen = np.concatenate([rng.choice(each, len(each)) for each in (np.flatnonzero(~bad), np.flatnonzero(bad))])
    return scores[chosen], bad[chosen]


def _cross_validated(scores: NDArray[np.float64], bad: NDArray[np.bool_], share: float | None) -> dict[str, float]:
    """How well thresholds do on images that they were not chosen by."""
    verdicts = np.zeros(len(scores), np.bool_)
    folds = np.zeros(len(scores), np.int64)
    for kind in (bad, ~bad):
        folds[kind] = np.arange(kind.sum()) % _FOLDS
    for fold in range(_FOLDS):
        rest = folds != fold
        if (rest & ~bad).any():
            verdicts[~rest] = scores[~rest] > _threshold(scores[rest], bad[rest], share)
    hits, alarms = int(verdicts[bad].sum()), int(verdicts[~bad].sum())
    return {
        "f1": 2 * hits / max(hits + alarms + int(bad.sum()), 1),
        "recall": hits / int(bad.sum()),
        "false_alarm_rate": alarms / int((~bad).sum()),
    }


def _floor(counts: PixelCounts, threshold: float) -> float:
    """The least score of a defect's pixels: the one that suits known masks best, else a quantile of flawless pixels."""
    if not counts.images:
        return 0.0
    if counts.defective.any():
        hits, alarms = (np.cumsum(each[::-1])[::-1] for each in (counts.defective, counts.flawless))
        f1 = 2 * hits / np.maximum(hits + alarms + hits[0], 1)
        at = int(np.flatnonzero(f1 == f1.max()).mean())
    else:
        below = np.cumsum(counts.flawless)
        at = int(np.searchsorted(below, _PIXELS * below[-1])) + 1
    return min(at * HIGHEST / BINS, threshold)
