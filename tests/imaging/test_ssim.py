"""Structural similarity and Otsu's threshold, against scikit-image."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity

from defectgen.imaging.ssim import STRIP, limits_of, otsu, ssim_map


def scratched(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    result = image.copy()
    result[40:46, 30:90] = np.clip(result[40:46, 30:90].astype(int) - 70, 0, 255)
    return result


def surface(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.normal(0, 40, (6, 6)), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    coarse = coarse if len(shape) == 2 else coarse[..., None]
    return np.clip(130 + coarse + rng.normal(0, 6, shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(70, 90), (64, 64), (200, 33), (9, 130), (129, 80, 3)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_map_equals_that_of_scikit_image(shape: tuple[int, ...], threads: int) -> None:
    x = surface(shape)
    y = surface(shape, seed=1)
    y[: shape[0] // 2] = x[: shape[0] // 2]
    axis = 2 if len(shape) == 3 else None
    _, full = structural_similarity(x, y, win_size=9, data_range=255, full=True, channel_axis=axis)
    expected = full if axis is None else full.mean(axis=2)
    np.testing.assert_allclose(ssim_map(x, y, threads=threads), expected, atol=1e-4)


def test_black_and_white_and_16_bit_images_give_the_same_map() -> None:
    extremes = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (60, 60))
    _, full = structural_similarity(extremes, 255 - extremes, win_size=9, data_range=255, full=True)
    np.testing.assert_allclose(ssim_map(extremes, 255 - extremes), full, atol=1e-4)
    deep = (surface((60, 60)).astype(np.uint16) << 8) + 17
    other = np.ascontiguousarray(deep[::-1])
    _, full = structural_similarity(deep, other, win_size=9, data_range=65535, full=True)
    np.testing.assert_allclose(ssim_map(deep, other, 65535.0), full, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_equals_that_of_scikit_image(seed: int) -> None:
    x = surface((300, 400), seed)
    scores = ssim_map(x, scratched(x))
    assert otsu([scores[:100], scores[100:]], limits_of(scores)) == pytest.approx(
        float(threshold_otsu(scores)), abs=1e-4
    )


def test_a_flat_map_has_a_threshold() -> None:
    assert otsu([np.full((20, 20), 0.7, np.float32)], (0.7, 0.7)) == pytest.approx(0.7)


@pytest.mark.parametrize("shape", [(300, 41), (257, 30, 3)])
def test_some_rows_equal_those_of_the_whole_map(shape: tuple[int, ...]) -> None:
    x, y = surface(shape), surface(shape, seed=1)
    whole = ssim_map(x, y)
    for top, bottom in ((0, 64), (64, 192), (128, shape[0])):
        np.testing.assert_array_equal(ssim_map(x, y, rows=(top, bottom)), whole[top:bottom])
    np.testing.assert_allclose(ssim_map(x, y, rows=(STRIP + 5, STRIP + 90)), whole[STRIP + 5 : STRIP + 90], atol=1e-5)
