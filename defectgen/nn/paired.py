"""Losses of what changes inside soft masks, for methods that learn from defects, their masks and repaired twins."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defectgen import ranks

MS_EVERY = 4
"""Mode seeking needs a second image under each mask: it acts at every fourth step, four times as strong."""
_RAMP = 0.1  # of the training, in which the weight of a loss grows


class Hues(nn.Module):
    """Limits changes of images to the colors of what real defects change: the nearest change that has them.

    Without it, the first changes that a network makes have random colors, and it takes long to lose them.
    """

    projection: Tensor | None

    def __init__(self, hues: Sequence[Sequence[float]]) -> None:
        """`hues`: as `Task.hues`; changes stay as they are if there are none."""
        super().__init__()
        axes = torch.tensor(hues)
        self.register_buffer("projection", axes.T @ axes if len(hues) else None, persistent=False)

    def forward(self, change: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if self.projection is None:
            return change
        return torch.einsum("bchw,cd->bdhw", change, self.projection.to(change.dtype))


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the losses that have a weight."""
    return torch.stack([weight * losses[name].float() for name, weight in weights.items()]).sum()


def ramp(progress: float, begins: float) -> float:
    """The part of its weight, 0..1, that a loss has which begins at `begins`: it grows for a tenth of the training."""
    return min(1.0, max(0.0, progress - begins) / _RAMP)


def judged(progress: float, pairs_first: float, paired: Tensor) -> float | None:
    """The part of its weight, 0..1, that the loss of a discriminator has; None while it does not train.

    It begins at `pairs_first`: it soon tells what a generator cannot paint yet, and would outweigh the pairs. Without
    pairs it begins at once.

    Args:
        paired: [B], which windows of the batch have a twin.
    """
    if progress >= pairs_first + _RAMP:
        return 1.0
    begins = pairs_first if ranks.any_of(bool(paired.any())) else 0.0
    return None if progress < begins else ramp(progress, begins)


def soft(a: Tensor) -> Tensor:
    """Masks [B, 1, H, W] with soft edges: 1 inside, then falling to 0 over two pixels."""
    wide = F.max_pool2d(a, 3, stride=1, padding=1)
    return F.avg_pool2d(wide, 3, stride=1, padding=1, count_include_pad=False)


def pair_loss(made: Tensor, real: Tensor, inside: Tensor, weights: Tensor) -> Tensor:
    """The mean difference from the real image inside a soft mask; `weights` [B] chooses the images."""
    inside = inside * weights.view(-1, 1, 1, 1)
    return ((made - real).abs() * inside).sum() / (inside.sum() * made.shape[1] + 1)


def map_loss(m: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Dice loss of maps m and masks [B, 1, H, W] (Milletari et al. 2016); `weights` [B] chooses the images."""
    both, total = (m * mask).sum(dim=(1, 2, 3)), (m + mask).sum(dim=(1, 2, 3))
    return (weights * (1 - (2 * both + 1) / (total + 1))).sum() / (weights.sum() + 1e-6)


def center_line_loss(m: Tensor, mask: Tensor) -> Tensor:
    """1 - clDice of soft masks [B, 1, H, W] (Shit et al. 2021): the center line of each lies inside the other.

    Dice hardly notices a gap in a thin line; this does.
    """
    line, of_mask = _center_line(m), _center_line(mask)
    precision = ((line * mask).sum(dim=(1, 2, 3)) + 1) / (line.sum(dim=(1, 2, 3)) + 1)
    sensitivity = ((of_mask * m).sum(dim=(1, 2, 3)) + 1) / (of_mask.sum(dim=(1, 2, 3)) + 1)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


def _center_line(m: Tensor, rounds: int = 3) -> Tensor:
    """The soft skeleton: what opening removes from a soft mask, again and again after erosion."""

    def eroded(x: Tensor) -> Tensor:
        return torch.minimum(
            -F.max_pool2d(-x, (3, 1), stride=1, padding=(1, 0)), -F.max_pool2d(-x, (1, 3), stride=1, padding=(0, 1))
        )

    def removed(x: Tensor) -> Tensor:
        return F.relu(x - F.max_pool2d(eroded(x), 3, stride=1, padding=1))

    line = removed(m)
    for _ in range(rounds):
        m = eroded(m)
        more = removed(m)
        line = line + F.relu(more - line * more)
    return line


def ms_loss(one: Tensor, two: Tensor, z_one: Tensor, z_two: Tensor, inside: Tensor) -> Tensor:
    """Mode seeking (Mao et al. 2019): the distance of two z over that of their images inside a soft mask.

    It saturates at a difference of 0.05, about six gray levels.
    """
    apart = ((one - two).abs().mean(dim=1, keepdim=True) * inside).sum(dim=(1, 2, 3))
    apart = apart / (inside.sum(dim=(1, 2, 3)) + 1)
    return (0.05 * (z_one - z_two).abs().mean(dim=1) / (apart + 0.05)).mean()
