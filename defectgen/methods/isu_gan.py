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

The involution's kernel generator uses instance instead of batch normalization. The two are equal on the paper's batches
of one image, and instance normalization has no running statistics that differ after training.

An addition to the paper, which the preset `paper` does not use, is the setting `residual`. With it

- the generators make a change inside a soft map m, on bilinearly upsampled maps. G_n2p has to find m; for G_p2n it is a
  control map a: real masks that are warped, or everything if nobody drew masks. A noise vector z joins a, so that one
  mask has many looks, and, with `tones`, how much darker or brighter than its ground the real defect is,
  which is what G_p2n paints at first (`nn.tones`);
- pseudo-pairs, a defective window n and its repaired twin n_p, supervise both directions, and masks supervise m;
- D_p and D_n are the branches of one projected discriminator (`nn.projected`). D_p also sees n as fakes; D_n sees no p:
  led away from them, G_p2n painted what is darker than any real defect. With `tones`, what it paints has to have these.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks
from defectgen.nn.augment import Augmentation
from defectgen.nn.layers import box_mean, instance_norm, join, mixed_precision
from defectgen.nn.paired import MS_EVERY, Hues, map_loss, ms_loss, pair_loss, soft, weighted_sum
from defectgen.nn.projected import ProjectedDiscriminator, choose, hinge_d, hinge_g
from defectgen.nn.slots import Slots
from defectgen.nn.tones import change_of, hidden_by, painted, tone_loss


class ISUGANConfig(MethodConfig):
    """The paper's settings ("Implementation details"): whole images at 256, batches of 1, 100 epochs of some 500."""

    image_size: int = Field(256, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(1, ge=1)
    steps: int = Field(50_000, ge=1)
    whole: bool = Field(True, description="windows show whole images, scaled down, as in the paper")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; the paper averages none")
    width: int = Field(
        64, ge=16, multiple_of=16, description="channels after the first convolution; 4 times as many in the middle"
    )
    blocks: int = Field(9, ge=1, description="residual blocks (Figure 2)")
    involution_kernel: int = Field(7, ge=3, description="side of the involution kernels, odd")
    lr: float = Field(2e-4, gt=0, description="learning rate in the first half; falls to 0 over the second")
    lambda_cycle: float = Field(10.0, ge=0, description="weight of equation 10")
    lambda_identity: float = Field(5.0, ge=0, description="weight of equation 11")
    residual: bool = Field(False, description="the generators make a change of the image; see the method's file")
    tones: bool = Field(False, description="maps tell how dark and bright defects are, with `residual`")
    z_dim: int = Field(8, ge=1, description="length of the noise vector z, with `residual`")
    lambda_pair: float = Field(10.0, ge=0, description="weight of the differences from n and n_p, with `residual`")
    lambda_tone: float = Field(3.0, ge=0, description="weight of the differences from the tones, with `tones`")
    lambda_map: float = Field(5.0, ge=0, description="weight of the overlap of m with the masks, with `residual`")
    lambda_ms: float = Field(1.0, ge=0, description="weight of mode seeking, with `residual`")
    ssim_part: float = Field(0.1, ge=0, le=1, description="part of the training with SSIM losses: k = 10 of 100 epochs")

    @property
    def paints_masks(self) -> bool:
        return self.residual

    def extras(self, step: int, progress: float) -> tuple[bool, ...]:
        return progress < self.ssim_part, self.residual and step % MS_EVERY == 0


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
        kernels = self.w2(F.relu(self.norm(self.w1(x)))).to(x.dtype)
        padded = F.pad(x, (self.kernel // 2,) * 4)
        total: Tensor = _Involve.apply(padded, kernels, self.groups)  # type: ignore[no-untyped-call]
        return total


class _Involve(torch.autograd.Function):
    """The padded map [B, C, H + k - 1, W + k - 1] under its kernels [B, groups k², H, W] -> [B, C, H, W].

    The gradients, too, are summed up shift by shift, in place: autograd would make a map for each.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, kernels: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(padded, kernels)
        ctx.groups = groups
        padded, kernels = padded.unflatten(1, (groups, -1)), kernels.unflatten(1, (groups, -1))
        total = torch.zeros_like(padded[..., : kernels.shape[3], : kernels.shape[4]])
        for i, kernel, here in _shifts(kernels):
            del i
            total.addcmul_(kernel, padded[here])
        return total.flatten(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, kernels = (each.unflatten(1, (ctx.groups, -1)) for each in ctx.saved_tensors)
        gradient = gradient.unflatten(1, (ctx.groups, -1))
        by_padded, by_kernels = torch.zeros_like(padded), torch.empty_like(kernels)
        for i, kernel, here in _shifts(kernels):
            by_kernels[:, :, i] = (gradient * padded[here]).sum(dim=2)
            by_padded[here].addcmul_(gradient, kernel)
        return by_padded.flatten(1, 2), by_kernels.flatten(1, 2), None


def _shifts(kernels: Tensor) -> Iterator[tuple[int, Tensor, tuple[Any, ...]]]:
    """For each place i of the kernels [B, groups, k², H, W]: i, their values there, and what of the map they see."""
    count, height, width = kernels.shape[2:]
    for i in range(count):
        top, left = divmod(i, math.isqrt(count))
        yield i, kernels[:, :, i, None], (..., slice(top, top + height), slice(left, left + width))


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

    def __init__(
        self, config: ISUGANConfig, channels: int, control: int = 0, hues: Sequence[Sequence[float]] = ()
    ) -> None:
        super().__init__()
        w = config.width
        self.hues = Hues(hues)
        self.residual = config.residual
        self.tones = config.residual and config.tones
        up = partial(_up, smooth=self.residual)
        self.down1 = _down(channels + control, w, normalize=False)  # so the skip connection passes on the brightness
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
        self.join3 = nn.Sequential(_conv(8 * w, 4 * w), nn.ReLU())
        self.up3 = up(4 * w, 2 * w)
        self.up2 = up(2 * w, w)
        self.filter1 = SqueezeExcitation(w)
        self.join1 = nn.Sequential(_conv(2 * w, w), nn.ReLU())
        if self.residual:
            self.up1: nn.Module = up(w, w)
            self.head = nn.Sequential(
                _conv(w + channels + control, w), nn.LeakyReLU(0.2), _conv(w, channels + 1 + self.tones)
            )
            last = self.head[-1]
            assert isinstance(last, nn.Conv2d)
            for parameter in last.parameters():
                nn.init.zeros_(parameter)  # begin with the image as it is
        else:
            self.up1 = nn.ConvTranspose2d(w, channels, 4, stride=2, padding=1)

    def forward(
        self, x: Tensor, control: Tensor | None = None, grain: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, channels, H, W] in [-1, 1] -> the new image, like x; any H and W from 16 on.

        With `residual`, also m, [B, 1, H, W] in 0..1, the soft map of the change; values may leave the range.
        `control` [B, 1 + z_dim, H, W] is a mask, which becomes m, then z inside it; with `tones`, those, too. Without
        it, m is learned. `grain` is as for `tones.painted`.
        """
        given = x if control is None else join(x, control)
        d1 = self.down1(given)
        d3 = self.down3(self.down2(d1))
        h = self.middle(d3)
        h = self.up3(self.join3(join(self.filter3(d3), h)))
        h = _match_size(self.up2(h), d1)
        h = _match_size(self.up1(self.join1(join(self.filter1(d1), h))), x)
        if not self.residual:
            return torch.tanh(h), None
        change, m, *smooth = self.head(join(h, given)).float().split([x.shape[1], 1, *[1] * self.tones], dim=1)
        m = torch.sigmoid(m) if control is None else soft(control[:, :1])
        if not smooth:
            return x + m * self.hues(change), m
        hidden = torch.zeros_like(m)
        if control is not None:
            mask, tones = control[:, :1], control[:, -1:]
            change = change + change_of(tones)  # so G_p2n begins with what tones ask for, and learns the rest
            hidden = hidden_by(tones, mask)
        return torch.lerp(x, painted(x, self.hues(change), smooth[0], hidden, grain), m), m


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


def _up(c_in: int, c_out: int, *, smooth: bool) -> nn.Sequential:
    """Twice the resolution, by a transposed convolution or, if `smooth`, by bilinear interpolation."""
    if smooth:
        double = nn.Upsample(scale_factor=2, mode="bilinear")
        return nn.Sequential(double, _conv(c_in, c_out), instance_norm(c_out), nn.ReLU())
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
    mx, my, mxx, myy, mxy = (box_mean(each, window) for each in (x, y, x * x, y * y, x * y))
    sample = window**2 / (window**2 - 1)
    vx, vy, vxy = sample * (mxx - mx * mx), sample * (myy - my * my), sample * (mxy - mx * my)
    # The luminance term needs black at 0: values in [0, 2].
    mx, my = mx + 1, my + 1
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()


def gan_g_loss(fake_p: Tensor, fake_n: Tensor) -> Tensor:
    """Equation 8: drives the scores of generated images to 1."""
    return (fake_n - 1).square().mean() + (fake_p - 1).square().mean()


def gan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Equation 9 for one discriminator: drives the scores of real images to 1, of generated ones to 0."""
    return (real - 1).square().mean() + fake.square().mean()


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
            "image_size": 128, "batch_size": 8, "width": 32, "steps": 4_000, "ema": 0.999, "lr": 4e-4,
            "whole": False, "residual": True, "tones": True, "lambda_cycle": 2.0, "lambda_identity": 10.0,
            "exposure": True,
        },
        "tiny": {
            "image_size": 64, "batch_size": 4, "width": 16, "blocks": 4, "involution_kernel": 5, "steps": 1_000,
            "ema": 0.995, "lr": 4e-4, "whole": False, "residual": True, "tones": True, "lambda_cycle": 2.0,
            "lambda_identity": 10.0, "exposure": True,
        },
    }  # fmt: skip

    def __init__(self, config: ISUGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        channels = task.channels
        self.G_n2p = Generator(config, channels, hues=task.hues)
        control = 1 + config.z_dim + config.tones if config.residual else 0
        self.G_p2n = Generator(config, channels, control, task.hues)
        modules: dict[str, nn.Module] = {"G_n2p": self.G_n2p, "G_p2n": self.G_p2n}
        if config.residual:
            self.D = modules["D"] = ProjectedDiscriminator(2, device)
        else:
            modules |= {"D_p": Discriminator(config, channels), "D_n": Discriminator(config, channels)}
        betas = (0.0, 0.99) if config.residual else (0.5, 0.999)
        optimizers = {
            name: torch.optim.Adam(
                module.learned() if isinstance(module, ProjectedDiscriminator) else module.parameters(),
                lr=config.lr,
                betas=betas,
            )
            for name, module in modules.items()
        }
        self.networks = Networks(modules, optimizers, averaged=("G_n2p", "G_p2n"), device=device)

    @property
    def slots(self) -> tuple[Slots, ...]:
        """It has one category; images enter the generators twice with `residual`."""
        return (
            Slots(r"(?:G_.*\.down1|D_.\.body)\.0\.weight", "inputs", axis=1, where="start"),
            Slots(r"G_.*\.head\.0\.weight", "inputs", axis=1, where=self.config.width),
            Slots(r"G_.*\.head\.2\..*", "outputs", where="start"),
            Slots(r"G_.*\.up1\.weight", "outputs", axis=1),
            Slots(r"G_.*\.up1\.bias", "outputs"),
        )

    def lr(self, progress: float) -> float:
        """The learning rate. It is constant, then falls linearly to 0 over the second half (CycleGAN)."""
        return self.config.lr * min(1.0, 2 * (1 - progress))

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Update both generators, then both discriminators. `batch.x` are normals p, `batch.x_ref` defective n.

        With `residual`, also with the batch's `a`, `a_ref`, `x_twin` and `paired`.
        """
        self.networks.begin(self.lr(progress))
        by_ssim = progress < self.config.ssim_part
        if self.config.residual:
            parts = self._residual_step(batch, rng, by_ssim=by_ssim, twice=step % MS_EVERY == 0)
        else:
            parts = self._step(batch, by_ssim=by_ssim)
        return {name: value.detach() for name, value in parts.items()}

    def _step(self, batch: Batch, *, by_ssim: bool) -> dict[str, Tensor]:
        config, p, n = self.config, batch.x, batch.x_ref
        self.networks.train_only("G_n2p", "G_p2n")
        with mixed_precision(self.device):
            made_n = self.G_p2n(p)[0].float()
            made_p, kept_p = self.G_n2p(torch.cat([n, p]))[0].float().chunk(2)
            cycled_p, cycled_n = self.G_n2p(made_n)[0].float(), self.G_p2n(made_p)[0].float()
            fake_p, fake_n = (
                self.networks.modules[name](made).float() for name, made in (("D_p", made_p), ("D_n", made_n))
            )
        parts = {
            "gan": gan_g_loss(fake_p, fake_n),
            "cycle": difference_loss(p, cycled_p, by_ssim=by_ssim) + difference_loss(n, cycled_n, by_ssim=by_ssim),
            "identity": difference_loss(p, kept_p, by_ssim=by_ssim),
        }
        total = parts["gan"] + config.lambda_cycle * parts["cycle"] + config.lambda_identity * parts["identity"]
        total.backward()
        self.networks.step("G_n2p", "G_p2n")

        self.networks.train_only("D_p", "D_n")
        for name, real, made in (("D_p", p, made_p), ("D_n", n, made_n)):
            with mixed_precision(self.device):
                scores = self.networks.modules[name](torch.cat([real, made.detach()])).float()
            parts[name] = gan_d_loss(*scores.chunk(2))
            parts[name].backward()
            self.networks.step(name)
        return parts

    def _residual_step(self, batch: Batch, rng: torch.Generator, *, by_ssim: bool, twice: bool) -> dict[str, Tensor]:
        config, p, n, n_p, paired, count = self.config, batch.x, batch.x_ref, batch.x_twin, batch.paired, len(batch.x)
        assert batch.a is not None
        assert batch.a_ref is not None
        assert n_p is not None
        assert paired is not None
        a, a_n = batch.a[:, :1], batch.a_ref[:, :1]
        looks = 2 if twice else 1
        z = torch.randn((looks + 1) * count, config.z_dim, generator=rng).to(self.device)
        tones = None
        if config.tones and batch.tones is not None and batch.tones_ref is not None:
            tones = torch.cat([batch.tones] * looks + [batch.tones_ref])
        control = self._control(torch.cat([a] * looks + [a_n]), z, tones)
        # Grain from elsewhere is never that of the real image: if the two were compared, G would keep that of x.
        grain = torch.ones(len(control), 1, 1, 1, device=self.device)
        grain[-count:] = 0
        with mixed_precision(self.device):
            *new, again = self.G_p2n(torch.cat([p] * looks + [n_p]), control, grain)[0].chunk(looks + 1)
            made_n = new[0]
            back, m = self.G_n2p(torch.cat([n, p, made_n]))
            made_p, kept_p, cycled_p = back.chunk(3)
            cycled_n, _ = self.G_p2n(made_p, control[-count:], grain[-count:])
        assert m is not None
        m_n, m_p, m_made = m.chunk(3)
        with mixed_precision(self.device):
            views = [Augmentation.draw(count, rng, self.device) for _ in range(4)]
            seen = self.D.see(torch.cat([views[0].apply(made_p), views[1].apply(made_n)]))
            with torch.no_grad():
                real = self.D.see(torch.cat([views[2].apply(p), views[3].apply(n)]))
        kinds = torch.eye(2, device=self.device).repeat_interleave(count, dim=0)  # of p, then of n
        with mixed_precision(self.device):
            logits = self.D.logits([torch.cat([each, made.detach()]) for each, made in zip(real, seen, strict=True)])
            asked = torch.cat([kinds, kinds]), torch.cat([kinds.flip(0), kinds])
            (score_real, score_made), (score_other, _) = (choose(logits, each).float().chunk(2) for each in asked)
        parts = {"D": hinge_d(score_real, torch.cat([score_made, score_other[count:]]))}
        parts["D"].backward()
        self.networks.step("D")

        self.networks.train_only("G_n2p", "G_p2n")
        with mixed_precision(self.device):
            fooled = self.D.judge(seen, kinds).float()
        self.networks.train_only(*self.networks.optimizers)
        inside = soft(a_n)
        free = (1 - paired).view(-1, 1, 1, 1)  # without masks, changes are to be small
        parts |= {
            "gan": hinge_g(fooled),
            "cycle": difference_loss(p, cycled_p, by_ssim=by_ssim) + difference_loss(n, cycled_n, by_ssim=by_ssim),
            "identity": difference_loss(p, kept_p, by_ssim=by_ssim)
            + F.l1_loss(made_p * free, n * free)
            + F.l1_loss(made_n * free, p * free),
            "pair": pair_loss(again, n, inside, paired) + pair_loss(made_p, n_p, inside, paired),
            "map": map_loss(m_n, a_n, paired) + map_loss(m_made, a, paired) + (paired.view(-1, 1, 1, 1) * m_p).mean(),
        }
        weights = {
            "gan": 1.0, "cycle": config.lambda_cycle, "identity": config.lambda_identity, "pair": config.lambda_pair,
            "map": config.lambda_map,
        }  # fmt: skip
        if tones is not None:
            parts["tone"] = tone_loss(made_n, p, a, tones[:count]) + tone_loss(again, n_p, a_n, tones[-count:])
            weights["tone"] = config.lambda_tone
        if twice:
            parts["ms"] = ms_loss(new[0], new[1], z[:count], z[count : 2 * count], soft(a))
            weights["ms"] = MS_EVERY * config.lambda_ms
        weighted_sum(parts, weights).backward()
        self.networks.step("G_n2p", "G_p2n")
        return parts

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Add defects to normals by G_p2n, with `residual` inside the control map `request.a`, or everywhere."""
        x = request.x
        if not self.config.residual:
            return Generated(self.G_p2n(x)[0])
        a = torch.ones_like(x[:, :1]) if request.a is None else request.a[:, :1]
        z = torch.stack([torch.randn(self.config.z_dim, generator=rng) for rng in request.rngs]).to(self.device)
        made, m = self.G_p2n(x, self._control(a, z, request.tones))
        return Generated(made.clamp(-1, 1), None if request.a is None else m)

    @torch.no_grad()
    def repair(self, x: Tensor) -> Tensor:
        """Remove the defects from windows x, [B, channels, H, W], by G_n2p."""
        return self.G_n2p(x)[0].clamp(-1, 1)

    def restore(self, x: Tensor, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """As `repair`: all defects are of one domain, and nothing is random."""
        del y, rngs
        return self.repair(x)

    def _control(self, a: Tensor, z: Tensor, tones: Tensor | None) -> Tensor:
        """What G_p2n paints: a mask a, [B, 1, H, W], then z, [B, z_dim], inside it, and the tones, [B, 1, H, W]."""
        maps = [a, a * z[:, :, None, None]]
        if self.config.tones:
            maps.append(torch.zeros_like(a) if tones is None else tones)
        return torch.cat(maps, dim=1)
