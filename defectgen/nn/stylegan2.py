"""StyleGAN2 with adaptive discriminator augmentation, in plain PyTorch, without custom kernels.

    Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020 ("S2"); Training Generative
    Adversarial Networks with Limited Data, NeurIPS 2020 ("ADA"). Implemented from the papers.

Symbols: z a random code, w the mapping network's output for it. A w modulates each convolution of the synthesis.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defectgen.nn.layers import Noise, depthwise

_FIR = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
"""The low-pass filter for all changes of resolution (S2, as in Karras et al. 2019)."""
_GAIN = math.sqrt(2)  # keeps the variance constant through a leaky ReLU


# --- Layers ----------------------------------------------------------------------------------------------------


def blur_kernel(channels: int, gain: float, like: Tensor) -> Tensor:
    """The filter for each of `channels`, [channels, 1, 4, 4], in the type and on the device of `like`."""
    fir = _FIR.to(like.device, like.dtype)
    return (torch.outer(fir, fir) * gain).expand(channels, 1, 4, 4)


def upsample(x: Tensor) -> Tensor:
    """Double the resolution, [B, C, H, W] -> [B, C, 2H, 2W]: insert zeros, then filter."""
    return depthwise(x, blur_kernel(x.shape[1], 4.0, x), stride=2, padding=1, transposed=True)


def downsample(x: Tensor) -> Tensor:
    """Halve the resolution, [B, C, H, W] -> [B, C, H/2, W/2]: filter, then take every second pixel."""
    return depthwise(x, blur_kernel(x.shape[1], 1.0, x), stride=2, padding=1)


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True, up: bool = False) -> Tensor:
    """Convolution with weights scaled for each sample, and normalized to unit output (S2, eqs. 1 and 3).

    Scaling the features and the outputs instead of the weights gives the same result, with one convolution for the
    whole batch.

    Args:
        x: [B, C_in, H, W].
        weight: [C_out, C_in, k, k].
        style: [B, C_in].
        up: double the resolution.
    """
    y = x * style[:, :, None, None]
    if up:
        y = F.conv_transpose2d(y, weight.transpose(0, 1), stride=2)
        y = depthwise(y, blur_kernel(y.shape[1], 4.0, y), padding=1)
    else:
        y = F.conv2d(y, weight, padding=weight.shape[2] // 2)
    if demodulate:
        norms = (style.square() @ weight.square().sum(dim=(2, 3)).t() + 1e-8).rsqrt()
        y = y * norms[:, :, None, None]
    return y


class EqualLinear(nn.Module):
    """A fully connected layer whose weights are scaled at runtime (equalized learning rate)."""

    def __init__(self, c_in: int, c_out: int, *, bias: float = 0.0, lr: float = 1.0, activate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in) / lr)
        self.bias = nn.Parameter(torch.full((c_out,), bias / lr))
        self.scale, self.lr, self.activate = lr / math.sqrt(c_in), lr, activate

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr)
        return F.leaky_relu(y, 0.2) * _GAIN if self.activate else y


class EqualConv(nn.Module):
    """A convolution whose weights are scaled at runtime. Filters and halves the resolution if `down`."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, down: bool = False, activate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(c_out)) if activate else None
        self.scale, self.down, self.activate = 1 / math.sqrt(c_in * kernel**2), down, activate

    def forward(self, x: Tensor) -> Tensor:
        weight, kernel = self.weight * self.scale, self.weight.shape[2]
        if self.down and kernel == 1:
            x = downsample(x)
        elif self.down:
            x = depthwise(x, blur_kernel(x.shape[1], 1.0, x), padding=2)
        stride, padding = (2, 0) if self.down and kernel > 1 else (1, kernel // 2)
        y = F.conv2d(x, weight, self.bias, stride=stride, padding=padding)
        return F.leaky_relu(y, 0.2) * _GAIN if self.activate else y


class StyledConv(nn.Module):
    """A modulated convolution with noise, unless it is to have none, and a leaky ReLU (S2, Figure 2)."""

    def __init__(self, c_in: int, c_out: int, w_dim: int, *, up: bool = False, noisy: bool = True) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.strength = nn.Parameter(torch.zeros(())) if noisy else None
        self.scale, self.up = 1 / math.sqrt(c_in * 9), up

    def forward(self, x: Tensor, w: Tensor, noise: Noise) -> Tensor:
        y = modulated_conv(x, self.weight * self.scale, self.affine(w), up=self.up)
        if self.strength is not None:
            y = y + self.strength * noise(y)
        y = y + self.bias[:, None, None]
        return F.leaky_relu(y, 0.2) * _GAIN


class ToImage(nn.Module):
    """ToRGB, or ToMask: a modulated 1x1 convolution without normalization."""

    def __init__(self, c_in: int, c_out: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.scale = 1 / math.sqrt(c_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = modulated_conv(x, self.weight, self.affine(w) * self.scale, demodulate=False)
        return y + self.bias[:, None, None]


class MappingNetwork(nn.Module):
    """Maps a random code, and a category if there are any, to w. Both are normalized first."""

    def __init__(self, z_dim: int, w_dim: int, layers: int, categories: int = 0) -> None:
        super().__init__()
        self.categories = categories
        self.embed = EqualLinear(categories, w_dim) if categories else None
        widths = [z_dim + (w_dim if categories else 0), *([w_dim] * layers)]
        self.layers = nn.Sequential(*(EqualLinear(a, b, lr=0.01, activate=True) for a, b in pairwise(widths)))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z [B, z_dim], c [B, categories] one-hot -> w [B, w_dim]."""
        x = normalized(z)
        if self.embed is not None:
            assert c is not None
            x = torch.cat([x, normalized(self.embed(c))], dim=1)
        w: Tensor = self.layers(x)
        return w


def normalized(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


# --- Generator -------------------------------------------------------------------------------------------------


class SynthesisBlock(nn.Module):
    """Two modulated convolutions, of which the first doubles the resolution."""

    def __init__(self, c_in: int, c_out: int, w_dim: int, *, noisy: bool = True) -> None:
        super().__init__()
        self.conv0 = StyledConv(c_in, c_out, w_dim, up=True, noisy=noisy)
        self.conv1 = StyledConv(c_out, c_out, w_dim, noisy=noisy)

    def forward(self, x: Tensor, w0: Tensor, w1: Tensor, noise: Noise) -> Tensor:
        y: Tensor = self.conv1(self.conv0(x, w0, noise), w1, noise)
        return y


class Backbone(nn.Module):
    """StyleGAN2's generator with skips: mapping network, constant, synthesis blocks, ToRGB at each resolution."""

    def __init__(
        self,
        size: int,
        channels: int,
        width: int,
        max_width: int,
        z_dim: int,
        w_dim: int,
        mapping_layers: int,
        conditions: int = 0,
    ) -> None:
        """For images of `size` x `size` pixels; `width` channels at that resolution, doubled at each coarser one.

        `conditions` is how many values the mapping network takes beside z.
        """
        super().__init__()
        self.mapping = MappingNetwork(z_dim, w_dim, mapping_layers, conditions)
        sides = [2**i for i in range(2, int(math.log2(size)) + 1)]
        widths = {side: min(width * size // side, max_width) for side in sides}
        self.const = nn.Parameter(torch.randn(1, widths[4], 4, 4))
        self.first = StyledConv(widths[4], widths[4], w_dim)
        self.blocks = nn.ModuleDict({str(b): SynthesisBlock(widths[a], widths[b], w_dim) for a, b in pairwise(sides)})
        self.to_rgb = nn.ModuleDict({str(side): ToImage(widths[side], channels, w_dim) for side in sides})
        self.sides, self.widths = sides, widths

    @property
    def styles(self) -> int:
        """How many w the synthesis takes: one for each convolution, and one for the last ToRGB."""
        return 2 * len(self.sides)

    def broadcast(self, w: Tensor) -> Tensor:
        """[B, w_dim] -> [B, styles, w_dim]."""
        return w[:, None].expand(-1, self.styles, -1)


# --- Discriminator ---------------------------------------------------------------------------------------------


class DiscriminatorBlock(nn.Module):
    """A residual block that halves the resolution (S2, Figure 7)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv0 = EqualConv(c_in, c_in, 3)
        self.conv1 = EqualConv(c_in, c_out, 3, down=True)
        self.skip = EqualConv(c_in, c_out, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.conv1(self.conv0(x)) + self.skip(x)) * 0.5**0.5
        return y


class Discriminator(nn.Module):
    """S2's residual discriminator, conditioned on the domain as ADA's conditional models are. Scores [B]."""

    def __init__(self, size: int, channels: int, domains: int, width: int, max_width: int) -> None:
        super().__init__()
        sides = [2**i for i in range(int(math.log2(size)), 1, -1)]
        widths = [min(width * size // side, max_width) for side in sides]
        last = widths[-1]
        self.from_rgb = EqualConv(channels, widths[0], 1)
        self.blocks = nn.Sequential(*(DiscriminatorBlock(a, b) for a, b in pairwise(widths)))
        self.conv = EqualConv(last + 1, last, 3)
        self.fc = EqualLinear(last * 16, last, activate=True)
        self.out = EqualLinear(last, last)
        self.embed = EqualLinear(domains, last)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, channels, S, S], c [B, domains] one-hot."""
        h = self.blocks(self.from_rgb(x))
        h = self.fc(self.conv(minibatch_std(h)).flatten(1))
        score: Tensor = (self.out(h) * normalized(self.embed(c))).sum(dim=1) / math.sqrt(h.shape[1])
        return score


def minibatch_std(x: Tensor, group: int = 4) -> Tensor:
    """Append a channel: the mean standard deviation within groups of images (Karras et al. 2018, section 3)."""
    count = next(size for size in range(min(group, len(x)), 0, -1) if len(x) % size == 0)
    y = x.unflatten(0, (count, -1))
    deviation = (y.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, deviation.repeat(count)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


# --- Adaptive discriminator augmentation -----------------------------------------------------------------------


class Augment:
    """Random parameters for a batch: ADA's geometric and color transforms, each with probability p (ADA, appendix B).

    Geometry: flips, quarter turns, shifts by whole pixels and by fractions, scales, rotations. Color: brightness,
    contrast, luma inversion, and, for images with three channels, hue and saturation. Masks get the geometry only.

    Without `turns`, images are not rotated by any angle, which hides fine texture that has a direction.
    """

    def __init__(self, count: int, p: float, rng: torch.Generator, device: torch.device, *, turns: bool = True) -> None:
        def draw(values: Tensor, neutral: float) -> Tensor:
            chosen = torch.rand(count, generator=rng) < p
            return torch.where(chosen, values, torch.full_like(values, neutral))

        def uniform() -> Tensor:
            return torch.rand(count, generator=rng)

        def normal() -> Tensor:
            return torch.randn(count, generator=rng)

        flip = draw(torch.where(uniform() < 0.5, -1.0, 1.0), 1.0)
        turn = draw((uniform() * 4).floor() * (math.pi / 2), 0.0)
        turn = turn + draw((uniform() * 2 - 1) * math.pi, 0.0) * turns
        size = draw((normal() * 0.2).exp2(), 1.0)
        stretch = draw((normal() * 0.2).exp2(), 1.0)
        # In the coordinates of `affine_grid` a side is 2 long.
        shift = 2 * torch.stack([draw(normal() * 0.125, 0.0), draw(normal() * 0.125, 0.0)], dim=1)
        self.whole = 2 * torch.stack([draw((uniform() * 2 - 1) * 0.125, 0.0) for _ in range(2)], dim=1).to(device)
        cos, sin = turn.cos(), turn.sin()
        sx, sy = flip * size * stretch, size / stretch
        matrix = torch.stack([cos * sx, -sin * sy, sin * sx, cos * sy], dim=1).view(-1, 2, 2)
        self.theta = torch.cat([matrix, shift[:, :, None]], dim=2).to(device)

        def color(values: Tensor, neutral: float) -> Tensor:
            return draw(values, neutral).view(-1, 1, 1, 1).to(device)

        self.brightness = color(normal() * 0.2, 0.0)
        self.contrast = color((normal() * 0.5).exp2(), 1.0)
        self.luma = color(torch.where(uniform() < 0.5, -1.0, 1.0), 1.0)
        self.hue = color((uniform() * 2 - 1) * math.pi, 0.0)
        self.saturation = color(normal().exp2(), 1.0)

    def geometry(self, x: Tensor) -> Tensor:
        pixel = 2 / torch.tensor([x.shape[3], x.shape[2]], device=x.device)
        whole = (self.whole / pixel).round() * pixel
        theta = torch.cat([self.theta[:, :, :2], self.theta[:, :, 2:] + whole[:, :, None]], dim=2)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="reflection", align_corners=False)

    def image(self, x: Tensor) -> Tensor:
        x = (self.geometry(x) + self.brightness) * self.contrast
        if x.shape[1] == 1:
            return x * self.luma
        gray = x.mean(dim=1, keepdim=True)
        color = x - gray
        across = (color.roll(1, dims=1) - color.roll(-1, dims=1)) / math.sqrt(3)  # `color`, its hue rotated by 90°
        return gray * self.luma + (color * self.hue.cos() + across * self.hue.sin()) * self.saturation


def adapted(p: float, signs: float, target: float, images: int, of: int) -> float:
    """The strength p after `images` more images: it rises if D is too sure of reals, else it falls (ADA, section 3.1).

    `signs` is the mean sign of D's outputs for reals; over `of` images, p changes by 1. p is at most 0.8, above which
    generators learn the augmentations themselves (ADA, Figure 3).
    """
    return min(max(p + math.copysign(images / of, signs - target), 0.0), 0.8)


# --- Path length regularization --------------------------------------------------------------------------------


def path_length(images: Tensor, ws: Tensor, y: Tensor) -> Tensor:
    """The norm of the gradient of <images, y> by `ws`, [B] (S2, eq. 4); y is Gaussian noise shaped like the images.

    `ws` is [B, styles, w_dim] or [B, w_dim].
    """
    y = y / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    square = gradient.square().sum(dim=-1).view(len(images), -1).mean(dim=1)
    return (square + 1e-12).sqrt()  # an image without a defect does not depend on w_defect
