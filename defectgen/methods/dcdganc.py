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

Differences from the paper; each is noted where it applies:
    - the generator minimizes -log D, not log(1 - D), whose gradient vanishes while D wins (`g_loss`);
    - D takes the class by projection, too (`Discriminator`), and the range of G exceeds [-1, 1] (`Generator`);
    - content images are augmented at each draw, not once to about 1000 (`defectgen.training.data.TrainingPatches`);
    - the presets `compact` and `tiny` raise the weights of equations 2 and 4.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.layers import ResBlock, he_init, mixed_precision
from defectgen.nn.penalties import adversarial, gradient_penalty

BOTTLENECK = 8
"""Side of the feature map in the middle of G, and of the map that OD-SPADE makes from its code."""
_FINEST = 32  # largest side at which OD-SPADE computes its modulation; above, the modulation is interpolated


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


# --- Networks, in the order of the data flow -------------------------------------------------------------------


def class_constant_map(c: Tensor, channels: int, size: int) -> Tensor:
    """Equation 1: C_n = 2n/N - 1 at every pixel of every channel, for the n-th of N classes (n from 1).

    For a mixture, the mean of the classes' values by weight, as interpolated in Figure 5.

    Args:
        c: [B, N], one-hot or the weights of a mixture.

    Returns:
        [B, channels, size, size], in (-1, 1].
    """
    n = torch.arange(1, c.shape[1] + 1, device=c.device, dtype=c.dtype)
    value = c @ (2 * n / c.shape[1] - 1)
    return value[:, None, None, None].expand(-1, channels, size, size)


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
    first convolution. Above 32x32 the modulation is interpolated, because it would cost most there.
    """

    def __init__(self, channels: int, code_dim: int, config: DCDGANcConfig) -> None:
        super().__init__()
        self.to_map = nn.Linear(code_dim, config.map_channels * BOTTLENECK**2)
        self.first = nn.Conv2d(config.map_channels, config.hidden_channels, 3, padding=1)
        self.affine = nn.Conv2d(config.hidden_channels, 2 * channels, 3, padding=1)
        # PyTorch's default initialization attenuates the code about 10 times in these layers. G then learns to ignore
        # the code before it learns to use it.
        for layer in (self.to_map, self.first, self.affine):
            he_init(layer)
        with torch.no_grad():
            self.affine.weight *= 0.5

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        side = x.shape[2]
        m = self.to_map(code).unflatten(1, (-1, BOTTLENECK, BOTTLENECK))
        m = _resize(m, min(side, _FINEST))
        gamma, beta = _resize(self.affine(F.relu(self.first(m))), side).chunk(2, dim=1)
        return (1 + gamma) * F.group_norm(x, x.shape[1]) + beta


class ODSPADEBlock(nn.Module):
    """A residual block, as SPADE's, modulated by [c, z]. Doubles the resolution if `up`.

    It interpolates, since repeated pixels showed as stripes in thin oblique cracks.
    """

    def __init__(self, c_in: int, c_out: int, code_dim: int, config: DCDGANcConfig, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1 = ODSPADE(c_in, code_dim, config)
        self.norm2 = ODSPADE(c_out, code_dim, config)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h, x = self.conv1(F.leaky_relu(self.norm1(x, code), 0.2)), self.skip(x)
        if self.up:  # after the first convolution, which then costs a quarter
            h, x = (_resize(each, 2 * each.shape[2]) for each in (h, x))
        return self.conv2(F.leaky_relu(self.norm2(h, code), 0.2)) + x


class Generator(nn.Module):
    """G(z|c): takes the class constant map down to 8x8 and up again, modulated by [c, z] from 8x8 on."""

    def __init__(self, config: DCDGANcConfig, classes: int, channels: int) -> None:
        super().__init__()
        self.channels, self.image_size = channels, config.image_size
        code_dim = classes + config.latent_dim
        widths = _widths(config)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.middle = ODSPADEBlock(widths[-1], widths[-1], code_dim, config, up=False)
        self.decoder = nn.ModuleList(
            ODSPADEBlock(a, b, code_dim, config, up=True) for a, b in pairwise(reversed(widths))
        )
        self.to_image = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [B, latent_dim], c [B, N] -> content images [B, channels, S, S] in [-1.2, 1.2]; [-1, 1] is the valid range.

        Most of an image is the pure background, -1. A tanh with range [-1, 1] would saturate there and lose its
        gradient; training then ended in black images.
        """
        # Scale c to the norm of z: among many normal values, a single 1 would have little effect.
        code = torch.cat([c * z.shape[1] ** 0.5, z], dim=1)
        h = self.stem(class_constant_map(c, self.channels, self.image_size))
        for conv in self.encoder:
            h = conv(F.avg_pool2d(F.leaky_relu(h, 0.2), 2))
        h = self.middle(h, code)
        for block in self.decoder:
            h = block(h, code)
        return 1.2 * torch.tanh(self.to_image(F.leaky_relu(h, 0.2)))


class Discriminator(nn.Module):
    """D(I|c): whether a content image is real, given its class; logits [B].

    c enters as maps beside the image, and again by projection (Miyato and Koyama 2018): with the maps alone, G drew
    similar shapes for all classes.
    """

    def __init__(self, config: DCDGANcConfig, classes: int, channels: int) -> None:
        super().__init__()
        self.trunk, width = _down(config, channels + classes)
        self.head = nn.Linear(width * 4 * 4, 1)
        self.by_class = nn.Linear(classes, width * 4 * 4, bias=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, channels, S, S], c [B, N]."""
        maps = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
        h = self.trunk(torch.cat([x, maps], dim=1)).flatten(1)
        logits: Tensor = self.head(h)[:, 0] + (self.by_class(c) * h).mean(dim=1)
        return logits


def _widths(config: DCDGANcConfig) -> list[int]:
    """Channels at each resolution, from full resolution down to G's bottleneck."""
    halvings = (config.image_size // BOTTLENECK).bit_length() - 1
    return [min(config.width * 2**i, config.max_width) for i in range(halvings + 1)]


def _down(config: DCDGANcConfig, channels: int) -> tuple[nn.Sequential, int]:
    """The layers from an image to 4x4, residual blocks with average pooling, and the number of channels there."""
    widths = [*_widths(config), min(2 * _widths(config)[-1], config.max_width)]
    blocks = [ResBlock(a, b, normalize=False, down=True) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1), *blocks, nn.LeakyReLU(0.2)), widths[-1]


def _resize(x: Tensor, side: int) -> Tensor:
    return x if x.shape[2] == side else F.interpolate(x, size=side, mode="bilinear", align_corners=False)


# --- Losses, named as in the paper -----------------------------------------------------------------------------


def kl_loss(mu: Tensor, log_var: Tensor) -> Tensor:
    """Equation 2: the KL divergence of E's Gaussians from N(0, I), summed over the code, averaged over the batch."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1).mean()


def reparameterize(mu: Tensor, log_var: Tensor, z: Tensor) -> Tensor:
    """Equation 3: z_r = z' σ + μ, with z' ~ N(0, I)."""
    return z * (0.5 * log_var).exp() + mu


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
    """Equation 6 for E and G, with -log D for log(1 - D), whose gradient vanishes while D wins. Logits [B]."""
    return adversarial(fake_r, real=True) + adversarial(fake_s, real=True)


# --- Method ----------------------------------------------------------------------------------------------------


class DCDGANc:
    """The method DCDGANc; see `defectgen.methods.base.Method`. Its images are contents on a pure background."""

    Config: ClassVar[type[MethodConfig]] = DCDGANcConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        # The gradient of equation 4, a mean over pixels, shrinks with their number; D's gradient does not. In few
        # steps, G would follow only D and ignore the code, hence the larger lambda_p. lambda_kl grows with it:
        # otherwise sampled codes would differ from encoded ones, and codes would also contain the class.
        "compact": {
            "image_size": 128, "batch_size": 16, "steps": 40_000, "lr": 3e-4, "lambda_p": 100.0, "lambda_kl": 0.2,
        },
        "tiny": {
            "image_size": 64, "width": 16, "max_width": 64, "hidden_channels": 16, "batch_size": 8, "steps": 20_000,
            "lr": 3e-4, "lambda_p": 100.0, "lambda_kl": 0.2,
        },
    }  # fmt: skip

    def __init__(self, config: DCDGANcConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        self.classes = len(task.domains) - 1
        self.E = Encoder(config, task.channels).apply(he_init)
        self.G = Generator(config, self.classes, task.channels)
        self.D = Discriminator(config, self.classes, task.channels).apply(he_init)
        modules = {"E": self.E, "G": self.G, "D": self.D}
        optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.5, 0.999))
            for name, module in modules.items()
        }
        self.networks = Networks(modules, optimizers, averaged=("G",), device=device)

    def class_code(self, y: Tensor) -> Tensor:
        """Domains [B] (from 1, as the normals are not a class) to one-hot c [B, N]."""
        return F.one_hot(y - 1, self.classes).float()

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Table 1: update E, then G, then D."""
        config, image = self.config, batch.x
        c = self.class_code(batch.y)
        z_r, z_s = torch.randn(2, len(image), config.latent_dim, generator=rng).to(self.device)
        t = torch.rand(len(image), 1, 1, 1, generator=rng).to(self.device)
        self.networks.begin()

        self.D.requires_grad_(False)
        with mixed_precision(self.device):
            mu, log_var = self.E(image)
            mu, log_var = mu.float(), log_var.float()
            image_r = self.G(reparameterize(mu, log_var, z_r), c).float()
            image_s = self.G(z_s, c).float()
            fake_r, fake_s = self.D(torch.cat([image_r, image_s]), c.repeat(2, 1)).float().chunk(2)
        parts = {"adv": g_loss(fake_r, fake_s), "p": p_loss(image, image_r), "kl": kl_loss(mu, log_var)}
        total = parts["adv"] + config.lambda_p * parts["p"] + config.lambda_kl * parts["kl"]
        total.backward(retain_graph=True)  # the graph of I_s is needed again
        self.networks.step("E")

        # Equation 5 trains only G: otherwise E would help G to hide the code in the image.
        self.E.requires_grad_(False)
        with mixed_precision(self.device):
            mu_s, _ = self.E(image_s)
        parts["l"] = l_loss(z_s, mu_s.float())
        (config.lambda_l * parts["l"]).backward()
        self.networks.step("G")
        self.E.requires_grad_(True)
        self.D.requires_grad_(True)

        image_r, image_s = image_r.detach(), image_s.detach()
        with mixed_precision(self.device):
            logits = self.D(torch.cat([image, image_r, image_s]), c.repeat(3, 1)).float()
        parts["D"] = d_loss(*logits.chunk(3))
        between = torch.lerp(image, image_s, t).requires_grad_()
        parts["D_gp"] = gradient_penalty(self.D(between, c), between)
        (parts["D"] + config.lambda_gp * parts["D_gp"]).backward()
        self.networks.step("D")
        return {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Content images of the requested classes or mixtures. `request.x` is not used."""
        c = self.class_code(request.y) if request.mix is None else request.mix
        z = torch.stack([torch.randn(self.config.latent_dim, generator=rng) for rng in request.rngs])
        return Generated(self.G(z.to(self.device), c.to(self.device)).clamp(-1, 1))
