"""ISU-GAN: repairs defects, or makes them, by a cycle between normal and defective images, without labels.

    Yijing Guo, Linwei Zhong, Yi Qiu, Huawei Wang, Fengqiang Gao, Zongheng Wen, Choujun Zhan: Using ISU-GAN for
    unsupervised small sample defect detection. Scientific Reports 12, 2022. Sections, equations and figures below
    are the paper's.

Symbols: p a normal (positive) image, n a defective (negative) one; G_n2p repairs an image, G_p2n adds a defect; D_p
and D_n tell real images from generated ones. The inspector compares an image with its repair by G_n2p
(`defectgen.inspection.inspector`).

Where the paper gives no details, the code follows CycleGAN (Zhu et al. 2017), on which the paper builds: weights 10
and 5 of the cycle and identity losses, Adam with betas (0.5, 0.999), a learning rate that falls to 0 over the second
half, the residual blocks. Involution follows Li et al. (2021): 7x7 kernels, a reduction of 4. Figure 2 marks the
layers without instance normalization with stars, but the text does not name them. Here they are the first layer, whose
map a skip connection passes on, the layers after the skip connections, and the last layer. If all layers were
normalized, images would lose their brightness.

Differences from the paper:
    - The involution's kernel generator uses instance instead of batch normalization. The two are equal on the paper's
      batches of one image, and instance normalization has no running statistics that differ after training.
    - In the presets `compact` and `tiny`, the generators output a change of the image (`residual`), the
      discriminators also see real images of the other kind as fakes (`crosswise`), and the cycle loss weighs less,
      as a repaired image does not show where its defect was. Without these changes, a few thousand steps teach the
      generators to keep images, but not to repair them.
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
    """The paper's settings ("Implementation details"): windows of 256, batches of 1, 100 epochs of some 500 images."""

    image_size: int = Field(256, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(1, ge=1)
    steps: int = Field(50_000, ge=1)
    width: int = Field(
        64, ge=16, multiple_of=16, description="channels after the first convolution; 4 times as many in the middle"
    )
    blocks: int = Field(9, ge=1, description="residual blocks (Figure 2)")
    involution_kernel: int = Field(7, ge=3, description="side of the involution kernels, odd")
    lr: float = Field(2e-4, gt=0, description="learning rate in the first half; falls to 0 over the second")
    lambda_cycle: float = Field(10.0, ge=0, description="weight of equation 10")
    lambda_identity: float = Field(5.0, ge=0, description="weight of equation 11")
    residual: bool = Field(False, description="the generators output a change of the image, not the whole image")
    crosswise: bool = Field(False, description="discriminators also see real images of the other kind as fakes")
    ssim_part: float = Field(0.1, ge=0, le=1, description="part of the training with SSIM losses: k = 10 of 100 epochs")


# --- Networks, in the order of the data flow -------------------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """Scales each channel by a weight that a bottleneck computes from all channels' means (equations 1 and 2)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.w1 = nn.Conv2d(channels, hidden, 1)
        self.w2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.w2(F.relu(self.w1(y))))


class Involution(nn.Module):
    """Convolution with a kernel per pixel, computed from that pixel and shared by 16 channels (equation 3).

    The kernels are applied shift by shift, which avoids unfolding the map to k² times its size.
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
    """CycleGAN's residual block: two convolutions with instance normalization and reflection padding."""

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
    """Figure 2: three convolutions, SE, involution, residual blocks, involution, SE, three transposed convolutions.

    Skip connections pass the maps of `width` and of 4 `width` channels through SE; a convolution merges each of them
    into the decoder.
    """

    def __init__(self, config: ISUGANConfig, channels: int) -> None:
        super().__init__()
        w = config.width
        self.down1 = _down(channels, w, normalize=False)  # so the skip connection passes on the brightness
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
        # With `residual` the output is mostly 0, for which a ReLU before the last layer would die.
        activation = partial(nn.LeakyReLU, 0.2) if config.residual else nn.ReLU
        self.join3 = nn.Sequential(_conv(8 * w, 4 * w), activation())
        self.up3 = _up(4 * w, 2 * w)
        self.up2 = _up(2 * w, w)
        self.filter1 = SqueezeExcitation(w)
        self.join1 = nn.Sequential(_conv(2 * w, w), activation())
        self.up1 = nn.ConvTranspose2d(w, channels, 4, stride=2, padding=1)
        self.residual = config.residual
        if self.residual:
            with torch.no_grad():  # start with nearly no change
                for parameter in self.up1.parameters():
                    parameter.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] in [-1, 1] -> the same; any H and W from 16 on."""
        d1 = self.down1(x)
        d3 = self.down3(self.down2(d1))
        h = self.middle(d3)
        h = self.up3(self.join3(torch.cat([self.filter3(d3), h], dim=1)))
        h = _match_size(self.up2(h), d1)
        h = self.up1(self.join1(torch.cat([self.filter1(d1), h], dim=1)))
        h = _match_size(h, x)
        return x + h if self.residual else torch.tanh(h)


class Discriminator(nn.Module):
    """PatchGAN of four 4x4 convolutions: a score for each image patch, [B, 1, h, w]."""

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


def _match_size(x: Tensor, like: Tensor) -> Tensor:
    """Crop a map to the size of another, or extend it by reflection at the far edges ("Skip connection")."""
    x = x[..., : like.shape[2], : like.shape[3]]
    missing = like.shape[3] - x.shape[3], like.shape[2] - x.shape[2]
    return F.pad(x, (0, missing[0], 0, missing[1]), mode="reflect") if any(missing) else x


# --- Losses, named as in the paper -----------------------------------------------------------------------------


def ssim(x: Tensor, y: Tensor, window: int = 9) -> Tensor:
    """Equation 7, averaged over all SSIM windows inside the images, [B, C, H, W] in [-1, 1]."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my, mxx, myy, mxy = (F.avg_pool2d(each, window, stride=1) for each in (x, y, x * x, y * y, x * y))
    sample = window**2 / (window**2 - 1)
    vx, vy, vxy = sample * (mxx - mx * mx), sample * (myy - my * my), sample * (mxy - mx * my)
    # The luminance term needs black at 0: values in [0, 2].
    mx, my = mx + 1, my + 1
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()


def gan_g_loss(fake_p: Tensor, fake_n: Tensor) -> Tensor:
    """Equation 8: drives the scores of generated images to 1."""
    return (fake_n - 1).square().mean() + (fake_p - 1).square().mean()


def gan_d_loss(real: Tensor, *fakes: Tensor) -> Tensor:
    """Equation 9 for one discriminator: drives the scores of real images to 1, of generated ones to 0."""
    return (real - 1).square().mean() + torch.cat(fakes).square().mean()


def difference_loss(x: Tensor, y: Tensor, *, by_ssim: bool) -> Tensor:
    """A term of equations 10 and 11: 1 - SSIM in the first k epochs, L1 after that."""
    return 1 - ssim(x, y) if by_ssim else F.l1_loss(x, y)


# --- Method ----------------------------------------------------------------------------------------------------


class ISUGAN:
    """The method ISU-GAN; see `defectgen.methods.base.Method`. It treats all defects as one category."""

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

    def lr(self, progress: float) -> float:
        """The learning rate. It is constant, then falls linearly to 0 over the second half (CycleGAN)."""
        return self.config.lr * min(1.0, 2 * (1 - progress))

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Update both generators, then both discriminators. `batch.x` are normals p, `batch.x_ref` defective n."""
        config, p, n = self.config, batch.x, batch.x_ref
        by_ssim = progress < config.ssim_part
        self.networks.begin(self.lr(progress))

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
            inputs = [real, made.detach(), *([other] if config.crosswise else [])]
            with mixed_precision(self.device):
                scores = module(torch.cat(inputs)).float()
            parts[name] = gan_d_loss(*scores.split(len(real)))
            parts[name].backward()
            self.networks.step(name)
        return {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Add defects to normals by G_p2n. The result depends on the window alone; `request.rngs` is not used."""
        return Generated(self.G_p2n(request.x))

    @torch.no_grad()
    def repair(self, x: Tensor) -> Tensor:
        """Remove the defects from windows x, [B, channels, H, W], by G_n2p."""
        repaired: Tensor = self.G_n2p(x)
        return repaired
