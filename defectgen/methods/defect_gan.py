"""Defect-GAN: paints defects onto normals and removes them again, with control over their place and category.

    Gongjie Zhang, Kaiwen Cui, Tzu-Yi Hung, Shijian Lu: Defect-GAN: High-Fidelity Defect Synthesis for Automated
    Defect Inspection. WACV 2021. Sections, equations and figures below are the paper's.

Symbols: n a normal image, d a defective one; c the categories of its defects, a vector of 0 and 1 in which several
may be 1; A the control map, which holds c at each pixel, and 0 where no defect is wanted; f the foreground and m its
spatial distribution map. G paints defects (n -> d) and, with A = 0, removes them (d -> n).

Where the paper gives no details, the code follows StarGAN (Choi et al. 2018), on which the paper builds, and SPADE
(Park et al. 2019), with instance instead of batch normalization, as in the rest of G. Upsampling is bilinear:
transposed convolutions left a grid on the images. Categories have one logistic loss each, as StarGAN's attributes
that do not exclude each other. Equation 12 and the text name two weights differently; the names here are the text's.

An addition to the paper, which the preset `paper` does not use, is the setting `masks`. With it

- control maps are masks: those of the real defects, and for new defects real masks that are warped. With `tones`, G
  also sees how much darker or brighter than its ground the real defect is, warped as the mask is, and paints just this
  at first (`nn.tones`);
- m is A with a soft edge where A asks for a defect, and learned where A = 0: G knows where it paints, but has to find
  what it removes. G makes f as a difference from the image; with `tones` in parts of the ground's brightness, and from
  an image that has lost as much of its grain as G likes. z, a noise vector for each defect, joins A in SPADE, so that
  one mask has many looks;
- D is a projected discriminator (`nn.projected`) conditioned on c. It sees no untouched normals as fakes: led away from
  them, G painted what is darker than any real defect;
- pseudo-pairs supervise G both ways: a defective window d and its repaired twin `n_d`, which differ inside A only. With
  `tones`, what G paints on normals has to have these, too. For the first part of the training, `pairs_first`, this is
  all: D, which soon tells what G cannot paint yet, would outweigh it. Then the weight of its loss grows from 0 to
  `lambda_adv`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.augment import Augmentation
from defectgen.nn.layers import Noise, draw_seed, instance_norm, mixed_precision
from defectgen.nn.paired import MS_EVERY, Hues, judged, map_loss, ms_loss, pair_loss, soft, weighted_sum
from defectgen.nn.penalties import gradient_penalty
from defectgen.nn.projected import ProjectedDiscriminator, hinge_d, hinge_g, projected_slots
from defectgen.nn.slots import Slots
from defectgen.nn.tones import change_of, hidden_by, painted, tone_loss


class DefectGANConfig(MethodConfig):
    """The paper's training settings (section 4.1): windows of 128 pixels, batches of 4, 500,000 iterations."""

    image_size: int = Field(128, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(4, ge=1)
    steps: int = Field(500_000, ge=1, description="updates of D; G is updated at every `critic_steps`-th")
    width: int = Field(64, ge=8, description="channels after the first convolution of G and of D")
    max_width: int = Field(2048, ge=8, description="upper limit of the channels of D")
    blocks: int = Field(3, ge=1, description="residual blocks in G's encoder, and as many in its decoder")
    control_channels: int = Field(128, ge=1, description="channels of SPADE's convolution on A")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; the paper averages none")
    critic_steps: int = Field(5, ge=1, description="updates of D per update of G")
    lr: float = Field(2e-4, gt=0, description="learning rate at the start; with `masks`, D has half of it")
    lr_end: float = Field(1e-6, ge=0, description="learning rate at the end; changes linearly")
    lambda_gp: float = Field(10.0, ge=0, description="weight of the gradient penalty")
    lambda_cls_r: float = Field(2.0, ge=0, description="weight of equation 6, for D")
    lambda_cls_f: float = Field(5.0, ge=0, description="weight of equation 7, for G")
    lambda_rec: float = Field(5.0, ge=0, description="weight of equation 8")
    lambda_sd_cyc: float = Field(5.0, ge=0, description="weight of equation 9")
    lambda_sd_con: float = Field(1.0, ge=0, description="weight of equation 10")
    masks: bool = Field(False, description="control maps are masks; see the top of the method's file")
    tones: bool = Field(False, description="maps tell how dark and bright defects are, with `masks`")
    z_dim: int = Field(8, ge=1, description="size of the noise vector z, with `masks`")
    pairs_first: float = Field(0.25, ge=0, le=1, description="part of the training without D, with `masks`")
    lambda_adv: float = Field(0.3, ge=0, description="weight of the adversarial loss, with `masks`")
    lambda_pair: float = Field(
        10.0, ge=0, description="weight of the differences from d and n_d inside A, with `masks`"
    )
    lambda_tone: float = Field(10.0, ge=0, description="weight of the differences from the tones, with `tones`")
    lambda_map: float = Field(5.0, ge=0, description="weight of the overlap of m_n with the masks, with `masks`")
    lambda_ms: float = Field(1.0, ge=0, description="weight of mode seeking, with `masks`")

    @property
    def paints_masks(self) -> bool:
        return self.masks

    @property
    def judged_at_once(self) -> bool:
        return not self.masks

    def extras(self, step: int, progress: float) -> tuple[bool, ...]:
        if self.masks:
            return progress >= self.pairs_first, step % MS_EVERY == 0
        return (step % self.critic_steps == self.critic_steps - 1,)


# --- Networks, in the order of the data flow -------------------------------------------------------------------


class NoiseInjection(nn.Module):
    """Adds Gaussian noise, scaled by a learned scalar, to a feature map ("Stochastic Variation")."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((), 0.1))

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        return x + self.strength * noise(x)


class SPADE(nn.Module):
    """Normalization with a scale and shift per pixel, which two convolutions compute from the control map."""

    def __init__(self, channels: int, categories: int, hidden: int) -> None:
        super().__init__()
        self.norm = instance_norm(channels, affine=False)
        self.shared = nn.Conv2d(categories, hidden, 3, padding=1)
        self.gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """x [B, channels, h, w], a [B or 1, categories, h, w], or [B, categories, 1, 1], the same at every pixel."""
        if uniform := a.shape[2:] == (1, 1):
            a = a.expand(-1, -1, 5, 5)
        maps = self.gamma_beta(F.relu(self.shared(a)))
        if uniform:  # what two convolutions make of a uniform map differs only in the two pixels along its border
            for axis in (2, 3):
                start, inside, end = maps.split([2, 1, 2], dim=axis)
                shape = [-1, -1, -1, -1]
                shape[axis] = x.shape[axis] - 4
                maps = torch.cat([start, inside.expand(shape), end], dim=axis)
        gamma, beta = maps.chunk(2, dim=1)
        return torch.addcmul(beta, self.norm(x), 1 + gamma)


class ConvBlock(nn.Module):
    """Convolution, then normalization (by SPADE if `control` gives the channels of A), ReLU unless `linear`, noise."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        control: tuple[int, int] | None = None,
        up: bool = False,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.linear = up, linear
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, (kernel - 1) // 2, padding_mode="reflect")
        self.norm: nn.Module = instance_norm(c_out) if control is None else SPADE(c_out, *control)
        self.noise = NoiseInjection()

    def forward(self, x: Tensor, a: Tensor | None, noise: Noise) -> Tensor:
        """x [B, c_in, h, w], a [B, categories, H, W] or [B, categories, 1, 1] for SPADE. Doubles x first if `up`."""
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        h = self.conv(x)
        if a is not None and a.shape[2:] != (1, 1):
            a = F.adaptive_avg_pool2d(a, h.shape[2:])
        h = self.norm(h) if a is None else self.norm(h, a)
        return self.noise(h if self.linear else F.relu(h), noise)


class ResidualBlock(nn.Module):
    """StarGAN's residual block: two convolutions, the second without ReLU."""

    def __init__(self, channels: int, *, control: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, control=control)
        self.second = ConvBlock(channels, channels, control=control, linear=True)

    def forward(self, x: Tensor, a: Tensor | None, noise: Noise) -> Tensor:
        return x + self.second(self.first(x, a, noise), a, noise)


class Generator(nn.Module):
    """G(x, A): encodes x to a quarter of its side, and decodes it to f and m under the control of A (Figure 2)."""

    def __init__(
        self, config: DefectGANConfig, channels: int, categories: int, hues: Sequence[Sequence[float]] = ()
    ) -> None:
        super().__init__()
        w = config.width
        self.channels, self.masks = channels, config.masks
        self.hues = Hues(hues)
        self.tones = config.masks and config.tones
        added = config.z_dim + self.tones if config.masks else 0
        control = categories + added, config.control_channels
        self.encoder = nn.ModuleList(
            [
                ConvBlock(channels, w, 7),
                ConvBlock(w, 2 * w, 4, stride=2),
                ConvBlock(2 * w, 4 * w, 4, stride=2),
                *(ResidualBlock(4 * w) for _ in range(config.blocks)),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                *(ResidualBlock(4 * w, control=control) for _ in range(config.blocks)),
                ConvBlock(4 * w, 2 * w, control=control, up=True),
                ConvBlock(2 * w, w, control=control, up=True),
            ]
        )
        self.head = nn.Conv2d(w, channels + 1 + self.tones, 7, padding=3, padding_mode="reflect")
        if self.masks:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)  # G begins with the image as it is

    def forward(
        self,
        x: Tensor,
        a: Tensor,
        noise: Noise,
        z: Tensor | None = None,
        tones: Tensor | None = None,
        grain: Tensor | float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """x [B, channels, H, W] in [-1, 1], a [B, categories, H, W] -> f, like x, and m [B, 1, H, W] in [0, 1].

        Without `masks`, an `a` of [B, categories, 1, 1] holds for every pixel, and costs less. z [B, z_dim] is given
        with `masks`; `tones`, [B, 1, H, W], are 0 if they are not given. `grain` is as for `tones.painted`.
        """
        asked = a
        if z is not None:
            added = [z[:, :, None, None].expand(-1, -1, *a.shape[2:])]
            if self.tones:
                added.append(torch.zeros_like(a[:, :1]) if tones is None else tones)
            a = torch.cat([a, *added], dim=1)
        h = x
        for block in self.encoder:
            h = block(h, None, noise)
        for block in self.decoder:
            h = block(h, a, noise)
        f, m, *smooth = self.head(h).float().split([self.channels, 1, *[1] * self.tones], dim=1)
        # Normalization removes the brightness of x, so a foreground that fits it is hard to make without adding x.
        if smooth:
            mask = asked.amax(dim=1, keepdim=True)
            told = torch.zeros_like(mask) if tones is None else tones
            f = self.hues(f + change_of(told))  # so G begins with what tones ask for, and learns the rest
            f = painted(x, f, smooth[0], hidden_by(told, mask), grain)
        elif self.masks:
            f = x + self.hues(f)
        else:
            f = torch.tanh(f)
        m = torch.sigmoid(m)
        if z is not None:
            m = torch.where(asked.amax(dim=(1, 2, 3), keepdim=True) > 0, soft(asked.amax(dim=1, keepdim=True)), m)
        return f, m


class Discriminator(nn.Module):
    """StarGAN's discriminator: D_src, a score for each image patch, and D_cls, a logit for each category."""

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
        """x [B, channels, S, S] -> D_src(x), [B, patches], and D_cls(x), [B, categories]."""
        h = self.body(x)
        return self.src(h).flatten(1), self.cls(h).flatten(1)


def compose(x: Tensor, f: Tensor, m: Tensor) -> Tensor:
    """Equations 2 and 4: blend the foreground f into the image x, weighted by the map m."""
    return x * (1 - m) + f * m


# --- Losses, named as in the paper -----------------------------------------------------------------------------


def adv_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's Wasserstein loss, with which section 4.1 replaces equation 5. Scores [B, patches]."""
    return fake.mean() - real.mean()


def cls_loss(logits: Tensor, c: Tensor) -> Tensor:
    """Equations 6 and 7: -log of the probability of the categories c, [B, C] of 0 and 1, averaged over images."""
    return F.binary_cross_entropy_with_logits(logits, c, reduction="sum") / len(c)


def rec_loss(x: Tensor, restored: Tensor) -> Tensor:
    """Equation 8: the cycle restores the image."""
    return F.l1_loss(restored, x)


def sd_cyc_loss(m: Tensor, m_back: Tensor) -> Tensor:
    """Equation 9: the way back changes the same pixels as the way there, and no others."""
    return F.l1_loss(m_back, m)


def sd_con_loss(m: Tensor, m_back: Tensor) -> Tensor:
    """Equation 10: the maps are small."""
    return m.mean() + m_back.mean()


def _sharp_loss(made: Tensor, real: Tensor, inside: Tensor, weights: Tensor) -> Tensor:
    """As `pair_loss`, of the images and of the steps from pixel to pixel: of the images alone, edges are soft."""
    total = pair_loss(made, real, inside, weights)
    for axis in (2, 3):
        later = inside.narrow(axis, 1, inside.shape[axis] - 1)
        total = total + pair_loss(made.diff(dim=axis), real.diff(dim=axis), later, weights)
    return total


# --- Method ----------------------------------------------------------------------------------------------------


class DefectGAN:
    """The method Defect-GAN; see `defectgen.methods.base.Method`."""

    Config: ClassVar[type[MethodConfig]] = DefectGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "compact": {
            "width": 32, "max_width": 512, "control_channels": 32, "batch_size": 8, "steps": 8_000,
            "ema": 0.999, "masks": True, "tones": True, "lr": 4e-4, "lr_end": 4e-5, "exposure": True,
        },
        "tiny": {
            "image_size": 64, "width": 24, "max_width": 128, "blocks": 2, "control_channels": 32, "steps": 1_000,
            "batch_size": 4, "ema": 0.995, "masks": True, "tones": True, "lr": 4e-4, "lr_end": 4e-5, "exposure": True,
        },
    }  # fmt: skip
    slots: ClassVar[Sequence[Slots]] = (
        Slots(r"G\.decoder\..*\.shared\.weight", "categories", axis=1, where="start"),
        Slots(r"D\.cls\.weight", "categories"),
        *projected_slots("D", "categories"),
        Slots(r"(?:G\.encoder\.0\.conv|D\.body\.0)\.weight", "inputs", axis=1),
        Slots(r"G\.head\..*", "outputs", where="start"),
    )

    def __init__(self, config: DefectGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        categories = len(task.domains) - 1
        self.G = Generator(config, task.channels, categories, task.hues)
        self.D: Discriminator | ProjectedDiscriminator
        if config.masks:
            self.D = ProjectedDiscriminator(categories, device)
            learned, betas = self.D.learned(), (0.0, 0.99)
        else:
            self.D = Discriminator(config, task.channels, categories)
            learned, betas = list(self.D.parameters()), (0.5, 0.999)
        optimizers = {
            "G": torch.optim.Adam(self.G.parameters(), lr=config.lr, betas=betas),
            "D": torch.optim.Adam(learned, lr=config.lr, betas=betas),
        }
        self.networks = Networks({"G": self.G, "D": self.D}, optimizers, averaged=("G",), device=device)

    def lr(self, progress: float) -> float:
        """The learning rate. It changes linearly from `lr` to `lr_end`."""
        return self.config.lr + (self.config.lr_end - self.config.lr) * progress

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Update D and, at every `critic_steps`-th step, G. `x` are normals; `x_ref` defective, with `a_ref`.

        With `masks`, update both at every step after `pairs_first`, also with the batch's `a`, `x_twin` and `paired`.
        """
        n, d = batch.x, batch.x_ref
        assert batch.a_ref is not None
        c = batch.a_ref.amax(dim=(2, 3))
        noise = Noise.seeded(draw_seed(rng), self.device)
        self.networks.begin(self.lr(progress))
        if self.config.masks:
            parts = self._update_with_masks(batch, c, step, progress, noise, rng)
        else:
            a = c[:, :, None, None]
            parts = self._update_d(n, d, a, c, noise, rng)
            if step % self.config.critic_steps == self.config.critic_steps - 1:
                parts |= self._update_g(n, d, a, c, noise)
        return {name: value.detach() for name, value in parts.items()}

    def _update_with_masks(
        self, batch: Batch, c: Tensor, step: int, progress: float, noise: Noise, rng: torch.Generator
    ) -> dict[str, Tensor]:
        config, n, d, n_d, count = self.config, batch.x, batch.x_ref, batch.x_twin, len(batch.x)
        assert isinstance(self.D, ProjectedDiscriminator)
        assert batch.a is not None
        assert batch.a_ref is not None
        assert n_d is not None
        assert batch.paired is not None
        for group in self.networks.optimizers["D"].param_groups:
            group["lr"] /= 2

        # G paints new defects on normals, now and then twice with another z, and on the twins the real defects again.
        looks = 2 if step % MS_EVERY == 0 else 1
        z = torch.randn((looks + 1) * count, config.z_dim, generator=rng).to(self.device)
        x, a = torch.cat([n] * looks + [n_d]), torch.cat([batch.a] * looks + [batch.a_ref])
        tones = None
        if config.tones and batch.tones is not None and batch.tones_ref is not None:
            tones = torch.cat([batch.tones] * looks + [batch.tones_ref])
        # Grain from elsewhere is never that of the real image: if the two were compared, G would keep that of x.
        grain = torch.ones(len(x), 1, 1, 1, device=self.device)
        grain[-count:] = 0
        with mixed_precision(self.device):
            f, m = (each.float() for each in self.G(x, a, noise, z, tones, grain))
        *painted, again = compose(x, f, m).chunk(looks + 1)
        made, m_made, of_d = painted[0], m[:count], m[-count:]

        parts, seen = dict[str, Tensor](), list[Tensor]()
        weight = judged(progress, config.pairs_first, batch.paired)
        if weight is not None:
            views = [Augmentation.draw(count, rng, self.device) for _ in range(2)]
            with mixed_precision(self.device):
                seen = self.D.see(views[1].apply(made))
                with torch.no_grad():
                    others = self.D.see(views[0].apply(d))
                maps = [torch.cat([each, of_made.detach()]) for each, of_made in zip(others, seen, strict=True)]
                real, fake = self.D.judge(maps, c.repeat(2, 1)).float().chunk(2)
            parts["adv_d"] = hinge_d(real, fake)
            parts["adv_d"].backward()
            self.networks.step("D")

        # G removes its own defects and the real ones.
        back = torch.cat([made, d])
        empty = torch.zeros_like(a[:1])  # the same for all
        self.networks.train_only("G")
        with mixed_precision(self.device):
            z_back, none = torch.zeros_like(z[:1]), torch.zeros_like(grain[:1])
            f_back, m_back = (each.float() for each in self.G(back, empty, noise, z_back, grain=none))
            if weight is not None:
                parts["adv_g"] = hinge_g(self.D.judge(seen, c).float())
        restored, repaired = compose(back, f_back, m_back).chunk(2)
        self.networks.train_only(*self.networks.optimizers)
        m_restored, m_repaired = m_back.chunk(2)
        asked, mask_d = (each.amax(dim=1, keepdim=True) for each in (batch.a, batch.a_ref))
        parts |= {
            "pair": _sharp_loss(again, d, of_d, batch.paired) + _sharp_loss(repaired, n_d, of_d, batch.paired),
            "map": map_loss(m_repaired, mask_d, batch.paired)
            + map_loss(m_restored, asked, torch.ones_like(batch.paired)),
            "rec": rec_loss(n, restored),
            "sd_cyc": sd_cyc_loss(m_made, m_restored),
        }
        weights = {
            "pair": config.lambda_pair, "map": config.lambda_map, "rec": config.lambda_rec,
            "sd_cyc": config.lambda_sd_cyc,
        }  # fmt: skip
        if tones is not None:
            parts["tone"] = tone_loss(made, n, asked, tones[:count]) + tone_loss(again, n_d, mask_d, tones[-count:])
            weights["tone"] = config.lambda_tone
        if looks == 2:
            parts["ms"] = ms_loss(painted[0], painted[1], z[:count], z[count : 2 * count], m_made)
            weights["ms"] = MS_EVERY * config.lambda_ms
        if weight is not None:
            weights["adv_g"] = weight * config.lambda_adv
        weighted_sum(parts, weights).backward()
        self.networks.step("G")
        return parts

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
        parts["gp"] = gradient_penalty(self.D(between)[0].sum(dim=1), between)  # of the sum over patches, as StarGAN
        total = parts["adv_d"] + config.lambda_gp * parts["gp"] + config.lambda_cls_r * parts["cls_r"]
        total.backward()
        self.networks.step("D")
        return parts

    def _update_g(self, n: Tensor, d: Tensor, a: Tensor, c: Tensor, noise: Noise) -> dict[str, Tensor]:
        config = self.config
        self.D.requires_grad_(False)
        # Both cycles in one batch: n -> d -> n and d -> n -> d.
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
            "sd_cyc": config.lambda_sd_cyc, "sd_con": config.lambda_sd_con,
        }  # fmt: skip
        sum((weights[name] * value for name, value in parts.items()), torch.zeros((), device=self.device)).backward()
        self.networks.step("G")
        self.D.requires_grad_(True)
        return parts

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Normals with defects, and the maps m_d, [B, 1, H, W]. `request.a`, if given, controls place and category."""
        z = None
        if self.config.masks:
            z = torch.stack([torch.randn(self.config.z_dim, generator=rng) for rng in request.rngs]).to(self.device)
        f, m = self.G(request.x, self._control(request), Noise(request.rngs), z, request.tones)
        return Generated(compose(request.x, f, m).clamp(-1, 1), m)

    @torch.no_grad()
    def restore(self, x: Tensor, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Remove the defects from windows, whatever their domains (equations 3 and 4)."""
        del y
        a = x.new_zeros(len(x), len(self.task.domains) - 1, *(x.shape[2:] if self.config.masks else (1, 1)))
        z = x.new_zeros(len(x), self.config.z_dim) if self.config.masks else None
        return compose(x, *self.G(x, a, Noise(rngs), z)).clamp(-1, 1)

    def _control(self, request: GenerateBatch) -> Tensor:
        if request.a is not None:
            return request.a
        c = F.one_hot(request.y, len(self.task.domains))[:, 1:].float() if request.mix is None else request.mix
        return c[:, :, None, None].expand(-1, -1, *(request.x.shape[2:] if self.config.masks else (1, 1)))
