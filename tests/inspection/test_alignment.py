from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage
from defectgen.inspection.alignment import aligned
from defectgen.inspection.scores import DIFFERENCE


def surface(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    rough = cv2.GaussianBlur(rng.normal(size=(height + 80, width + 80)), (0, 0), 2)
    return rough / rough.std() * 30 + 120


def views(height: int, width: int, right: int, down: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A photograph, and the golden image that must go this far to the right and down."""
    whole = surface(height, width)
    golden = whole[40 : 40 + height, 40 : 40 + width]
    photograph = whole[40 - down : 40 - down + height, 40 - right : 40 - right + width]
    return photograph, golden


def pixels(values: NDArray[Any], depth: int = 8) -> Any:
    return values.clip(0, 255).round().astype(np.uint8) if depth == 8 else (values.clip(0, 255) * 200).astype(np.uint16)


@pytest.mark.parametrize("size", [(120, 150), (1300, 1100)])  # the second in two steps
@pytest.mark.parametrize("shift", [(0, 0), (7, -12), (-3, 5)])
def test_a_shift_is_undone(size: tuple[int, int], shift: tuple[int, int]) -> None:
    photograph, golden = map(pixels, views(*size, *shift))
    found = aligned(DecodedImage(photograph), golden)
    assert np.abs(found.astype(int) - photograph).max() <= 1  # also where the golden image has nothing


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_light_is_undone_but_not_a_defect(depth: int, channels: int) -> None:
    photograph, golden = views(160, 200, 4, 3)
    across = np.linspace(0.8, 1.1, 200)[None]
    lit = photograph * across - 10
    lit[60:90, 100:140] -= 60
    before, after = (pixels(each, depth) for each in (lit, golden))
    if channels == 3:
        before, after = (np.repeat(each[..., None], 3, axis=2) for each in (before, after))
    found = aligned(DecodedImage(before), after)
    assert (found.shape, found.dtype) == (before.shape, before.dtype)
    off = np.abs(found.astype(float) - before) / (1 if depth == 8 else 200)
    assert off[60:90, 100:140].mean() > 45
    off[58:92, 98:142] = 0
    assert off.mean() < 4
    whole = DIFFERENCE(DecodedImage(before), found)(0, 160)
    assert whole[75, 120] > 3 * np.delete(whole, slice(50, 100), axis=0).max()


def test_what_cannot_be_aligned_stays_in_its_place() -> None:
    unlike = pixels(surface(100, 100, 1)[:100, :100])
    golden = np.full((100, 100), 90, np.uint8)
    golden[:, 50:] = 160
    found = aligned(DecodedImage(unlike), golden)
    steps = np.abs(np.diff(found.astype(int), axis=1)).mean(axis=0)
    assert steps.argmax() == 49
    for size in ((1, 1), (3, 40), (20, 20)):
        even = np.full(size, 77, np.uint8)
        np.testing.assert_array_equal(aligned(DecodedImage(even), even), even)


def test_a_pattern_that_repeats_is_not_moved_by_a_period() -> None:
    """Any shift by a period fits: the smallest, none, is kept."""
    stripes = pixels(120 + 60 * np.sign(np.sin(np.arange(160) * 2 * np.pi / 16)) * np.ones((120, 1)))
    np.testing.assert_array_equal(aligned(DecodedImage(stripes), stripes), stripes)


def test_alpha_is_that_of_the_photograph() -> None:
    photograph, golden = (np.repeat(pixels(each)[..., None], 4, axis=2) for each in views(80, 90, 3, 2))
    photograph[..., 3], golden[..., 3] = 255, 0
    found = aligned(DecodedImage(photograph), golden)
    assert np.abs(found[..., :3].astype(int) - photograph[..., :3]).max() <= 1
