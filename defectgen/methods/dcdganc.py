"""DCDGANc: generates defect contents on a pure background, with control over their category and style.

    Jing Wei, Fei Shen, Chengkan Lv, Zhengtao Zhang, Feng Zhang, Huabin Yang: Diversified and Multi-Class
    Controllable Industrial Defect Synthesis for Data Augmentation and Transfer. CVPR Workshops 2023. Sections,
    equations and tables below are the paper's.

Symbols: I a real content image (the rest of defectgen calls a cut-out defect a defect patch), c the one-hot class
code, C the class constant map, z a random code, E the encoder, G the generator, D the discriminator. `_r` marks what
is reconstructed from I, `_s` what is sampled.

Figure 2 gives the kinds of layers (convolutions, average pooling, upsampling by 2), not their sizes. The widths, the
length of z and the side of OD-SPADE's map are chosen here. "500 iterations" (section 3.1) is read as Table 1's epochs,
of some 300 batches each. "WGAN-GP loss with the weight of 10" is read as the gradient penalty of WGAN-GP, in addition
to the logistic loss of equation 6.

`paper` is as printed. Of the layers of Figure 2, the ends of E and D are fully connected here, and content images are
augmented at each draw, not once to about 1000 (`defectgen.training.data.TrainingPatches`).

An addition to the paper, which the preset `paper` does not use, is the setting `level`. With it

- a content image is level, its longer axis along the window, on a background of 0, and has a channel for its mask: no
  watershed is needed, and thin ends survive; what is generated is bent and stretched, not what is learned, since a code
  and a small network can hold few forms well (`defectgen.training.data.LevelPatches`);
- I_r differs from I inside the mask (equation 4), in the overlap of the masks and of their center lines, and in
  features of a frozen network, which also feed a projected discriminator (`nn.projected`);
- the class code has the norm of z: among many normal values, a single 1 would have little effect;
- sampled codes z_s lie between those of two real images, not anywhere: from few of them, E covers little of the space.
  The model keeps real windows, from which `generate` draws such codes.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen import ranks
from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.layers import ResBlock, group_norm, he_init, mixed_precision
from defectgen.nn.paired import center_line_loss, map_loss, ramp, soft, weighted_sum
from defectgen.nn.penalties import adversarial, gradient_penalty
from defectgen.nn.projected import ProjectedDiscriminator, hinge_d, hinge_g, projected_slots
from defectgen.nn.slots import Slots

BOTTLENECK = 8
"""Side of the feature map in the middle of G, and of the map that OD-SPADE makes from its code."""
_FINEST = 4  # times its side: with `level`, modulations of finer maps are interpolated, since they would cost most
_ASIDE = 0.3  # standard deviations, by which sampled codes lie aside
_CALM = 0.1  # of the learning rate remains to E, with `level`, as soon as D judges

Shape = tuple[int, int]
"""Height and width of a window or a map."""


class DCDGANcConfig(MethodConfig):
    """The paper's training settings (section 3.1)."""

    image_size: int = Field(256, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(20, ge=1)
    steps: int = Field(150_000, ge=1)
    width: int = Field(32, ge=4, description="channels at full resolution; doubled at each halving")
    max_width: int = Field(256, ge=8, description="upper limit of the channels")
    latent_dim: int = Field(16, ge=1, description="length of the random code z")
    map_channels: int = Field(8, ge=1, description="channels of the map that OD-SPADE makes from [c, z]")
    hidden_channels: int = Field(32, ge=1, description="channels of OD-SPADE's first convolution (SPADE has 128)")
    lr: float = Field(5e-4, gt=0, description="learning rate of E, G and D")
    lambda_p: float = Field(10.0, ge=0, description="weight of equation 4")
    lambda_l: float = Field(1.0, ge=0, description="weight of equation 5")
    lambda_kl: float = Field(0.01, ge=0, description="weight of equation 2")
    lambda_gp: float = Field(10.0, ge=0, description="weight of WGAN-GP's gradient penalty (section 3.1)")
    level: bool = Field(False, description="level contents with a channel for masks; see the top of the method's file")
    pairs_first: float = Field(0.5, ge=0, le=1, description="part of the training without D, with `level`")
    lambda_adv: float = Field(0.25, ge=0, description="weight of equation 6, with `level`")
    lambda_map: float = Field(5.0, ge=0, description="weight of the overlap of the masks of I_r and I, with `level`")
    lambda_line: float = Field(0.5, ge=0, description="weight of the overlap of their center lines, with `level`")
    lambda_features: float = Field(1.0, ge=0, description="weight of the difference of features, with `level`")

    @property
    def draws_masks(self) -> bool:
        return self.level

    @property
    def judged_at_once(self) -> bool:
        return not self.level

    def extras(self, step: int, progress: float) -> tuple[bool, ...]:
        del step
        return (not self.level or progress >= self.pairs_first,)


# --- Networks, in the order of the data flow -------------------------------------------------------------------


def class_values(classes: int) -> Tensor:
    """Equation 1: C_n = 2n/N - 1 for the n-th of N classes (n from 1), [N]."""
    return 2 * torch.arange(1, classes + 1, dtype=torch.float32) / classes - 1


def class_constant_map(c: Tensor, values: Tensor, channels: int, shape: Shape) -> Tensor:
    """The values of the classes at every pixel of every channel.

    For a mixture, the mean of the classes' values by weight, as interpolated in Figure 5.

    Args:
        c: [B, N], one-hot or the weights of a mixture.
        values: [N].

    Returns:
        [B, channels, *shape], in (-1, 1].
    """
    return (c @ values)[:, None, None, None].expand(-1, channels, *shape)


class Encoder(nn.Module):
    """E: encodes a content image as the mean and the log variance of its code, [B, latent_dim] each."""

    def __init__(self, config: DCDGANcConfig, channels: int) -> None:
        super().__init__()
        self.trunk, width = _down(config, channels)
        self.head = nn.Linear(width * 4 * 4, 2 * config.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = self.head(self.trunk(x).flatten(1)).chunk(2, dim=1)
        return mu, log_var.clamp(-10, 10)


class ODSPADE(nn.Module):
    """One-dimensional SPADE: a code sets the scale and shift of each element, not only of each channel (section 2.2).

    A fully connected layer turns the code [c, z] into a small map. The rest is SPADE (Park et al. 2019) with a narrower
    first convolution.
    """

    def __init__(self, channels: int, code_dim: int, config: DCDGANcConfig, base: Shape) -> None:
        super().__init__()
        self.base = base
        self.finest = _FINEST * base[1] if config.level else config.image_size
        self.to_map = nn.Linear(code_dim, config.map_channels * base[0] * base[1])
        self.first = nn.Conv2d(config.map_channels, config.hidden_channels, 3, padding=1)
        self.affine = nn.Conv2d(config.hidden_channels, 2 * channels, 3, padding=1)
        # PyTorch's default initialization attenuates the code about 10 times in these layers. G then learns to ignore
        # the code before it learns to use it.
        for layer in (self.to_map, self.first, self.affine):
            he_init(layer)
        with torch.no_grad():
            self.affine.weight *= 0.5

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        height, width = x.shape[2:]
        m = self.to_map(code).unflatten(1, (-1, *self.base))
        m = _resize(m, (height, width) if width <= self.finest else (height * self.finest // width, self.finest))
        gamma, beta = _resize(self.affine(F.relu(self.first(m))), (height, width)).chunk(2, dim=1)
        return torch.addcmul(beta, group_norm(x, x.shape[1]), 1 + gamma)


class ODSPADEBlock(nn.Module):
    """A residual block, as SPADE's, modulated by [c, z]. Doubles the resolution if `up`.

    It interpolates, since repeated pixels showed as stripes in thin oblique cracks.
    """

    def __init__(self, c_in: int, c_out: int, code_dim: int, config: DCDGANcConfig, base: Shape, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1 = ODSPADE(c_in, code_dim, config, base)
        self.norm2 = ODSPADE(c_out, code_dim, config, base)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h, x = self.conv1(F.leaky_relu(self.norm1(x, code), 0.2)), self.skip(x)
        if self.up:  # after the first convolution, which then costs a quarter
            h, x = (_resize(each, (2 * each.shape[2], 2 * each.shape[3])) for each in (h, x))
        return self.conv2(F.leaky_relu(self.norm2(h, code), 0.2)) + x


class Generator(nn.Module):
    """G(z|c): takes the class constant map down to 8x8 and up again, modulated by [c, z] from there on."""

    def __init__(self, config: DCDGANcConfig, classes: int, channels: int, shape: Shape) -> None:
        """`shape` is the window's; an elongated one has a smallest map of 4x16."""
        super().__init__()
        self.channels, self.shape, self.level = channels, shape, config.level
        self.values: Tensor  # kept, since a class has that of the model that the training starts from
        self.register_buffer("values", class_values(classes))
        self.register_load_state_dict_pre_hook(_add_values)  # type: ignore[no-untyped-call]
        code_dim = classes + config.latent_dim
        widths = _widths(config)
        base = shape[0] >> (len(widths) - 1), shape[1] >> (len(widths) - 1)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.middle = ODSPADEBlock(widths[-1], widths[-1], code_dim, config, base, up=False)
        self.decoder = nn.ModuleList(
            ODSPADEBlock(a, b, code_dim, config, base, up=True) for a, b in pairwise(reversed(widths))
        )
        self.to_image = nn.Conv2d(widths[0], channels + self.level, 3, padding=1)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [B, latent_dim], c [B, N] -> content images [B, channels, *shape] in [-1, 1].

        With `level`, the last of channels + 1 is the mask, -1 to 1, and the others are 0 away from it.
        """
        code = torch.cat([c * z.shape[1] ** 0.5 if self.level else c, z], dim=1)
        h = self.stem(class_constant_map(c, self.values, self.channels, self.shape))
        for conv in self.encoder:
            h = conv(F.avg_pool2d(F.leaky_relu(h, 0.2), 2))
        h = self.middle(h, code)
        for block in self.decoder:
            h = block(h, code)
        out = self.to_image(F.leaky_relu(h, 0.2)).float()
        if not self.level:
            return torch.tanh(out)
        m = torch.sigmoid(out[:, -1:])
        return torch.cat([torch.tanh(out[:, :-1]) * soft(m), 2 * m - 1], dim=1)


def _add_values(module: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Models of earlier versions have no values: they are as equation 1 says."""
    assert isinstance(module, Generator)
    tensors.setdefault(f"{prefix}values", module.values)


class Discriminator(nn.Module):
    """D(I|c): whether a content image is real, given its class, which enters as maps beside the image; logits [B]."""

    def __init__(self, config: DCDGANcConfig, classes: int, channels: int) -> None:
        super().__init__()
        self.trunk, width = _down(config, channels + classes)
        self.head = nn.Linear(width * 4 * 4, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, channels, S, S], c [B, N]."""
        maps = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
        logits: Tensor = self.head(self.trunk(torch.cat([x, maps], dim=1)).flatten(1))[:, 0]
        return logits


def shown(x: Tensor) -> Tensor:
    """A level content image with its mask, [B, channels + 1, H, W], as a frozen network sees it: [B, 3, H, W].

    Its brightness, twice as strong; its color, if it has any; its mask.
    """
    gray = x[:, :-1].mean(dim=1, keepdim=True)
    color = x[:, :1] - x[:, -2:-1] if x.shape[1] > 2 else gray
    return torch.cat([2 * gray, 2 * color, x[:, -1:]], dim=1).clamp(-1, 1)


class Bank(nn.Module):
    """Real level windows, some of each class, between whose codes new ones are drawn."""

    KEPT = 32  # windows of each class

    def __init__(self, classes: int, channels: int, shape: Shape) -> None:
        super().__init__()
        self.x: Tensor
        self.count: Tensor
        self.register_buffer("x", torch.zeros(classes * self.KEPT, channels, *shape, dtype=torch.int8))
        self.register_buffer("count", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Keep new windows [B, channels, *shape] of the domains y [B], while there is room."""
        count, rows = self.count.tolist(), (x * 127).round().to(torch.int8)
        for row, domain in zip(rows, y.tolist(), strict=True):
            first, at = (domain - 1) * self.KEPT, count[domain - 1]
            if at < self.KEPT and not (self.x[first : first + at] == row).flatten(1).all(dim=1).any():
                self.x[first + at] = row
                count[domain - 1] += 1
        self.count.copy_(torch.tensor(count))

    def draw(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """Two windows, [2, channels, *shape] in [-1, 1], of classes drawn by their `weights`, [classes]."""
        drawn = torch.multinomial(weights.cpu(), 2, replacement=True, generator=rng).tolist()
        picked = [int(torch.randint(max(1, int(self.count[k])), (), generator=rng)) for k in drawn]
        return torch.stack([self.x[k * self.KEPT + i].float() / 127 for k, i in zip(drawn, picked, strict=True)])


def _widths(config: DCDGANcConfig) -> list[int]:
    """Channels at each resolution, from full resolution down to G's bottleneck."""
    halvings = (config.image_size // BOTTLENECK).bit_length() - 1
    return [min(config.width * 2**i, config.max_width) for i in range(halvings + 1)]


def _down(config: DCDGANcConfig, channels: int) -> tuple[nn.Sequential, int]:
    """The layers from an image to 4x4, or 2x8: residual blocks with average pooling. Also the channels there."""
    widths = [*_widths(config), min(2 * _widths(config)[-1], config.max_width)]
    blocks = [ResBlock(a, b, normalize=False, down=True) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1), *blocks, nn.LeakyReLU(0.2)), widths[-1]


def _resize(x: Tensor, shape: Shape) -> Tensor:
    return x if x.shape[2:] == shape else F.interpolate(x, size=shape, mode="bilinear", align_corners=False)


# --- Losses, named as in the paper -----------------------------------------------------------------------------


def kl_loss(mu: Tensor, log_var: Tensor) -> Tensor:
    """Equation 2: the KL divergence of E's Gaussians from N(0, I), summed over the code, averaged over the batch."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1).mean()


def reparameterize(mu: Tensor, log_var: Tensor, z: Tensor) -> Tensor:
    """Equation 3: z_r = z' σ + μ, with z' ~ N(0, I)."""
    return z * (0.5 * log_var).exp() + mu


def between(mu: Tensor, other: Tensor, part: Tensor, z: Tensor) -> Tensor:
    """Codes [B, latent_dim] a `part`, [B, 1], of the way from one code to another, and a little aside; z ~ N(0, I)."""
    return torch.lerp(mu, other, part) + _ASIDE * z


def p_loss(image: Tensor, image_r: Tensor) -> Tensor:
    """Equation 4: the reconstruction from an image's own code equals the image."""
    return F.l1_loss(image_r, image)


def l_loss(z_s: Tensor, mu_s: Tensor) -> Tensor:
    """Equation 5: E recovers the code from which an image was sampled."""
    return F.l1_loss(mu_s, z_s)


def d_loss(real: Tensor, fake_r: Tensor, fake_s: Tensor) -> Tensor:
    """Equation 6 for D, negated. The real term counts twice, once for each fake. Logits [B]."""
    return 2 * adversarial(real, real=True) + adversarial(fake_r, real=False) + adversarial(fake_s, real=False)


def g_loss(fake_r: Tensor, fake_s: Tensor) -> Tensor:
    """Equation 6 for E and G: log(1 - D). Logits [B]."""
    return -adversarial(fake_r, real=False) - adversarial(fake_s, real=False)


def inside_loss(made: Tensor, real: Tensor, inside: Tensor) -> Tensor:
    """Equation 4 inside soft masks, [B, 1, H, W]: the mean difference of each image, so that small defects count."""
    apart = ((made - real).abs().mean(dim=1, keepdim=True) * inside).sum(dim=(1, 2, 3))
    return (apart / (inside.sum(dim=(1, 2, 3)) + 1)).mean()


def features_loss(made: list[Tensor], real: list[Tensor]) -> Tensor:
    """The relative difference of frozen maps, summed over the scales."""
    return torch.stack(
        [F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-3) for a, b in zip(made, real, strict=True)]
    ).sum()


# --- Method ----------------------------------------------------------------------------------------------------


class DCDGANc:
    """The method DCDGANc; see `defectgen.methods.base.Method`. Its images are contents on a pure background."""

    Config: ClassVar[type[MethodConfig]] = DCDGANcConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"ema": 0.0},
        "compact": {
            "image_size": 128, "batch_size": 16, "steps": 6_000, "lambda_kl": 0.002, "level": True,
        },
        "tiny": {
            "image_size": 64, "width": 16, "max_width": 64, "hidden_channels": 16, "batch_size": 4, "steps": 4_000,
            "lr": 1e-3, "lambda_kl": 0.002, "ema": 0.995, "level": True,
        },
    }  # fmt: skip
    slots: ClassVar[Sequence[Slots]] = (
        Slots(r"G\.values", "categories"),
        Slots(r"G\..*\.to_map\.weight", "categories", axis=1, where="start"),
        Slots(r"D\.trunk\.0\.weight", "categories", axis=1, where="end"),
        *projected_slots("D", "categories"),
        Slots(r"(?:[ED]\.trunk\.0|G\.stem)\.weight", "inputs", axis=1, where="start"),
        Slots(r"G\.to_image\..*", "outputs", where="start"),
    )

    def __init__(self, config: DCDGANcConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        self.classes = len(task.domains) - 1
        side, channels = config.image_size, task.channels
        shape = (side // 2, 2 * side) if task.elongated else (side, side)
        self.E = Encoder(config, channels + config.level).apply(he_init)
        self.G = Generator(config, self.classes, channels, shape)
        self.D: nn.Module
        if config.level:
            self.D_projected = ProjectedDiscriminator(self.classes, device)
            self.D, of_d = self.D_projected, self.D_projected.learned()
        else:
            self.D = Discriminator(config, self.classes, channels).apply(he_init)
            of_d = list(self.D.parameters())
        modules: dict[str, nn.Module] = {"E": self.E, "G": self.G, "D": self.D}
        averaged: tuple[str, ...] = ("G",)
        if config.level:
            self.bank = Bank(self.classes, channels + 1, shape)
            modules["bank"], averaged = self.bank, ("E", "G", "bank")
        betas = (0.0, 0.99) if config.level else (0.5, 0.999)
        optimizers = {
            "E": torch.optim.Adam(self.E.parameters(), lr=config.lr, betas=betas),
            "G": torch.optim.Adam(self.G.parameters(), lr=config.lr, betas=betas),
            "D": torch.optim.Adam(of_d, lr=config.lr / 5 if config.level else config.lr, betas=betas),
        }
        self.networks = Networks(modules, optimizers, averaged=averaged, device=device)

    def class_code(self, y: Tensor) -> Tensor:
        """Domains [B] (from 1, as the normals are not a class) to one-hot c [B, N]."""
        return F.one_hot(y - 1, self.classes).float()

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Table 1: update E, then G, then D."""
        config, image = self.config, batch.x
        c = self.class_code(batch.y)
        z_r, z_s = torch.randn(2, len(image), config.latent_dim, generator=rng).to(self.device)
        part = torch.rand(len(image), 1, generator=rng).to(self.device) / 2
        self.networks.begin()
        with mixed_precision(self.device):
            mu, log_var = self.E(image)
            mu, log_var = mu.float(), log_var.float()
            image_r = self.G(reparameterize(mu, log_var, z_r), c)
            if config.level:
                self.bank.add(*ranks.joined(image, batch.y))
                z_s = between(mu.detach(), mu.detach().roll(1, dims=0), part, z_s)
            image_s = self.G(z_s, c)
        judge = self._judge_level if config.level else self._judge
        losses, update_d = judge(image, image_r, image_s, c, progress, rng)
        losses["kl"] = kl_loss(mu, log_var)
        weights = {"adv": config.lambda_adv if config.level else 1.0, "p": config.lambda_p, "kl": config.lambda_kl}
        if config.level:
            weights |= {"map": config.lambda_map, "line": config.lambda_line, "features": config.lambda_features}
            # At the first gradients of D, which all point one way, E's codes would leap away from N(0, 1) for good.
            begun = ramp(progress, config.pairs_first)
            weights |= {name: begun * weights[name] for name in ("adv", "features")}
            for group in self.networks.optimizers["E"].param_groups:
                group["lr"] = config.lr * (_CALM if "adv" in losses else 1)
        weights = {name: weight for name, weight in weights.items() if name in losses}
        weighted_sum(losses, weights).backward(retain_graph=True)  # the graph of I_s is needed again
        self.networks.step("E")

        # Equation 5 trains only G: otherwise E would help G to hide the code in the image.
        self.E.requires_grad_(False)
        with mixed_precision(self.device):
            mu_s, _ = self.E(image_s)
        losses["l"] = l_loss(z_s, mu_s.float())
        (config.lambda_l * losses["l"]).backward()
        self.networks.step("G")
        self.E.requires_grad_(True)
        losses |= update_d()
        return {name: value.detach() for name, value in losses.items()}

    def _judge(
        self, image: Tensor, image_r: Tensor, image_s: Tensor, c: Tensor, progress: float, rng: torch.Generator
    ) -> tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]:
        """Equations 4 and 6, and a function that updates D."""
        del progress
        t = torch.rand(len(image), 1, 1, 1, generator=rng).to(self.device)
        self.D.requires_grad_(False)
        with mixed_precision(self.device):
            fake_r, fake_s = self.D(torch.cat([image_r, image_s]), c.repeat(2, 1)).float().chunk(2)
        losses = {"adv": g_loss(fake_r, fake_s), "p": p_loss(image, image_r)}

        def update_d() -> dict[str, Tensor]:
            self.D.requires_grad_(True)
            made_r, made_s = image_r.detach(), image_s.detach()
            with mixed_precision(self.device):
                logits = self.D(torch.cat([image, made_r, made_s]), c.repeat(3, 1)).float()
            mixed = torch.lerp(image, made_s, t).requires_grad_()
            found = {"D": d_loss(*logits.chunk(3)), "D_gp": gradient_penalty(self.D(mixed, c), mixed)}
            weighted_sum(found, {"D": 1.0, "D_gp": self.config.lambda_gp}).backward()
            self.networks.step("D")
            return found

        return losses, update_d

    def _judge_level(
        self, image: Tensor, image_r: Tensor, image_s: Tensor, c: Tensor, progress: float, rng: torch.Generator
    ) -> tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]:
        """The same with `level`."""
        del rng
        D, count = self.D_projected, len(image)
        every = torch.ones(count, device=self.device)
        m, m_r = ((each[:, -1:] + 1) / 2 for each in (image, image_r))
        losses = {
            "p": inside_loss(image_r[:, :-1], image[:, :-1], soft(m)),
            "map": map_loss(m_r, m, every),
            "line": center_line_loss(m_r, m),
        }
        if progress < self.config.pairs_first:  # shapes come first, and cost less without the frozen network
            return losses, dict
        D.requires_grad_(False)
        with mixed_precision(self.device):
            with torch.no_grad():
                real = D.see(shown(image))
            fake = D.see(shown(torch.cat([image_r, image_s])))
            verdict = D.judge(fake, c.repeat(2, 1))
        losses |= {
            "adv": 2 * hinge_g(verdict.float()),
            "features": features_loss([each[:count].float() for each in fake], [each.float() for each in real]),
        }

        def update_d() -> dict[str, Tensor]:
            for parameter in D.learned():
                parameter.requires_grad_(True)
            maps = [torch.cat([a, b.detach()]) for a, b in zip(real, fake, strict=True)]
            with mixed_precision(self.device):
                logits = D.judge(maps, c.repeat(3, 1)).float()
            loss = hinge_d(logits[:count], logits[count:])
            loss.backward()
            self.networks.step("D")
            return {"D": loss}

        return losses, update_d

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Content images of the requested classes or mixtures, or variations of `x_ref`. `request.x` is not used."""
        c = self.class_code(request.y) if request.mix is None else request.mix
        if not self.config.level:
            return self._drawn(self._noise(request.rngs), c)
        if request.x_ref is None:
            z = torch.cat([self._sampled(weights, rng) for weights, rng in zip(c, request.rngs, strict=True)])
        else:
            z = self.E(request.x_ref)[0] + _ASIDE * self._noise(request.rngs)
        return self._drawn(z, c)

    @torch.no_grad()
    def interpolated(self, y: int, other: int, count: int, rng: torch.Generator) -> Generated:
        """Figure 5: from one class to the other under one z."""
        part = torch.linspace(0, 1, count)[:, None]
        first, last = self.class_code(torch.tensor([[y], [other]]))
        c = torch.lerp(first, last, part)
        z = self._sampled(c.mean(dim=0), rng) if self.config.level else self._noise([rng])
        return self._drawn(z.expand(count, -1), c)

    def _drawn(self, z: Tensor, c: Tensor) -> Generated:
        made = self.G(z, c.to(self.device))
        return Generated(made[:, :-1], (made[:, -1:] + 1) / 2) if self.config.level else Generated(made)

    def _noise(self, rngs: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(self.config.latent_dim, generator=rng) for rng in rngs]).to(self.device)

    def _sampled(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """A code between those of two windows of the bank, [1, latent_dim]."""
        mu, other = self.E(self.bank.draw(weights, rng).to(self.device))[0].split(1)
        part = torch.rand(1, 1, generator=rng).to(self.device) / 2
        return between(mu, other, part, self._noise([rng]))
