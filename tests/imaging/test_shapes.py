"""Shapes against masks that are computed by hand, or drawn as the owners of the formats draw them."""

import base64
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from defectgen.imaging import shapes
from defectgen.imaging.windows import BoolArray


def centers_inside(corners: NDArray[np.float64], height: int, width: int) -> BoolArray:
    """The even-odd rule at the centers of pixels, one crossing at a time."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 <= ys) != (y1 <= ys)) & (xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
    return inside


def as_labelme(corners: NDArray[np.float64], height: int, width: int) -> BoolArray:
    """As LabelMe's own `shape_to_mask` does it."""
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in corners.tolist()], outline=1, fill=1)
    return np.asarray(image) > 0


def iou(a: BoolArray, b: BoolArray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_polygon_marks_the_pixels_whose_centers_are_inside() -> None:
    rng = np.random.default_rng(0)
    for count in range(3, 23):  # they cross themselves, and lie partly outside
        corners = rng.uniform(-10, 60, (count, 2))
        np.testing.assert_array_equal(shapes.polygon(corners, 40, 50), centers_inside(corners, 40, 50))


def test_a_polygon_on_the_grid_covers_its_pixels_and_no_others() -> None:
    mask = shapes.polygon(shapes.points([1, 2, 4, 2, 4, 5, 1, 5]), 7, 6)
    expected = np.zeros((7, 6), np.bool_)
    expected[2:5, 1:4] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_polygon_too_thin_for_any_center_marks_what_it_touches() -> None:
    assert shapes.polygon(shapes.points([1, 2, 5, 2, 5, 2.2]), 6, 8).sum() == 5


def test_an_outline_is_inside_too() -> None:
    square = shapes.points([(1, 1), (4, 1), (4, 4), (1, 4)])  # as contours give it: corners are pixels
    expected = np.zeros((6, 6), np.bool_)
    expected[1:5, 1:5] = True
    np.testing.assert_array_equal(shapes.outlined(square, 6, 6), expected)
    np.testing.assert_array_equal(shapes.relative(square / 6, 6, 6), expected)
    np.testing.assert_array_equal(shapes.relative(np.round(square / 6, 6), 6, 6), expected)


def test_outlines_are_as_labelme_draws_them() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(20, 60, (12, 1)) + 75
        np.testing.assert_array_equal(shapes.outlined(corners, 150, 150), as_labelme(corners, 150, 150))


def test_an_ellipse_is_its_equation_and_a_box_turns_clockwise() -> None:
    mask = shapes.polygon(shapes.ellipse(20, 15, 9, 4), 30, 40)
    ys, xs = np.mgrid[:30, :40] + 0.5
    assert iou(mask, ((xs - 20) / 9) ** 2 + ((ys - 15) / 4) ** 2 <= 1) > 0.99
    np.testing.assert_allclose(shapes.box(0, 0, 4, 2, 90), [[3, -1], [3, 3], [1, 3], [1, -1]], atol=1e-12)


@pytest.mark.parametrize(("side", "width"), [(100, 3), (2000, 10)])
def test_lines_and_dots_are_a_share_of_the_image_wide(side: int, width: int) -> None:
    assert shapes.thickness(side, 50) == width
    for turned in (False, True):
        line = shapes.line(shapes.points([(30, 40.5), (70, 40.5)])[:, :: -1 if turned else 1], side, 100)
        assert (line.T if turned else line)[:, 50].sum() in (width, width + 1)
    slanted = shapes.line(shapes.points([(10, 10), (70, 70)]), side, 100)
    assert slanted.sum() == pytest.approx(60 * 2**0.5 * width + np.pi * width**2 / 4, rel=0.2)
    dots = shapes.dots(shapes.points([(30, 40), (70, 40)]), side, 100)
    assert dots[40, 30]
    assert dots[40, 70]
    assert not dots[40, 50]


def test_run_lengths_by_rows_and_by_columns() -> None:
    mask = shapes.runs([1, 2, 2, 1], (2, 3), (1, 1), "rows", 4, 5)
    np.testing.assert_array_equal(mask[1:3, 1:4], [[0, 1, 1], [0, 0, 1]])
    assert mask.sum() == 3
    mask = shapes.runs([1, 2, 2, 1], (2, 3), (0, 0), "columns", 2, 3)
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 0, 1]])


def test_a_part_beyond_the_border_is_cut() -> None:
    assert shapes.runs([0, 9], (3, 3), (-1, 2), "rows", 4, 4).sum() == 4
    assert shapes.runs([0, 9], (3, 3), (9, 9), "rows", 4, 4).sum() == 0


@pytest.mark.parametrize("lengths", [[0, 10], [-1, 3], [10**30]])
def test_run_lengths_that_do_not_fit(lengths: list[int]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        shapes.runs(lengths, (3, 3), (0, 0), "rows", 4, 4)


def test_compressed_run_lengths_of_known_cases() -> None:
    """As pycocotools 2.0.11 writes them."""
    assert shapes.uncompressed("5220003") == [5, 2, 2, 2, 2, 2, 5]
    text = "i4f080000AJ66JJ66JJ66JJ66JJ66JJ66JJ66JJ66JJ66JJ66JJ66JJ669000000000000000000000000_6"
    lengths = [153, *[22, 8] * 3, *[7, 2, 13, 8] * 12, *[22, 8] * 12, 22, 215]
    assert shapes.uncompressed(text) == lengths
    mask = np.zeros((30, 40), np.bool_)
    mask[3:25, 5:33] = True
    mask[10:12, 8:20] = False
    np.testing.assert_array_equal(shapes.runs(lengths, (30, 40), (0, 0), "columns", 30, 40), mask)


@pytest.mark.parametrize("text", ["5220o", "\x00", "o" * 20, "52ü"])
def test_text_that_is_no_run_lengths(text: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        shapes.uncompressed(text)


def png(pixels: BoolArray) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_a_bitmap_lies_at_its_corner() -> None:
    part = np.array([[True, False], [True, True], [False, True]])
    mask = shapes.bitmap(png(part), (3, 1), 6, 8)
    np.testing.assert_array_equal(mask[1:4, 3:5], part)
    assert mask.sum() == part.sum()


def test_a_bitmap_that_is_none_or_far_too_large() -> None:
    for text in ("", "AAAA", png(np.ones((3, 3), np.bool_))[:40], png(np.ones((3, 50), np.bool_))):
        with pytest.raises(ValueError, match="is no PNG for the image"):
            shapes.bitmap(text, (0, 0), 6, 8)


@pytest.mark.parametrize("values", [[1, 2, 3], [float("nan"), 1], [float("inf"), 1], [[1, "x"]]])
def test_corners_that_are_none(values: list[float]) -> None:
    with pytest.raises(ValueError, match="."):
        shapes.points(values)
