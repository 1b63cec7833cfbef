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
from defectgen.synthesis.gate import Gate, traits

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def gate(real: Path) -> Gate:
    return Gate(real / "defects", read_defects(real / "defects"))


def sample(image: Pixels, mask: NDArray[np.generic], category: str) -> Sample:
    return Sample(0, category, "part", image, np.asarray(mask) > 0, Provenance())


def on(draw: Callable[[int, str], Pair], seed: int, category: str) -> tuple[Sample, NDArray[np.uint8]]:
    """A sample, and the photograph that it was made on."""
    image, mask = draw(seed, category)
    source, _ = draw(seed + 500, "normal")
    made = source.copy()
    made[mask > 0] = image[mask > 0]
    return sample(made, mask, category), source


def test_others_of_the_kind_pass(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    reasons = [gate(*on(draw, seed, "bar")) for seed in range(100, 130)]
    assert np.mean([reason == "implausible" for reason in reasons]) < 0.2
    assert "unmarked" not in reasons


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_real_defects_tell_nothing_of_what_is_plausible(
    real: Path, draw: Callable[[int, str], Pair], count: int
) -> None:
    found = read_defects(real / "defects", categories=["bar"])
    few = Gate(real, found.model_copy(update={"images": found.images[:count]}))
    assert {few(*on(draw, seed, "bar")) for seed in range(100, 110)} <= {None, "copy"}
    assert len(few.photographs) == count


def test_copies_are_told(gate: Gate, real: Path, draw: Callable[[int, str], Pair]) -> None:
    found = []
    for seed in range(6):
        image, mask = (
            read_image(real / f"defects/bar/{seed}.png").pixels,
            read_mask(real / f"masks/bar/{seed}.png"),
        )
        source, _ = draw(500 + seed, "normal")
        made = np.where(mask, image, source)
        found.append(gate(sample(made, mask, "bar"), source))
    assert found.count("copy") >= 5


def test_strange_ones_are_implausible(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    source, _ = draw(700, "normal")
    mask = np.zeros((100, 100), np.uint8)
    mask[5:95, 5:95] = 255
    made = source.copy()
    made[mask > 0] = 250 - made[mask > 0] // 2
    assert gate(sample(made, mask, "bar"), source) == "implausible"
    bar, ground = on(draw, 100, "bar")
    assert gate(sample(bar.image, bar.mask.astype(np.uint8) * 255, "disc"), ground) == "implausible"  # bright, and long


def test_masks_that_mark_nothing_seen_are_told(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    made, source = on(draw, 101, "bar")
    assert gate(sample(source, made.mask.astype(np.uint8) * 255, "bar"), source) == "unmarked"
    elsewhere = np.roll(made.mask, 40, axis=0).astype(np.uint8) * 255
    assert gate(sample(made.image, elsewhere, "bar"), source) == "unmarked"


def test_traits_are_those_of_the_defect_whatever_the_brightness_around(draw: Callable[[int, str], Pair]) -> None:
    pixels, mask = draw(3, "bar")
    x = np.asarray(pixels[None] / 255 - 0.5, np.float32)
    brighter = np.asarray(x + 0.2, np.float32)
    assert traits(x, mask > 0) == pytest.approx(traits(brighter, mask > 0), abs=1e-3)
    assert np.isfinite(traits(x, np.ones((100, 100), np.bool_))).all()


def test_an_unknown_category_is_compared_with_all(gate: Gate, draw: Callable[[int, str], Pair]) -> None:
    found: list[Any] = []
    for seed in range(100, 110):
        made, source = on(draw, seed, "bar")
        found.append((gate(made, source), gate(sample(made.image, made.mask.astype(np.uint8), "defect"), source)))
    assert all(other is None or own is not None or other == "copy" for own, other in found)
