"""Defects that are as dark or bright as asked for, in parts of the brightness of the ground, and without its grain.

Tones are those of `defectgen.imaging.control_maps`, [B, 1, H, W] in [-1, 1]: 0 where there is no defect, or nobody
knows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from defectgen.nn.layers import box_mean
from defectgen.nn.paired import soft

STEEP, AROUND, WOVEN, HIDING, DARKEST = 2.0, 17, 9, (0.1, 0.25), 0.2
"""As in `defectgen.imaging.control_maps`, which explains them."""
_BLUR = 0.7  # pixels (standard deviation), by which tones are smoothed to be compared: grain is up to the networks
_DEEPEST = 0.97  # no change has a tone of 1
_KEPT = 3.0  # logit of the part of x that is kept at first where its grain is not hidden, and lost where it is


def change_of(tones: Tensor) -> Tensor:
    """The change in parts of the brightness of the ground that tones ask for."""
    return torch.atanh(tones.clamp(-_DEEPEST, _DEEPEST)) / STEEP


def hidden_by(tones: Tensor, mask: Tensor) -> Tensor:
    """How much of the grain of its ground a defect hides, [B, 1, H, W]: all of it where it changes much."""
    around = _smoothed(_smoothed(change_of(tones), 3).abs(), 5)
    return soft(mask) * ((around - HIDING[0]) / (HIDING[1] - HIDING[0])).clamp(0, 1)


def painted(x: Tensor, change: Tensor, smooth: Tensor, hidden: Tensor, grain: Tensor | float = 1.0) -> Tensor:
    """A foreground on x, [B, channels, H, W] in [-1, 1].

    Args:
        change: like x, in parts of the brightness of x around each pixel, of its root where positive: else it would be
            black in shadows.
        smooth: [B, 1, H, W], the logit of how much x is smoothed, above or below `hidden`. A deep defect does not show
            the grain of x, which maps of a low resolution do not hold.
        hidden: [B, 1, H, W] in [0, 1], as of `hidden_by`.
        grain: how much of the finest grain that x loses comes from another place instead, as every photograph has some;
            [B, 1, 1, 1], or for all.
    """
    u = smooth + _KEPT * (2 * hidden - 1)
    narrow = _smoothed(x, 3)
    fine = x - narrow
    light = brightness(x)
    added = _unit(change, light) * change
    other = (fine / light).flip(2, 3) * (light + added).clamp(min=0)  # grain is weaker where it is darker
    # Both together are as strong as the grain of x. Tones that hide it have their own.
    kept = torch.sigmoid(-u)
    rest = (F.logsigmoid(u) / 2).exp() * (1 + kept).sqrt()  # the root of 1 - kept^2
    fine = kept * fine + rest * (1 - hidden) * grain * other
    return torch.lerp(narrow, _smoothed(x, WOVEN), torch.sigmoid(u)) + fine + added


def tone_loss(made: Tensor, x: Tensor, mask: Tensor, tones: Tensor) -> Tensor:
    """The mean difference of what was made of x from the tones inside its mask, [B, 1, H, W], where these are told."""
    told = mask * (tones != 0).amax(dim=(1, 2, 3), keepdim=True)
    ground = torch.lerp(x, _smoothed(x, WOVEN), hidden_by(tones, mask))
    change = (made - ground).mean(dim=1, keepdim=True)
    change = change / _unit(change, brightness(x))
    bell = torch.exp(-0.5 * (torch.arange(-2, 3, device=x.device, dtype=x.dtype) / _BLUR).square())
    bell = torch.outer(bell, bell)[None, None]
    weight = F.conv2d(mask, bell, padding=2) + 1e-6
    found, asked = (
        torch.tanh(STEEP * F.conv2d(mask * each, bell, padding=2) / weight).clamp(-_DEEPEST, _DEEPEST)
        for each in (change, change_of(tones))
    )
    return ((found - asked).abs() * told).sum() / (told.sum() + 1)


def brightness(x: Tensor) -> Tensor:
    """Of the ground around each pixel of images [B, channels, H, W]: its mean above black, [B, 1, H, W]."""
    return (_smoothed(x.mean(dim=1, keepdim=True), AROUND) + 1).clamp(min=DARKEST)


def _unit(change: Tensor, light: Tensor) -> Tensor:
    """What changes are parts of: the brightness of the ground, or its root where they are positive."""
    return torch.where(change > 0, light.sqrt(), light)


def _smoothed(x: Tensor, side: int) -> Tensor:
    """The mean around each pixel, of `side` x `side` pixels."""
    return box_mean(F.pad(x, (side // 2,) * 4, mode="reflect"), side)
