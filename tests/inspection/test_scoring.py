"""Figures of an inspection, against pairs counted one by one, thresholds tried one by one, and cases done by hand."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from defectgen.imaging.windows import BoolArray, FloatArray
from defectgen.inspection.scoring import (
    BINS,
    Judged,
    PixelCounts,
    best_threshold,
    count_pixels,
    image_figures,
    pixel_figures,
)
from defectgen.ranking import auroc


def judged(text: str, threshold: float) -> list[Judged]:
    """Images from `CATEGORY SCORE, ...`; `-` is flawless."""
    words = (each.split() for each in text.split(","))
    return [
        Judged(() if name == "-" else tuple(name.split("+")), float(score), float(score) > threshold)
        for name, score in words
    ]


def test_the_figures_of_images_are_those_counted_by_hand() -> None:
    figures = image_figures(judged("- 0.1, - 0.2, - 0.4, - 0.7, crack 0.9, crack 0.3, spot 0.6, spot+crack 0.7", 0.5))
    assert {key: figures[key] for key in ("images", "normals", "defects", "false_alarms")} == {
        "images": 8, "normals": 4, "defects": 4, "false_alarms": 1,
    }  # fmt: skip
    assert figures["accuracy"] == 6 / 8
    assert figures["precision"] == 3 / 4
    assert figures["recall"] == 3 / 4
    assert figures["f1"] == 3 / 4
    assert figures["false_alarm_rate"] == 1 / 4
    assert figures["auroc"] == pytest.approx((4 + 2 + 3 + 3.5) / 16)
    assert figures["categories"] == {
        "crack": {"images": 3, "found": 2, "recall": 2 / 3, "auroc": pytest.approx((4 + 2 + 3.5) / 12)},
        "spot": {"images": 2, "found": 2, "recall": 1.0, "auroc": pytest.approx((3 + 3.5) / 8)},
    }
    # With a threshold between 0.2 and 0.3: 4 hits, 2 alarms; between 0.4 and 0.6: 3 hits, 1 alarm.
    assert figures["best_f1"] == pytest.approx(8 / 10)
    assert figures["best_threshold"] == pytest.approx(0.25)


def test_what_is_undefined_is_none() -> None:
    none = image_figures([])
    assert {key for key, value in none.items() if value is None} == {
        "accuracy", "precision", "recall", "f1", "auroc", "best_threshold", "best_f1", "false_alarm_rate",
    }  # fmt: skip
    missed = image_figures(judged("crack 0, - 0", 0.5))
    assert (missed["precision"], missed["recall"], missed["f1"], missed["auroc"]) == (None, 0, 0, 0.5)
    assert missed["best_threshold"] is None  # no threshold of 0 or more finds it
    only = image_figures(judged("crack 0.9", 0.5))
    assert (only["auroc"], only["false_alarm_rate"], only["best_threshold"]) == (None, None, 0.45)
    assert only["categories"]["crack"]["auroc"] is None
    assert set(pixel_figures(PixelCounts.none()).values()) == {0, None}


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_the_best_threshold_are_those_of_all_pairs_and_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = np.round(rng.uniform(0.2, 1, rng.integers(1, 12)), 1)  # many are equal
    negative = np.round(rng.uniform(0, 0.9, rng.integers(1, 12)), 1)
    pairs = [(p > n) + (p == n) / 2 for p, n in itertools.product(positive, negative)]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))

    def f1(threshold: float) -> float:
        hits, alarms = (positive > threshold).sum(), (negative > threshold).sum()
        return float(2 * hits / (hits + alarms + len(positive)))

    found = best_threshold(positive, negative)
    assert found is not None
    threshold, best = found
    assert best == pytest.approx(f1(threshold))
    assert best == pytest.approx(max(f1(each) for each in np.arange(0, 2, 0.05)))
    higher = (each for each in (*positive, *negative) if each > threshold)
    assert all(f1(each) < best - 1e-9 for each in higher)


def brute(maps: list[FloatArray], truths: list[BoolArray]) -> tuple[float, float]:
    """AUROC by pairs, and AUPRO by all thresholds."""
    positive = np.concatenate([scores[truth] for scores, truth in zip(maps, truths, strict=True)])
    negative = np.concatenate([scores[~truth] for scores, truth in zip(maps, truths, strict=True)])
    above = positive[:, None] - negative[None]
    regions: list[NDArray[np.float32]] = []
    for scores, truth in zip(maps, truths, strict=True):
        labels, count = ndimage.label(truth, np.ones((3, 3)))
        regions += [scores[labels == number] for number in range(1, count + 1)]
    x, y = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([positive, negative]))[::-1]:
        x.append(float((negative >= threshold).mean()))
        y.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    fine = np.linspace(0, 0.3, 300_001)
    curve = np.interp(fine, x, y)
    return float(((above > 0) + (above == 0) / 2).mean()), float(curve[:-1].mean())


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_of_pixels_are_those_of_all_pairs_and_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps, truths, counts = [], [], PixelCounts.none()
    hits = found_pixels = 0
    for _ in range(4):
        truth = ndimage.binary_dilation(rng.random((24, 31)) < 0.01, np.ones((3, 3)))
        levels = np.round(rng.random(truth.shape) * 0.7 + truth * rng.uniform(0, 0.5), 2)
        scores = ((levels * 100 + 0.5) / 100).astype(np.float32)  # equal or in different bins
        found = rng.random(truth.shape) < 0.2
        strips = [(slice(top, top + 8), scores[top : top + 8]) for top in range(0, 24, 8)]
        one = count_pixels(strips, truth, found)
        whole = count_pixels([(slice(0, 24), scores)], truth, found)
        np.testing.assert_array_equal(one.defective, whole.defective)
        np.testing.assert_allclose(one.overlap, whole.overlap)
        counts += one
        maps.append(scores)
        truths.append(truth)
        hits += int((found & truth).sum())
        found_pixels += int(found.sum())
    figures = pixel_figures(counts)
    area, aupro = brute(maps, truths)
    assert figures["auroc"] == pytest.approx(area, abs=1e-9)
    assert figures["aupro"] == pytest.approx(aupro, abs=1e-4)
    true_pixels = sum(int(truth.sum()) for truth in truths)
    assert figures["f1"] == pytest.approx(2 * hits / (true_pixels + found_pixels))
    assert figures["images"] == 4
    assert figures["regions"] == sum(ndimage.label(truth, np.ones((3, 3)))[1] for truth in truths)
    assert len(counts.defective) == BINS


def test_aupro_weighs_regions_the_same_whatever_their_size() -> None:
    """One large region that is found and one small one that is not, without a false positive: one half."""
    truth, scores = np.zeros((20, 20), np.bool_), np.zeros((20, 20), np.float32)
    truth[:10, :10] = truth[15, 15] = True
    scores[:10, :10] = 1.5
    scores[0, 19] = 0.5  # a false positive, which makes the curve start at 0 and not where the rate is 1
    figures = pixel_figures(count_pixels([(slice(0, 20), scores)], truth, scores > 1))
    # From a rate of 1/299 at 0.5, the overlap rises straight to 1 at a rate of 1, where the score is 0.
    first = 1 / 299
    at_end = 0.5 + 0.5 * (0.3 - first) / (1 - first)
    assert figures["aupro"] == pytest.approx((first * 0.5 + (0.3 - first) * (0.5 + at_end) / 2) / 0.3)
    assert figures["f1"] == pytest.approx(200 / 201)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_any_shape_and_any_truth_is_counted(shape: tuple[int, int]) -> None:
    scores = np.full(shape, 2.0, np.float32)
    for truth in (np.zeros(shape, np.bool_), np.ones(shape, np.bool_)):
        counts = count_pixels([(slice(0, shape[0]), scores)], truth, truth)
        assert (counts.defective.sum(), counts.flawless.sum()) == (truth.sum(), (~truth).sum())
        assert counts.overlap.sum() == pytest.approx(counts.regions) == pytest.approx(float(truth.any()))
