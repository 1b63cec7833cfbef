"""A projected discriminator: judges what a frozen ImageNet network sees (Sauer et al. 2021, Projected GANs).

From EfficientNet-Lite0's maps at strides 4 to 32, fixed random 1x1 convolutions mix the channels (CCM) and fixed random
3x3 convolutions mix the scales, from coarse to fine (CSM). A small head at each scale gives a logit for each category.
Only the heads learn. They see edges and texture from the first step, so generators become sharp within some hundred.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defectgen.nn.features import CHANNELS, Lite0, lite0
from defectgen.nn.layers import GroupNorm
from defectgen.nn.slots import Kind, Slots, last_conv

WIDTH = 64
"""Channels of the mixed maps."""
_SIDE = 128  # pixels to which windows are enlarged: ImageNet's objects fill their images
_HEAD = 128  # channels of the heads
_SEED = 0  # of the fixed convolutions


class ProjectedDiscriminator(nn.Module):
    """[B, 1 or 3, S, S] in [-1, 1] and categories c [B, categories], 0 or 1 -> logits [B, 4], one for each scale.

    A logit is the mean of those of its categories.
    """

    def __init__(self, categories: int, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.ccm = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS)
        self.csm = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in CHANNELS[:-1])
        rng = torch.Generator().manual_seed(_SEED)
        for conv in (*self.ccm, *self.csm):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, generator=rng)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            conv.requires_grad_(False)
        self.heads = nn.ModuleList(_head(_SIDE // 4 // 2**i, categories) for i in range(len(CHANNELS)))

    @cached_property
    def _features(self) -> tuple[Lite0]:
        # In a tuple, it is no module of this one: a checkpoint need not hold what ships. Loaded when it is needed.
        return (lite0(self._device),)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.judge(self.see(x), c)

    def see(self, x: Tensor) -> list[Tensor]:
        """The mixed maps, [B, WIDTH, 128 / stride, 128 / stride] at strides 4 to 32."""
        if x.shape[2:] != (_SIDE, _SIDE):
            x = F.interpolate(x, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        maps = [mix(each) for mix, each in zip(self.ccm, self._features[0](x), strict=True)]
        for i in reversed(range(len(maps) - 1)):
            coarser = F.interpolate(maps[i + 1], scale_factor=2, mode="bilinear", align_corners=False)
            maps[i] = self.csm[i](coarser + maps[i])
        return maps

    def judge(self, maps: list[Tensor], c: Tensor) -> Tensor:
        """The logits of windows of which `see` made the maps."""
        return choose(self.logits(maps), c)

    def logits(self, maps: list[Tensor]) -> list[Tensor]:
        """Of each scale for all categories, [B, categories]."""
        return [head(each).mean(dim=(2, 3)) for head, each in zip(self.heads, maps, strict=True)]

    def learned(self) -> list[nn.Parameter]:
        """The parameters of the heads, which are all that an optimizer may change."""
        return list(self.heads.parameters())


def choose(logits: list[Tensor], c: Tensor) -> Tensor:
    """For each scale the mean of the logits of the categories c, [B, categories] of 0 and 1: [B, scales]."""
    weights = c / c.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.stack([(each * weights).sum(dim=1) for each in logits], dim=1)


def _head(side: int, categories: int) -> nn.Sequential:
    """From a map of `side` to 4x4 by strided convolutions, then a logit for each category."""
    normalized = nn.utils.parametrizations.spectral_norm
    layers: list[nn.Module] = []
    width = WIDTH
    while side > 4:
        layers += [normalized(nn.Conv2d(width, _HEAD, 4, 2, 1)), GroupNorm(8, _HEAD), nn.LeakyReLU(0.2)]
        side, width = side // 2, _HEAD
    return nn.Sequential(*layers, normalized(nn.Conv2d(width, categories, 4)))


def projected_slots(name: str, of: Kind) -> tuple[Slots, ...]:
    """What a `ProjectedDiscriminator` has of each of its categories; `name` is a pattern."""
    last = len(CHANNELS) - 1
    return tuple(last_conv(rf"{name}\.heads\.{i}\.{3 * (last - i)}", of) for i in range(len(CHANNELS)))


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss, summed over the scales: logits [B, scales]."""
    return (F.relu(1 - real).mean(dim=0) + F.relu(1 + fake).mean(dim=0)).sum()


def hinge_g(fake: Tensor) -> Tensor:
    """The generator's loss, summed over the scales: logits [B, scales]."""
    return -fake.mean(dim=0).sum()
