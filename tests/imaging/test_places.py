"""Where real defects lie, how they turn, and how their sizes vary."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.places import Grain, Ground, Habits, KnownSpot, Pose, Spot, from_text, grain, to_text
from defectgen.imaging.windows import BoolArray, Box


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def streaks(degrees: float, side: int = 96) -> NDArray[np.uint8]:
    """Lines in a direction, counter-clockwise from the x axis; the y axis points down."""
    y, x = np.indices((side, side))
    across = x * np.sin(np.radians(degrees)) + y * np.cos(np.radians(degrees))
    noise = rng().normal(0, 4, (side, side))
    return np.clip(120 + 40 * np.sin(across / 2) + noise, 0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 170])
def test_the_grain_is_the_direction_of_the_lines(degrees: float) -> None:
    found = grain(streaks(degrees), 48, 48)
    assert found.coherent
    assert (found.degrees - degrees + 90) % 180 - 90 == pytest.approx(0, abs=3)


def test_noise_has_no_grain_and_what_is_hidden_does_not_count() -> None:
    noise = rng().integers(0, 255, (96, 96, 3), np.uint8)
    assert not grain(noise, 48, 48).coherent
    crossed = streaks(90)
    crossed[40:56] = streaks(0)[40:56] // 2
    hidden = np.zeros((96, 96), np.bool_)
    hidden[40:56] = True
    assert grain(crossed, 48, 48, hidden).degrees == pytest.approx(90, abs=4)


def test_features_are_relative_to_the_part_and_to_its_levels() -> None:
    """A part of 60 x 40 on a black backdrop; its right half is bright, its lower half rough."""
    pixels = np.zeros((80, 100, 1), np.uint8)
    pixels[20:60, 20:50], pixels[20:60, 50:80] = 100, 180
    pixels[42:58, 22:78] = np.clip(pixels[42:58, 22:78] + rng().normal(0, 25, (16, 56, 1)), 60, 255).astype(np.uint8)
    ground = Ground(pixels)
    points = np.array([[21.0, 40.0], [50.0, 40.0], [30.0, 28.0], [70.0, 28.0], [50.0, 50.0]])
    across, down, depth, brightness, texture = ground.features(points).T
    assert across == pytest.approx([0.02, 0.5, 0.17, 0.83, 0.5], abs=0.06)
    assert down == pytest.approx([0.5, 0.5, 0.2, 0.2, 0.75], abs=0.06)
    assert depth[0] < 0.2 < 0.8 < depth[1]
    assert brightness[2] < 0.5 < brightness[3]
    assert texture[2] < texture[4]
    assert ground.on_part(np.array([[50.0, 40.0], [5.0, 5.0]])).tolist() == [True, False]


def test_the_ground_of_a_defect_is_what_is_around_it() -> None:
    """Left, dark and smooth; right, bright and rough. A black defect with a white rim on the left changes neither."""
    pixels = np.full((96, 96, 1), 80, np.float32)
    pixels[:, 48:] = 160 + rng().normal(0, 20, (96, 48, 1))
    pixels += rng().normal(0, 2, pixels.shape)
    box, piece = Box(10, 40, 16, 16), np.ones((16, 16), np.bool_)
    clean = Ground(np.clip(pixels, 0, 255).astype(np.uint8)).features(np.array([[17.5, 47.5]]))[0]
    pixels[40:56, 10:26] = 255
    pixels[43:53, 13:23] = 0
    spoiled = np.clip(pixels, 0, 255).astype(np.uint8)
    assert clean[3] < 0.5
    assert clean[4] < 0.5
    assert Spot.of(spoiled, Ground(spoiled, [(box, piece)]), box, piece).features == pytest.approx(clean, abs=0.3)
    assert Spot.of(spoiled, Ground(spoiled), box, piece).features[4] > 0.8  # of its own contrast


def bar(degrees: float = 0.0, length: int = 20) -> BoolArray:
    y, x = np.indices((31, 31)) - 15
    along = x * np.cos(np.radians(degrees)) - y * np.sin(np.radians(degrees))
    across = x * np.sin(np.radians(degrees)) + y * np.cos(np.radians(degrees))
    return np.asarray((np.abs(along) <= length / 2) & (np.abs(across) <= 2))


def test_a_spot_says_which_edges_it_reaches_and_its_axis() -> None:
    pixels = streaks(90)
    ground = Ground(pixels)
    for x, y, touches in (
        (0, 40, (False, False, True, False)),
        (65, 0, (True, False, False, True)),
        (30, 65, (False, True, False, False)),
        (30, 30, INSIDE),
    ):  # fmt: skip
        piece = bar(30)
        piece[[0, -1]] = piece[:, [0, -1]] = True  # fills its box
        assert Spot.of(pixels, ground, Box(x, y, 31, 31), piece).touches == touches
    spot = Spot.of(pixels, ground, Box(30, 30, 31, 31), bar(30))
    assert spot.degrees == pytest.approx(30, abs=3)
    assert spot.elongated
    assert spot.box == pytest.approx((30 / 96, 30 / 96, 31 / 96, 31 / 96))
    assert not Spot.of(pixels, ground, Box(30, 30, 9, 9), np.ones((9, 9), np.bool_)).elongated


INSIDE = (False, False, False, False)
UPWARD = Grain(90.0, coherent=True)
MIDDLE = (0.5, 0.5, 0.5, 0.5, 0.5)


def spot(degrees: float = 0.0, *, elongated: bool = True, length: float = 20.0, **changes: Any) -> Spot:
    given = {
        "touches": INSIDE,
        "features": MIDDLE,
        "grain": UPWARD,
        "contrast": -0.3,
        "box": (0.4, 0.4, 0.2, 0.1),
        **changes,
    }
    return Spot(degrees=degrees, elongated=elongated, length=length, **given)


@pytest.mark.parametrize(
    ("touches", "degrees", "expected"),
    [
        (INSIDE, 30.0, Pose(degrees=-30.0)),
        ((False, True, False, False), 0.0, Pose(ends=(False, True))),  # at the bottom already
        ((True, False, False, False), 10.0, Pose(flip_y=True, ends=(False, True))),
        ((False, False, False, True), 170.0, Pose(flip_x=True, ends=(True, False))),
        ((True, False, False, False), 90.0, Pose(transposed=True, ends=(True, False))),  # from the top downwards
        ((False, True, False, True), 100.0, Pose(transposed=True, flip_x=True, ends=(True, True))),
        ((False, False, True, True), 0.0, Pose(ends=(True, False))),
    ],
)
def test_a_pose_brings_a_defect_to_the_left_or_the_bottom(
    touches: tuple[bool, bool, bool, bool], degrees: float, expected: Pose
) -> None:
    """With its top and bottom, and its left and right, exchanged by transposition."""
    assert Pose.of(spot(degrees, touches=touches)) == expected


def test_a_known_spot_survives_as_text() -> None:
    known = KnownSpot(spot(12.5, touches=(True, False, False, True)), 0.25, 88.0)
    assert from_text(to_text(known)) == known


class TestHabits:
    def test_turns_follow_the_grain_and_the_spread_of_the_real_ones(self) -> None:
        alike = Habits([spot(90 + offset) for offset in (-8, -4, 0, 4, 8)])
        turns = [alike.draw_turn(rng(seed), spot(90), Grain(90.0, coherent=True)) for seed in range(300)]
        assert np.mean(turns) == pytest.approx(0, abs=2)
        assert 3 < np.std(turns) < 14
        turned = [alike.draw_turn(rng(seed), spot(90), Grain(60.0, coherent=True)) for seed in range(300)]
        assert np.mean(turned) == pytest.approx(-30, abs=2)
        nowhere = [alike.draw_turn(rng(seed), spot(90), Grain(60.0, coherent=False)) for seed in range(300)]
        assert np.mean(nowhere) == pytest.approx(0, abs=2)

    @pytest.mark.parametrize("degrees", [0.0, 33.3, 78.9, 90.0, 123.4])
    def test_the_same_direction_many_times_is_a_small_spread(self, degrees: float) -> None:
        for count in (2, 3, 7, 12):
            assert Habits([spot(degrees)] * count).turn == 6.0

    def test_directions_without_a_sign(self) -> None:
        """5 and 175 degrees are 10 apart."""
        turn = Habits([spot(5), spot(175), spot(2), spot(178)]).turn
        assert turn is not None
        assert turn < 12

    @pytest.mark.parametrize(
        "spots", [[spot(angle) for angle in range(0, 180, 20)], [spot(elongated=False) for _ in range(5)]]
    )
    def test_defects_of_any_direction_are_turned_any_way(self, spots: list[Spot]) -> None:
        habits = Habits(spots)
        assert habits.turn is None
        assert np.std([habits.draw_turn(rng(seed), spots[0], spots[0].grain) for seed in range(200)]) > 80

    def test_at_an_edge_a_defect_keeps_its_pose(self) -> None:
        left = spot(touches=(False, False, True, False))
        assert Habits([left] * 4).draw_turn(rng(), left, Grain(10.0, coherent=True)) == 0

    def test_variations_are_as_large_as_asked(self) -> None:
        habits = Habits([spot(contrast=contrast) for contrast in (-0.1, -0.2, -0.4, 0.3)])
        drawn = [habits.draw_variation(rng(seed), spot(), 1.0) for seed in range(300)]
        assert np.std(np.log2([each.stretch for each in drawn])) == pytest.approx(0.25, abs=0.04)
        assert np.std(np.log2([each.contrast for each in drawn])) == pytest.approx(0.3, abs=0.05)
        assert len({each.key for each in drawn}) > 290
        none = habits.draw_variation(rng(), spot(), 0.0)
        assert (none.bend, none.stretch, none.contrast) == (0, 1, 1)
        assert habits.draw_variation(rng(3), spot(elongated=False), 1.0).stretch == 1
        alike = Habits([spot()] * 5)
        assert alike.draw_variation(rng(), spot(), 1.0).contrast == 1

    def test_a_category_bends_as_most_of_its_defects_do(self) -> None:
        for straight, expected in ((3, True), (2, False)):
            spots = [replace(spot(), wanders=k >= straight) for k in range(4)]
            assert Habits(spots).draw_variation(rng(), spots[0], 1.0).arc == expected

    def test_a_spot_of_an_older_model_wanders(self) -> None:
        text = to_text(KnownSpot(spot(), 1.0, 20.0)).replace(', "wanders": true', "")
        assert "wanders" not in text
        assert from_text(text).spot.wanders

    def test_scales_vary_as_the_real_sizes(self) -> None:
        alike, varied = Habits([spot(length=20)] * 4), Habits([spot(length=length) for length in (5, 10, 20, 40, 80)])
        scales = [[np.log2(each.draw_scale(rng(seed))) for seed in range(300)] for each in (alike, varied)]
        assert np.std(scales[0]) == pytest.approx(0.15, abs=0.03)
        assert np.std(scales[1]) > 0.4
        assert np.abs(scales[1]).max() <= 1

    def test_longer_lines_are_no_enlarged_ones(self) -> None:
        """Scratches of one width and of any length keep their width; dots of any size are scaled."""
        lengths = (5, 10, 20, 40, 80)
        for elongated, thickness, least, most in (
            (True, [4] * 5, 0.1, 0.2), (True, lengths, 0.4, 1), (False, [4] * 5, 0.4, 1), (True, [0] * 5, 0.4, 1)
        ):  # fmt: skip
            habits = Habits([
                spot(length=length, thickness=thick, elongated=elongated)
                for length, thick in zip(lengths, thickness, strict=True)
            ])  # fmt: skip
            assert least < np.std([np.log2(habits.draw_scale(rng(seed))) for seed in range(300)]) < most
        piece = np.zeros((10, 60), np.bool_)
        piece[3:7, 5:55] = True
        pixels = streaks(90)
        assert Spot.of(pixels, Ground(pixels), Box(10, 30, 60, 10), piece).thickness == pytest.approx(4, abs=1)

    def test_a_defect_comes_to_ground_as_bright_as_its_own(self) -> None:
        gradient = np.tile(np.linspace(60, 180, 160), (96, 1)) + rng().normal(0, 2, (96, 160))
        ground = Ground(gradient[..., None].astype(np.uint8))
        for brightness in (0.2, 0.8):
            dark_or_bright = spot(features=(0.5, 0.5, 0.5, brightness, 0.5))
            found = [Habits([dark_or_bright]).draw_center(rng(seed), ground, dark_or_bright, (8, 8), None)
                     for seed in range(60)]  # fmt: skip
            assert np.mean([each[0] for each in found if each]) == pytest.approx(160 * brightness, abs=12)

    def test_centers_have_the_density_of_the_real_ones(self) -> None:
        """Seven real ones lie where it is dark, at any position: where is that in another image?"""
        dark_right = np.where(np.arange(120) < 60, 150, 70) + rng().normal(0, 3, (90, 120))
        features = [(p, 0.5, 0.5, 0.2 + 0.02 * i, 0.5) for i, p in enumerate(np.linspace(0.05, 0.95, 7))]
        habits = Habits([spot(features=each) for each in features])
        ground = Ground(dark_right[..., None].astype(np.uint8))
        found = [habits.draw_center(rng(seed), ground, habits.spots[0], (10, 10), None) for seed in range(100)]
        assert np.mean([each is not None and each[0] > 56 for each in found]) > 0.9

    def test_few_real_ones_teach_less(self) -> None:
        learned = [Habits([spot()] * count).summary()["learned"] for count in (1, 2, 3, 6)]
        assert learned == [
            [], ["depth"], ["across", "down", "depth"], ["across", "down", "depth", "brightness", "texture"]
        ]  # fmt: skip
        edges = Habits([spot(touches=(True, False, False, False)), spot()]).summary()
        assert edges["at_edges"] == {"top": 0.5}
        assert (edges["real_defects"], edges["inside"]) == (2, 1)
        ground = Ground(streaks(90))
        free = np.zeros((96, 96), np.bool_)
        free[5:25, 50:80] = True
        for seed in range(20):
            x, y = Habits([spot()]).draw_center(rng(seed), ground, spot(), (8, 8), free) or (60, 10)
            assert 59 <= x < 71  # all of it, and its rim
            assert 14 <= y <= 16
        assert Habits([spot()]).draw_center(rng(), ground, spot(), (8, 8), np.zeros((96, 96), np.bool_)) is None

    def test_along_an_edge_it_lies_near_where_it_was(self) -> None:
        left = spot(touches=(False, False, True, False), features=(0.02, 0.8, 0.1, 0.5, 0.5))
        down = [Habits([left] * 3).draw_along(rng(seed), left)[1] for seed in range(200)]
        assert np.mean(down) == pytest.approx(0.8, abs=0.06)
        assert np.std(down) > 0.08
        assert max(down) <= 1
        assert 0 <= Habits([spot()]).draw_along(rng(), left)[1] <= 1  # none of its edge was studied
