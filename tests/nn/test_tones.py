import math

import pytest
import torch
import torch.nn.functional as F

from defectgen.nn.tones import tone_loss


def test_tones_are_met_by_changes_in_parts_of_the_brightness() -> None:
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:24, 8:24] = 1
    x, tones = torch.full((2, 1, 32, 32), -0.2), math.tanh(-2 * 0.25) * mask
    tones[1] = 0  # which does not tell any
    wide = F.max_pool2d(mask, 7, stride=1, padding=3)  # so that smoothing does not reach the mask
    assert tone_loss(x - 0.25 * 0.8 * wide, x, mask, tones) == pytest.approx(0, abs=1e-5)
    assert tone_loss((x - 1) / 2 - 0.25 * 0.4 * wide, (x - 1) / 2, mask, tones) == pytest.approx(0, abs=1e-5)
    assert tone_loss(x, x, mask, tones) == pytest.approx(math.tanh(0.5) * 256 / 257)
    assert tone_loss(x, x, mask, torch.zeros_like(tones)) == 0
