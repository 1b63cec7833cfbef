"""ISU-GAN: defects repaired, or made, by a cycle between normals and defects without any label.

    Yijing Guo, Linwei Zhong, Yi Qiu, Huawei Wang, Fengqiang Gao, Zongheng Wen, Choujun Zhan: Using ISU-GAN for
    unsupervised small sample defect detection. Scientific Reports 12, 2022. Sections, equations and figures below
    are the paper's.

The symbols: p a normal (positive) image, n a defective (negative) one; G_n2p repairs, G_p2n manufactures; D_p and
D_n tell real ones from made ones. The inspector compares an image with G_n2p of it (`defectgen.inspection.inspector`).

What the paper leaves open follows CycleGAN (Zhu et al. 2017), which it builds on: weights 10 and 5 of the cycle and
identity losses, Adam with betas (0.5, 0.999), a learning rate that falls to 0 over the second half, the residual
blocks; and involution (Li et al. 2021): kernels of 7x7, a reduction of 4. Figure 2's stars, the layers without
instance normalisation, cannot be read in the text: here they are the first, whose map is handed across, those after
the skip connections, and the last. With all of them normalised, no image could keep its brightness.
The two smaller presets depart further, or a few thousand steps teach them to keep photographs and not to mend
them: their generators make a change of the image; their discriminators see real images of the other kind as well as
made ones; and the cycle weighs less (a mended image cannot tell where its defect was).
The kernel generator's batch normalisation is instance normalisation: on the paper's batches of one image they are
the same, and there are no running statistics to differ when it is used.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.layers import instance_norm, mixed_precision


class ISUGANConfig(MethodConfig):
    """The paper's training ("Implementation details"): windows of 256, batches of 1, 100 epochs of some 500 images."""

    image_size: int = Field(256, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(1, ge=1)
    steps: int = Field(50_000, ge=1)
    width: int = Field(
        64, ge=16, multiple_of=16, description="channels after the first convolution; 4 times in the middle"
    )
    blocks: int = Field(9, ge=1, description="residual blocks (Figure 2)")
    involution_kernel: int = Field(7, ge=3, description="side of the involution kernels, odd")
    lr: float = Field(2e-4, gt=0, description="learning rate, until half of the steps")
    lambda_cycle: float = Field(10.0, ge=0, description="weight of equation 10")
    lambda_identity: float = Field(5.0, ge=0, description="weight of equation 11")
    residual: bool = Field(False, description="the generators make a change of the image instead of the whole image")
    crosswise: bool = Field(False, description="a discriminator also tells real images of the other kind from its own")
    ssim_part: float = Field(0.1, ge=0, le=1, description="part of the steps with SSIM losses: k = 10 of 100 epochs")


# --- The networks, in the order in which data meets them -------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """Each channel rescaled by its importance, which a bottleneck tells from all channels' means (eqs. 1 and 2)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.w1 = nn.Conv2d(channels, hidden, 1)
        self.w2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.w2(F.relu(self.w1(y))))


class Involution(nn.Module):
    """A kernel of its own for each place, made from the pixel there, shared by groups of 16 channels (eq. 3).

    The kernels are applied shift by shift: the patches, which are k² times the map, are never laid out.
    """

    GROUP = 16  # channels that share a kernel

    def __init__(self, channels: int, kernel: int, reduction: int = 4) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, channels // self.GROUP
        self.w1 = nn.Conv2d(channels, channels // reduction, 1)
        self.norm = instance_norm(channels // reduction)
        self.w2 = nn.Conv2d(channels // reduction, self.groups * kernel**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        height, width, reach = x.shape[2], x.shape[3], self.kernel // 2
        h = self.w2(F.relu(self.norm(self.w1(x)))).unflatten(1, (self.groups, 1, self.kernel**2))
        padded = F.pad(x, (reach,) * 4).unflatten(1, (self.groups, self.GROUP))
        total = torch.zeros_like(x).unflatten(1, (self.groups, self.GROUP))
        for i in range(self.kernel**2):
            top, left = divmod(i, self.kernel)
            total = total + h[:, :, :, i] * padded[..., top : top + height, left : left + width]
        return total.flatten(1, 2)


class ResidualBlock(nn.Module):
    """CycleGAN's: two convolutions with instance normalisation, mirrored at the edges."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, channels),
            instance_norm(channels),
            nn.ReLU(),
            _conv(channels, channels),
            instance_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x)
        return x + h


class Generator(nn.Module):
    """Figure 2: down by three convolutions, SE, involution, residual blocks, involution, SE, up by three transposed.

    The maps of `width` and 4 `width` channels are handed across, filtered by SE, and joined by a convolution.
    """

    def __init__(self, config: ISUGANConfig, channels: int) -> None:
        super().__init__()
        w = config.width
        self.down1 = _down(channels, w, normalize=False)  # how bright a window is must reach the other side
        self.down2 = _down(w, 2 * w)
        self.down3 = _down(2 * w, 4 * w)
        self.middle = nn.Sequential(
            SqueezeExcitation(4 * w),
            Involution(4 * w, config.involution_kernel),
            *(ResidualBlock(4 * w) for _ in range(config.blocks)),
            Involution(4 * w, config.involution_kernel),
            SqueezeExcitation(4 * w),
        )
        self.filter3 = SqueezeExcitation(4 * w)
        # Where no change is wanted most of the time, a ReLU before the last layer falls silent for good.
        activation = partial(nn.LeakyReLU, 0.2) if config.residual else nn.ReLU
        self.join3 = nn.Sequential(_conv(8 * w, 4 * w), activation())
        self.up3 = _up(4 * w, 2 * w)
        self.up2 = _up(2 * w, w)
        self.filter1 = SqueezeExcitation(w)
        self.join1 = nn.Sequential(_conv(2 * w, w), activation())
        self.up1 = nn.ConvTranspose2d(w, channels, 4, stride=2, padding=1)
        self.residual = config.residual
        if self.residual:
            with torch.no_grad():  # nearly no change to begin with
                for parameter in self.up1.parameters():
                    parameter.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] in [-1, 1] -> the same; any H and W from 16 on."""
        d1 = self.down1(x)
        d3 = self.down3(self.down2(d1))
        h = self.middle(d3)
        h = self.up3(self.join3(torch.cat([self.filter3(d3), h], dim=1)))
        h = _fitted(self.up2(h), d1)
        h = self.up1(self.join1(torch.cat([self.filter1(d1), h], dim=1)))
        h = _fitted(h, x)
        return x + h if self.residual else torch.tanh(h)


class Discriminator(nn.Module):
    """PatchGAN of four 4x4 convolutions: a score for each patch, [B, 1, h, w]."""

    def __init__(self, config: ISUGANConfig, channels: int) -> None:
        super().__init__()
        widths = [2 * config.width, 4 * config.width, 8 * config.width]
        layers: list[nn.Module] = []
        for a, b in zip([channels, *widths[:-1]], widths, strict=True):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), instance_norm(b), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.body(x)
        return scores


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="reflect")


def _down(c_in: int, c_out: int, *, normalize: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, padding_mode="reflect")
    return nn.Sequential(conv, instance_norm(c_out) if normalize else nn.Identity(), nn.ReLU())


def _up(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1), instance_norm(c_out), nn.ReLU())


def _fitted(x: Tensor, like: Tensor) -> Tensor:
    """A map at the resolution of another: cropped, or mirrored at the far edges ("Skip connection")."""
    x = x[..., : like.shape[2], : like.shape[3]]
    missing = like.shape[3] - x.shape[3], like.shape[2] - x.shape[2]
    return F.pad(x, (0, missing[0], 0, missing[1]), mode="reflect") if any(missing) else x


# --- The losses, by the paper's names --------------------------------------------------------------------------


def ssim(x: Tensor, y: Tensor, window: int = 9) -> Tensor:
    """Equation 7, averaged over all windows that lie inside. Images [B, C, H, W] in [-1, 1]."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my, mxx, myy, mxy = (F.avg_pool2d(each, window, stride=1) for each in (x, y, x * x, y * y, x * y))
    sample = window**2 / (window**2 - 1)
    vx, vy, vxy = sample * (mxx - mx * mx), sample * (myy - my * my), sample * (mxy - mx * my)
    # The luminance term wants values from black on: [0, 2].
    mx, my = mx + 1, my + 1
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()


def gan_g_loss(fake_p: Tensor, fake_n: Tensor) -> Tensor:
    """Equation 8: what the discriminators say of made images should be 1."""
    return (fake_n - 1).square().mean() + (fake_p - 1).square().mean()


def gan_d_loss(real: Tensor, *fakes: Tensor) -> Tensor:
    """Equation 9, for one discriminator: 1 of real images, 0 of made ones."""
    return (real - 1).square().mean() + torch.cat(fakes).square().mean()


def difference_loss(x: Tensor, y: Tensor, *, by_ssim: bool) -> Tensor:
    """A term of equations 10 and 11: 1 - SSIM in the first k epochs, then L1."""
    return 1 - ssim(x, y) if by_ssim else F.l1_loss(x, y)


# --- The method ------------------------------------------------------------------------------------------------


class ISUGAN:
    """ISU-GAN as a method; see `defectgen.methods.base.Method`. It knows normal and defective, no categories."""

    Config: ClassVar[type[MethodConfig]] = ISUGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "compact": {
            "image_size": 128, "batch_size": 4, "width": 32, "steps": 20_000, "lr": 5e-4,
            "residual": True, "crosswise": True, "lambda_cycle": 2.0, "lambda_identity": 10.0,
        },
        "tiny": {
            "image_size": 64, "batch_size": 4, "width": 16, "blocks": 4, "involution_kernel": 5, "steps": 8_000,
            "lr": 1e-3, "residual": True, "crosswise": True, "lambda_cycle": 2.0, "lambda_identity": 10.0,
        },
    }  # fmt: skip

    def __init__(self, config: ISUGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        self.G_n2p, self.G_p2n = Generator(config, task.channels), Generator(config, task.channels)
        self.D_p, self.D_n = Discriminator(config, task.channels), Discriminator(config, task.channels)
        modules = {"G_n2p": self.G_n2p, "G_p2n": self.G_p2n, "D_p": self.D_p, "D_n": self.D_n}
        optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.5, 0.999))
            for name, module in modules.items()
        }
        self.networks = Networks(modules, optimizers, averaged=("G_n2p", "G_p2n"), device=device)

    def lr(self, step: int) -> float:
        """The learning rate at a step: constant, then falling to 0 over the second half (CycleGAN)."""
        return self.config.lr * min(1.0, 2 * (1 - step / self.config.steps))

    def training_step(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Both generators, then both discriminators; `batch.x` are normals p, `batch.x_ref` defective n."""
        config, p, n = self.config, batch.x, batch.x_ref
        by_ssim = step < config.ssim_part * config.steps
        self.networks.begin(self.lr(step))

        for each in (self.D_p, self.D_n):
            each.requires_grad_(False)
        with mixed_precision(self.device):
            made_n = self.G_p2n(p).float()
            made_p, kept_p = self.G_n2p(torch.cat([n, p])).float().chunk(2)
            cycled_p, cycled_n = self.G_n2p(made_n).float(), self.G_p2n(made_p).float()
            fake_p, fake_n = self.D_p(made_p).float(), self.D_n(made_n).float()
        parts = {
            "gan": gan_g_loss(fake_p, fake_n),
            "cycle": difference_loss(p, cycled_p, by_ssim=by_ssim) + difference_loss(n, cycled_n, by_ssim=by_ssim),
            "identity": difference_loss(p, kept_p, by_ssim=by_ssim),
        }
        total = parts["gan"] + config.lambda_cycle * parts["cycle"] + config.lambda_identity * parts["identity"]
        total.backward()
        self.networks.step("G_n2p", "G_p2n")

        for name, real, made, other in (("D_p", p, made_p, n), ("D_n", n, made_n, p)):
            module = self.networks.modules[name].requires_grad_(True)
            shown = [real, made.detach(), *([other] if config.crosswise else [])]
            with mixed_precision(self.device):
                scores = module(torch.cat(shown)).float()
            parts[name] = gan_d_loss(*scores.split(len(real)))
            parts[name].backward()
            self.networks.step(name)
        return {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Normals made defective by G_p2n; the same for the same window, whatever the generators of chance."""
        return Generated(self.G_p2n(request.x))

    @torch.no_grad()
    def repair(self, x: Tensor) -> Tensor:
        """Windows [B, channels, H, W] without their defects, by G_n2p."""
        repaired: Tensor = self.G_n2p(x)
        return repaired
