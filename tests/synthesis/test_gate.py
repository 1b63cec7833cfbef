import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.dataset import Sample
from defectgen.dataset.manifest import Provenance
from defectgen.folders import read_defects
from defectgen.imaging.images import Pixels, read_image, read_mask
from defectgen.nn.features import lite0
from defectgen.synthesis.gate import Gate, appearance

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def gate(real: Path) -> Gate:
    return Gate(real / "defects", read_defects(real / "defects"))


def sample(image: Pixels, mask: NDArray[np.generic], category: str) -> Sample:
    return Sample(0, category, "part", image, np.asarray(mask) > 0, Provenance())


def sample_and_source(draw: Callable[[int, str], Pair], seed: int, category: str) -> tuple[Sample, NDArray[np.uint8]]:
    """A sample and its source image."""
    image, mask = draw(seed, category)
    source, _ = draw(seed + 500, "normal")
    generated = source.copy()
    generated[mask > 0] = image[mask > 0]
    return sample(generated, mask, category), source


def test_similar_defects_pass(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    reasons = [gate(*sample_and_source(draw, seed, "bar")).reason for seed in range(100, 130)]
    assert np.mean([reason == "implausible" for reason in reasons]) < 0.2
    assert "unmarked" not in reasons


@pytest.mark.parametrize("count", [1, 3])
def test_with_few_real_defects_everything_is_plausible(
    real: Path, draw: Callable[[int, str], Pair], count: int
) -> None:
    found = read_defects(real / "defects", categories=["bar"])
    few = Gate(real, found.model_copy(update={"images": found.images[:count]}))
    judged = [few(*sample_and_source(draw, seed, "bar")) for seed in range(100, 110)]
    assert {each.reason for each in judged} <= {None, "copy"}
    assert {each.distance for each in judged} == {None}  # nothing can be said of it
    assert len(few.photographs) == count


def test_copies_are_rejected(gate: Gate, real: Path, draw: Callable[[int, str], Pair]) -> None:
    found = []
    for seed in range(6):
        image, mask = (
            read_image(real / f"defects/bar/{seed}.png").pixels,
            read_mask(real / f"masks/bar/{seed}.png"),
        )
        source, _ = draw(500 + seed, "normal")
        generated = np.where(mask, image, source)
        found.append(gate(sample(generated, mask, "bar"), source).reason)
    assert found.count("copy") >= 5


def test_what_passes_says_how_near_it_is_to_which_real_defect(real: Path, draw: Callable[[int, str], Pair]) -> None:
    gate = Gate(real / "defects", read_defects(real / "defects"), copies=False)
    judged = [gate(*sample_and_source(draw, seed, "bar")) for seed in range(100, 130)]
    passed = [each for each in judged if each.reason is None]
    assert passed
    for each in passed:
        assert each.distance is not None
        assert 0 <= each.distance <= 1
        assert each.nearest is not None
        file = Path(each.nearest.file)
        assert file.parent == real / "defects/bar"
        assert each.nearest.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    original = real / "defects/bar/3.png"
    again = gate(sample(read_image(original).pixels, read_mask(real / "masks/bar/3.png"), "bar"), None)
    assert (again.distance, again.nearest and again.nearest.file) == (0, str(original))


def test_unusual_defects_are_implausible(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    source, _ = draw(700, "normal")
    mask = np.zeros((100, 100), np.uint8)
    mask[5:95, 5:95] = 255
    generated = source.copy()
    generated[mask > 0] = 250 - generated[mask > 0] // 2
    assert gate(sample(generated, mask, "bar"), source).reason == "implausible"
    bar, base = sample_and_source(draw, 100, "bar")
    assert (
        gate(sample(bar.image, bar.mask.astype(np.uint8) * 255, "disc"), base).reason == "implausible"
    )  # bright and long


def test_masks_without_a_visible_change_are_rejected(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    generated, source = sample_and_source(draw, 101, "bar")
    assert gate(sample(source, generated.mask.astype(np.uint8) * 255, "bar"), source).reason == "unmarked"
    elsewhere = np.roll(generated.mask, 40, axis=0).astype(np.uint8) * 255
    assert gate(sample(generated.image, elsewhere, "bar"), source).reason == "unmarked"


def test_real_defects_are_seldom_refused(gate: Gate, real: Path) -> None:
    """Left out of the set one after another, at most one in twenty lies outside of it."""
    for category in gate._categories.values():
        distances = np.linalg.norm(category.points[:, None] - category.points[None], axis=2)
        nearest = (distances + np.diag(np.full(len(distances), np.inf))).min(axis=1)
        assert (nearest > category.radius).mean() <= 0.05


def test_appearance_is_that_of_the_defect_wherever_it_lies(draw: Callable[[int, str], Pair]) -> None:
    network = lite0()
    pixels, mask = draw(3, "disc")
    x = np.asarray(pixels[None] / 127.5 - 1, np.float32)
    here = appearance(network, x, mask > 0)
    moved = appearance(network, np.roll(x, (4, -8), (1, 2)), np.roll(mask > 0, (4, -8), (0, 1)))
    bar, its_mask = draw(3, "bar")
    other = appearance(network, np.asarray(bar[None] / 127.5 - 1, np.float32), np.asarray(its_mask) > 0)
    assert np.linalg.norm(here - moved) < 0.3 * np.linalg.norm(here - other)
    assert np.isfinite(appearance(network, x, np.ones((100, 100), np.bool_))).all()


def test_an_unknown_category_is_compared_with_all(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    found: list[Any] = []
    for seed in range(100, 110):
        generated, source = sample_and_source(draw, seed, "bar")
        unknown = sample(generated.image, generated.mask.astype(np.uint8), "defect")
        found.append((gate(generated, source).reason, gate(unknown, source).reason))
    assert all(other is None or own is not None or other == "copy" for own, other in found)
