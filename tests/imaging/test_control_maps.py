import base64
import math
import zlib

import cv2
import numpy as np
import pytest

from defectgen.imaging.control_maps import (
    KnownMask,
    Levels,
    Sides,
    between,
    centered,
    draw_long,
    draw_map,
    fitted,
    from_text,
    levels_of,
    light_side,
    mask_of,
    pick,
    reshaped,
    to_text,
    tones_of,
    warped,
    warped_change,
)
from defectgen.imaging.masks import wanders
from defectgen.imaging.windows import BoolArray

SIDE = 64


def disc(x: int, y: int, radius: int) -> Levels:
    return np.asarray(cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (x, y), radius, 1, -1), np.int8)


def line() -> Levels:
    return np.asarray(cv2.line(np.zeros((SIDE, SIDE), np.uint8), (32, 8), (34, 56), 1, 3), np.int8)


def pit() -> Levels:
    """A disc with a dark core, and a bright rim on its left."""
    levels = disc(32, 32, 10)
    levels[disc(34, 32, 5) > 0] = -95
    levels[:, :25] *= 65
    return levels


def middle(mask: Levels | BoolArray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


@pytest.mark.parametrize("mask", [disc(24, 40, 9), line()])
def test_a_warped_mask_is_another_one_of_about_its_size_and_direction(mask: Levels) -> None:
    found = [warped(np.random.default_rng(seed), mask) for seed in range(40)]
    areas = np.array([each.sum() for each in found]) / mask.sum()
    assert 0.8 < np.median(areas) < 1.35
    assert areas.std() > 0.1
    assert all(np.linalg.norm(middle(each) - 16 - middle(mask)) < 12 for each in found)  # 16 pixels beyond the edges
    assert len({each.tobytes() for each in found}) == 40
    pieces = [cv2.connectedComponents(each.astype(np.uint8))[0] - 1 for each in found]
    assert np.mean(np.array(pieces) == 1) > 0.9  # thin lines stay whole
    if mask.sum() < 200:
        tall = [np.ptp(np.argwhere(each), axis=0) for each in found]
        assert all(height > 2 * width for height, width in tall)
        assert np.mean([wanders(each != 0) for each in found]) < 0.2  # a scratch stays one


def test_between_two_masks_that_are_alike_lies_one_of_a_size_between() -> None:
    small, large = disc(20, 20, 10), disc(44, 44, 13)
    for seed in range(10):
        found = between(np.random.default_rng(seed), small, large)
        assert small.sum() < found.sum() <= large.sum()
        np.testing.assert_allclose(middle(found), middle(small), atol=1)
        for other in (disc(44, 44, 20), np.ascontiguousarray(line().T)):
            for one, two in ((line(), other), (small, other)):
                np.testing.assert_array_equal(between(np.random.default_rng(seed), one, two), one)


def test_maps_are_drawn_by_seed_and_leave_the_border_free() -> None:
    known = [KnownMask(mask, (0.5, 0.5)) for mask in (disc(12, 30, 8), line(), disc(50, 50, 10))]
    border = Sides(top=8, bottom=4, left=6)
    first, again = (draw_map(np.random.default_rng(3), known[0].levels, known, border) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    right = False
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = draw_map(rng, pick(rng, known).levels, known, border)
        assert found.any()
        assert not found[:8].any()
        assert not found[-4:].any()
        assert not found[:, :6].any()
        right |= bool(found[:, -6:].any())
    assert right  # there, nothing has to stay free


def test_masks_that_fit_are_not_cut_off_by_the_border() -> None:
    """A disc near a corner: what the border cut off would end in a straight line."""
    mask = disc(12, 12, 9)
    border = Sides(4, 4, 4, 4)
    for seed in range(40):
        found = draw_map(np.random.default_rng(seed), mask, [KnownMask(mask, (0.5, 0.5))], border)
        for edge in (found[4], found[:, 4]):
            assert edge.sum() < 12  # of some 18 across the middle
        assert found.sum() > 0.4 * mask.sum()
    # Where the image ends, a mask that reaches its edge still does.
    open_left = Sides(4, 4, 0, 4)
    cut = disc(2, 30, 9)
    reached = [draw_map(np.random.default_rng(seed), cut, [KnownMask(cut, (0, 0.5))], open_left) for seed in range(20)]
    assert np.mean([each[:, 0].any() for each in reached]) > 0.9


def test_a_picked_place_is_near_and_stays_at_an_edge() -> None:
    places = [pick(np.random.default_rng(seed), [KnownMask(line(), (0.0, 0.4))]).place for seed in range(50)]
    assert {x for x, _ in places} == {0.0}
    rows = np.array([y for _, y in places])
    assert 0.3 < rows.mean() < 0.5
    assert 0 <= rows.min() < 0.25
    assert 0.55 < rows.max() <= 1


def test_a_single_pixel_and_a_mask_on_the_border_do_no_harm() -> None:
    dot = np.zeros((SIDE, SIDE), np.int8)
    dot[30, 30] = 1
    border = Sides(8, 8, 8, 8)
    assert draw_map(np.random.default_rng(0), dot, [KnownMask(dot, (0, 0))], border).any()
    edge = np.zeros((SIDE, SIDE), np.int8)
    edge[:20] = 1
    assert draw_map(np.random.default_rng(0), edge, [KnownMask(edge, (0, 0))], border).any()


def test_a_map_is_fitted_into_an_area() -> None:
    area = np.zeros((SIDE, SIDE), np.bool_)
    area[10:30, 20:60] = True
    for seed in range(20):
        small, large = (fitted(mask, area, np.random.default_rng(seed)) for mask in (disc(32, 32, 6), line()))
        assert small.sum() == disc(32, 32, 6).sum()
        assert np.ptp(np.argwhere(large)[:, 0]) + 1 >= 18  # scaled down to the 20 rows
        assert not (small & ~area).any()
        assert not (large & ~area).any()
        half = fitted(disc(32, 32, 6), area, np.random.default_rng(seed), 0.5)
        assert 0.2 * small.sum() < half.sum() < 0.35 * small.sum()
    assert not fitted(line(), np.zeros_like(area), np.random.default_rng(0)).any()


def crack_through() -> Levels:
    crack = np.zeros((120, 160), np.uint8)
    cv2.polylines(crack, [np.array([(0, 60), (60, 75), (110, 50), (159, 64)])], isClosed=False, color=1, thickness=3)
    return crack.astype(np.int8)


def test_a_crack_through_an_image_crosses_another_one() -> None:
    """Of any size: images show a part of it, and it goes on where it is turned and scaled down, or in another one."""
    other = np.roll(crack_through(), 30, axis=0)
    speck = crack_through()
    speck[0, 20:24] = 1  # at an edge: keeps nothing there, and the crack is not joined to another one
    for first in (crack_through(), speck):
        known = [KnownMask(each, (0.5, 0.5)) for each in (first, other)]
        shapes = (64, 96), (120, 160), (150, 100), (240, 320)
        found = [draw_long(np.random.default_rng(seed), first, shape, known) for seed in range(15) for shape in shapes]
        assert tuple(each.shape for each in found[:4]) == shapes
        assert len({each.tobytes() for each in found}) == 60
        assert np.mean([each[:, 0].any() and each[:, -1].any() for each in found]) > 0.9
        assert np.mean([each.any(axis=0).mean() > 0.9 for each in found]) > 0.9


def test_cracks_go_on_where_others_begin() -> None:
    """One thin, one thick: most maps show both, in one piece."""
    thick = (cv2.dilate(crack_through().astype(np.uint8), np.ones((7, 7))) > 0).astype(np.int8)
    both = 0
    for seed in range(20):
        found = draw_long(np.random.default_rng(seed), crack_through(), (120, 160), [KnownMask(thick, (0.5, 0.5))])
        heights = found.sum(axis=0)
        both += bool(np.mean(heights[:20]) < 7 < np.mean(heights[-20:]))
        assert cv2.connectedComponents(found.astype(np.uint8))[0] == 2
    assert both > 7  # the others show one of them only


def test_a_long_defect_in_a_corner_stays_there() -> None:
    chip = np.zeros((160, 160), np.int8)
    chip[:, 140:] = 1
    chip[40:] = 0
    for seed in range(20):
        found = draw_long(np.random.default_rng(seed), chip, (64, 64))
        assert found[:, -1].any()
        assert found[0].any()
        assert not found[:, :20].any()


@pytest.mark.parametrize("shape", [(64, 64), (160, 120), (100, 300), (300, 200)])
def test_a_long_defect_at_one_edge_stays_there(shape: tuple[int, int]) -> None:
    """It has what it had on that edge, and comes once: mirrored, a break would be a kaleidoscope."""
    chip = np.zeros((160, 120), np.int8)
    cv2.ellipse(chip.view(np.uint8), (119, 40), (20, 26), 0, 0, 360, 1, -1)
    chip[:, 115:] *= 119
    for seed in range(20):
        found = draw_long(np.random.default_rng(seed), chip, shape, [KnownMask(chip, (0.5, 0.5))])
        assert found.shape == shape
        assert tones_of(found)[:, -1].any()
        assert not tones_of(found)[:, :-10].any()  # five columns, turned and bent
        assert cv2.connectedComponents((found != 0).astype(np.uint8))[0] == 2
        assert not found[:, :-30].any()


def test_what_spans_an_image_is_stretched_to_a_larger_one() -> None:
    """A strip along the lower edge with one bump: mirrored beyond the known image, it would have two."""
    strip = np.zeros((80, 90), np.int8)
    strip[70:] = 1
    strip[40:70, 8:24] = 1
    for seed in range(20):
        found = mask_of(draw_long(np.random.default_rng(seed), strip, (80, 120)))
        count, _ = cv2.connectedComponents(found[:62].astype(np.uint8))
        assert count == 2  # the ground, and a bump
        assert found[-1, [0, -1]].all()


def test_scratches_that_touch_stay_straight_where_others_of_their_category_are() -> None:
    """What touches is no line to look at, and was bent like a crack."""
    touching = line() | np.roll(line(), 16, axis=1)
    touching[30:32, 33:49] = 1
    assert wanders(touching != 0)
    of_scratches = [KnownMask(each, (0.5, 0.5)) for each in (touching, line(), line())]

    def astray(known: list[KnownMask], seed: int) -> float:
        """How far the left edge of a map is from an arc, in pixels."""
        found = draw_map(np.random.default_rng(seed), touching, known)
        rows = np.flatnonzero(found.any(axis=1))[2:-2]
        left = found[rows].argmax(axis=1)
        return float((left - np.polynomial.Polynomial.fit(rows, left, 2)(rows)).std())

    straight, bent = (
        np.mean([astray(known, seed) for seed in range(20)]) for known in (of_scratches, of_scratches[:1])
    )
    assert straight < 0.75 * bent


def test_masks_are_mixed_with_those_of_their_size() -> None:
    known = [KnownMask(line(), (0.5, 0.5)), KnownMask(centered(disc(32, 32, 9), 160), (0.5, 0.5))]
    for seed in range(20):
        assert draw_map(np.random.default_rng(seed), known[1].levels, known).shape == (160, 160)
    np.testing.assert_allclose(middle(known[1].levels), 80)


@pytest.mark.parametrize("mask", [line(), pit(), centered(line(), 240)[40:200]])
def test_masks_are_kept_as_text(mask: Levels) -> None:
    known = KnownMask(mask, (0.25, 1.0), 1.5, 0.875)
    found = from_text(to_text(known), SIDE)
    np.testing.assert_array_equal(found.levels, mask)
    assert found[1:] == known[1:]
    # Tones of before, when the grain of the ground was part of them, are not asked for.
    before = from_text(to_text(known).replace("faded", "toned"), SIDE)
    np.testing.assert_array_equal(before.levels, mask_of(mask))
    # Those without what is around masks are.
    sharp = KnownMask(np.asarray((mask - mask_of(mask)) * mask_of(mask), np.int8), (0.25, 1.0))
    kept = from_text(to_text(sharp).replace("faded,0.0000", "tones"), SIDE).levels
    np.testing.assert_array_equal(mask_of(kept), sharp.levels != 0)
    np.testing.assert_array_equal(tones_of(kept), tones_of(mask * mask_of(mask)))


def test_tones_are_changes_in_parts_of_the_brightness_of_the_ground() -> None:
    """In any light; the ground is 0.8 of 2 bright."""
    twin = np.full((3, SIDE, SIDE), -0.2, np.float32)
    x = twin.copy()
    x[:, 10:30, 10:30] = -0.2 - 0.8 / 4
    x[:, 10:30, 30:50] = 0.6
    x[:, 40:50, 10:20] = 0.5  # outside
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[10:30, 10:55] = True
    levels = levels_of(mask, x, twin)
    grainy = twin + 0.2 * np.random.default_rng(0).normal(size=twin.shape).astype(np.float32)
    inside = (slice(12, 28), slice(12, 28))  # where x has no grain, the tones are those of the smooth ground
    assert np.ptp(tones_of(levels_of(mask, np.where(mask, x, grainy).astype(np.float32), grainy))[inside]) < 0.35
    np.testing.assert_array_equal(levels != 0, mask)
    tones = tones_of(levels)
    assert tones.dtype == np.float32
    np.testing.assert_allclose(tones[13:27, 13:27], math.tanh(-2 / 4), atol=0.017)  # in steps of 1/30
    np.testing.assert_allclose(tones[13:27, 33:47], math.tanh(2 * 0.8**0.5), atol=0.017)
    assert not tones[13:27, 54].any()
    assert not tones[~mask].any()
    darker = levels_of(mask, *(np.asarray(each / 2 - 0.5, np.float32) for each in (x, twin)))
    np.testing.assert_allclose(tones_of(darker).clip(-1, 0), tones.clip(-1, 0), atol=0.07)
    np.testing.assert_allclose(tones_of(darker)[13:27, 33:47], math.tanh(2 * 0.4**0.5), atol=0.017)
    assert not tones_of(levels_of(mask)).any()
    np.testing.assert_array_equal(levels_of(mask) != 0, mask)
    assert not levels_of(np.zeros_like(mask), x, twin).any()


def test_tones_are_warped_with_their_mask() -> None:
    """And not mixed with others, which would blur them."""
    known = [KnownMask(np.ascontiguousarray(pit()[:, ::-1]), (0.5, 0.5))]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        turned = draw_map(rng, pit(), known, Sides(4, 4, 4, 4))
        for found in (
            warped(rng, pit()),
            turned,
            fitted(pit(), np.ones((SIDE, SIDE), np.bool_), rng, 0.7),
        ):
            tones = tones_of(found)
            assert 0.1 < (tones < -0.4).sum() / mask_of(found).sum() < 0.5
            assert not tones[found == 0].any()
            if found is turned:
                assert np.linalg.norm(middle(tones > 0.25) - middle(tones < -0.4)) > 3  # bright on one side
            else:
                assert middle(tones > 0.25)[1] < middle(tones < -0.4)[1]  # bright on the left


def test_round_defects_are_turned_anywhere_and_others_are_not() -> None:
    """Five pits, each in eight positions, are forty; a line along the grain stays one, as does a chip at an edge."""
    bright = [middle(tones_of(draw_map(np.random.default_rng(seed), pit(), [])) > 0.25) - 32 for seed in range(60)]
    ways = {(int(np.abs(at).argmax()), bool(at[np.abs(at).argmax()] > 0)) for at in bright}
    assert ways == {(0, False), (0, True), (1, False), (1, True)}
    for seed in range(20):
        found = draw_map(np.random.default_rng(seed), line(), [KnownMask(line(), (0.5, 0.5))])
        height, width = np.ptp(np.argwhere(found), axis=0)
        assert height > 1.5 * width
        chip = np.roll(disc(32, 32, 9), -32, axis=1)
        chip[:, 32:] = 0
        assert draw_map(np.random.default_rng(seed), chip, [])[:, 0].any()


def test_the_light_comes_from_the_side_on_which_grooves_are_bright() -> None:
    """Grooves of any direction, of which the wall towards the lower right is bright."""
    known, toward = [], np.array([0.6, 0.8])
    for turn in np.linspace(0, np.pi, 24, endpoint=False):
        y, x = np.mgrid[:SIDE, :SIDE] - 32.0
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        wall = np.sign(np.array([-np.sin(turn), np.cos(turn)]) @ toward)
        inside = (np.abs(across) < 3) & (np.abs(along) < 20)
        known.append(np.asarray(inside * np.where(wall * across > 0, 41, -39), np.int8))
    side = light_side(known)
    assert side is not None
    assert np.dot(side, toward) > 0.9
    assert light_side(known[:4]) is None  # too few to know
    assert light_side([np.ascontiguousarray(each[:: (-1) ** i, :: (-1) ** i]) for i, each in enumerate(known)]) is None
    assert light_side([mask_of(each).astype(np.int8) for each in known]) is None  # without tones


def test_pits_that_are_lit_from_one_side_are_not_turned() -> None:
    known = [KnownMask(np.roll(pit(), shift, axis=(0, 1)), (0.5, 0.5)) for shift in range(8)]
    for seed in range(30):
        at = middle(tones_of(draw_map(np.random.default_rng(seed), pit(), known)) > 0.25)
        assert at[1] < 32  # the bright rim is on the left


def test_compact_defects_take_something_of_the_outlines_of_others() -> None:
    """A disc becomes longer like an ellipse, its core stays in its middle; a crack, or what is at an edge, does not."""
    ellipse = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(ellipse, (20, 20), (7, 15), 0, 0, 360, 1, -1)
    disc_with_core = disc(32, 32, 10)
    disc_with_core[disc(32, 32, 4) > 0] = -95
    for seed in range(20):
        found = reshaped(np.random.default_rng(seed), disc_with_core, ellipse.astype(np.int8))
        height, width = np.ptp(np.argwhere(mask_of(found)), axis=0)
        assert height > width + 2
        assert mask_of(found).sum() == pytest.approx(disc(32, 32, 10).sum(), rel=0.25)
        np.testing.assert_allclose(middle(tones_of(found) < -0.4), 32, atol=1.5)
        same = reshaped(np.random.default_rng(seed), disc_with_core, disc(20, 20, 6))
        assert (mask_of(same) != mask_of(disc_with_core)).sum() < 30
    known = [KnownMask(ellipse.astype(np.int8), (0.5, 0.5)), KnownMask(disc(0, 32, 9), (0.5, 0.5))]
    longer = 0
    for seed in range(20):
        drawn = draw_map(np.random.default_rng(seed), disc_with_core, known)
        (_, size, _) = cv2.minAreaRect(np.argwhere(mask_of(drawn)).astype(np.int32))
        longer += max(size) > 1.3 * min(size)
        alone = draw_map(np.random.default_rng(seed), disc_with_core, known[1:])
        (_, size, _) = cv2.minAreaRect(np.argwhere(mask_of(alone)).astype(np.int32))
        longer -= max(size) > 1.3 * min(size)
    assert longer > 5


def test_a_map_keeps_its_edges() -> None:
    """A defect that leaves its window on three sides fills them again: it was cut off in straight lines inside."""
    corner = np.zeros((SIDE, SIDE), np.int8)
    cv2.circle(corner.view(np.uint8), (0, 32), 52, 1, -1)
    assert corner[[0, -1], :20].all()
    for seed in range(20):
        found = draw_map(np.random.default_rng(seed), corner, [])
        assert found[:, 0].all()
        assert found[0, :20].all()
        assert found[-1, :20].all()


def test_tones_fade_around_their_mask() -> None:
    """What a defect changes in the pixel beside its mask is kept, and moves with it; the mask does not grow."""
    twin = np.zeros((1, SIDE, SIDE), np.float32)
    core, around = disc(32, 32, 9) > 0, disc(32, 32, 10) > 0
    x = np.where(core, np.float32(-0.5), np.where(around, np.float32(-0.25), 0))[None].astype(np.float32)
    levels = levels_of(core, x, twin)
    np.testing.assert_array_equal(mask_of(levels), core)
    rim = around & ~core & (cv2.dilate(core.astype(np.uint8), np.ones((3, 3))) > 0)
    np.testing.assert_allclose(tones_of(levels)[rim], -math.tanh(2 * 0.25), atol=0.1)  # of a ground a little darker
    assert not tones_of(levels)[~around].any()
    moved = warped(np.random.default_rng(0), levels)
    rim = (cv2.dilate(mask_of(moved).astype(np.uint8), np.ones((3, 3))) > 0) & ~mask_of(moved)
    assert (tones_of(moved)[rim] < -0.1).mean() > 0.6


def test_what_a_defect_changes_is_warped_with_its_mask() -> None:
    a = np.stack([disc(30, 30, 9), line() * 0]).astype(np.float32)
    change = np.stack([-0.5 * a[0], 0.25 * a[0], 0 * a[0]])
    for seed in range(10):
        moved, masks = warped_change(np.random.default_rng(seed), change, a)
        assert moved.shape == change.shape
        assert moved.dtype == np.float32
        assert not np.array_equal(masks[0], a[0])
        assert not masks[1].any()
        inside = cv2.erode(masks[0], np.ones((5, 5))) > 0
        outside = cv2.dilate(masks[0], np.ones((5, 5))) == 0
        np.testing.assert_allclose(moved[0][inside], -0.5, atol=0.1)  # overshoots a little
        np.testing.assert_allclose(moved[1], -moved[0] / 2, atol=1e-6)
        assert np.abs(moved[:, outside]).max(initial=0) < 0.05
    # A crack through the window still crosses it.
    crack = np.zeros((1, SIDE, SIDE), np.float32)
    crack[0, 30:34] = 1
    for seed in range(10):
        _, masks = warped_change(np.random.default_rng(seed), crack, crack, long=True)
        assert masks[0].any(axis=0).all()


def test_masks_of_older_models_can_be_read() -> None:
    bits = base64.b64encode(np.packbits(line()).tobytes()).decode()
    squeezed = base64.b64encode(zlib.compress(np.packbits(line()).tobytes())).decode()
    for packed in (bits, f"{SIDE},{squeezed}"):
        levels, place, zoom, light = from_text(f"0.2500,1.0000,1.5000,{packed}", SIDE)
        np.testing.assert_array_equal(levels, line())
        assert (place, zoom, light) == ((0.25, 1.0), 1.5, 0)  # nobody knows the light
