"""Defects that were photographed again are found, and stay on one side. Near-duplicates: `test_data.py`."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.evaluation.data import LabeledImage, Synthetic
from defectgen.evaluation.rephotographed import rephotographed
from defectgen.evaluation.splitting import separate, split
from defectgen.imaging.images import encode_png

Draw = Callable[[int, str], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
Photograph = Callable[..., LabeledImage]


@pytest.fixture
def photograph(tmp_path: Path) -> Photograph:
    """A photograph of a part with its own grain: with gain and gradient of the light, noise, and moved."""

    def take(
        name: str, part: int, *, gain: float = 1.0, light: float = 0.0, moved: tuple[int, int] = (0, 0),
        category: str = "hole", spot: tuple[int, int] = (80, 70),
    ) -> LabeledImage:  # fmt: skip
        rng = np.random.default_rng(part)
        grain = 90 + 12 * cv2.GaussianBlur(rng.normal(size=(160, 200)), (0, 0), 1.5) * 4
        mask = np.zeros((160, 200), np.uint8)
        cv2.ellipse(mask, spot, (11, 6), 20, 0, 360, 255, -1)
        pixels = np.where(mask > 0, 0.4 * grain, grain)
        noise = np.random.default_rng([*name.encode()]).normal(0, 1.5, pixels.shape)
        pixels = pixels * gain + light * np.arange(200) + noise
        pixels, mask = np.roll(pixels, moved, axis=(0, 1)), np.roll(mask, moved, axis=(0, 1))
        return write(tmp_path, name, pixels, mask, category)

    return take


def write(root: Path, name: str, pixels: NDArray[np.float64], mask: NDArray[np.uint8], category: str) -> LabeledImage:
    (root / f"{name}.png").write_bytes(encode_png(np.clip(pixels, 0, 255).astype(np.uint8)))
    (root / f"{name}-mask.png").write_bytes(encode_png(mask))
    return LabeledImage(root / f"{name}.png", category, root / f"{name}-mask.png")


def test_a_defect_in_another_light_and_place_is_found_again(photograph: Photograph) -> None:
    first = photograph("first", 1)
    again = [
        photograph("brighter", 1, gain=1.9),
        photograph("moved", 1, gain=0.6, moved=(23, -31)),
        photograph("lit", 1, light=0.4),
    ]
    others = [photograph("part", 2), photograph("kind", 1, category="dent"), LabeledImage(first.path, "hole")]
    assert rephotographed([first], [*again, *others]).tolist() == [[True, True, True, False, False, False]]


def test_defects_of_one_shape_on_the_edges_of_parts_differ(tmp_path: Path) -> None:
    """The edge of the part is around both."""
    made = []
    for i in range(6):
        pixels = np.random.default_rng(i).normal(30, 4, (120, 120))
        pixels[:, 50:] += 100
        mask = (np.hypot(*np.ogrid[-60:60, -50:70]) < 10).astype(np.uint8) * 255
        pixels[mask > 0] = 30
        made.append(write(tmp_path, str(i), pixels, mask, "notch"))
    assert (rephotographed(made, made) == np.eye(6, dtype=bool)).all()


def test_no_defect_is_on_both_sides(photograph: Photograph) -> None:
    images = [photograph(f"{part}-{shot}", part, gain=1 + 0.5 * shot) for part in range(6) for shot in range(3)]
    test, train = images[::3], [each for i, each in enumerate(images) if i % 3]
    made_from = frozenset(each.sha256 for each in train if each.path.stem[0] in "01")
    real = separate(train, test, made_from)
    assert [each.path.stem for each in real.test] == ["2-0", "3-0", "4-0", "5-0"]  # 0 and 1 were used
    assert sorted(each.path.stem for each in real.train) == ["0-1", "0-2", "1-1", "1-2"]


def test_photographs_of_a_defect_stay_together_in_a_split(photograph: Photograph, draw: Draw, tmp_path: Path) -> None:
    images = [photograph(f"{part}-{shot}", part, gain=1 + 0.5 * shot) for part in range(6) for shot in range(3)]
    nothing = np.zeros((100, 100), np.uint8)
    images += [write(tmp_path, f"n{i}", draw(i, "normal")[0].astype(float), nothing, "normal") for i in range(6)]
    for seed in range(3):
        parts = split(images, Synthetic(()), seed)
        sides = [{each.path.stem[0] for each in part if each.category == "hole"} for part in (parts.train, parts.test)]
        assert not sides[0] & sides[1]
        assert all(sides)
