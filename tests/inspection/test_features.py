from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage
from defectgen.inspection import features
from defectgen.inspection.features import FeatureDifference, Lesson, Memory, learn, most_patches
from defectgen.nn.features import CHANNELS, Lite0, lite0


@pytest.fixture(scope="module")
def network() -> Lite0:
    return lite0()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(features, "_STEPS", 120)
    monkeypatch.setattr(features, "_REMEMBERED", 200)
    with torch.random.fork_rng(devices=[]):
        yield


def surface(seed: int, shape: tuple[int, int] = (96, 128)) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    streaks = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), sigmaX=6, sigmaY=0.8)
    return np.clip(120 + streaks / streaks.std() * 20, 0, 255).astype(np.uint8)


def spotted(seed: int, row: int, column: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    image, mask = surface(seed), np.zeros((96, 128), np.uint8)
    cv2.circle(mask, (column, row), 9, 255, -1)
    image[mask > 0] = 60
    return image, mask > 0


def near(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0


def lesson(network: Lite0, pixels: Any, truth: Any = None) -> Lesson:
    return Lesson(network, DecodedImage(pixels), truth, most_patches(4), 0)


class _Local(torch.nn.Module):
    """Sees no further than a patch of each map, so that tiles must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        pooled = [torch.nn.functional.avg_pool2d(x, side) for side in (4, 8, 16, 32)]
        return [each.expand(-1, width, -1, -1) for each, width in zip(pooled, CHANNELS, strict=True)]


def test_what_was_never_seen_scores_high_where_it_is(network: Lite0) -> None:
    tensors = learn([lesson(network, surface(seed)) for seed in range(8)], "memory", 0)
    memory = Memory(network, tensors, "memory")
    image, mask = spotted(9, 50, 80)
    scores = memory(DecodedImage(image))(0, 96)
    assert scores.shape == image.shape
    assert scores[mask].min() > scores[~near(mask)].mean()
    flawless = [memory(DecodedImage(surface(seed)))(0, 96) for seed in range(10, 14)]
    assert scores.max() > 1.1 * max(each.max() for each in flawless)
    assert 0 < min(each.min() for each in flawless) <= scores.max() < 2


def test_known_defects_teach_a_classifier(network: Lite0) -> None:
    known = [spotted(seed, 20 + 15 * seed, 30 + 20 * seed) for seed in range(4)]
    lessons = [lesson(network, surface(seed + 20)) for seed in range(4)]
    lessons += [lesson(network, image, mask) for image, mask in known]
    tensors = learn(lessons, "classifier", 0)
    scores = {
        name: Memory(network, tensors, "classifier")(DecodedImage(image))(0, 96)
        for name, image in (("bad", spotted(9, 50, 80)[0]), ("good", surface(11)))
    }
    mask = spotted(9, 50, 80)[1]
    assert mask[np.unravel_index(scores["bad"].argmax(), mask.shape)]
    assert scores["bad"].max() > 1.2 > 0.9 > scores["good"].max()
    again = learn(lessons, "classifier", 0)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_simulated_defects_and_the_distance_join(network: Lite0) -> None:
    """What was never seen, and is like no simulated defect, is still far from all that was seen."""
    lessons = [lesson(network, surface(seed)) for seed in range(6)]
    lessons += [lesson(network, *spotted(seed, 20 + 10 * seed, 30 + 15 * seed)) for seed in range(4)]
    tensors = learn(lessons, "simulated", 0)
    scores = Memory(network, tensors, "simulated")
    flawless = max(scores(DecodedImage(surface(seed)))(0, 96).max() for seed in range(10, 14))
    stripes = np.where(np.arange(128) // 8 % 2, 90, 150).astype(np.uint8) * np.ones((96, 1), np.uint8)
    for strange in (spotted(9, 50, 80)[0], stripes):
        assert scores(DecodedImage(strange))(0, 96).max() > flawless


def test_the_mask_decides_what_is_learned_as_defective(network: Lite0) -> None:
    image, mask = spotted(3, 48, 64)
    whole, part = lesson(network, image), lesson(network, image, mask)
    assert len(whole.defective) == 0
    assert len(whole.flawless) == 12 * 16
    touched: Any = mask.reshape(12, 8, 16, 8).any(axis=(1, 3))
    assert len(part.flawless) == 12 * 16 - cv2.dilate(touched.astype(np.uint8), np.ones((3, 3), np.uint8)).sum()
    assert 4 <= len(part.defective) <= 9  # a spot of 18 pixels
    dot = np.zeros((96, 128), np.bool_)
    dot[41:43, 41:43] = True  # a sixteenth of a patch
    assert len(lesson(network, image, dot).defective) == 1
    assert len(Lesson(network, DecodedImage(image), mask, 20, 0).flawless) == 20


def test_the_light_does_not_matter(network: Lite0) -> None:
    """Of darker, of 16-bit and of color images the same is seen."""
    image = surface(7)
    difference = FeatureDifference(network)
    dark = (image * 0.5 + 10).astype(np.uint8)
    tensors = learn([lesson(network, surface(seed)) for seed in range(2)], "memory", 0)
    memory = Memory(network, tensors, "memory")
    expected = memory(DecodedImage(image))(0, 96)
    assert expected.max() > 0.5
    for other in (dark, image.astype(np.uint16) * 200, np.repeat(image[..., None], 3, axis=2)):
        np.testing.assert_allclose(memory(DecodedImage(other))(0, 96), expected, atol=0.1)
    even = np.full((96, 128), 90, np.uint8)
    assert difference(DecodedImage(even), even)(0, 96).max() < 1e-5


def test_a_difference_is_seen_where_it_is(network: Lite0) -> None:
    image, mask = spotted(2, 30, 100)
    whole = surface(2)
    scores = FeatureDifference(network)(DecodedImage(image), whole)(0, 96)
    assert mask[np.unravel_index(scores.argmax(), mask.shape)]
    assert scores[60:, :50].max() < scores.max() / 4
    assert 0 <= scores.min() <= scores.max() <= 2
    same = FeatureDifference(network)(DecodedImage(whole), whole)(0, 96)
    assert same.max() < 1e-5


@pytest.mark.parametrize("shape", [(5, 7), (33, 200), (130, 70)])
def test_images_of_any_size_in_strips_and_tiles(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = _Local()
    memory = Memory(network, learn([lesson(network, surface(seed)) for seed in range(2)], "memory", 0), "memory")
    image = surface(5, shape)
    rows = memory(DecodedImage(image))
    whole = rows(0, shape[0])
    assert whole.shape == shape
    if shape[0] > 64:
        np.testing.assert_array_equal(rows(64, shape[0]), whole[64:])
    monkeypatch.setattr(features, "_TILE", 64)
    np.testing.assert_allclose(memory(DecodedImage(image))(0, shape[0]), whole, atol=1e-3)


def test_memory_of_points_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    assert features._farthest(points, 3).tolist() == [0, 3, 2]
    distances = features._distances(torch.tensor([[6.0], [0.5]]), points)
    assert distances.tolist() == pytest.approx([1.0, 0.5], abs=1e-3)
