from pathlib import Path

import cv2
import numpy as np
import pytest

from defectgen.imaging.images import DecodedImage
from defectgen.imaging.masks import wanders
from defectgen.imaging.patches import (
    DefectPatch,
    Variation,
    cut_out,
    end_to_end,
    extract,
    flipped,
    joined,
    of_mask,
    on_pure_background,
    relative,
    resize,
    turn,
    varied,
    with_mask,
)
from defectgen.imaging.windows import defect_pieces


def example_image() -> tuple[DecodedImage, "np.ndarray[tuple[int, int], np.dtype[np.bool_]]"]:
    """A gray image, 120 all over, with a dark disc and a bright bar."""
    pixels = np.full((80, 100), 120, np.uint8)
    mask = np.zeros((80, 100), np.uint8)
    cv2.circle(mask, (30, 40), 10, 1, -1)
    pixels[mask > 0] = 20
    mask[0:4, 70:95] = 1
    pixels[0:4, 70:95] = 230
    return DecodedImage(pixels), mask > 0


def cut_outs(
    photo: DecodedImage, mask: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]", source: Path | None = None
) -> list[DefectPatch]:
    return [cut_out(photo, box, piece, 5, source) for box, piece in defect_pieces(mask)]


def to_unit(gray: float) -> float:
    return gray / 127.5 - 1


def test_each_defect_is_cut_out_with_a_rim_of_its_background() -> None:
    photo, mask = example_image()
    bar, disc = cut_outs(photo, mask, Path("a.png"))
    assert disc.defect_mask.sum() + bar.defect_mask.sum() == mask.sum()
    assert disc.blend_mask.shape == (31, 31)  # the disc of 21 pixels, and 5 on each side
    assert bar.blend_mask.shape == (9, 35)  # none beyond the edge of the image
    for patch, gray in ((disc, 20), (bar, 230)):
        np.testing.assert_allclose(patch.pixels[patch.defect_mask], to_unit(gray), atol=1e-5)
        rim = patch.blend_mask & ~patch.defect_mask
        np.testing.assert_allclose(patch.pixels[rim], to_unit(120), atol=1e-5)
        away = cv2.distanceTransform((~np.pad(patch.defect_mask, 8)).astype(np.uint8), cv2.DIST_L2, 5)[8:-8, 8:-8]
        np.testing.assert_array_equal(patch.blend_mask[away <= 4.5], True)
        np.testing.assert_array_equal(patch.blend_mask[away > 6], False)


def test_pieces_that_nearly_touch_are_one_defect() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[10:14, 10:14] = mask[10:14, 17:20] = mask[30:33, 30:33] = True
    patches = cut_outs(DecodedImage(np.zeros((40, 40, 3), np.uint8)), mask)
    assert sorted(patch.defect_mask.sum() for patch in patches) == [9, 28]
    assert patches[0].pixels.shape[2] == 3


def test_relative_to_its_own_background_the_rim_is_zero() -> None:
    photo, mask = example_image()
    for patch in cut_outs(photo, mask):
        shown = relative(patch)
        assert shown.pixels[shown.blend_mask & ~shown.defect_mask].mean() == pytest.approx(0, abs=1e-6)
        # A defect of half the brightness is -0.5, however bright the image is.
        gray = (patch.pixels[patch.defect_mask].mean() + 1) * 127.5
        assert shown.pixels[shown.defect_mask].mean() == pytest.approx(gray / 120 - 1, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_watershed_finds_a_patch_on_a_pure_background(channels: int) -> None:
    photo, mask = example_image()
    patch = cut_outs(photo, mask)[1]  # a dark disc, nearly black, inside its rim
    matrix = turn(31, 31, 30.0, 1.0)
    matrix[:, 2] += 16
    image = on_pure_background(patch, matrix, 64, channels)
    assert image.shape == (channels, 64, 64)
    inside = image[0] > -1
    assert set(np.unique(inside)) == {False, True}
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in image])  # as a network would draw it
    found = extract(blurred)
    assert (found.blend_mask & inside).sum() / (found.blend_mask | inside).sum() > 0.9
    assert found.pixels.shape == (64, 64, channels)
    assert found.defect_mask.sum() < found.blend_mask.sum()
    assert found.pixels[30:34, 30:34].mean() == pytest.approx(to_unit(20), abs=0.06)
    assert found.pixels[found.blend_mask & ~inside].min() > -0.4  # no dark fringe, though the background is black


def test_a_black_middle_belongs_to_its_patch() -> None:
    image = np.full((1, 48, 48), -1, np.float32)
    cv2.circle(image[0], (24, 24), 14, 0.1, -1)
    cv2.circle(image[0], (24, 24), 7, -1.0, -1)
    assert extract(image).defect_mask[24, 24]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("x", "y"), [(False, False), (True, False), (True, True)])
def test_flips_have_an_inverse(transposed: bool, x: bool, y: bool) -> None:
    photo, mask = example_image()
    patch = cut_outs(photo, mask)[0]
    there = flipped(patch, transposed=transposed, x=x, y=y)
    assert (there.pixels.shape == patch.pixels.shape) == (not transposed)
    back = flipped(there, transposed=transposed, x=x, y=y, back=True)
    np.testing.assert_array_equal(back.pixels, patch.pixels)
    np.testing.assert_array_equal(back.defect_mask, patch.defect_mask)
    if not transposed:
        np.testing.assert_array_equal(there.pixels, patch.pixels[:: -1 if y else 1, :: -1 if x else 1])


@pytest.mark.parametrize("scale", [1.3, 2.0])
def test_what_was_enlarged_comes_back_as_sharp_as_it_was(scale: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.4, (64, 64)).astype(np.float32)
    fine = np.asarray(np.clip(cv2.GaussianBlur(noise, (0, 0), 0.8), -1, 1), np.float32)[..., None]
    whole = np.ones((64, 64), np.bool_)
    enlarged = resize(DefectPatch(fine, whole, whole), scale)
    found = [resize(enlarged, 1 / scale, back=back).pixels[8:-8, 8:-8] for back in (True, False)]
    apart = [float((each - fine[8:-8, 8:-8]).std() / fine.std()) for each in found]
    assert apart[0] < 0.12
    assert apart[1] > 1.5 * apart[0]


def test_a_level_window_has_the_mask_as_its_last_channel() -> None:
    photo, mask = example_image()
    patch = relative(cut_outs(photo, mask)[1])
    matrix = turn(31, 31, 0.0, 1.0)
    matrix[:, 2] += (50, 10)
    x = with_mask(patch, matrix, (48, 128), 1)
    assert x.shape == (2, 48, 128)
    inside = x[1] > 0
    assert inside.sum() == patch.defect_mask.sum()
    assert np.median(x[0][inside]) == pytest.approx(20 / 120 - 1, abs=0.02)  # 20 on 120
    assert not x[0][cv2.dilate(inside.astype(np.uint8), np.ones((7, 7))) == 0].any()
    assert with_mask(patch, matrix, (48, 128), 3).shape == (4, 48, 128)


def test_the_patch_of_a_mask_and_unusable_masks() -> None:
    image, mask = np.zeros((3, 32, 32), np.float32), np.zeros((32, 32), np.bool_)
    mask[10:16, 8:20] = True
    patch = of_mask(image, mask)
    np.testing.assert_array_equal(patch.defect_mask, mask)
    assert patch.pixels.shape == (32, 32, 3)
    assert patch.blend_mask.sum() > mask.sum()
    speck, border = np.zeros_like(mask), np.zeros_like(mask)
    speck[3, 3], border[:2], border[2, :9] = True, True, True
    for nothing in (speck, border, np.zeros_like(mask), np.ones_like(mask)):
        assert not of_mask(image, nothing).blend_mask.any()


def test_pieces_cut_off_by_the_border_are_left_out() -> None:
    image, mask = np.zeros((1, 32, 32), np.float32), np.zeros((32, 32), np.bool_)
    mask[10:16, 8:20] = True
    whole = mask.copy()
    mask[20:30, 22:] = True  # ten pixels along the right border
    assert np.array_equal(of_mask(image, mask).defect_mask, mask)
    assert np.array_equal(of_mask(image, mask, cut=False).defect_mask, whole)
    whole[0:6, 15:17] = True  # two pixels only
    assert np.array_equal(of_mask(image, whole, cut=False).defect_mask, whole)


def test_an_empty_image_has_an_empty_patch() -> None:
    assert not extract(np.full((1, 32, 32), -1, np.float32)).blend_mask.any()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_resizing_keeps_values_and_grows_areas(scale: float) -> None:
    photo, mask = example_image()
    patch = cut_outs(photo, mask)[1]
    resized = resize(patch, scale)
    assert resized.blend_mask.sum() == pytest.approx(scale**2 * patch.blend_mask.sum(), rel=0.1)
    assert resized.defect_mask.sum() == pytest.approx(scale**2 * patch.defect_mask.sum(), rel=0.15)
    assert np.median(resized.pixels[resized.defect_mask]) == pytest.approx(to_unit(20), abs=0.02)
    assert (resized.blend_mask | resized.defect_mask == resized.blend_mask).all()


def test_turn_keeps_the_center() -> None:
    for mirrored in (False, True):
        matrix = turn(40, 20, 33.0, 1.5, mirrored=mirrored)
        np.testing.assert_allclose(matrix @ (20, 10, 1), (20, 10), atol=1e-9)
        assert abs(np.linalg.det(matrix[:, :2])) == pytest.approx(1.5**2)
        assert (np.linalg.det(matrix[:, :2]) < 0) == mirrored


def test_a_patch_records_its_source() -> None:
    photo, mask = example_image()
    patch = cut_outs(photo, mask, Path("a.png"))[1]
    assert isinstance(patch, DefectPatch)
    assert patch.source == Path("a.png")
    assert patch.box is not None
    assert (patch.box.x, patch.box.y, patch.box.width, patch.box.height) == (20, 30, 21, 21)


def test_a_thin_line_survives_scaling_down() -> None:
    defect_mask = np.zeros((40, 40), np.bool_)
    defect_mask[20, 5:35] = True
    blend_mask = np.zeros((40, 40), np.bool_)
    blend_mask[15:26, 2:38] = True
    assert resize(DefectPatch(np.zeros((40, 40, 1), np.float32), blend_mask, defect_mask), 0.3).defect_mask.any()


class TestJoined:
    """A dark bar of 30 x 5 pixels, and one that is half as bright all over, upright."""

    @pytest.fixture
    def bars(self) -> tuple[DefectPatch, DefectPatch]:
        found = []
        for shape, level in (((17, 42), 120), ((42, 17), 60)):
            defect_mask = np.zeros(shape, np.bool_)
            defect_mask[6:-6, 6:-6] = True
            values = (np.where(defect_mask, level // 2, level)[..., None] / 127.5 - 1).astype(np.float32)
            found.append(DefectPatch(values, np.ones(shape, np.bool_), defect_mask, True, Path(f"{level}.png")))
        return found[0], found[1]

    def test_the_second_begins_where_the_first_ends(self, bars: tuple[DefectPatch, DefectPatch]) -> None:
        a, b = bars
        at = end_to_end(a, b, (0, 90))
        patch = joined(a, b, at)
        count, _, boxes, _ = cv2.connectedComponentsWithStats(patch.defect_mask.astype(np.uint8))
        assert count == 2  # one piece, and the background
        assert boxes[1, [2, 3]].tolist() == pytest.approx([32, 32], abs=4)
        assert patch.defect_mask.sum() == pytest.approx(300, rel=0.1)
        assert patch.joined is not None
        assert (patch.joined.source, patch.joined.at) == (Path("60.png"), at)
        assert patch.source == Path("120.png")
        assert (patch.blend_mask | ~patch.defect_mask).all()

    def test_both_have_the_brightness_and_the_contrast_of_the_first(
        self, bars: tuple[DefectPatch, DefectPatch]
    ) -> None:
        for at in ((20, 3), (-15, -20), (60, 0)):
            patch = joined(*bars, at)
            assert patch.pixels[patch.defect_mask] == pytest.approx(to_unit(60), abs=0.01)
            assert patch.pixels[~patch.defect_mask] == pytest.approx(to_unit(120), abs=0.01)


class TestVaried:
    """An upright bar of 5 x 60 pixels, on noise."""

    @pytest.fixture
    def bar(self) -> DefectPatch:
        rng = np.random.default_rng(0)
        defect_mask = np.zeros((72, 17), np.bool_)
        defect_mask[6:66, 6:11] = True
        pixels = rng.normal(0, 0.02, (72, 17, 1)) - 0.3 * defect_mask[..., None]
        blend_mask = cv2.dilate(defect_mask.view(np.uint8), np.ones((11, 11))) > 0
        return DefectPatch(pixels.astype(np.float32), blend_mask, defect_mask)

    def test_nothing_is_changed_by_none(self, bar: DefectPatch) -> None:
        after = varied(bar, Variation(1, 0.0, 1.0, 1.0), 90.0)
        inner = (slice(1, -1), slice(1, -1))
        np.testing.assert_allclose(after.pixels[inner], bar.pixels, atol=1e-4)
        np.testing.assert_array_equal(after.defect_mask[inner], bar.defect_mask)

    def test_it_is_stretched_along_its_axis(self, bar: DefectPatch) -> None:
        for stretch in (0.7, 1.5):
            rows, columns = np.nonzero(varied(bar, Variation(1, 0.0, stretch, 1.0), 90.0).defect_mask)
            assert np.ptp(rows) + 1 == pytest.approx(60 * stretch, abs=1.5)
            assert np.ptp(columns) + 1 == pytest.approx(5, abs=1)

    def test_pixels_and_mask_are_bent_alike_and_stay_whole(self, bar: DefectPatch) -> None:
        shapes = set()
        for key in range(10):
            after = varied(bar, Variation(key, 0.02, 1.0, 1.0), 90.0)
            count, _ = cv2.connectedComponents(after.defect_mask.astype(np.uint8))
            assert count == 2
            dark = after.pixels[..., 0] < -0.15
            assert (dark & after.defect_mask).sum() / (dark | after.defect_mask).sum() > 0.85
            assert (after.blend_mask | ~after.defect_mask).all()
            assert after.defect_mask.sum() == pytest.approx(300, rel=0.3)
            columns = np.nonzero(after.defect_mask)[1]
            assert np.ptp(columns) >= 5
            shapes.add(after.defect_mask.tobytes())
        assert len(shapes) == 10
        again = [varied(bar, Variation(7, 0.03, 1.1, 1.2), 90.0).pixels for _ in range(2)]
        np.testing.assert_array_equal(again[0], again[1])

    def test_a_straight_line_becomes_a_smooth_arc(self, bar: DefectPatch) -> None:
        bent, free = (
            [varied(bar, Variation(key, 0.02, 1.0, 1.0, arc), 90.0).defect_mask for key in range(20)]
            for arc in (True, False)
        )
        assert len({mask.tobytes() for mask in bent}) == 20
        assert np.mean([wanders(mask) for mask in bent]) < 0.1 < np.mean([wanders(mask) for mask in free])

    def test_what_ends_at_an_edge_is_not_moved_across_it(self, bar: DefectPatch) -> None:
        for key in range(5):
            after = varied(bar, Variation(key, 0.05, 1.0, 1.0), 90.0, still=(True, False))
            columns = np.nonzero(after.defect_mask)[1]
            assert np.ptp(columns) + 1 == 5

    def test_contrast_changes_and_the_grain_stays(self, bar: DefectPatch) -> None:
        after = varied(bar, Variation(1, 0.0, 1.0, 1.4), 90.0)
        inside, rim = after.defect_mask, after.blend_mask & ~after.defect_mask
        core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3))) > 0
        assert after.pixels[core].mean() == pytest.approx(-0.3 * 1.4, rel=0.08)
        assert after.pixels[rim].std() < 0.035
        assert after.pixels[core].std() < 0.04
