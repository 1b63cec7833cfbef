import math

import pytest
import torch
import torch.nn.functional as F

from defectgen.nn.tones import change_of, painted, tone_loss


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
