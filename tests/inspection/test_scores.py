from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage
from defectgen.inspection.scores import DIFFERENCE, SSIM, Scorer


def board(shift: int = 0, *, line: bool = True) -> NDArray[np.uint8]:
    """A bright block, moved to the right and down, and a thin line."""
    image = np.full((96, 128), 40, np.uint8)
    image[20 + shift : 60 + shift, 30 + shift : 80 + shift] = 200
    if line:
        image[75:78, 10:110] = 200
    return image


def scores(scorer: Scorer, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float32]:
    return scorer(DecodedImage(x), y)(0, len(x))


def test_an_edge_may_lie_two_pixels_elsewhere() -> None:
    for by in (-2, -1, 1, 2):
        assert scores(DIFFERENCE, board(by), board()).max() == 0
        assert scores(SSIM, board(by), board()).max() > 0.5
    assert scores(DIFFERENCE, board(4), board()).max() > 0.2


def test_a_line_must_be_there_and_none_may_be_new() -> None:
    for x, y in ((board(), board(line=False)), (board(line=False), board())):
        found = scores(DIFFERENCE, x, y)
        assert found[76, 20:100].min() > 0.3
        assert found[:60].max() == 0


def test_a_smooth_stain_is_seen() -> None:
    whole = np.full((180, 180), 130, np.uint8)
    rows, columns = np.mgrid[:180, :180]
    stain = 30 * np.exp(-((rows - 90) ** 2 + (columns - 90) ** 2) / (2 * 30**2))
    stained = (whole - stain).astype(np.uint8)
    assert scores(DIFFERENCE, stained, whole).max() == pytest.approx(30 / 255, abs=0.01)
    assert scores(SSIM, stained, whole).max() < 0.1


def test_a_difference_of_one_pixel_is_that_of_the_blur() -> None:
    whole = np.zeros((40, 40), np.uint8)
    dotted = whole.copy()
    dotted[20, 20] = 255
    kernel = cv2.getGaussianKernel(13, 1.5)
    expected = np.zeros((40, 40))
    expected[14:27, 14:27] = kernel @ kernel.T
    np.testing.assert_allclose(scores(DIFFERENCE, dotted, whole), expected, atol=1e-6)
    deep = scores(DIFFERENCE, dotted.astype(np.uint16) * 257, whole.astype(np.uint16))
    assert 0 < deep.max() <= 2


def test_the_edges_of_an_image_are_not_compared() -> None:
    """The neighbours that would excuse a difference are not in the image."""
    whole, other = np.zeros((2, 40, 50), np.uint8)
    other[:3], other[-3:], other[:, :3], other[:, -3:] = 255, 255, 255, 255
    assert scores(DIFFERENCE, whole, other).max() == 0
    other[:4] = 255
    assert scores(DIFFERENCE, whole, other).max() > 0


@pytest.mark.parametrize("scorer", [SSIM, DIFFERENCE], ids=lambda scorer: scorer.name)
@pytest.mark.parametrize("shape", [(200, 70), (200, 70, 3), (200, 70, 4)])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_strips_are_those_of_the_whole_map(scorer: Scorer, shape: tuple[int, ...], depth: type) -> None:
    rng = np.random.default_rng(0)
    x: Any
    y: Any
    x, y = (rng.integers(0, 255 if depth == np.uint8 else 4000, shape).astype(depth) for _ in range(2))
    rows = scorer(DecodedImage(x), y)
    whole = rows(0, 200)
    assert whole.shape == (200, 70)
    for top, bottom in ((0, 64), (64, 128), (64, 200), (128, 200)):
        np.testing.assert_array_equal(rows(top, bottom), whole[top:bottom])


def test_alpha_is_ignored_and_the_greatest_channel_counts() -> None:
    x = np.full((40, 40, 4), 100, np.uint8)
    y = x.copy()
    y[..., 3] = 0
    assert scores(DIFFERENCE, x, y).max() == 0
    y[10:30, 10:30, 1] = 151
    assert scores(DIFFERENCE, x, y)[20, 20] == pytest.approx(0.2, abs=1e-4)
