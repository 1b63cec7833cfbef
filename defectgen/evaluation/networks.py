"""The downstream networks: fine-tuned from ImageNet features, or small ones trained from scratch.

Each classifies windows and segments defects.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defectgen.nn.features import CHANNELS, lite0
from defectgen.nn.layers import box_mean, standardized

Kind = Literal["fine-tuned", "scratch"]
_PYRAMID_WIDTH = 64  # channels of the feature pyramid
_FINE_WIDTH = 8  # channels at the image's own resolution
_PRIOR = -3.0  # initial logit of a defective pixel: some 5% of a window
_FROZEN_BLOCKS = 3  # first encoder blocks, up to stride 4: edges and texture, and most of the work
_SURROUND = 12  # pixels to each side whose mean is subtracted from a pixel
_SOURCE_WIDTH = 32  # hidden units of the source head


class _Reverse(torch.autograd.Function):
    """The gradient reversal layer: the identity with a negated gradient (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(8, c_out), nn.GroupNorm(8, c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.skip(x))


class Classifier(nn.Module):
    """A compact ResNet f_theta with a class head and, behind a gradient reversal, f_src, which predicts the source."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Conv2d(channels, width, 5, 2, 2)
        self.blocks = nn.Sequential(*(_Residual(a, b, 1 + (a != b)) for a, b in pairwise(widths)))
        self.head = nn.Linear(2 * widths[-1], classes)
        self.source = _source_head(2 * widths[-1])

    def forward(self, x: Tensor, reversal: float = 0.0) -> tuple[Tensor, Tensor]:
        """[B, channels, H, W] -> logits of the classes [B, classes] and of being synthetic [B]."""
        h = self.blocks(F.relu(self.stem(standardized(x))))
        v = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)  # the maximum shows small defects
        return self.head(v), self.source(_reverse(v, reversal))[:, 0]


class UNet(nn.Module):
    """A compact U-Net: [B, channels, H, W] -> logits [B, maps, H, W]; sides are multiples of 16."""

    def __init__(self, channels: int, maps: int, width: int = 12) -> None:
        super().__init__()
        widths = [min(width * 2**i, 8 * width) for i in range(5)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_double_conv(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Conv2d(widths[0], maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = [], standardized(x)
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        y: Tensor = self.out(x)
        return y


def _double_conv(c_in: int, c_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (c_in, c_out):
        layers += [nn.Conv2d(channels, c_out, 3, padding=1, bias=False), nn.GroupNorm(4, c_out), nn.ReLU()]
    return nn.Sequential(*layers)


class FineTuned(nn.Module):
    """EfficientNet-Lite0 with a feature pyramid (Lin et al. 2017), a classifier and a segmenter."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = lite0()
        for block in self.encoder.blocks[_FROZEN_BLOCKS:]:
            block.requires_grad_(True)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, _PYRAMID_WIDTH, 1) for channels in CHANNELS)
        self.fine = nn.Conv2d(1, _FINE_WIDTH, 3, padding=1)
        self.coarse = nn.Conv2d(_PYRAMID_WIDTH, _FINE_WIDTH, 3, padding=1)
        # No ReLU: with so few channels all may die, and then the network segments nothing (one seed in five did so).
        last = nn.Conv2d(_FINE_WIDTH, 1, 1)
        nn.init.constant_(last.bias, _PRIOR)  # type: ignore[arg-type]
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * _FINE_WIDTH, _FINE_WIDTH, 3, padding=1), nn.SiLU(), last)
        self.category = nn.Conv2d(_PYRAMID_WIDTH, classes - 1, 3, padding=1)
        self.head = nn.Linear(2 * (CHANNELS[2] + CHANNELS[3]), classes)
        self.source = _source_head(2 * (CHANNELS[2] + CHANNELS[3]))

    def forward(self, x: Tensor, reversal: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 1 or 3, H, W] in [-1, 1], sides multiples of 32 -> logits [B, classes], pixels, source [B].

        Pixels [B, classes, H, W] are logits: the first that there is a defect, the others of which category it is.
        """
        maps = self.encoder(x)
        v = torch.cat([pool for each in maps[2:] for pool in (each.mean(dim=(2, 3)), each.amax(dim=(2, 3)))], dim=1)
        h = self.lateral[-1](maps[-1])
        for lateral, finer in zip(self.lateral[-2::-1], maps[-2::-1], strict=True):
            h = F.interpolate(h, scale_factor=2, mode="nearest") + lateral(finer)
        h = F.relu(h)
        coarse, category = (
            F.interpolate(conv(h), size=x.shape[2:], mode="bilinear", align_corners=False)
            for conv in (self.coarse, self.category)
        )
        # A crack of two pixels is lost at stride 4, so its outline comes from the image. The local mean is
        # subtracted, so that a pixel has the same value in a window and in a whole image.
        gray = x.mean(dim=1, keepdim=True)
        mean = box_mean(F.pad(gray, (_SURROUND,) * 4, mode="reflect"), 2 * _SURROUND + 1)
        fine = self.fine(4 * (gray - mean))
        pixels = torch.cat([self.out(torch.cat([coarse, fine], dim=1)), category], dim=1)
        return self.head(v), pixels, self.source(_reverse(v, reversal))[:, 0]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer; the encoder has 0.15 times the learning rate."""
        encoder = [p for p in self.encoder.parameters() if p.requires_grad]
        known = {id(p) for p in self.encoder.parameters()}
        return [
            {"params": encoder, "lr": 0.15 * rate},
            {"params": [p for p in self.parameters() if id(p) not in known], "lr": rate},
        ]


class Scratch(nn.Module):
    """A compact ResNet for the classes and a compact U-Net for the pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier, self.segmenter = Classifier(1, classes), UNet(1, classes)

    def forward(self, x: Tensor, reversal: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """As `FineTuned.forward`; color images are converted to gray."""
        gray = x.mean(dim=1, keepdim=True)
        logits, source = self.classifier(gray, reversal)
        return logits, self.segmenter(gray), source

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": list(self.parameters()), "lr": rate}]


Network = FineTuned | Scratch


def build(kind: Kind, classes: int) -> Network:
    """A network for `classes` classes, of which the first is the normals."""
    return FineTuned(classes) if kind == "fine-tuned" else Scratch(classes)


def _source_head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, _SOURCE_WIDTH), nn.ReLU(), nn.Linear(_SOURCE_WIDTH, 1))


def _reverse(v: Tensor, weight: float) -> Tensor:
    return _Reverse.apply(v, weight)  # type: ignore[no-untyped-call]
