"""Differentiable augmentation, which keeps a discriminator from memorizing a few images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random parameters for a batch of B images. `apply` is deterministic given these.

    DiffAugment (Zhao et al. 2020) with smaller color changes and without its cutout, which would erase a defect of
    tens of pixels but keep its label.
    """

    brightness: Tensor  # [B, 1, 1, 1], added; ~ U(-0.25, 0.25)
    contrast: Tensor  # [B, 1, 1, 1], about the image's mean; ~ U(0.75, 1.25)
    shift: Tensor  # [B, 2], as a fraction of the image's side; ~ U(-1/8, 1/8)

    @classmethod
    def draw(cls, count: int, rng: torch.Generator, device: torch.device) -> "Augmentation":
        uniform = torch.rand(count, 4, generator=rng).to(device) - 0.5
        return cls(
            brightness=uniform[:, 0].mul(0.5).view(-1, 1, 1, 1),
            contrast=uniform[:, 1].mul(0.5).add(1).view(-1, 1, 1, 1),
            shift=uniform[:, 2:] / 4,
        )

    def apply(self, x: Tensor) -> Tensor:
        """Augment `x`, [B, C, H, W] in [-1, 1]. Shifts reflect the image at its edges. Values may leave the range."""
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return self.moved((x - mean) * self.contrast + mean + self.brightness)

    def moved(self, x: Tensor) -> Tensor:
        """The shifts alone, for masks."""
        # Whole pixels and nearest sampling: interpolation would blur both reals and fakes, and teach the generator
        # that blur is real.
        side = torch.tensor([x.shape[3], x.shape[2]], device=x.device)
        shift = (self.shift * side).round() * 2 / side
        identity = torch.eye(2, device=x.device).expand(len(x), 2, 2)
        grid = F.affine_grid(torch.cat([identity, shift[:, :, None]], dim=2), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid.to(x.dtype), mode="nearest", padding_mode="reflection", align_corners=False)
