"""DT-GAN: generates and transfers defects and their styles, separated from the product that they appear on.

    Ruyu Wang, Sabrina Hoppe, Eduardo Monari, Marco F. Huber: Defect Transfer GAN: Diverse Defect Synthesis for
    Data Augmentation. BMVC 2022, arXiv:2302.08366. Sections and equations below are the paper's.

Symbols: x an image, y its domain (0 for the normals, the anchor domain), p its product; c_y a spatial defect map,
s_y a style vector; M the mapping network, E the style-defect encoder, G the generator, D the discriminator. The
suffix `_t` stands for the paper's tilde: the target domain, and the image translated to it.

The published paper omits the layers (Appendix D) and the training details (Appendix B). Both follow StarGAN v2
(Choi et al. 2020), on which DT-GAN builds:
    - non-saturating logistic loss, with R1 of weight 1 on the reals;
    - Adam with betas (0, 0.99) and weight decay 1e-4; learning rate 1e-4, 1e-6 for M;
    - averaged weights, with decay 0.999;
    - every lambda 1; that of the diversity loss is divided among its six distances (StarGAN v2 has one) and falls
      linearly to 0;
    - He initialization; batches of 8; 100,000 steps; a bottleneck of 16x16.
Each iteration of StarGAN v2 does a latent-guided and a reference-guided update. Here they alternate: one per step.

Differences from the paper, to learn small defects from few images within an hour; each is noted where it applies:
    - a skip path restores the detail that G's bottleneck loses, and G paints nothing at the rim (`translate`);
    - the foreground is hidden at the first step (`hide_foreground`);
    - D and E standardize each window (`standardized`);
    - D_FG takes the maximum over the feature map, not the mean;
    - the diversity loss ignores the anchor domain (`ds_loss`);
    - the presets `compact` and `tiny` raise M's learning rate, as 1e-6 needs 100,000 steps.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from defectgen.methods.base import ANCHOR, Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.augment import Augmentation
from defectgen.nn.layers import ResBlock, he_init, instance_norm, mixed_precision, standardized
from defectgen.nn.penalties import adversarial, r1

BOTTLENECK = 16
"""Side of the feature map at the generator's bottleneck, and so of c_y."""


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
    lambda_cyc: float = Field(1.0, ge=0, description="weight of equation 5")
    lambda_fg: float = Field(1.0, ge=0, description="weight of equation 6")
    lambda_bg: float = Field(1.0, ge=0, description="weight of equation 7")
    lambda_r1: float = Field(1.0, ge=0, description="weight of the gradient penalty")
    r1_every: int = Field(1, ge=1, description="steps between gradient penalties; the weight is scaled to match")
    augment: bool = Field(True, description="differentiable augmentation of D's inputs, for few-shot data")

    @model_validator(mode="after")
    def _leaves_room_for_the_background(self) -> "DTGANConfig":
        bottleneck = _widths(self)[-1]
        if self.c_channels >= bottleneck:
            raise ValueError(f"c_channels={self.c_channels} must be less than the bottleneck's {bottleneck} channels")
        return self


# --- Networks, in the order of the data flow -------------------------------------------------------------------


class UpBlock(nn.Module):
    """Decoder block of the background: instance normalization, no style. Doubles the resolution if `up`."""

    def __init__(self, c_in: int, c_out: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1 = instance_norm(c_in)
        self.norm2 = instance_norm(c_out)
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
        gamma, beta = self.affine(s)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * F.group_norm(x, x.shape[1]) + beta


class StyledBlock(nn.Module):
    """Decoder block of the foreground: an `UpBlock` with AdaIN. Doubles the resolution if `up`."""

    def __init__(self, c_in: int, c_out: int, style_dim: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1 = AdaIN(c_in, style_dim)
        self.norm2 = AdaIN(c_out, style_dim)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x, s), 0.2))
        if self.up:
            h = _double(h)
        # No skip connection: it would carry the scale of c_y past the AdaIN.
        return self.conv2(F.leaky_relu(self.norm2(h, s), 0.2))


class MappingNetwork(nn.Module):
    """M: maps a latent code to a defect map and a style for each domain (section 3.1).

    The defect branch grows from 4x4 to 16x16 and adds per-pixel noise after each convolution, as StyleGAN does
    ("Anchor Domain and Noise Injection"). Its output is normalized: G's AdaIN ignores the scale of c_y, so M could
    otherwise satisfy equation 2 by shrinking c_y to zero.
    """

    SIDES = (4, 8, 16, 16)  # of the noise maps

    def __init__(self, config: DTGANConfig, domains: int) -> None:
        super().__init__()
        hidden = config.max_width
        self.z_dim = config.latent_dim
        self.c_channels = config.c_channels
        self.shared = _mlp([config.latent_dim, hidden, hidden, hidden, hidden])
        self.style = nn.ModuleList(_mlp([hidden, hidden, hidden, hidden, config.style_dim]) for _ in range(domains))
        self.base = nn.Linear(hidden, hidden * 4 * 4)
        widths = [hidden, hidden // 2, hidden // 2, hidden // 2, hidden // 4]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.strengths = nn.ParameterList(nn.Parameter(torch.full((1, b, 1, 1), 0.5)) for b in widths[1:])
        self.defect = nn.Conv2d(widths[-1], domains * config.c_channels, 1)

    @property
    def latent_size(self) -> int:
        """How many standard normal values a sample takes: z, then the noise maps."""
        return self.z_dim + sum(side * side for side in self.SIDES)

    def forward(self, latent: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`latent` [B, latent_size], y [B] -> c_y [B, C, 16, 16], s_y [B, style_dim]."""
        z, *noise = latent.split([self.z_dim, *(side * side for side in self.SIDES)], dim=1)
        h = self.shared(z)
        s = torch.stack([branch(h) for branch in self.style], dim=1)
        d = self.base(F.leaky_relu(h, 0.2)).view(len(z), -1, 4, 4)
        for conv, strength, side, values in zip(self.convs, self.strengths, self.SIDES, noise, strict=True):
            if side > d.shape[2]:
                d = _double(d)
            d = conv(d) + strength * values.view(-1, 1, side, side)
            d = F.leaky_relu(F.group_norm(d, d.shape[1]), 0.2)
        c = self.defect(d)
        c = F.group_norm(c, c.shape[1])
        return _anchored(_select(c, y, self.c_channels), y), s[torch.arange(len(y), device=y.device), y]


class StyleDefectEncoder(nn.Module):
    """E: encodes an image as its own defect map c_y = C_E(x) and style s_y = S_E(x) (section 3.1)."""

    def __init__(self, config: DTGANConfig, domains: int, channels: int) -> None:
        super().__init__()
        self.c_channels = config.c_channels
        self.trunk, width = _down(config, channels, normalize=False)
        self.defect = nn.Conv2d(width, domains * config.c_channels, 1)
        self.style = _to_vector(width)
        self.style_heads = nn.ModuleList(nn.Linear(width, config.style_dim) for _ in range(domains))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels, H, W], y [B] -> c_y [B, C, 16, 16], s_y [B, style_dim]."""
        h = self.trunk(standardized(x))
        c = self.defect(F.leaky_relu(h, 0.2))
        v = self.style(h)
        s = torch.stack([head(v) for head in self.style_heads], dim=1)
        return _anchored(_select(c, y, self.c_channels), y), s[torch.arange(len(y), device=y.device), y]


class Generator(nn.Module):
    """G: splits an image's features by channel into background and foreground, and recombines them.

    The background BG_G is decoded without style. The foreground is replaced by the target's c_y and decoded with
    AdaIN ("FG/BG Disentanglement"). A 1x1 convolution over the channels of both makes the image, so pixels outside
    the defect need not pass through the style.
    """

    def __init__(self, config: DTGANConfig, channels: int) -> None:
        super().__init__()
        down, width = _down(config, channels, normalize=True)
        self.encoder = nn.Sequential(
            down, ResBlock(width, width, normalize=True), ResBlock(width, width, normalize=True)
        )
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
        self.rim: Tensor
        self.register_buffer("rim", _rim(config.image_size), persistent=False)
        self.bg_width = widths[-1]
        self.to_image = nn.Conv2d(self.bg_width + widths[-1], channels, 1)

    def hide_foreground(self) -> None:
        """Zero the foreground's output weights: training starts from the background's image, not from noise."""
        with torch.no_grad():
            self.to_image.weight[:, self.bg_width :] = 0

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (BG_G(x), FG_G(x)) at the bottleneck: [B, width - C, 16, 16] and [B, C, 16, 16]."""
        bg, fg = self.encoder(x).split(self.split, dim=1)
        return bg, fg

    def decode(self, bg: Tensor, c: Tensor, s: Tensor) -> Tensor:
        """BG_G [B, width - C, 16, 16], c [k·B, C, 16, 16], s [k·B, style_dim] -> images [k·B, channels, H, W].

        With k > 1 each background is decoded once and serves k foregrounds: row i·B + j has background j.
        """
        b = self.background(bg)
        b = b.repeat(len(c) // len(b), 1, 1, 1)
        for block in self.foreground:
            c = block(c, s)
        return self.to_image(F.leaky_relu(torch.cat([b, c], dim=1), 0.2))

    def translate(
        self, x: Tensor, bg: Tensor, own: tuple[Tensor, Tensor], targets: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        """Translate x to each target (c, s). A skip path restores the detail of x that the bottleneck loses.

        The paper's G redraws the whole image from its bottleneck. Here, what G loses of x when it redraws x with its
        own (c_y, s_y) is added to every translation: x_t = x + G(x, c, s) - G(x, c_y, s_y). Fakes then have the same
        grain as reals, so D and G deal with the defect alone. The same difference is later painted onto the image.

        The gradient passes through both terms. It cancels in the background that they share, which equation 5 (the
        cycle) trains. If the gradient passed through the first term only, D would change the background forever,
        without any effect on x_t. The difference fades out towards the window's rim, where zero padding would show
        as a frame.
        """
        codes = [own, *targets]
        decoded = self.decode(bg, torch.cat([c for c, _ in codes]), torch.cat([s for _, s in codes]))
        redrawn, *translated = decoded.chunk(len(codes))
        return tuple(x + self.rim * (image - redrawn) for image in translated)


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
            nn.AdaptiveMaxPool2d(1),  # not the mean, which would dilute a small defect
            nn.Flatten(),
            nn.Linear(width, domains),
        )
        self.bg = nn.Linear(width, products)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, channels, H, W], y [B] -> logits D_y(x) [B], D_FG(·|x) [B, domains], D_BG(·|x) [B, products]."""
        h = self.trunk(standardized(x))
        v = self.vector(h)
        return self.branches(v).gather(1, y[:, None])[:, 0], self.fg(h), self.bg(v)


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


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _rim(size: int, width: int = 8) -> Tensor:
    """1 inside a window, falling to nearly 0 over the last `width` pixels before its border; [1, 1, size, size]."""
    distance = torch.arange(size).minimum(torch.arange(size).flip(0)) + 0.5
    ramp = (distance / width).clamp(max=1)
    return (ramp[:, None] * ramp[None, :])[None, None]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _select(c: Tensor, y: Tensor, channels: int) -> Tensor:
    """Select the branch of each row's domain: [B, domains·C, h, w] -> [B, C, h, w]."""
    return c.unflatten(1, (-1, channels))[torch.arange(len(y), device=y.device), y]


def _anchored(c: Tensor, y: Tensor) -> Tensor:
    """Set the defect maps of the anchor domain to zero: a normal has no defect (section 3.1)."""
    return c * (y != ANCHOR)[:, None, None, None]


# --- Losses, named as in the paper -----------------------------------------------------------------------------


def sd_rec_loss(c_t: Tensor, c_e: Tensor, s_t: Tensor, s_e: Tensor) -> Tensor:
    """Equation 2: E recovers the defect map and the style from which the translated image was made."""
    return F.l1_loss(c_e, c_t) + F.l1_loss(s_e, s_t)


def d_rec_loss(fg: Tensor, c_y: Tensor, fg_t: Tensor, c_t: Tensor) -> Tensor:
    """Equation 3: the foreground that G splits off an image equals the defect map that E extracts from it."""
    return F.l1_loss(fg, c_y) + F.l1_loss(fg_t, c_t)


def ds_loss(x11: Tensor, x12: Tensor, x21: Tensor, x22: Tensor, y_t: Tensor) -> Tensor:
    """Equation 4 for two latent codes: the sum of the distances between x_ij = G(x, c_i, s_j). G maximizes it.

    The first two pairs share neither defect nor style. The sum over m, n, o expands to the four pairs that share one
    of the two. Rows whose target is the anchor domain count as 0: a normal has no defect to vary, and G could increase
    the distance by repainting the background. Images are clamped to [-1, 1]; otherwise the loss would drive them ever
    further beyond black and white. Images are [B, channels, H, W]; y_t [B].
    """
    x11, x12, x21, x22 = (image.clamp(-1, 1) for image in (x11, x12, x21, x22))
    pairs = [(x12, x21), (x11, x22), (x12, x11), (x12, x22), (x21, x11), (x21, x22)]
    distance = torch.stack([(a - b).abs().mean(dim=(1, 2, 3)) for a, b in pairs]).sum(dim=0)
    return (distance * (y_t != ANCHOR)).mean()


def cyc_loss(x: Tensor, x_rec: Tensor) -> Tensor:
    """Equation 5: an image translated back with its own defect map and style equals itself."""
    return F.l1_loss(x_rec, x)


def class_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Either half of equations 6 and 7: -log D(label | x), averaged. D minimizes it on reals, G on fakes."""
    return F.cross_entropy(logits, label)


# --- Method ----------------------------------------------------------------------------------------------------


class DTGAN:
    """The method DT-GAN; see `defectgen.methods.base.Method`."""

    Config: ClassVar[type[MethodConfig]] = DTGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "compact": {
            "width": 32, "max_width": 256, "c_channels": 32, "style_dim": 128, "batch_size": 16, "steps": 30_000,
            "lr": 2e-4, "lr_mapping": 1e-5, "r1_every": 4, "lambda_ds": 0.02,
        },
        "tiny": {
            "image_size": 64, "width": 16, "max_width": 64, "c_channels": 16, "style_dim": 32, "batch_size": 4,
            "steps": 10_000, "lr": 5e-4, "lr_mapping": 2e-5, "r1_every": 8, "lambda_ds": 0.02,
        },
    }  # fmt: skip

    def __init__(self, config: DTGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        domains, products, channels = len(task.domains), len(task.products), task.channels
        self.M = MappingNetwork(config, domains)
        self.E = StyleDefectEncoder(config, domains, channels)
        self.G = Generator(config, channels)
        self.D = Discriminator(config, domains, products, channels)
        modules = {"M": self.M, "E": self.E, "G": self.G, "D": self.D}
        for module in modules.values():
            module.apply(he_init)
        self.G.hide_foreground()
        optimizers = {
            name: torch.optim.Adam(
                module.parameters(),
                lr=config.lr_mapping if name == "M" else config.lr,
                betas=(0.0, 0.99),
                weight_decay=1e-4,
            )
            for name, module in modules.items()
        }
        self.networks = Networks(modules, optimizers, averaged=("M", "E", "G"), device=device)

    def lambda_ds(self, progress: float) -> float:
        """The weight of the diversity loss. It falls linearly to 0 at the end (StarGAN v2)."""
        return self.config.lambda_ds * (1 - progress)

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        latents = None  # None in a reference-guided step
        if step % 2 == 0:
            latents = torch.randn(2, len(batch.x), self.M.latent_size, generator=rng).to(self.device)
        discriminator = self._discriminator_step(batch, step, latents, rng)
        return discriminator | self._generator_step(batch, progress, latents, rng)

    def _target(self, batch: Batch, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        """The target's c and s: M makes them from a latent code, or E from the reference image."""
        c, s = self.E(batch.x_ref, batch.y_ref) if latent is None else self.M(latent, batch.y_ref)
        return c, s

    def _augmented(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return Augmentation.draw(len(x), rng, self.device).apply(x) if self.config.augment else x

    def _discriminator_step(
        self, batch: Batch, step: int, latents: Tensor | None, rng: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config
        with torch.no_grad(), mixed_precision(self.device):
            c, s = self._target(batch, None if latents is None else latents[0])
            (x_t,) = self.G.translate(batch.x, self.G.encode(batch.x)[0], self.E(batch.x, batch.y), [(c, s)])
        real, fake = self._augmented(batch.x_ref, rng), self._augmented(x_t.float(), rng)
        with mixed_precision(self.device):
            adv, fg, bg = self.D(torch.cat([real, fake]), batch.y_ref.repeat(2))
        size = len(real)
        adv_real = adversarial(adv[:size].float(), real=True)
        adv_fake = adversarial(adv[size:].float(), real=False)
        loss_fg = class_loss(fg[:size].float(), batch.y_ref)
        loss_bg = class_loss(bg[:size].float(), batch.p_ref)
        total = adv_real + adv_fake + config.lambda_fg * loss_fg + config.lambda_bg * loss_bg
        losses = {"D_real": adv_real, "D_fake": adv_fake, "D_fg": loss_fg, "D_bg": loss_bg}
        if step % config.r1_every == 0 and config.lambda_r1:
            real = real.detach().requires_grad_()
            penalty = r1(self.D(real, batch.y_ref)[0], real)
            total = total + config.lambda_r1 * config.r1_every * penalty
            losses["D_r1"] = penalty
        self._update(total, "D")
        return {name: value.detach() for name, value in losses.items()}

    def _generator_step(
        self, batch: Batch, progress: float, latents: Tensor | None, rng: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config
        x, y, y_t = batch.x, batch.y, batch.y_ref
        self.D.requires_grad_(False)
        with mixed_precision(self.device):
            bg, fg = self.G.encode(x)
            c_y, s_y = self.E(x, y)
            if latents is None:
                c, s = self._target(batch, None)
                (x_t,) = self.G.translate(x, bg, (c_y, s_y), [(c, s)])
                ds = None
            else:
                (c, s), (c2, s2) = (self._target(batch, latent) for latent in latents)
                targets = [(c, s), (c, s2), (c2, s), (c2, s2)]
                x_t, x12, x21, x22 = self.G.translate(x, bg, (c_y, s_y), targets)
                ds = ds_loss(x_t, x12, x21, x22, y_t)
            adv, d_fg, d_bg = self.D(self._augmented(x_t, rng), y_t)
            c_t, s_t = self.E(x_t, y_t)
            bg_t, fg_t = self.G.encode(x_t)
            x_rec = self.G.decode(bg_t, c_y, s_y)
        parts = {
            "adv": (1.0, adversarial(adv.float(), real=True)),
            "sd_rec": (config.lambda_sd_rec, sd_rec_loss(c, c_t, s, s_t)),
            "d_rec": (config.lambda_d_rec, d_rec_loss(fg, c_y, fg_t, c_t)),
            "cyc": (config.lambda_cyc, cyc_loss(x, x_rec)),
            "fg": (config.lambda_fg, class_loss(d_fg.float(), y_t)),
            "bg": (config.lambda_bg, class_loss(d_bg.float(), batch.p)),
        }
        if ds is not None:
            parts["ds"] = (-self.lambda_ds(progress), ds)
        total = torch.stack([weight * value.float() for weight, value in parts.values()]).sum()
        # As in StarGAN v2, a reference-guided step trains only G.
        self._update(total, *(["G"] if latents is None else ["G", "M", "E"]))
        self.D.requires_grad_(True)
        return {name: value.detach() for name, (_, value) in parts.items()}

    def _update(self, loss: Tensor, *names: str) -> None:
        self.networks.begin()
        loss.backward()
        self.networks.step(*names)

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Translate normals to the requested domains, latent-guided or reference-guided (section 4.1).

        The defect map is that of `x_ref`, the style that of `x_style`; what is not given comes from a random code.
        To transfer a defect in its own style, pass the same image as both.
        """
        x, y = request.x, request.y
        latent = torch.stack([torch.randn(self.M.latent_size, generator=rng) for rng in request.rngs])
        c, s = self.M(latent.to(self.device), y)
        if request.x_ref is not None:
            c, _ = self.E(request.x_ref, y)
        if request.x_style is not None:
            _, s = self.E(request.x_style, y)
        own = self.E(x, torch.full_like(y, ANCHOR))
        (x_t,) = self.G.translate(x, self.G.encode(x)[0], own, [(c, s)])
        return Generated(x_t.clamp(-1, 1))
