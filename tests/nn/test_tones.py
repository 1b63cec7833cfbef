import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from defectgen.imaging.control_maps import levels_of, mask_of, tones_of
from defectgen.nn.tones import change_of, hidden_by, painted, tone_loss


@pytest.mark.parametrize("light", [1.0, 0.5])
def test_defects_are_as_dark_in_parts_of_the_brightness_of_any_ground(light: float) -> None:
    """What networks with normalization painted on dark grounds was black. Highlights depend less on it."""
    x, none = torch.full((1, 3, 32, 32), light * 0.8 - 1), torch.zeros(1, 1, 32, 32)
    change = torch.zeros(1, 1, 32, 32)
    change[..., :16, :], change[..., 16:24, :] = -0.25, 0.25
    expected = torch.where(change > 0, 0.25 * (light * 0.8) ** 0.5, light * 0.8 * change)
    torch.testing.assert_close(painted(x, change.expand_as(x), none, none + 1) - x, expected.expand_as(x))
    torch.testing.assert_close(change_of(torch.tanh(2 * change)), change)


def test_tones_are_met_by_changes_in_parts_of_the_brightness() -> None:
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.float64)
    mask[:, :, 8:24, 8:24] = 1
    x, tones = torch.full_like(mask, -0.2), math.tanh(-2 * 0.25) * mask
    tones[1] = 0  # which does not tell any
    wide = F.max_pool2d(mask, 7, stride=1, padding=3)  # so that smoothing does not reach the mask
    assert tone_loss(x - 0.25 * 0.8 * wide, x, mask, tones) == pytest.approx(0, abs=1e-6)
    assert tone_loss((x - 1) / 2 - 0.25 * 0.4 * wide, (x - 1) / 2, mask, tones) == pytest.approx(0, abs=1e-6)
    assert tone_loss(x, x, mask, tones) == pytest.approx(math.tanh(0.5) * 256 / 257)
    assert tone_loss(x, x, mask, torch.zeros_like(tones)) == 0


def test_the_tones_of_a_defect_give_it_back_on_its_twin() -> None:
    """With its own grain, no other, and no step at the edge of its mask: half as much inside was twice as grainy."""
    rng = np.random.default_rng(0)
    twin, own = (0.05 * rng.normal(size=(1, 64, 64)).astype(np.float32) for _ in range(2))
    disc = cv2.circle(np.zeros((64, 64), np.float32), (32, 32), 12, 1, -1)
    depth = cv2.GaussianBlur(disc, (0, 0), 1.0)
    x = twin + depth * (own - 0.6 - twin)
    levels = levels_of(disc > 0, x, twin)
    tones, mask = (torch.from_numpy(np.float32(each))[None, None] for each in (tones_of(levels), mask_of(levels)))
    none = torch.zeros_like(tones)
    found = painted(torch.from_numpy(twin)[None], change_of(tones), none, hidden_by(tones, mask))[0].numpy()
    inside = disc > 0
    assert np.abs(found - x)[0][inside].mean() < 0.01

    def grain(image: np.ndarray) -> float:
        return float((image - cv2.GaussianBlur(image, (0, 0), 1.0))[inside].std())

    assert grain(found[0]) == pytest.approx(grain(x[0]), rel=0.1)
