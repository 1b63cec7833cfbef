"""Blocks, noise, initialization and mixed precision that several methods share."""

from collections.abc import Sequence
from typing import Any

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


class GroupNorm(nn.GroupNorm):
    """As `nn.GroupNorm`, [B, C, H, W]; see `group_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def instance_norm(channels: int, *, affine: bool = True) -> GroupNorm:
    """Instance normalization as group normalization with one channel per group, which supports channels-last memory."""
    return GroupNorm(channels, channels, affine=affine)


_FEW = 1024  # pixels of a map, below which PyTorch's forward pass is slow, too


def group_norm(
    x: Tensor, groups: int, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalization (Wu and He 2018) of [B, C, H, W], then scale and shift: both None, or [C], or [B, C].

    On the CPU, PyTorch's backward pass takes several times as long as its memory traffic for channels-last maps, so
    this has one of its own. It cannot be differentiated twice.
    """
    learns = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, scale, shift))
    if x.device.type == "cpu" and (learns or x.shape[2] * x.shape[3] < _FEW):
        precise = torch.promote_types(x.dtype, torch.float32)
        scale, shift = (None if each is None else each.view(-1, 1, x.shape[1]).to(precise) for each in (scale, shift))
        normalized: Tensor = _GroupNorm.apply(x.to(precise), groups, scale, shift, eps)  # type: ignore[no-untyped-call]
        return normalized.to(x.dtype)
    if scale is None or scale.ndim == 1:
        return F.group_norm(x, groups, scale, shift, eps)
    assert shift is not None
    return F.group_norm(x, groups, eps=eps) * scale[:, :, None, None] + shift[:, :, None, None]


class _GroupNorm(torch.autograd.Function):
    """`group_norm` in channels-last memory; scale and shift [1 or B, 1, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
        flat = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, H W, C]
        away = flat - _mean(flat, groups)
        root = (_mean(away.square(), groups) + eps).rsqrt()
        ctx.save_for_backward(away, root, scale)
        ctx.groups = groups
        y = away * root if scale is None or shift is None else torch.addcmul(shift, away, root * scale)
        return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        away, root, scale = ctx.saved_tensors
        by_x = by_scale = by_shift = None
        flat = gradient.permute(0, 2, 3, 1).flatten(1, 2)
        total = flat.sum(dim=1, keepdim=True)
        along = (flat * away).sum(dim=1, keepdim=True) * root
        if scale is not None:
            by_shift, by_scale = total.sum_to_size(scale.shape), along.sum_to_size(scale.shape)
        if ctx.needs_input_grad[0]:
            factor, pixels = (root if scale is None else root * scale), flat.shape[1]
            offset, slope = (
                _mean(each if scale is None else each * scale, ctx.groups) * (root / -pixels) for each in (total, along)
            )
            by_x = torch.addcmul(offset, away, slope * root).addcmul_(flat, factor)
            by_x = by_x.unflatten(1, gradient.shape[2:]).permute(0, 3, 1, 2)
        return by_x, None, by_scale, by_shift, None


def _mean(flat: Tensor, groups: int) -> Tensor:
    """The mean of each group, for each of its channels: [B, N, C] -> [B, 1, C]."""
    mean = flat.mean(dim=1, keepdim=True)
    if groups == flat.shape[2]:
        return mean
    of_groups = mean.unflatten(2, (groups, -1)).mean(dim=3, keepdim=True)
    return of_groups.expand(-1, -1, -1, flat.shape[2] // groups).flatten(2)


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int, transposed: bool = False
) -> Tensor:
    """A convolution of each channel by itself, [B, C, H, W], weight [C, 1, k, k].

    On the CPU it computes in float32: in bfloat16 the gradients of even kernels, and those of the weights, take up to
    20 times as long.
    """
    convolve = F.conv_transpose2d if transposed else F.conv2d
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            y = depthwise(x.float(), weight.float(), bias, stride=stride, padding=padding, transposed=transposed)
        return y.to(x.dtype)
    return convolve(x, weight, bias, stride=stride, padding=padding, groups=x.shape[1])


def box_mean(x: Tensor, side: int) -> Tensor:
    """The mean of each square of `side` x `side` pixels, [B, C, H, W] -> [B, C, H - side + 1, W - side + 1]."""
    # A product with a band matrix from each side: a tenth of the time of `F.avg_pool2d`.
    rows, columns = (torch.ones(n - side + 1, n).triu().tril(side - 1).to(x) / side for n in x.shape[2:])
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x @ columns.T


def join(*maps: Tensor) -> Tensor:
    """Maps side by side, [B, sum of C, H, W], in channels-last memory, which `torch.cat` loses if one part lacks it."""
    return torch.cat([each.permute(0, 2, 3, 1) for each in maps], dim=3).permute(0, 3, 1, 2)


def he_init(module: nn.Module) -> None:
    """He initialization (He et al. 2015), for `Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the device supports it natively; otherwise a context that does nothing."""
    # bfloat16 has the range of float32, so no loss scaling is needed, whose state a checkpoint would have to hold.
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # A private name; where it is missing, nothing says so.
        enabled = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def standardized(x: Tensor) -> Tensor:
    """Each image scaled to mean 0 and a standard deviation near 1, [B, channels, H, W].

    An image's brightness says nothing about its defects, and a defect of tens of pixels is faint in comparison. Without
    this, a discriminator without normalization takes some ten times as many steps to detect the first defect.
    """
    mean, std = x.mean(dim=(1, 2, 3), keepdim=True), x.std(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / (std + 0.05)
