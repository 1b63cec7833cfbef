import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.errors import BadInputError
from defectgen.imaging.images import DecodedImage
from defectgen.inspection.calibration import BORDERS, calibrate, tail
from defectgen.inspection.inspector import Finding, Unreadable
from defectgen.inspection.scores import DIFFERENCE
from defectgen.inspection.scoring import count_pixels

BLANK = DecodedImage(np.zeros((3, 3), np.uint8))
MASK = np.zeros((3, 3), np.bool_)


def findings(scores: Sequence[float], prefix: str = "good", bordered: Sequence[float] | None = None) -> list[Finding]:
    return [
        Finding(Path(f"{prefix}{i}"), BLANK, score, math.inf, MASK, bordered=tuple(bordered or [score] * len(BORDERS)))
        for i, score in enumerate(scores)
    ]


def names(found: Sequence[Finding]) -> set[str]:
    return {str(each.path) for each in found}


def exponential(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).exponential(0.1, count) + 0.2


def test_the_tail_of_few_images_is_that_of_many() -> None:
    true = 0.2 + 0.1 * math.log(100)
    few = [tail(exponential(30, seed), 0.99) for seed in range(200)]
    assert np.median(few) == pytest.approx(true, rel=0.1)
    highest = [exponential(30, seed).max() for seed in range(200)]
    assert abs(np.median(few) - true) < abs(np.median(highest) - true)
    assert tail(exponential(20_000), 0.99) == pytest.approx(true, rel=0.05)


def test_the_tail_by_hand() -> None:
    """Half of four scores: (.3 + .1) / 2 above .2, and 1% of four lie beyond."""
    assert tail(np.array([0.1, 0.2, 0.3, 0.5]), 0.99) == pytest.approx(0.2 + 0.2 * math.log(2 / 0.04))
    assert tail(np.array([0.4]), 0.99) == 0.4
    assert tail(np.arange(1, 101) / 100, 0.5) == pytest.approx(0.51)
    assert tail(np.arange(1, 101) / 100, 1) == pytest.approx(1.0)
    assert tail(np.array([0.1, 1.9]), 0.99) == 2.0


def test_known_defects_set_the_threshold_by_the_best_f1() -> None:
    bad = findings([0.9, 0.8, 0.7, 0.75, 0.2], "bad")
    found = calibrate(DIFFERENCE, [*findings([0.1, 0.3, 0.4, 0.35, 0.5]), *bad], names(bad))
    assert found.threshold == pytest.approx(0.6)
    assert (found.normals, found.defects) == (5, 5)
    assert found.auroc == pytest.approx(21 / 25)
    assert found.f1 == pytest.approx(8 / 9)  # one of five is missed by any threshold
    assert (found.recall, found.false_alarm_rate) == (0.8, 0)
    shared = calibrate(DIFFERENCE, [*findings([0.1, 0.3, 0.4, 0.35, 0.5]), *bad], names(bad), share=1.0)
    assert shared.threshold == 0.5


def test_fewer_images_leave_more_uncertain() -> None:
    few, many = (calibrate(DIFFERENCE, findings(exponential(count).tolist())) for count in (10, 300))
    for each in (few, many):
        assert each.low <= each.threshold <= each.high
        assert each.f1 is None
    assert few.high - few.low > 2 * (many.high - many.low)
    assert few == calibrate(DIFFERENCE, findings(exponential(10).tolist()))  # the same twice


def test_a_border_is_chosen_by_defects_and_only_suggested_without() -> None:
    edges = [1.0, 0.2, 0.2, 0.2]  # with borders of 4, 8, 16 and 32 pixels
    good, bad = findings([1.0] * 6, bordered=edges), findings([0.9, 0.8, 1.5], "bad")
    assert calibrate(DIFFERENCE, [*good, *bad], names(bad)).border == 8
    alone = calibrate(DIFFERENCE, good)
    assert (alone.border, alone.suggested_border) == (0, 8)
    given = calibrate(DIFFERENCE, good, border=3)
    assert (given.border, given.suggested_border) == (3, None)
    even = calibrate(DIFFERENCE, [*findings([0.1] * 6), *bad], names(bad))
    assert even.border == 0
    nothing_left = findings([0.1, 0.2, 0.3, 0.4], bordered=[0.01, math.nan, math.nan, math.nan])
    assert calibrate(DIFFERENCE, nothing_left).suggested_border == 4


def test_the_floor_is_that_of_the_pixels() -> None:
    scores = np.array([[0.1, 0.2, 0.6, 0.7], [0.3, 0.4, 0.9, 0.5]], np.float32)
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 0]], np.bool_)

    def counted(path: str, of: NDArray[np.bool_]) -> Finding:
        pixels = count_pixels([(slice(0, 2), scores)], of, of)
        return Finding(Path(path), BLANK, 0.9, math.inf, MASK, pixels, bordered=(math.nan,) * len(BORDERS))

    good = findings([0.1, 0.2])
    assert calibrate(DIFFERENCE, [*good, counted("bad", truth)], {"bad"}).floor == pytest.approx(0.55, abs=1e-3)
    flawless = calibrate(DIFFERENCE, [counted("good", np.zeros_like(truth))])
    assert flawless.floor == pytest.approx(0.9, abs=1e-3)  # the threshold, which it may not exceed
    assert calibrate(DIFFERENCE, good).floor == 0


def test_what_cannot_be_read_is_named() -> None:
    broken = [Unreadable(Path(f"b{i}"), "broken") for i in range(5)]
    found = calibrate(DIFFERENCE, [*findings([0.1, 0.3]), *broken])
    assert found.normals == 2
    with pytest.raises(BadInputError, match="b0: broken; b1: broken; b2: broken; and 2 more"):
        calibrate(DIFFERENCE, [*findings([0.3], "bad"), *broken], {"bad0"})


def test_a_tail_that_ends_is_not_drawn_out() -> None:
    """Scores of classifiers crowd near their greatest value."""
    uniform = [tail(np.random.default_rng(seed).uniform(0, 1.9, 300), 0.999) for seed in range(50)]
    assert np.median(uniform) == pytest.approx(1.9, abs=0.05)
