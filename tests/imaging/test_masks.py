import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from defectgen.imaging import masks
from defectgen.imaging.masks import (
    clean,
    difference,
    feather,
    foreground,
    mask_from_difference,
    mask_from_map,
    visible_part,
    wanders,
)
from defectgen.imaging.windows import BoolArray, FloatArray


def texture(channels: int = 1) -> FloatArray:
    noise = np.random.default_rng(0).normal(0, 0.05, (channels, 64, 64))
    return (noise + 0.2).astype(np.float32)


def test_difference_is_zero_for_equal_windows_and_high_where_they_differ() -> None:
    before = texture()
    np.testing.assert_allclose(difference(before, before), 0, atol=1e-6)
    after = before.copy()
    after[:, 20:30, 20:30] -= 0.8
    soft = difference(before, after)
    assert soft[20:30, 20:30].min() > 0.3
    assert soft[40:, 40:].max() < 1e-5


def test_difference_agrees_with_the_mean_of_the_ssim_map() -> None:
    before, after = texture(), texture()[:, ::-1].copy()
    _, full = structural_similarity(
        before[0],
        after[0],
        data_range=2.0,
        gaussian_weights=True,
        sigma=1.0,
        use_sample_covariance=False,
        full=True,
    )
    np.testing.assert_allclose(difference(before, after), np.clip(1 - full, 0, 1), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_mask_from_difference_finds_the_change(channels: int) -> None:
    before = texture(channels)
    painted = np.zeros((64, 64), np.bool_)
    painted[20:32, 25:31] = True
    painted[40:43, 5:50] = True  # a crack of three pixels
    after = before - 0.5 * painted
    found = mask_from_difference(before, after.astype(np.float32))
    overlap = (found & painted).sum() / (found | painted).sum()
    assert overlap > 0.85


def test_mask_from_map_is_where_the_map_is_high_and_the_change_visible() -> None:
    before = np.zeros((1, 32, 32), np.float32)
    after, m = before.copy(), np.zeros((32, 32), np.float32)
    m[4:20, 4:20], m[22:30, 22:30] = 0.8, 0.3  # the second one is weak
    after[0, 4:12, 4:20], after[0, 22:30, 22:30] = 0.5, 0.5  # of the first one half shows
    expected = np.zeros((32, 32), np.bool_)
    expected[4:12, 4:20] = True
    np.testing.assert_array_equal(mask_from_map(before, after, m), expected)
    assert not mask_from_map(before, before, m).any()
    assert not mask_from_map(before, after, 0 * m).any()


def test_nothing_visible_gives_an_empty_mask() -> None:
    before = texture()
    faint = before + np.random.default_rng(1).normal(0, 0.004, before.shape).astype(np.float32)
    assert not mask_from_difference(before, faint).any()
    assert not mask_from_difference(before, before).any()


def test_clean_removes_specks_fills_pinholes_and_keeps_the_rest() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[10:20, 10:20] = True
    wanted = mask.copy()
    mask[14, 14] = False
    mask[30, 30] = True
    np.testing.assert_array_equal(clean(mask), wanted)


def test_clean_keeps_a_large_hole() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[5:30, 5:30] = True
    mask[12:20, 12:20] = False
    np.testing.assert_array_equal(clean(mask), mask)


def test_clean_of_empty_and_full_masks() -> None:
    assert not clean(np.zeros((8, 8), np.bool_)).any()
    assert clean(np.ones((8, 8), np.bool_)).all()


def test_feather_is_full_on_the_mask_and_falls_to_exactly_zero() -> None:
    mask = np.zeros((1, 20), np.bool_)
    mask[0, 0:5] = True
    np.testing.assert_allclose(feather(mask, 4)[0, 3:12], [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])


def test_feather_of_an_empty_mask_is_zero() -> None:
    assert masks.feather(np.zeros((8, 8), np.bool_), 4).max() == 0


def test_visible_part_is_where_the_patch_is_visible() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(120, 3, (60, 60, 1)).astype(np.float32)
    label = np.zeros((60, 60), np.bool_)
    label[10:50, 10:50] = True
    after = before.copy()
    after[20:40, 20:40] -= 60
    tight = visible_part(before, after, label, 1.0, annotated=False)
    assert tight[22:38, 22:38].all()
    assert not tight[:17].any()
    assert not visible_part(before, after + 1, ~label, 1.0, annotated=False).any()  # grain is no defect
    label = np.zeros((60, 60), np.bool_)
    label[20:40, 20:45] = True  # drawn a little too generously
    np.testing.assert_array_equal(visible_part(before, after, label, 1.0, annotated=True), label)
    label[5:8, 5:8] = True  # where nothing is
    label[20:40, 45:] = False
    kept = visible_part(before, after, label, 1.0, annotated=True)
    assert kept[20:40, 20:40].all()


def test_visible_part_removes_separate_parts_of_an_annotated_mask() -> None:
    before = np.full((40, 120, 1), 120, np.float32)
    after = before.copy()
    after[18:22, :60] -= 50  # a crack of which the right half is as dark as the ground
    label = np.zeros((40, 120), np.bool_)
    label[18:22, 10:110] = True
    kept = visible_part(before, after, label, 1.0, annotated=True)
    assert kept[18:22, 10:60].all()
    assert not kept[:, 70:].any()


def test_an_annotated_mask_does_not_become_ragged() -> None:
    """A faint defect stands out from noise here and there; its outline stays, and a separate invisible part goes."""
    rng = np.random.default_rng(0)
    before = rng.normal(120, 2, (120, 120, 1)).astype(np.float32)
    label = cv2.ellipse(np.zeros((120, 120), np.uint8), (60, 60), (50, 6), 20, 0, 360, 1, -1) > 0
    after = before + (rng.normal(-8, 5, (120, 120, 1)) * label[..., None]).astype(np.float32)
    np.testing.assert_array_equal(visible_part(before, after, label, 1.0, annotated=True), label)
    separate = label.copy()
    separate[2:8, 2:8] = True
    np.testing.assert_array_equal(visible_part(before, after, separate, 1.0, annotated=True), label)
    assert not visible_part(before, before, label, 1.0, annotated=True).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_foreground_is_the_object_on_a_plain_background(channels: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:300, :400]
    part = (np.abs(rows - 150) < 90) & (np.abs(columns - 220) < 120)
    pixels = np.where(part[..., None], 150, 30) + rng.integers(0, 12, (300, 400, channels))
    pixels[140:160, 200:230] = 30  # a hole in it, dark as the backdrop, is part of the object
    found = foreground((pixels * (257 if dtype == np.uint16 else 1)).astype(dtype))
    assert (found & part).sum() / (found | part).sum() > 0.97


@pytest.mark.parametrize("shape", [(60, 32768), (32768, 60), (8000, 20)])
def test_foreground_of_a_line_scan(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(88, 93, (*shape, 1), np.uint8)
    part = np.zeros(shape, np.bool_)
    part[shape[0] // 3 : 2 * shape[0] // 3, shape[1] // 3 : 2 * shape[1] // 3] = True
    pixels[part] += 100
    found = foreground(pixels)
    assert (found & part).sum() / (found | part).sum() > 0.7  # of the short side, a pixel is much


@pytest.mark.parametrize("shape", [(1, 70000, 1), (70000, 3, 3), (2, 1025, 1), (1, 1, 1), (40000, 1, 1)])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_foreground_of_any_shape(shape: tuple[int, ...], dtype: str) -> None:
    for pixels in (np.full(shape, 90, dtype), np.random.default_rng(0).integers(60, 120, shape, dtype)):
        assert foreground(pixels).shape == shape[:2]


def test_without_a_plain_background_all_is_foreground() -> None:
    rng = np.random.default_rng(0)
    assert foreground(rng.integers(80, 140, (100, 120, 1), np.uint8)).all()
    assert foreground(np.full((50, 60, 3), 90, np.uint8)).all()
    halves = np.where(np.arange(120) < 60, 40, 200)[None, :, None].repeat(100, axis=0).astype(np.uint8)
    assert foreground(halves).all()  # the border is of two kinds


def line(bends: float, wiggles: float, width: int = 3) -> BoolArray:
    """A line through a window, which bends by one arc, and wiggles in and out of it."""
    t = np.linspace(-1, 1, 50)
    points = np.stack([32 + 28 * t, 32 + bends * t**2 + wiggles * np.sin(9 * t)], axis=1)
    canvas = np.zeros((64, 64), np.uint8)
    cv2.polylines(canvas, [np.rint(points).astype(np.int32)], isClosed=False, color=1, thickness=width)
    return canvas.astype(np.bool_)


@pytest.mark.parametrize("turned", [False, True])
def test_straight_lines_and_arcs_do_not_wander(turned: bool) -> None:
    for mask, expected in [
        (line(0, 0), False),
        (line(6, 0), False),
        (line(0, 0, 1), False),
        (line(0, 3), True),
        (line(6, 3), True),
        (np.hypot(*np.mgrid[-32:32, -32:32]) < 9, True),  # no line at all
        (line(0, 0) | line(20, 0)[::-1], True),  # two lines that cross are one piece, which is none
    ]:
        assert wanders(mask.T if turned else mask) == expected


def test_lines_side_by_side_are_lines() -> None:
    assert not wanders(np.roll(line(3, 0), -12, axis=0) | np.roll(line(3, 0), 12, axis=0))
