"""DT-GAN: generates and transfers defects and their styles, separated from the product that they appear on.

    Ruyu Wang, Sabrina Hoppe, Eduardo Monari, Marco F. Huber: Defect Transfer GAN: Diverse Defect Synthesis for
    Data Augmentation. BMVC 2022, arXiv:2302.08366. Sections and equations below are the paper's.

Symbols: x an image, y its domain (0 for the normals, the anchor domain), p its product; c_y a spatial defect map,
s_y a style vector; M the mapping network, E the style-defect encoder, G the generator, D the discriminator. The
suffix `_t` stands for the paper's tilde: the target domain, and the image translated to it.

The published paper omits the layers (Appendix D) and the training details (Appendix B). Both follow StarGAN v2
(Choi et al. 2020), on which DT-GAN builds:
    - non-saturating logistic loss, with R1 of weight 1 on the reals;
    - each iteration updates D and G twice, with codes of M and with those of a reference, which train only G;
    - Adam with betas (0, 0.99) and weight decay 1e-4; learning rate 1e-4, 1e-6 for M;
    - averaged weights, with decay 0.999;
    - every lambda 1; that of the diversity loss is divided among its six distances (StarGAN v2 has one) and falls
      linearly to 0;
    - He initialization; batches of 8; 100,000 iterations; a bottleneck of 16x16.
Upsampling is bilinear.

An addition to the paper, which the preset `paper` does not use, is the setting `residual`. With it

- G paints a change inside a soft map m, onto x from which it takes the change that x's own codes make:
  x_t = x - G(x, c_y, s_y) + G(x, c, s). So x keeps its detail, and a normal has no defect to take;
- pseudo-pairs, a defective window d and its repaired twin n_d, supervise both directions, and masks supervise m;
- c = tanh(h) * a, where a says where a defect is, for M as for E. A small critic matches M's codes to E's, which it
  also sees moved. Styles are bounded;
- D is a projected discriminator (`nn.projected`), which also sees untouched normals as fakes;
- with the `prior` "bank", generating takes the codes of real windows, warped, which the model keeps.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from defectgen import ranks
from defectgen.methods.base import ANCHOR, BORDER, Batch, Extent, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.augment import Augmentation
from defectgen.nn.layers import GroupNorm, ResBlock, group_norm, he_init, instance_norm, join, mixed_precision
from defectgen.nn.paired import Hues, judged, map_loss, pair_loss, soft, weighted_sum
from defectgen.nn.penalties import adversarial, r1
from defectgen.nn.projected import WIDTH, ProjectedDiscriminator, hinge_d, hinge_g, projected_slots
from defectgen.nn.slots import Slots, last_conv

BOTTLENECK = 16
"""Side of the feature map at the generator's bottleneck, and so of c_y."""
_TURN = math.radians(8.0)  # standard deviation of turns
_SCALE = 0.25  # standard deviation of the scale's logarithm to base 2
_EXPOSURE = 3.0  # greatest factor on a reference's brightness
_CUT, _WHOLE = 1, 2  # what a place of the bank holds; 0 is nothing
_WARPS = 8  # from which one is chosen
_BEND = 0.06  # standard deviation of displacements, as a fraction of half the window's side


class DTGANConfig(MethodConfig):
    """The paper's model with StarGAN v2's training settings; `image_size` 128 is from section 4."""

    width: int = Field(128, ge=8, description="channels at full resolution; doubled at each halving")
    max_width: int = Field(512, ge=16, description="upper limit of the channels")
    c_channels: int = Field(64, ge=1, description="channels of the defect map c_y")
    latent_dim: int = Field(16, ge=1, description="length of the latent code z")
    style_dim: int = Field(512, ge=1, description="length of the style s_y (section 3.1)")
    lr: float = Field(1e-4, gt=0, description="learning rate of G, D and E")
    lr_mapping: float = Field(1e-6, gt=0, description="learning rate of M")
    lambda_sd_rec: float = Field(1.0, ge=0, description="weight of equation 2")
    lambda_d_rec: float = Field(1.0, ge=0, description="weight of equation 3")
    lambda_ds: float = Field(1 / 6, ge=0, description="weight of equation 4 at the first step; 0 at the last")
    ds_every: int = Field(1, ge=1, description="steps between diversity losses with `residual`, with more weight each")
    lambda_cyc: float = Field(1.0, ge=0, description="weight of equation 5")
    lambda_fg: float = Field(1.0, ge=0, description="weight of equation 6")
    lambda_bg: float = Field(1.0, ge=0, description="weight of equation 7")
    lambda_r1: float = Field(1.0, ge=0, description="weight of the gradient penalty")
    r1_every: int = Field(1, ge=1, description="steps between gradient penalties; the weight is scaled to match")
    augment: bool = Field(False, description="differentiable augmentation of D's inputs, for few-shot data")
    residual: bool = Field(False, description="G paints a change inside a soft map; see the top of the method's file")
    prior: Literal["latent", "bank"] = Field("latent", description="where codes come from; bank needs `residual`")
    lr_noise: float = Field(1e-6, gt=0, description="learning rate of the strengths of M's noise")
    pairs_first: float = Field(0.25, ge=0, le=1, description="part of the training without D, with `residual`")
    lambda_pair: float = Field(10.0, ge=0, description="weight of the differences from d and n_d, with `residual`")
    lambda_map: float = Field(5.0, ge=0, description="weight of the overlap of m with the masks, with `residual`")
    lambda_adv: float = Field(0.3, ge=0, description="weight of the adversarial loss, with `residual`")
    lambda_code: float = Field(1.0, ge=0, description="weight of the critic of M's codes, with `residual`")

    @property
    def judged_at_once(self) -> bool:
        return not self.residual

    def extras(self, step: int, progress: float) -> tuple[bool, ...]:
        if not self.residual:
            return (step % self.r1_every == 0,)
        translates = progress >= self.pairs_first
        return translates, translates and step % self.ds_every == 0

    @model_validator(mode="after")
    def _fits_together(self) -> "DTGANConfig":
        bottleneck = _widths(self)[-1]
        if self.c_channels >= bottleneck:
            raise ValueError(f"c_channels={self.c_channels} must be less than the bottleneck's {bottleneck} channels")
        if self.prior == "bank" and not self.residual:
            raise ValueError("prior=bank needs residual=true; set prior=latent")
        return self


# --- Networks, in the order of the data flow -------------------------------------------------------------------


class UpBlock(nn.Module):
    """Decoder block of the background: instance normalization, no style. Doubles the resolution if `up`."""

    def __init__(self, c_in: int, c_out: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1, self.norm2 = instance_norm(c_in), instance_norm(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h, x = self.conv1(F.leaky_relu(self.norm1(x), 0.2)), self.skip(x)
        if self.up:  # after the first convolution, which then costs a quarter
            h, x = _double(h), _double(x)
        h = self.conv2(F.leaky_relu(self.norm2(h), 0.2))
        return (h + x) * 0.5**0.5


class AdaIN(nn.Module):
    """Adaptive instance normalization (Huang and Belongie 2017): the style sets each channel's scale and shift."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.affine = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        gamma, beta = self.affine(s).chunk(2, dim=1)
        return group_norm(x, x.shape[1], 1 + gamma, beta)


class StyledBlock(nn.Module):
    """Decoder block of the foreground: an `UpBlock` with AdaIN. Doubles the resolution if `up`."""

    def __init__(self, c_in: int, c_out: int, style_dim: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1, self.norm2 = AdaIN(c_in, style_dim), AdaIN(c_out, style_dim)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h, x = self.conv1(F.leaky_relu(self.norm1(x, s), 0.2)), self.skip(x)
        if self.up:
            h, x = _double(h), _double(x)
        h = self.conv2(F.leaky_relu(self.norm2(h, s), 0.2))
        return (h + x) * 0.5**0.5


class Codes(nn.Module):
    """From features, [B, width, 16, 16], the defect map of each row's domain, [B, C, 16, 16]; 0 for the anchor domain.

    With `residual`, c = tanh(h) * a: a, [B, 1, 16, 16] in 0..1, says where the defect is. Otherwise a is 1.
    """

    def __init__(self, config: DTGANConfig, width: int, domains: int) -> None:
        super().__init__()
        self.residual = config.residual
        self.channels = config.c_channels + config.residual
        self.conv = nn.Conv2d(width, domains * self.channels, 1)

    def forward(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """-> c and the logits of a."""
        rows = torch.arange(len(y), device=y.device)
        c = self.conv(h).unflatten(1, (-1, self.channels))[rows, y]
        a = torch.zeros_like(c[:, :1])
        if self.residual:
            c, a = c[:, :-1], c[:, -1:]
            c = torch.tanh(c) * torch.sigmoid(a)
        return c * (y != ANCHOR)[:, None, None, None], a  # a normal has no defect (section 3.1)


class MappingNetwork(nn.Module):
    """M: maps a latent code to a defect map and a style for each domain (section 3.1).

    The defect branch grows from 4x4 to 16x16 and adds per-pixel noise after each convolution, as StyleGAN does
    ("Anchor Domain and Noise Injection"); its strengths are learned from 0.
    """

    SIDES = (4, 8, 16, 16)  # of the noise maps

    def __init__(self, config: DTGANConfig, domains: int) -> None:
        super().__init__()
        hidden = config.max_width
        self.z_dim = config.latent_dim
        self.bounded = config.residual
        self.shared = _mlp([config.latent_dim, hidden, hidden, hidden, hidden])
        self.style = nn.ModuleList(_mlp([hidden, hidden, hidden, hidden, config.style_dim]) for _ in range(domains))
        self.base = nn.Linear(hidden, hidden * 4 * 4)
        widths = [hidden, hidden // 2, hidden // 2, hidden // 2, hidden // 4]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.strengths = nn.ParameterList(nn.Parameter(torch.zeros(1, b, 1, 1)) for b in widths[1:])
        self.defect = Codes(config, widths[-1], domains)

    @property
    def latent_size(self) -> int:
        """How many standard normal values a sample takes: z, then the noise maps."""
        return self.z_dim + sum(side * side for side in self.SIDES)

    def forward(self, latent: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`latent` [B, latent_size], y [B] -> c_y [B, C, 16, 16], s_y [B, style_dim]."""
        z, *noise = latent.split([self.z_dim, *(side * side for side in self.SIDES)], dim=1)
        h = self.shared(z)
        d = self.base(F.leaky_relu(h, 0.2)).view(len(z), -1, 4, 4)
        for conv, strength, side, values in zip(self.convs, self.strengths, self.SIDES, noise, strict=True):
            if side > d.shape[2]:
                d = _double(d)
            d = conv(d) + strength * values.view(-1, 1, side, side)
            d = F.leaky_relu(group_norm(d, d.shape[1]), 0.2)
        return self.defect(d, y)[0], _style(self.style, h, y, bounded=self.bounded)


class StyleDefectEncoder(nn.Module):
    """E: encodes an image as its own defect map c_y = C_E(x) and style s_y = S_E(x) (section 3.1)."""

    def __init__(self, config: DTGANConfig, domains: int, channels: int) -> None:
        super().__init__()
        self.bounded = config.residual
        self.trunk, width = _down(config, channels, normalize=config.residual)
        self.defect = Codes(config, width, domains)
        self.vector = _to_vector(width)
        self.style = nn.ModuleList(nn.Linear(width, config.style_dim) for _ in range(domains))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels, H, W], y [B] -> c_y [B, C, 16, 16], s_y [B, style_dim]."""
        c, s, _ = self.with_presence(x, y)
        return c, s

    def with_presence(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also the logits of a, [B, 1, 16, 16]: where the defect is."""
        h = self.trunk(x)
        c, a = self.defect(F.leaky_relu(h, 0.2), y)
        return c, _style(self.style, self.vector(h), y, bounded=self.bounded), a


class Generator(nn.Module):
    """G: splits an image's features by channel into background and foreground, and recombines them.

    The background BG_G is decoded without style. The foreground is replaced by the target's c_y and decoded with
    AdaIN ("FG/BG Disentanglement"). Both are concatenated and make the image, by a 1x1 convolution.

    With `residual`, two 3x3 convolutions make a change f and its map m instead, so that the change depends on the
    photograph.
    """

    def __init__(self, config: DTGANConfig, channels: int, hues: Sequence[Sequence[float]] = ()) -> None:
        super().__init__()
        self.hues = Hues(hues)
        down, width = _down(config, channels, normalize=True)
        self.encoder = nn.Sequential(
            down, ResBlock(width, width, normalize=True), ResBlock(width, width, normalize=True)
        )
        self.channels, self.residual = channels, config.residual
        self.split = [width - config.c_channels, config.c_channels]
        widths = _widths(config)[::-1]  # from the bottleneck to full resolution
        self.background = nn.Sequential(
            UpBlock(self.split[0], width, up=False),
            UpBlock(width, width, up=False),
            *(UpBlock(a, b, up=True) for a, b in pairwise(widths)),
        )
        self.foreground = nn.ModuleList(
            [
                StyledBlock(config.c_channels, widths[0], config.style_dim, up=False),
                StyledBlock(widths[0], widths[0], config.style_dim, up=False),
                *(StyledBlock(a, b, config.style_dim, up=True) for a, b in pairwise(widths)),
            ]
        )
        last = 2 * widths[-1]
        if self.residual:
            self.head = nn.Sequential(
                nn.LeakyReLU(0.2), nn.Conv2d(last, widths[-1], 3, padding=1),
                nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], channels + 1, 3, padding=1),
            )  # fmt: skip
        else:
            self.head = nn.Sequential(instance_norm(last), nn.LeakyReLU(0.2), nn.Conv2d(last, channels, 1))

    def begin_with_nothing(self) -> None:
        """Zero the change: training starts from the image as it is."""
        last = self.head[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (BG_G(x), FG_G(x)) at the bottleneck: [B, width - C, 16, 16] and [B, C, 16, 16]."""
        bg, fg = self.encoder(x).split(self.split, dim=1)
        return bg, fg

    def forward(self, bg: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None]:
        """BG_G [B, width - C, 16, 16], c [k·B, C, 16, 16], s [k·B, style_dim] -> images [k·B, channels, H, W].

        With k > 1 each background is decoded once and serves k foregrounds: row i·B + j has background j. With
        `residual`, the changes m * f in place of images, and m, [k·B, 1, H, W] in 0..1; both 0 where c is, and on the
        CPU not computed there.
        """
        b = self.background(bg)
        if not self.residual:
            return self.head(join(torch.cat([b] * (len(c) // len(b))), self._painted(c, s))), None
        here = (c != 0).flatten(1).any(dim=1)
        rows = worth_computing(here)
        h = self._painted(c[rows], s[rows])
        # The first convolution sees b and h side by side: its part of b serves all k, too.
        relu, conv = self.head[0], self.head[1]
        assert isinstance(conv, nn.Conv2d)
        of_b, of_h = conv.weight.split([b.shape[1], h.shape[1]], dim=1)
        b = F.conv2d(relu(b), of_b, conv.bias, padding=1)
        out = self.head[2:](b[rows % len(b)] + F.conv2d(relu(h), of_h, padding=1))
        f, m = out.float().split([self.channels, 1], dim=1)
        f = self.hues(f)
        m = torch.sigmoid(m) * here[rows, None, None, None]
        change, m = (each.new_zeros(len(c), *each.shape[1:]).index_copy(0, rows, each) for each in (m * f, m))
        return change, m

    def _painted(self, c: Tensor, s: Tensor) -> Tensor:
        for block in self.foreground:
            c = block(c, s)
        return c


class Discriminator(nn.Module):
    """D: a real-or-fake branch for each domain, and two classifiers ("Multi-Task Discriminator").

    D_FG classifies the defect from the 16x16 feature map, D_BG the product from the vector of the whole image.
    """

    def __init__(self, config: DTGANConfig, domains: int, products: int, channels: int) -> None:
        super().__init__()
        self.trunk, width = _down(config, channels, normalize=False)
        self.vector = _to_vector(width)
        self.branches = nn.Linear(width, domains)
        self.fg = nn.Sequential(
            ResBlock(width, width, normalize=False, down=True),
            ResBlock(width, width, normalize=False, down=True),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, domains),
        )
        self.bg = nn.Linear(width, products)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, channels, H, W], y [B] -> logits D_y(x) [B], D_FG(·|x) [B, domains], D_BG(·|x) [B, products]."""
        h = self.trunk(x)
        v = self.vector(h)
        return self.branches(v).gather(1, y[:, None])[:, 0], self.fg(h), self.bg(v)


class ProjectedTasks(nn.Module):
    """D with `residual`: the branches, D_FG and D_BG look at frozen features. D_FG sees details, D_BG the whole."""

    def __init__(self, domains: int, products: int, device: torch.device) -> None:
        super().__init__()
        self.domains = domains
        self.branches = ProjectedDiscriminator(domains, device)
        self.fg = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * WIDTH, 4, stride=2, padding=1),
            GroupNorm(8, 2 * WIDTH),
            nn.LeakyReLU(0.2),
            nn.AdaptiveMaxPool2d(1),  # not the mean, which would dilute a small defect
            nn.Flatten(),
            nn.Linear(2 * WIDTH, domains),
        )
        self.bg = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, products))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Discriminator`, with D_y(x) of [B, 4]: one for each scale."""
        return self.judge(self.see(x), y)

    def see(self, x: Tensor) -> list[Tensor]:
        """The frozen maps."""
        return self.branches.see(x)

    def judge(self, maps: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The results of `forward` for windows of which `see` made the maps."""
        c = F.one_hot(y, self.domains).to(maps[0].dtype)
        return self.branches.judge(maps, c), self.fg(maps[1]), self.bg(maps[-1])

    def learned(self) -> list[nn.Parameter]:
        """The parameters that an optimizer may change."""
        return [*self.branches.learned(), *self.fg.parameters(), *self.bg.parameters()]


class CodeCritic(nn.Module):
    """Tells codes of E from codes of M: c [B, C, 16, 16], s [B, style_dim], y [B] -> [B, 1]."""

    def __init__(self, config: DTGANConfig, domains: int) -> None:
        super().__init__()
        normalized = nn.utils.parametrizations.spectral_norm
        self.body = nn.Sequential(
            normalized(nn.Conv2d(config.c_channels + config.style_dim, 64, 3, padding=1)),
            nn.LeakyReLU(0.2),
            normalized(nn.Conv2d(64, 64, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            normalized(nn.Conv2d(64, 128, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            normalized(nn.Conv2d(128, domains, 4)),
        )

    def forward(self, c: Tensor, s: Tensor, y: Tensor) -> Tensor:
        h = self.body(torch.cat([c, s[:, :, None, None].expand(-1, -1, *c.shape[2:])], dim=1))
        return h.flatten(1).gather(1, y[:, None])


class Bank(nn.Module):
    """Real defective windows, some of each domain, whose codes serve the prior "bank"."""

    KEPT = 32  # windows of each domain

    def __init__(self, config: DTGANConfig, domains: int, channels: int) -> None:
        super().__init__()
        count, side = (domains - 1) * self.KEPT, config.image_size
        self.x: Tensor
        self.a: Tensor
        self.place: Tensor
        self.full: Tensor
        self.register_buffer("x", torch.zeros(count, channels, side, side, dtype=torch.uint8))
        self.register_buffer("a", torch.zeros(count, 1, side, side, dtype=torch.bool))
        self.register_buffer("place", torch.tensor([[0.5, 0.5, 1.0]]).repeat(count, 1))
        self.register_buffer("full", torch.zeros(count, dtype=torch.uint8))

    @torch.no_grad()
    def add(self, x: Tensor, a: Tensor, y: Tensor, place: Tensor, cut: Tensor) -> None:
        """Keep windows [B, channels, S, S] of the domains y [B], while there is room, their masks `a`, [B, 1, S, S],
        and their `place` [B, 3].

        Windows whose defect goes on beyond them, `cut` [B], give way to others: it would end in a straight line.
        """
        full = self.full.tolist()  # once: each question to a GPU waits for it
        for row, (domain, is_cut) in enumerate(zip(y.tolist(), cut.tolist(), strict=True)):
            if domain == ANCHOR:
                continue
            first, worth = (domain - 1) * self.KEPT, _CUT if is_cut else _WHOLE
            at = min(range(first, first + self.KEPT), key=full.__getitem__)
            if full[at] < worth:
                self.x[at], self.a[at] = ((x[row] + 1) * 127.5).round().to(torch.uint8), a[row] > 0
                self.place[at], self.full[at], full[at] = place[row], worth, worth

    def pick(self, y: int, rng: torch.Generator) -> int:
        """The index of a random window of a domain."""
        first = (y - 1) * self.KEPT
        count = max(1, int((self.full[first : first + self.KEPT] > 0).sum()))
        return first + int(torch.randint(count, (), generator=rng))

    def draw(self, y: int, rng: torch.Generator) -> Tensor:
        """A random window of a domain, warped, [channels, S, S] in [-1, 1].

        Of a few warps, the one that pushes least of the defect to the window's border, where nothing is painted.
        """
        at = self.pick(y, rng)
        row = torch.cat([self.x[at].float() / 127.5 - 1, self.a[at].float()])
        bent = warped(row.repeat(_WARPS, 1, 1, 1), rng)
        across, down = self.place[at, :2].tolist()
        inside = torch.zeros_like(self.a[at, 0])
        rows, columns = (slice(BORDER * (where != 0), len(inside) - BORDER * (where != 1)) for where in (down, across))
        inside[rows, columns] = True
        lost = (bent[:, -1] * ~inside).sum(dim=(1, 2))
        return bent[int(lost.argmin()), :-1]


def warped(x: Tensor, rng: torch.Generator) -> Tensor:
    """Windows [B, channels, S, S], turned and scaled about their middle, and bent. `rng` is a CPU generator."""
    count, side = len(x), x.shape[-1]
    angle = torch.randn(count, generator=rng) * _TURN
    scale = 2 ** (torch.randn(count, generator=rng) * _SCALE)
    matrix = (
        torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1).view(-1, 2, 2) / scale[:, None, None]
    )
    grid = F.affine_grid(F.pad(matrix, (0, 1)), [count, 1, side, side], align_corners=False)
    coarse = torch.randn(count, 2, 4, 4, generator=rng) * _BEND
    bend = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    grid = (grid + bend.permute(0, 2, 3, 1)).to(x.device, x.dtype)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)


def exposed(x_ref: Tensor, x: Tensor) -> Tensor:
    """References [B, channels, S, S] with the median brightness of x; as `imaging.windows.exposure` for arrays."""
    level, own = (each.flatten(1).median(dim=1).values + 1 for each in (x, x_ref))
    white = x_ref.flatten(1).quantile(0.999, dim=1) + 1
    gain = torch.minimum(level / own.clamp(min=1e-3), (2 / white.clamp(min=1e-3)).clamp(min=1))
    gain = gain.clamp(1 / _EXPOSURE, _EXPOSURE)[:, None, None, None]
    return ((x_ref + 1) * gain - 1).clamp(max=1)


def moved(c: Tensor, rng: torch.Generator) -> Tensor:
    """Defect maps [B, C, 16, 16], each moved by up to a quarter of its side; what enters is 0."""
    reach = BOTTLENECK // 4
    starts = torch.randint(2 * reach + 1, (len(c), 2), generator=rng).tolist()
    padded = F.pad(c, (reach,) * 4)
    return torch.stack(
        [row[:, i : i + c.shape[2], j : j + c.shape[3]] for row, (i, j) in zip(padded, starts, strict=True)]
    )


def _widths(config: DTGANConfig) -> list[int]:
    """Channels at each resolution, from full resolution down to the bottleneck."""
    halvings = (config.image_size // BOTTLENECK).bit_length() - 1
    return [min(config.width * 2**i, config.max_width) for i in range(halvings + 1)]


def _down(config: DTGANConfig, channels: int, *, normalize: bool) -> tuple[nn.Sequential, int]:
    """The layers from an image to the 16x16 bottleneck, and the number of channels there."""
    widths = _widths(config)
    blocks = [ResBlock(a, b, normalize=normalize, down=True) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1), *blocks), widths[-1]


def _to_vector(width: int) -> nn.Sequential:
    """The layers from the bottleneck [B, width, 16, 16] to a vector [B, width]."""
    return nn.Sequential(
        ResBlock(width, width, normalize=False, down=True),
        ResBlock(width, width, normalize=False, down=True),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 4),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
    )


def _style(branches: nn.ModuleList, h: Tensor, y: Tensor, *, bounded: bool) -> Tensor:
    """The style of each row's domain, [B, style_dim]; with a mean square of 1 if bounded."""
    s = torch.stack([branch(h) for branch in branches], dim=1)[torch.arange(len(y), device=y.device), y]
    return s * (s.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt() if bounded else s


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def worth_computing(here: Tensor) -> Tensor:
    """The indices of the rows [B] that are True; of all if none is, and on a GPU.

    To ask a GPU costs too much, and it prepares anew for each number of rows that it has not met.
    """
    if here.device.type == "cpu" and here.any():
        return here.nonzero()[:, 0]
    return torch.arange(len(here), device=here.device)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


# --- Losses, named as in the paper -----------------------------------------------------------------------------


def sd_rec_loss(c_t: Tensor, c_e: Tensor, s_t: Tensor, s_e: Tensor) -> Tensor:
    """Equation 2: E recovers the defect map and the style from which the translated image was made."""
    return F.l1_loss(c_e, c_t) + F.l1_loss(s_e, s_t)


def d_rec_loss(fg: Tensor, c_y: Tensor, fg_t: Tensor, c_t: Tensor) -> Tensor:
    """Equation 3: the foreground that G splits off an image equals the defect map that E extracts from it."""
    return F.l1_loss(fg, c_y) + F.l1_loss(fg_t, c_t)


def ds_loss(x11: Tensor, x12: Tensor, x21: Tensor, x22: Tensor) -> Tensor:
    """Equation 4 for two latent codes: the sum of the distances between x_ij = G(x, c_i, s_j). G maximizes it.

    The first two pairs share neither defect nor style. The sum over m, n, o expands to the four pairs that share one
    of the two. Images are [B, channels, H, W].
    """
    pairs = [(x12, x21), (x11, x22), (x12, x11), (x12, x22), (x21, x11), (x21, x22)]
    return torch.stack([F.l1_loss(a, b) for a, b in pairs]).sum()


def cyc_loss(x: Tensor, x_rec: Tensor) -> Tensor:
    """Equation 5: an image translated back with its own defect map and style equals itself."""
    return F.l1_loss(x_rec, x)


def class_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Either half of equations 6 and 7: -log D(label | x), averaged. D minimizes it on reals, G on fakes."""
    return F.cross_entropy(logits, label)


# --- Method ----------------------------------------------------------------------------------------------------

Code = tuple[Tensor, Tensor]
"""A defect map c, [B, C, 16, 16], and a style s, [B, style_dim]."""


class DTGAN:
    """The method DT-GAN; see `defectgen.methods.base.Method`."""

    Config: ClassVar[type[MethodConfig]] = DTGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "compact": {
            "width": 32, "max_width": 256, "c_channels": 32, "style_dim": 128, "batch_size": 16, "steps": 4_000,
            "lr": 2e-4, "lr_mapping": 2e-4, "lr_noise": 1e-2, "lambda_ds": 0.02, "ds_every": 4, "augment": True,
            "residual": True, "prior": "bank", "exposure": True,
        },
        "tiny": {
            "image_size": 64, "width": 16, "max_width": 64, "c_channels": 16, "style_dim": 32, "batch_size": 4,
            "steps": 3_000, "ema": 0.995, "lr": 4e-4, "lr_mapping": 4e-4, "lr_noise": 1e-2, "lambda_ds": 0.02,
            "ds_every": 4, "augment": True, "residual": True, "prior": "bank", "exposure": True,
        },
    }  # fmt: skip
    slots: ClassVar[Sequence[Slots]] = (
        Slots(r"[ME]\.style\.(\d+)\..*", "domains"),
        Slots(r"[ME]\.defect\.conv\..*", "domains"),
        Slots(r"D\.(?:branches|fg\.5)\.(?:weight|bias)", "domains"),
        Slots(r"D\.bg\.(?:3\.)?(?:weight|bias)", "products"),
        *projected_slots(r"D\.branches", "domains"),
        last_conv(r"critic\.body\.6", "domains"),
        Slots(r"(?:[ED]\.trunk\.0|G\.encoder\.0\.0)\.weight", "inputs", axis=1),
        Slots(r"G\.head\.[23]\.(?:weight|bias)", "outputs", where="start"),
    )

    def __init__(self, config: DTGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        domains, products, channels = len(task.domains), len(task.products), task.channels
        self.M = MappingNetwork(config, domains)
        self.E = StyleDefectEncoder(config, domains, channels)
        self.G = Generator(config, channels, task.hues)
        modules: dict[str, nn.Module] = {"M": self.M, "E": self.E, "G": self.G}
        if not config.residual:
            modules["D"] = Discriminator(config, domains, products, channels)
        for module in modules.values():
            module.apply(he_init)
        if config.residual:
            self.G.begin_with_nothing()
            self.D_projected = ProjectedTasks(domains, products, device)
            self.critic = CodeCritic(config, domains)
            self.bank = Bank(config, domains, channels)
            modules |= {"D": self.D_projected, "critic": self.critic, "bank": self.bank}
        self.D = modules["D"]
        optimizers = {name: self._adam(module, name) for name, module in modules.items() if name != "bank"}
        averaged = ("M", "E", "G", "bank") if config.residual else ("M", "E", "G")
        self.networks = Networks(modules, optimizers, averaged=averaged, device=device)

    def _adam(self, module: nn.Module, name: str) -> torch.optim.Adam:
        config = self.config
        groups: list[dict[str, Any]] = [{"params": list(module.parameters())}]
        if isinstance(module, ProjectedTasks):
            groups = [{"params": module.learned()}]
        if isinstance(module, MappingNetwork):
            strengths = set(module.strengths)
            groups = [
                {"params": [p for p in module.parameters() if p not in strengths]},
                {"params": list(module.strengths), "lr": config.lr_noise, "weight_decay": 0.0},
            ]
        lr = config.lr_mapping if name in ("M", "critic") else config.lr
        if name == "D" and config.residual:
            lr /= 2
        return torch.optim.Adam(groups, lr=lr, betas=(0.0, 0.99), weight_decay=1e-4)

    def lambda_ds(self, progress: float) -> float:
        """The weight of the diversity loss. It falls linearly to 0 at the end (StarGAN v2)."""
        return self.config.lambda_ds * (1 - progress)

    def _weights(self) -> dict[str, float]:
        config = self.config
        return {
            "adv": 1.0, "sd_rec": config.lambda_sd_rec, "d_rec": config.lambda_d_rec, "cyc": config.lambda_cyc,
            "fg": config.lambda_fg, "bg": config.lambda_bg,
        }  # fmt: skip

    def translate(
        self, x: Tensor, bg: Tensor, own: Code, targets: Sequence[Code]
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Translate x, whose background is `bg`, to each target (c, s): the images, and their maps m if there are any.

        With `residual`, x less the change that its own codes make, plus the target's.
        """
        codes = [own, *targets] if self.config.residual else targets
        made, m = self.G(bg, torch.cat([c for c, _ in codes]), torch.cat([s for _, s in codes]))
        if m is None:
            return list(made.chunk(len(targets))), ()
        taken, *painted = made.chunk(len(codes))
        return [x - taken + each for each in painted], m.chunk(len(codes))[1:]

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        latents = torch.randn(2, len(batch.x), self.M.latent_size, generator=rng).to(self.device)
        if self.config.residual:
            parts = self._residual_step(batch, step, progress, latents, rng)
        else:
            parts = {}
            for given in (latents, None):
                parts |= self._discriminator_step(batch, step, given, rng)
            for given in (None, latents):
                parts |= self._generator_step(batch, progress, given, rng)
        return {name: value.detach() for name, value in parts.items()}

    def _augmented(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return Augmentation.draw(len(x), rng, self.device).apply(x) if self.config.augment else x

    def _targets(self, batch: Batch, latents: Tensor | None) -> list[Code]:
        """The target's c and s: M makes them from two latent codes, in all combinations, or E from the reference."""
        if latents is None:
            return [self.E(batch.x_ref, batch.y_ref)]
        (c, s), (c2, s2) = (self.M(latent, batch.y_ref) for latent in latents)
        return [(c, s), (c, s2), (c2, s), (c2, s2)]

    def _discriminator_step(
        self, batch: Batch, step: int, latents: Tensor | None, rng: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config
        with torch.no_grad(), mixed_precision(self.device):
            c, s = self._targets(batch, latents)[0]
            x_t, _ = self.G(self.G.encode(batch.x)[0], c, s)
        real, fake = self._augmented(batch.x_ref, rng), self._augmented(x_t.float(), rng)
        penalized = step % config.r1_every == 0 and config.lambda_r1 > 0
        real = real.detach().requires_grad_(penalized)
        with nullcontext() if penalized else mixed_precision(self.device):
            adv, fg, bg = self.D(real, batch.y_ref)
        with mixed_precision(self.device):
            adv_fake, _, _ = self.D(fake, batch.y_ref)
        losses = {
            "D_real": adversarial(adv.float(), real=True),
            "D_fake": adversarial(adv_fake.float(), real=False),
            "D_fg": class_loss(fg.float(), batch.y_ref),
            "D_bg": class_loss(bg.float(), batch.p_ref),
        }
        total = losses["D_real"] + losses["D_fake"]
        total = total + config.lambda_fg * losses["D_fg"] + config.lambda_bg * losses["D_bg"]
        if penalized:
            losses["D_r1"] = r1(adv, real)
            total = total + config.lambda_r1 * config.r1_every * losses["D_r1"]
        self._update(total, "D")
        return losses

    def _generator_step(
        self, batch: Batch, progress: float, latents: Tensor | None, rng: torch.Generator
    ) -> dict[str, Tensor]:
        x, y, y_t = batch.x, batch.y, batch.y_ref
        # As in StarGAN v2, a reference-guided step trains only G.
        trained = ["G"] if latents is None else ["G", "M", "E"]
        self.networks.train_only(*trained)
        with mixed_precision(self.device):
            bg, fg = self.G.encode(x)
            c_y, s_y = self.E(x, y)
            targets = self._targets(batch, latents)
            made, _ = self.translate(x, bg, (c_y, s_y), targets)
            x_t, (c, s) = made[0], targets[0]
            adv, d_fg, d_bg = self.D(self._augmented(x_t, rng), y_t)
            c_t, s_t = self.E(x_t, y_t)
            bg_t, fg_t = self.G.encode(x_t)
            (x_rec,), _ = self.translate(x_t, bg_t, (c_t, s_t), [(c_y, s_y)])
        losses = {
            "adv": adversarial(adv.float(), real=True),
            "sd_rec": sd_rec_loss(c, c_t, s, s_t),
            "d_rec": d_rec_loss(fg, c_y, fg_t, c_t),
            "cyc": cyc_loss(x, x_rec),
            "fg": class_loss(d_fg.float(), y_t),
            "bg": class_loss(d_bg.float(), batch.p),
        }
        weights = self._weights()
        if latents is not None:
            losses["ds"], weights["ds"] = ds_loss(*made), -self.lambda_ds(progress)
        self._update(weighted_sum(losses, weights), *trained)
        self.networks.train_only(*self.networks.optimizers)
        return losses

    def _residual_step(
        self, batch: Batch, step: int, progress: float, latents: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """One update of each network. The parts add their gradients; only those of G, M and E are left at the end."""
        assert batch.paired is not None
        assert batch.a_ref is not None
        assert batch.place_ref is not None
        cut = torch.zeros(len(batch.x), dtype=torch.bool) if batch.cut_ref is None else batch.cut_ref
        shown = batch.a_ref.amax(dim=1, keepdim=True)
        self.bank.add(*ranks.joined(batch.x_ref, shown, batch.y_ref, batch.place_ref, cut))
        self.networks.begin()
        losses, of_e = self._learn_pairs(batch)
        losses |= self._match_codes(of_e, latents[0], batch.y_ref, rng)
        weight = judged(progress, self.config.pairs_first, batch.paired)
        if weight is not None:
            losses |= self._learn_translations(batch, step, progress, weight, latents, rng)
        self.networks.step("G", "M", "E")
        return losses

    def _learn_pairs(self, batch: Batch) -> tuple[dict[str, Tensor], Code]:
        """E's codes of a defective window paint its twin and repair it. Also returns them."""
        config, d, n_d, paired = self.config, batch.x_ref, batch.x_twin, batch.paired
        assert batch.a_ref is not None
        assert n_d is not None
        assert paired is not None
        with mixed_precision(self.device):
            c, s, a = self.E.with_presence(d, batch.y_ref)
        mask = batch.a_ref.amax(dim=1, keepdim=True)
        here = F.adaptive_max_pool2d(mask, BOTTLENECK)
        presence = F.binary_cross_entropy_with_logits(a.float(), here, reduction="none").mean(dim=(1, 2, 3))
        presence = (presence * paired).mean()
        codes, rows = (c.detach(), s.detach()), worth_computing(paired > 0)
        d, n_d, mask, paired, c, s = (each[rows] for each in (d, n_d, mask, paired, c, s))
        count, inside = len(rows), soft(mask)
        with mixed_precision(self.device):
            bg, _ = self.G.encode(torch.cat([d, n_d]))
            change, m = self.G(bg, torch.cat([c, c]), torch.cat([s, s]))
        assert m is not None
        losses = {
            "pair": pair_loss(n_d + change[count:], d, inside, paired)
            + pair_loss(d - change[:count], n_d, inside, paired),
            "map": map_loss(m[:count], mask, paired) + map_loss(m[count:], mask, paired),
            "presence": presence,
        }
        weighted_sum(losses, {"pair": config.lambda_pair, "map": config.lambda_map, "presence": 1.0}).backward()
        return losses, codes

    def _match_codes(self, of_e: Code, latent: Tensor, y: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Update the critic of codes, and let M's codes of defects pass for E's."""
        rows = y != ANCHOR
        weight = float(rows.any())
        if not ranks.any_of(weight > 0):
            return {}
        if not weight:  # a batch without defects, while another rank has some
            rows = torch.ones_like(rows)
        c_e, s_e = moved(of_e[0], rng), of_e[1]
        with mixed_precision(self.device):
            c_m, s_m = self.M(latent, y)
            real, fake = self.critic(c_e, s_e, y), self.critic(c_m.detach(), s_m.detach(), y)
        losses = {"critic": hinge_d(real[rows].float(), fake[rows].float())}
        (weight * losses["critic"]).backward()
        self.networks.step("critic")
        with mixed_precision(self.device):
            fooled = self.critic(c_m, s_m, y)
        losses["code"] = hinge_g(fooled[rows].float())
        weighted_sum(losses, {"code": weight * self.config.lambda_code}).backward()
        return losses

    def _learn_translations(
        self, batch: Batch, step: int, progress: float, weight: float, latents: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The paper's losses. The target of a row is a code of M, or of the reference, warped.

        Args:
            weight: the part of its weight that the adversarial loss has.
        """
        config, x, y, y_t = self.config, batch.x, batch.y, batch.y_ref
        assert batch.a_ref is not None
        assert batch.paired is not None
        bent = warped(torch.cat([batch.x_ref, batch.a_ref.amax(dim=1, keepdim=True)], dim=1), rng)
        with mixed_precision(self.device):
            codes, styles = self.E(torch.cat([x, bent[:, :-1]]), torch.cat([y, y_t]))
            (c_y, c_r), (s_y, s_r) = codes.chunk(2), styles.chunk(2)
            by_latent = self._targets(batch, latents)
            c_m, s_m = by_latent[0]
            of_m = torch.rand(len(x), generator=rng).to(self.device) < 0.5
            c = torch.where(of_m[:, None, None, None], c_m, c_r)
            s = torch.where(of_m[:, None], s_m, s_r)
            bg, fg = self.G.encode(x)
            varying = step % config.ds_every == 0
            (x_t, *varied), (m, *_) = self.translate(x, bg, (c_y, s_y), [(c, s), *(by_latent if varying else [])])
        losses, seen = self._train_d(batch, x_t, rng)
        with mixed_precision(self.device):
            c_t, s_t = self.E(x_t, y_t)
            bg_t, fg_t = self.G.encode(x_t)
            (x_rec,), _ = self.translate(x_t, bg_t, (c_t, s_t), [(c_y, s_y)])
            adv, d_fg, d_bg = self.D_projected.judge(seen, y_t)
        losses |= {
            "adv": hinge_g(adv.float()),
            "sd_rec": sd_rec_loss(c.detach(), c_t, s.detach(), s_t),
            "d_rec": d_rec_loss(fg, c_y.detach(), fg_t, c_t.detach()),
            "cyc": cyc_loss(x, x_rec),
            "fg": class_loss(d_fg.float(), y_t),
            "bg": class_loss(d_bg.float(), batch.p),
            # A reference's codes paint in the same place on any photograph.
            "map_t": map_loss(m, (bent[:, -1:] > 0.5).float(), batch.paired * ~of_m),
        }
        weights = {**self._weights(), "adv": weight * config.lambda_adv, "map_t": config.lambda_map}
        if varying:
            losses["ds"], weights["ds"] = ds_loss(*varied), -config.ds_every * self.lambda_ds(progress)
        weighted_sum(losses, weights).backward()
        return losses

    def _train_d(self, batch: Batch, x_t: Tensor, rng: torch.Generator) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Update D, and return the losses and what it sees of x_t."""
        D, config, y_t, count = self.D_projected, self.config, batch.y_ref, len(batch.x)
        real, fake, untouched = (
            Augmentation.draw(count, rng, self.device).apply(each) for each in (batch.x_ref, x_t, batch.x)
        )
        wrong = (batch.y == ANCHOR) & (y_t != ANCHOR)  # a normal is a fake of the defect that it was asked for
        rows = worth_computing(wrong)
        with mixed_precision(self.device):
            seen = D.see(fake)
            with torch.no_grad():
                others = D.see(torch.cat([real, untouched[rows]]))
            maps = [torch.cat([each, of_fake.detach()]) for each, of_fake in zip(others, seen, strict=True)]
            adv, d_fg, d_bg = D.judge(maps, torch.cat([y_t, y_t[rows], y_t]))
        fakes = torch.cat([wrong[rows], torch.ones_like(wrong)])
        losses = {
            "D_adv": hinge_d(adv[:count].float(), adv[count:][fakes].float()),
            "D_fg": class_loss(d_fg[:count].float(), y_t),
            "D_bg": class_loss(d_bg[:count].float(), batch.p_ref),
        }
        weighted_sum(losses, {"D_adv": 1.0, "D_fg": config.lambda_fg, "D_bg": config.lambda_bg}).backward()
        self.networks.step("D")
        return losses, seen

    def _update(self, loss: Tensor, *names: str) -> None:
        self.networks.begin()
        loss.backward()
        self.networks.step(*names)

    def place(self, y: int, rng: torch.Generator) -> tuple[float, float, float] | None:
        """Where the window of the bank lay in its image, whose defect `generate` paints."""
        if self.config.prior != "bank":
            return None
        across, down, zoom = self.bank.place[self.bank.pick(y, rng)].tolist()
        return across, down, zoom

    @torch.no_grad()
    def extent(self, y: int, rng: torch.Generator, x_ref: Tensor | None = None) -> Extent | None:
        """The part of the window where E sees the defect of `x_ref`, or of the bank's window that `generate` takes."""
        if x_ref is None and self.config.prior == "bank":
            x_ref = self.bank.draw(y, rng)[None]
        if x_ref is None or not self.config.residual:
            return None
        a = self.E.with_presence(x_ref, torch.tensor([y], device=self.device))[2][0, 0] > 0
        if not a.any():
            return None
        spans = [torch.nonzero(a.any(dim=axis))[:, 0] for axis in (0, 1)]
        (left, right), (top, bottom) = ((int(span[0]), int(span[-1]) + 1) for span in spans)
        across, down, width, height = (each / BOTTLENECK for each in (left, top, right - left, bottom - top))
        return across, down, width, height

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Translate normals to the requested domains, latent-guided or reference-guided (section 4.1).

        The defect map is that of `x_ref`, the style that of `x_style`; what is not given comes from the prior. To
        transfer a defect in its own style, pass the same image as both.
        """
        x, y = request.x, request.y
        of_ref, of_style = (
            None if each is None else self.E(self._exposed(each, x), y) for each in (request.x_ref, request.x_style)
        )
        if of_ref is None or of_style is None:
            drawn = self._draw_codes(y, request.rngs, x)
            of_ref, of_style = of_ref or drawn, of_style or drawn
        (c, _), (_, s) = of_ref, of_style
        bg = self.G.encode(x)[0]
        if self.config.residual:  # a normal has no change to take
            change, m = self.G(bg, c, s)
            return Generated((x + change).clamp(-1, 1), m)
        # What G loses of x when it redraws it is no part of the defect.
        (own, x_t), _ = self.translate(x, bg, (c, s), [self.E(x, torch.full_like(y, ANCHOR)), (c, s)])
        return Generated((x + x_t - own).clamp(-1, 1))

    def _exposed(self, x_ref: Tensor, x: Tensor) -> Tensor:
        """References with the brightness of the windows that they are painted on, as in training."""
        return exposed(x_ref, x) if self.config.exposure else x_ref

    def _draw_codes(self, y: Tensor, rngs: Sequence[torch.Generator], x: Tensor) -> Code:
        """Codes of the prior for the domains y, to be painted on x."""
        if self.config.prior == "bank":
            drawn = torch.stack([self.bank.draw(int(k), rng) for k, rng in zip(y, rngs, strict=True)])
            c, s = self.E(self._exposed(drawn, x), y)
        else:
            latent = torch.stack([torch.randn(self.M.latent_size, generator=rng) for rng in rngs])
            c, s = self.M(latent.to(self.device), y)
        return c, s

    @torch.no_grad()
    def restore(self, x: Tensor, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Translate defective windows to the anchor domain."""
        del rngs
        c, s = self.E(x, y)
        bg = self.G.encode(x)[0]
        if self.config.residual:
            return (x - self.G(bg, c, s)[0]).clamp(-1, 1)
        (own, x_t), _ = self.translate(x, bg, (c, s), [(c, s), self.E(x, torch.full_like(y, ANCHOR))])
        return (x + x_t - own).clamp(-1, 1)
