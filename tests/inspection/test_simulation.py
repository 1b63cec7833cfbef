from typing import Any

import numpy as np
import pytest

from defectgen.imaging.images import DecodedImage
from defectgen.inspection import simulation
from defectgen.inspection.simulation import simulated


def surface(shape: tuple[int, ...], dtype: Any = np.uint8) -> Any:
    scale = 1 if dtype == np.uint8 else 150
    return (np.random.default_rng(1).normal(120, 10, shape) * scale).clip(0, 255 * scale).astype(dtype)


@pytest.mark.parametrize("shape", [(90, 120), (90, 120, 3), (90, 120, 4), (40, 12)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_mask_is_where_the_image_changed(shape: tuple[int, ...], dtype: Any) -> None:
    pixels = surface(shape, dtype)
    image, areas = DecodedImage(pixels), []
    for seed in range(40):
        found, mask = simulated(image, np.random.default_rng(seed))
        assert (found.pixels.shape, found.pixels.dtype) == (pixels[..., :3].shape if len(shape) == 3 else shape, dtype)
        assert mask.shape == shape[:2]
        before = np.atleast_3d(pixels)[..., : image.channels].astype(float)
        off = np.abs(np.atleast_3d(found.pixels) - before).max(axis=2)
        areas.append(mask.mean())
        if mask.any():
            assert off[mask].mean() > 4 * off[~mask].mean()
    assert 0.001 < np.mean(areas) < 0.25
    assert np.mean([area > 0 for area in areas]) > 0.8
    again, mask = simulated(image, np.random.default_rng(3))
    np.testing.assert_array_equal(again.pixels, simulated(image, np.random.default_rng(3))[0].pixels)


def test_of_a_large_image_a_part_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "SIDE", 64)
    pixels = surface((100, 300))
    found, mask = simulated(DecodedImage(pixels), np.random.default_rng(0))
    assert found.pixels.shape == mask.shape == (64, 64)


def test_an_even_image_gets_visible_defects() -> None:
    even = DecodedImage(np.full((80, 80), 100, np.uint8))
    seen = [int(np.ptp(simulated(even, np.random.default_rng(seed))[0].pixels)) for seed in range(30)]
    assert sorted(seen)[15] >= 5
