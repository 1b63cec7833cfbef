import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage, encode_png
from defectgen.imaging.windows import (
    Box,
    FloatArray,
    ImageCache,
    Window,
    crop,
    defect_boxes,
    defect_pieces,
    exposed,
    exposure,
    open_sides,
    paste_change,
    paste_on_zeros,
    place,
    place_at,
    place_of,
    scale_of,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def example_image(height: int = 40, width: int = 60, channels: int = 1, depth: int = 8) -> DecodedImage:
    shape = (height, width) if channels == 1 else (height, width, channels)
    dtype: Any = np.uint8 if depth == 8 else np.uint16
    return DecodedImage(rng().integers(0, np.iinfo(dtype).max, shape, dtype))


class TestDefectBoxes:
    def test_boxes_of_separate_and_nearly_touching_pieces(self) -> None:
        mask = np.zeros((40, 60), np.bool_)
        mask[5:8, 10:20] = True
        mask[5:8, 22:25] = True  # two pixels from the one before: the same defect
        mask[30, 50] = True
        assert sorted(defect_boxes(mask), key=lambda box: box.x) == [Box(10, 5, 15, 3), Box(50, 30, 1, 1)]

    def test_pieces_are_those_of_each_label_on_the_whole_mask(self) -> None:
        for seed in range(12):
            height, width = (int(side) for side in rng(seed).integers(1, 120, 2))
            mask = cv2.GaussianBlur(rng(seed).normal(size=(height, width)), (0, 0), 1.5) > 0.4
            count, labels = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)))
            found = defect_pieces(mask)
            assert len(found) == count - 1
            for label, (box, piece) in enumerate(found, start=1):
                whole = mask & (labels == label)
                np.testing.assert_array_equal(paste_on_zeros(piece, (box.x, box.y), mask.shape), whole)
                rows, columns = np.nonzero(whole)
                assert (box.x, box.y) == (int(columns.min()), int(rows.min()))
                assert (box.height, box.width) == (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)

    def test_many_pores_take_time_by_pixels(self) -> None:
        rows, columns = np.mgrid[:1024, :1024]
        start = time.process_time()
        assert len(defect_pieces((rows % 20 < 4) & (columns % 20 < 4))) == 2704
        assert time.process_time() - start < 1  # 0.1 s; by pixels times pores it takes five

    def test_no_defect_no_box(self) -> None:
        assert defect_boxes(np.zeros((5, 5), np.bool_)) == []


class TestPlace:
    def test_a_window_contains_its_box_and_stays_inside(self) -> None:
        box = Box(30, 10, 20, 25)
        windows = [place(rng(seed), 100, 200, 64, box) for seed in range(200)]
        for window in windows:
            assert 0 <= window.x <= 200 - 64
            assert 0 <= window.y <= 100 - 64
            assert window.x <= 30
            assert window.x + 64 >= 50
            assert window.y <= 10
            assert window.y + 64 >= 35
        assert len({(window.x, window.y) for window in windows}) > 100

    def test_a_window_in_a_long_box_shows_only_the_box(self) -> None:
        xs = [place(rng(seed), 64, 500, 64, Box(100, 0, 300, 64)).x for seed in range(300)]
        assert 100 <= min(xs) < 120
        assert 316 < max(xs) <= 336

    def test_a_small_image_is_inside_its_window(self) -> None:
        for seed in range(50):
            window = place(rng(seed), 20, 100, 64)
            assert 20 - 64 <= window.y <= 0
            assert 0 <= window.x <= 36

    def test_windows_may_extend_beyond_the_edges(self) -> None:
        windows = [place(rng(seed), 100, 80, 64, beyond=8) for seed in range(300)]
        assert (min(w.y for w in windows), max(w.y for w in windows)) == (-8, 44)
        assert (min(w.x for w in windows), max(w.x for w in windows)) == (-8, 24)
        around = [place(rng(seed), 100, 80, 64, Box(70, 0, 10, 10), beyond=8) for seed in range(300)]
        assert all(w.y <= 0 and 16 <= w.x <= 24 for w in around)

    def test_corners_are_reached(self) -> None:
        windows = {(w.x, w.y) for w in (place(rng(seed), 66, 66, 64) for seed in range(200))}
        assert windows == {(x, y) for x in range(3) for y in range(3)}


class TestCut:
    def test_native_values_become_minus_one_to_one(self) -> None:
        pixels = np.tile(np.array([[0, 255]], np.uint8), (16, 8))
        x = crop(DecodedImage(pixels), Window(0, 0, 16), 16, 1)
        assert x.shape == (1, 16, 16)
        np.testing.assert_array_equal(x[0, :, :2], np.tile([-1.0, 1.0], (16, 1)))

    def test_outside_is_mirrored_as_numpy_does(self) -> None:
        source = example_image(20, 30)
        x = crop(source, Window(-5, 10, 40), 40, 1)
        padded = np.pad(source.pixels.astype(np.uint8), ((0, 30), (5, 5)), mode="reflect")[10:50]
        np.testing.assert_allclose((x[0] + 1) * 127.5, padded, atol=1e-3)

    @pytest.mark.parametrize("length", [1, 2, 3])
    def test_images_of_a_few_pixels_can_be_cropped(self, length: int) -> None:
        assert crop(example_image(length, length), Window(-7, -7, 16), 16, 1).shape == (1, 16, 16)

    def test_gray_is_repeated_and_color_is_averaged(self) -> None:
        gray = crop(example_image(), Window(0, 0, 16), 16, 3)
        assert gray.shape == (3, 16, 16)
        np.testing.assert_array_equal(gray[0], gray[2])
        color = example_image(channels=3)
        one = crop(color, Window(0, 0, 16), 16, 1)
        np.testing.assert_allclose((one[0] + 1) * 127.5, color.pixels[:16, :16].mean(axis=2), atol=1e-3)

    def test_alpha_is_not_passed_to_the_network(self) -> None:
        rgba = example_image(channels=4)
        rgb = DecodedImage(rgba.pixels[..., :3].astype(np.uint8))
        np.testing.assert_array_equal(crop(rgba, Window(0, 0, 16), 16, 3), crop(rgb, Window(0, 0, 16), 16, 3))

    def test_a_dim_16_bit_image_uses_the_whole_range(self) -> None:
        pixels = (1000 + rng().integers(0, 256, (64, 64))).astype(np.uint16)
        x = crop(DecodedImage(pixels), Window(0, 0, 64), 64, 1)
        assert x.min() == -1
        assert x.max() == 1
        assert abs(float(x.mean())) < 0.05

    def test_scaling_down_averages(self) -> None:
        source = example_image(32, 32)
        x = crop(source, Window(0, 0, 32), 16, 1)
        mean = source.pixels.reshape(16, 2, 16, 2).mean(axis=(1, 3))
        np.testing.assert_allclose((x[0] + 1) * 127.5, mean, atol=1e-2)


class TestPutBack:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("depth", [8, 16])
    def test_pixels_outside_alpha_are_identical_and_the_rest_change(self, channels: int, depth: int) -> None:
        source = example_image(40, 60, channels, depth)
        window = Window(30, 20, 32)  # reaches past the lower border
        before = crop(source, window, 32, 1)
        alpha = np.zeros((32, 32), np.float32)
        alpha[4:10, 4:12] = 1
        painted = paste_change(source, window, before, before - 0.5, alpha)
        assert painted.dtype == source.pixels.dtype
        assert painted.shape == source.pixels.shape
        touched = np.zeros((40, 60), np.bool_)
        touched[24:30, 34:42] = True
        np.testing.assert_array_equal(painted[~touched], source.pixels[~touched])
        colors = slice(None) if channels == 1 else slice(0, source.channels)
        assert (painted[touched][..., colors].astype(int) <= source.pixels[touched][..., colors]).all()
        assert (painted[touched] != source.pixels[touched]).mean() > 0.3
        if channels in (2, 4):
            np.testing.assert_array_equal(painted[..., -1], source.pixels[..., -1])

    def test_the_change_is_added_in_native_values(self) -> None:
        source = DecodedImage(np.full((16, 16), 100, np.uint8))
        before = crop(source, Window(0, 0, 16), 16, 1)
        painted = paste_change(source, Window(0, 0, 16), before, before + 20 / 127.5, np.ones((16, 16), np.float32))
        assert (painted == 120).all()

    def test_a_color_change_on_a_gray_image_is_its_mean(self) -> None:
        source = DecodedImage(np.full((16, 16), 100, np.uint8))
        before = crop(source, Window(0, 0, 16), 16, 3)
        after = before + np.array([30, 0, -60], np.float32).reshape(3, 1, 1) / 127.5
        assert (paste_change(source, Window(0, 0, 16), before, after, np.ones((16, 16), np.float32)) == 90).all()

    def test_the_grain_of_the_image_stays_if_the_input_was_scaled_down(self) -> None:
        source = example_image(64, 64)
        window = Window(0, 0, 64)
        before = crop(source, window, 16, 1)
        painted = paste_change(source, window, before, before + 0.1, np.ones((64, 64), np.float32))
        change = painted.astype(int) - source.pixels
        unclipped = source.pixels < 240
        np.testing.assert_allclose(change[unclipped], 0.1 * 127.5, atol=0.6)


def test_crop_zero_padded_is_the_inverse_of_paste_on_zeros() -> None:
    values: NDArray[np.bool_] = np.ones((8, 8), np.bool_)
    whole = paste_on_zeros(values, (-3, 6), (10, 20))
    assert whole.sum() == 5 * 4
    assert whole[6:10, 0:5].all()


class TestImageCache:
    def test_the_cache_stays_under_its_limit(self, tmp_path: Path) -> None:
        for i in range(4):
            (tmp_path / f"{i}.png").write_bytes(encode_png(np.full((10, 10), i, np.uint8)))
        kept = ImageCache(limit=250)
        for i in (0, 1, 2, 3, 0):
            assert (kept.read(tmp_path / f"{i}.png").pixels == i).all()
        assert kept._bytes <= 250


def test_the_scale_falls_back_to_the_product_then_to_the_mean() -> None:
    scales = {"tile": {"crack": 0.5, "hole": 1.0}, "road": {"crack": 0.25}}
    assert scale_of(scales, "tile", "hole") == 1.0
    assert scale_of(scales, "road", "hole") == 0.25  # not on this product: its smallest scale
    assert scale_of(scales, "wood", "crack") == pytest.approx(0.375)  # an unknown product: the mean of the others
    assert scale_of(scales, "wood", "knot") == 1.0


def test_a_place_in_an_image_and_back() -> None:
    """Also of images smaller than the window."""
    for height, width, side in ((100, 200, 64), (40, 50, 64), (64, 90, 64)):
        for at in ((0.0, 1.0), (0.5, 0.25)):
            window = place_at(height, width, side, at)
            again = place_at(height, width, side, place_of(window, height, width))
            assert window == again
            assert min(0, width - side) <= window.x <= max(0, width - side)
    assert place_of(Window(3, 0, 64), 64, 70) == (0.5, 0.5)


def test_sides_beyond_which_an_image_goes_on() -> None:
    """Top, bottom, left, right."""
    assert open_sides(Window(0, 0, 64), 64, 100) == (False, False, False, True)
    assert open_sides(Window(36, 5, 64), 100, 100) == (True, True, True, False)
    assert open_sides(Window(-5, -5, 64), 40, 40) == (False, False, False, False)


def test_exposure_multiplies_brightness_from_black() -> None:
    """Contrast grows with it, within a factor of 3, and hardly anything becomes brighter than white."""

    def gray(level: float, dark: float) -> FloatArray:
        x = np.full((1, 32, 32), level / 127.5 - 1, np.float32)
        x[:, 4:8, 4:8] = dark / 127.5 - 1
        return x

    def levels(x: FloatArray) -> list[float]:
        return [round(float(each + 1) * 127.5, 1) for each in (x[0, 20, 20], x[0, 5, 5])]

    for ground, other, expected in (
        (gray(100, 100), gray(50, 20), [100.0, 40.0]),
        (gray(50, 0), gray(100, 40), [50.0, 20.0]),
        (gray(240, 240), gray(30, 12), [90.0, 36.0]),  # 3 times at most
        (gray(10, 10), gray(90, 45), [30.0, 15.0]),
        (gray(200, 200), gray(100, 200), [127.5, 255.0]),  # no further than white
        (gray(255, 255), gray(250, 255), [250.0, 255.0]),
    ):
        assert levels(exposed(other, exposure(ground, other))) == pytest.approx(expected, abs=0.2)
