"""Defect-GAN: defects painted onto normals, and off again, with control over where and what.

    Gongjie Zhang, Kaiwen Cui, Tzu-Yi Hung, Shijian Lu: Defect-GAN: High-Fidelity Defect Synthesis for Automated
    Defect Inspection. WACV 2021. Sections, equations and figures below are the paper's.

The symbols: n a normal image, d a defective one; c the categories of its defects, 1 or 0 each, which need not exclude
each other; A the control map, c at each place, 0 where nothing shall be; f the foreground and m its spatial
distribution map. G paints defects (n -> d) and, with A = 0, paints them over (d -> n).

What the paper leaves open follows StarGAN (Choi et al. 2018), which it builds on, and SPADE (Park et al. 2019), here
with instance in place of batch normalisation, as in the rest of G. Feature maps are doubled bilinearly: transposed
convolutions left their grid on photographs. Labels are learnt as StarGAN learns attributes that do not exclude each
other, by a logistic loss for each. Equation 12 calls two weights by other names than the text; the text's are used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.layers import Noise, draw_seed, he_init, instance_norm, mixed_precision
from defectgen.nn.penalties import gradient_penalty


class DefectGANConfig(MethodConfig):
    """The paper's training (section 4.1): windows of 128, batches of 4, 500,000 iterations."""

    image_size: int = Field(128, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(4, ge=1)
    steps: int = Field(500_000, ge=1, description="of the critic; G learns at every fifth")
    width: int = Field(64, ge=8, description="channels after the first convolution of G and of D")
    max_width: int = Field(2048, ge=8, description="channels at most, in D")
    blocks: int = Field(3, ge=1, description="residual blocks in G's encoder, and again in its decoder")
    control_channels: int = Field(64, ge=1, description="channels that a SPADE layer makes of A (SPADE has 128)")
    critic_steps: int = Field(5, ge=1, description="updates of D for one of G")
    lr: float = Field(2e-4, gt=0, description="learning rate at the first step")
    lr_end: float = Field(1e-6, ge=0, description="learning rate at the last step; linear in between")
    lambda_gp: float = Field(10.0, ge=0, description="weight of the gradient penalty")
    lambda_cls_r: float = Field(2.0, ge=0, description="weight of equation 6, for D")
    lambda_cls_f: float = Field(5.0, ge=0, description="weight of equation 7, for G")
    lambda_rec: float = Field(5.0, ge=0, description="weight of equation 8")
    lambda_sd_cyc: float = Field(5.0, ge=0, description="weight of equation 9")
    lambda_sd_con: float = Field(1.0, ge=0, description="weight of equation 10")
    warmup: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="part of the steps for D alone, and then again for the maps' weights to rise",
    )
    masks: bool = Field(False, description="teach the control map where, by the masks of defects that have one")
    lambda_where: float = Field(5.0, ge=0, description="weight of what is painted where A is 0, if `masks`")
    relative: bool = Field(False, description="the foreground is made relative to the image")


# --- The networks, in the order in which data meets them -------------------------------------------------------


class NoiseInjection(nn.Module):
    """Gaussian noise added to a feature map, as strong as a learned scalar says ("Stochastic Variation")."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((), 0.1))

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        return x + self.strength * noise(x)


class SPADE(nn.Module):
    """Normalisation whose scale and shift at each place two convolutions make of the control map there."""

    def __init__(self, channels: int, categories: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels, channels, affine=False)
        self.shared = nn.Conv2d(categories, hidden, 3, padding=1)
        self.gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """x [B, channels, h, w], a [B, categories, h, w]."""
        gamma, beta = self.gamma_beta(F.relu(self.shared(a))).chunk(2, dim=1)
        normalized: Tensor = self.norm(x)
        return normalized * (1 + gamma) + beta


class EncoderBlock(nn.Module):
    """A convolution with instance normalisation, ReLU and noise; residual if it changes no shape."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = c_in == c_out and stride == 1
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, (kernel - 1) // 2, padding_mode="reflect")
        self.norm = instance_norm(c_out)
        self.noise = NoiseInjection()

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        h: Tensor = self.noise(F.relu(self.norm(self.conv(x))), noise)
        return x + h if self.residual else h


class DecoderBlock(nn.Module):
    """A convolution, after doubling if asked, normalised by SPADE; residual if it changes no shape."""

    def __init__(self, c_in: int, c_out: int, categories: int, hidden: int, *, up: bool = False) -> None:
        super().__init__()
        self.up = up
        self.residual = c_in == c_out and not up
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="reflect")
        self.norm = SPADE(c_out, categories, hidden)
        self.noise = NoiseInjection()

    def forward(self, x: Tensor, a: Tensor, noise: Noise) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        h = self.conv(x)
        h = self.noise(F.relu(self.norm(h, F.adaptive_avg_pool2d(a, h.shape[2:]))), noise)
        return x + h if self.residual else h


class Generator(nn.Module):
    """G(x, A): encoded at a quarter of the side, decoded under the control of A to f and m (Figure 2)."""

    def __init__(self, config: DefectGANConfig, channels: int, categories: int) -> None:
        super().__init__()
        w, hidden = config.width, config.control_channels
        self.channels, self.relative = channels, config.relative
        self.encoder = nn.ModuleList(
            [
                EncoderBlock(channels, w, 7),
                EncoderBlock(w, 2 * w, 4, stride=2),
                EncoderBlock(2 * w, 4 * w, 4, stride=2),
                *(EncoderBlock(4 * w, 4 * w, 3) for _ in range(config.blocks)),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                *(DecoderBlock(4 * w, 4 * w, categories, hidden) for _ in range(config.blocks)),
                DecoderBlock(4 * w, 2 * w, categories, hidden, up=True),
                DecoderBlock(2 * w, w, categories, hidden, up=True),
            ]
        )
        self.head = nn.Conv2d(w, channels + 1, 7, padding=3, padding_mode="reflect")

    def forward(self, x: Tensor, a: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """x [B, channels, H, W] in [-1, 1], a [B, categories, H, W] -> f, like x, and m [B, 1, H, W] in [0, 1]."""
        h = x
        for block in self.encoder:
            h = block(h, noise)
        for block in self.decoder:
            h = block(h, a, noise)
        f, m = self.head(h).split([self.channels, 1], dim=1)
        # A foreground as bright as the place where it lies is otherwise hard to make of normalised features.
        f = (x + f).clamp(-1, 1) if self.relative else torch.tanh(f)
        return f, torch.sigmoid(m)


class Discriminator(nn.Module):
    """StarGAN's: D_src, a score for each patch, and D_cls, a logit for each category."""

    def __init__(self, config: DefectGANConfig, channels: int, categories: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side, c_in, c_out = config.image_size, channels, config.width
        while side > 2:
            layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(0.01)]
            side, c_in, c_out = side // 2, c_out, min(2 * c_out, config.max_width)
        self.body = nn.Sequential(*layers)
        self.src = nn.Conv2d(c_in, 1, 3, padding=1, bias=False)
        self.cls = nn.Conv2d(c_in, categories, side, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels, S, S] -> D_src(x), the patches' mean, [B]; D_cls(x), [B, categories]."""
        h = self.body(x)
        return self.src(h).mean(dim=(1, 2, 3)), self.cls(h).flatten(1)


def compose(x: Tensor, f: Tensor, m: Tensor) -> Tensor:
    """Equations 2 and 4: a foreground laid over an image where the map says."""
    return x * (1 - m) + f * m


# --- The losses, by the paper's names --------------------------------------------------------------------------


def adv_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Equation 5 as section 4.1 replaces it: Wasserstein's, for the critic. Scores [B]."""
    return fake.mean() - real.mean()


def cls_loss(logits: Tensor, c: Tensor) -> Tensor:
    """Equations 6 and 7: -log of the probability of the categories, [B, C] of 1 or 0, averaged over images."""
    return F.binary_cross_entropy_with_logits(logits, c, reduction="sum") / len(c)


def rec_loss(x: Tensor, restored: Tensor) -> Tensor:
    """Equation 8."""
    return F.l1_loss(restored, x)


def sd_cyc_loss(m: Tensor, m_back: Tensor) -> Tensor:
    """Equation 9: what was painted is painted over, and nothing else."""
    return F.l1_loss(m_back, m)


def sd_con_loss(m: Tensor, m_back: Tensor) -> Tensor:
    """Equation 10: maps shall be small."""
    return m.mean() + m_back.mean()


def where_loss(m: Tensor, a: Tensor) -> Tensor:
    """Not the paper's: what a map covers where A wants nothing."""
    return (m * (1 - a.amax(dim=1, keepdim=True))).mean()


# --- The method ------------------------------------------------------------------------------------------------


class DefectGAN:
    """Defect-GAN as a method; see `defectgen.methods.base.Method`."""

    Config: ClassVar[type[MethodConfig]] = DefectGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "compact": {
            "width": 32, "max_width": 512, "control_channels": 32, "batch_size": 8, "steps": 100_000,
            "warmup": 0.1, "masks": True, "relative": True,
        },
        "tiny": {
            "image_size": 64, "width": 16, "max_width": 128, "blocks": 2, "control_channels": 16, "steps": 8_000,
            "critic_steps": 2, "lr": 1e-3, "warmup": 0.1, "masks": True, "relative": True,
        },
    }  # fmt: skip

    def __init__(self, config: DefectGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        categories = len(task.domains) - 1
        self.G = Generator(config, task.channels, categories)
        # PyTorch's own initialisation leaves a twentieth of what passes D: it then takes a thousand steps to wake.
        self.D = Discriminator(config, task.channels, categories).apply(he_init)
        modules = {"G": self.G, "D": self.D}
        optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.5, 0.999))
            for name, module in modules.items()
        }
        self.networks = Networks(modules, optimizers, averaged=("G",), device=device)

    def lr(self, step: int) -> float:
        """The learning rate at a step: linear from `lr` to `lr_end`."""
        return self.config.lr + (self.config.lr_end - self.config.lr) * min(1.0, step / self.config.steps)

    def training_step(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """An update of D and, every fifth time, of G; `batch.x` are normals, `batch.x_ref` defective with `a_ref`."""
        n, d = batch.x, batch.x_ref
        assert batch.a_ref is not None
        c = batch.a_ref.amax(dim=(2, 3))
        a = batch.a_ref if self.config.masks else c[:, :, None, None].expand_as(batch.a_ref)
        noise = Noise.seeded(draw_seed(rng), self.device)
        self.networks.begin(self.lr(step))
        parts = self._update_d(n, d, a, c, noise, rng)
        # Until D tells categories apart, G learns best to paint nothing, and its empty maps then stay empty.
        risen = self._risen(step)
        if step % self.config.critic_steps == self.config.critic_steps - 1 and risen > 0:
            parts |= self._update_g(n, d, a, c, noise, risen)
        return {name: value.detach() for name, value in parts.items()}

    def _update_d(
        self, n: Tensor, d: Tensor, a: Tensor, c: Tensor, noise: Noise, rng: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config
        real, labels = torch.cat([n, d]), torch.cat([torch.zeros_like(c), c])
        with torch.no_grad(), mixed_precision(self.device):
            f, m = self.G(real, torch.cat([a, torch.zeros_like(a)]), noise)
        fake = compose(real, f.float(), m.float())
        with mixed_precision(self.device):
            src, logits = self.D(torch.cat([real, fake]))
        parts = {
            "adv_d": adv_d_loss(*src.float().chunk(2)),
            "cls_r": cls_loss(logits.float()[: len(real)], labels),
        }
        t = torch.rand(len(real), 1, 1, 1, generator=rng).to(self.device)
        between = (real + t * (fake - real)).requires_grad_(True)
        parts["gp"] = gradient_penalty(self.D(between)[0], between)
        total = parts["adv_d"] + config.lambda_gp * parts["gp"] + config.lambda_cls_r * parts["cls_r"]
        total.backward()
        self.networks.step("D")
        return parts

    def _risen(self, step: int) -> float:
        """How much of their weights the losses of maps have: 0, then rising to 1."""
        warmup = self.config.warmup * self.config.steps
        return min(1.0, (step + 1) / warmup - 1) if warmup else 1.0

    def _update_g(self, n: Tensor, d: Tensor, a: Tensor, c: Tensor, noise: Noise, risen: float) -> dict[str, Tensor]:
        config = self.config
        self.D.requires_grad_(False)
        # Both cycles at once: n -> d -> n and d -> n -> d.
        x, there, back = torch.cat([n, d]), torch.cat([a, torch.zeros_like(a)]), torch.cat([torch.zeros_like(a), a])
        with mixed_precision(self.device):
            f, m = (each.float() for each in self.G(x, there, noise))
            made = compose(x, f, m)
            f_back, m_back = (each.float() for each in self.G(made, back, noise))
            restored = compose(made, f_back, m_back)
            src, logits = self.D(made)
        parts = {
            "adv_g": -src.float().mean(),
            "cls_f": cls_loss(logits.float(), torch.cat([c, torch.zeros_like(c)])),
            "rec": rec_loss(x, restored),
            "sd_cyc": sd_cyc_loss(m, m_back),
            "sd_con": sd_con_loss(m, m_back),
        }
        weights = {
            "adv_g": 1.0, "cls_f": config.lambda_cls_f, "rec": config.lambda_rec,
            "sd_cyc": risen * config.lambda_sd_cyc, "sd_con": risen * config.lambda_sd_con,
        }  # fmt: skip
        if config.masks:  # neither is a defect painted elsewhere, nor is what lies beside a real one painted over
            parts["where"] = where_loss(m, torch.cat([a, a]))
            weights["where"] = risen * config.lambda_where
        sum((weights[name] * value for name, value in parts.items()), torch.zeros((), device=self.device)).backward()
        self.networks.step("G")
        self.D.requires_grad_(True)
        return parts

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Normals with defects, and the maps m_d, [B, 1, H, W]; where and what as `request.a` says, if given."""
        f, m = self.G(request.x, self._control(request), Noise(request.rngs))
        return Generated(compose(request.x, f, m), m)

    @torch.no_grad()
    def restore(self, x: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Defective windows with their defects painted over (eqs. 3 and 4)."""
        a = x.new_zeros(len(x), len(self.task.domains) - 1, *x.shape[2:])
        return compose(x, *self.G(x, a, Noise(rngs)))

    def _control(self, request: GenerateBatch) -> Tensor:
        if request.a is not None:
            return request.a
        c = F.one_hot(request.y, len(self.task.domains))[:, 1:].float() if request.mix is None else request.mix
        return c[:, :, None, None].expand(-1, -1, *request.x.shape[2:])
