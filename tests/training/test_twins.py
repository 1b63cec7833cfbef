from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage
from defectgen.training.twins import repaired


def streaks(depth: int, channels: int = 1) -> NDArray[Any]:
    """A surface with upright streaks and noise."""
    rng = np.random.default_rng(0)
    gray = 110 + 25 * np.sin(np.arange(140) / 3)[None] + rng.normal(0, 2, (100, 140))
    pixels = gray if channels == 1 else np.stack([gray, gray * 0.8, gray * 0.6], axis=2)
    return np.rint(pixels).astype(np.uint8) if depth == 8 else np.rint(pixels * 257).astype(np.uint16)


def disc(radius: int = 8) -> NDArray[np.bool_]:
    return cv2.circle(np.zeros((100, 140), np.uint8), (60, 50), radius, 1, -1) > 0


@pytest.mark.parametrize(("depth", "channels"), [(8, 1), (8, 3), (16, 1)])
def test_the_defect_is_gone_and_the_rest_untouched(depth: int, channels: int) -> None:
    good, mask = streaks(depth, channels), disc()
    bad = good.copy()
    bad[mask] = 0
    twin = repaired(DecodedImage(bad), mask)
    assert (twin.dtype, twin.shape) == (bad.dtype, bad.shape)
    unit = 1 if depth == 8 else 257
    error = np.abs(twin.astype(float) - good)
    assert error[mask].mean() < 10 * unit  # the streaks, whose amplitude is 25, go on
    far = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)) == 0
    assert error[far].max() == 0
    np.testing.assert_array_equal(twin, repaired(DecodedImage(bad), mask))


def test_other_defects_are_no_patch() -> None:
    """Half of the photograph is a defect, too: what covers the other one comes from the rest."""
    pixels, mask = streaks(8), disc()
    mask[:, 90:] = True
    pixels[mask] = 250
    assert repaired(DecodedImage(pixels), mask)[disc()].max() < 180


def test_a_defect_as_large_as_the_photograph_is_inpainted() -> None:
    pixels, mask = streaks(16), np.zeros((100, 140), np.bool_)
    mask[10:90, 10:130] = True
    pixels[mask] = 65535
    twin = repaired(DecodedImage(pixels), mask)
    assert twin[20:80, 20:120].max() < 50_000
