"""Blocks, noise, initialization and mixed precision that several methods share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Noise:
    """Gaussian noise with one channel for any feature map, [B, C, H, W] -> [B, 1, H, W].

    With a generator for each row, a row does not depend on the others in its batch. A single generator serves all rows.
    """

    def __init__(self, rngs: Sequence[torch.Generator]) -> None:
        self._rngs = rngs

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "Noise":
        """Noise for whole batches, drawn on `device` from one seed."""
        return cls([torch.Generator(device).manual_seed(seed)])

    def __call__(self, x: Tensor) -> Tensor:
        shape = (1, *x.shape[2:])
        if len(self._rngs) == 1:
            (rng,) = self._rngs
            drawn = torch.randn(len(x), *shape, generator=rng, device=rng.device)
        else:
            drawn = torch.stack([torch.randn(shape, generator=rng, device=rng.device) for rng in self._rngs])
        return drawn.to(x.device, x.dtype)


def draw_seed(rng: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=rng))


class ResBlock(nn.Module):
    """A pre-activation residual block (He et al. 2016) that keeps unit variance. Halves the resolution if `down`."""

    def __init__(self, c_in: int, c_out: int, *, normalize: bool, down: bool = False) -> None:
        super().__init__()
        self.down = down
        self.norm1 = instance_norm(c_in) if normalize else nn.Identity()
        self.norm2 = instance_norm(c_in) if normalize else nn.Identity()
        self.conv1 = nn.Conv2d(c_in, c_in, 3, padding=1)
        self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x), 0.2))
        x = self.skip(x)
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv2(F.leaky_relu(self.norm2(h), 0.2))
        return (h + x) * 0.5**0.5


def instance_norm(channels: int) -> nn.GroupNorm:
    """Instance normalization as GroupNorm with one channel per group, whose kernel supports channels-last memory."""
    return nn.GroupNorm(channels, channels)


def he_init(module: nn.Module) -> None:
    """He initialization (He et al. 2015), for `Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the device supports it natively; otherwise a context that does nothing."""
    # bfloat16 has the range of float32, so no loss scaling is needed, whose state a checkpoint would have to hold.
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def standardized(x: Tensor) -> Tensor:
    """Each image scaled to mean 0 and a standard deviation near 1, [B, channels, H, W].

    An image's brightness says nothing about its defects, and a defect of tens of pixels is faint in comparison. Without
    this, a discriminator without normalization takes some ten times as many steps to detect the first defect.
    """
    mean, std = x.mean(dim=(1, 2, 3), keepdim=True), x.std(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / (std + 0.05)
