"""DFMGAN: few-shot defects, made by changing the features of a StyleGAN2 that was trained on normals.

    Yuxuan Duan, Yan Hong, Li Niu, Liqing Zhang: Few-Shot Defect Image Generation via Defect-Aware Feature
    Manipulation. AAAI 2023. Sections, equations and figures below are the paper's. The backbone and the losses are
    those of StyleGAN2 ("S2") and StyleGAN2-ADA ("ADA"); see `defectgen.nn.stylegan2`.

Symbols: z_object and z_defect are random codes, which two mapping networks map to w_object and w_defect; F the feature
maps of the backbone's synthesis blocks S and of the defect-aware residual blocks R; M the mask, with a defect where it
is 0 or more. Stage 1 trains the backbone on normals. Stage 2 freezes it and trains R, ToMask and the defect mapping
network on defects.

`paper` is as printed; the supplement was not available. There, as in the paper, a model should have one category; the
path length regularization of stage 2 (part of L_StyleGAN, equation 3) is by w_defect, since the rest is frozen.

Additions, which the preset `paper` does not use:
    - One model may hold several categories: the defect mapping network and the discriminators take the category. Those
      with few examples learn from the others, and all share one backbone.
    - `by_category`: each category has windows of a scale of its own. The backbone makes normals at any of them: it
      takes the scale, and D judges them by the category whose scale they have.
    - `projected`: D_match looks at frozen features (`nn.projected`) of a picture of the pair, without R1. D does not:
      from scratch, with small batches, a projected D wins against the backbone at once.
    - `prior` "bank": half of stage 2's images, and all that are synthesized, have the mask of a real defect, warped, in
      place of ToMask's. From five masks, ToMask learns no thin ones. With `tones`, these come with how much darker or
      brighter than its ground the real defect is, warped as they are: R sees both, the image begins with just this
      (`nn.tones`), and what R makes of it has to have these tones, too. What an image differs by from the same one
      without a defect can be painted on a window of a real normal.
    - Without `defect_noise`, the residual blocks make no noise of their own: it made defects dotted and woven.
    - `match_logistic`, `mismatched`, `lambda_area`, `hard_masks` and `anneal`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from defectgen import ranks
from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks, flatten, unflatten
from defectgen.nn.augment import Augmentation
from defectgen.nn.layers import Noise, draw_seed, join, mixed_precision
from defectgen.nn.paired import Hues, soft
from defectgen.nn.penalties import adversarial, r1
from defectgen.nn.projected import ProjectedDiscriminator, hinge_d, hinge_g, projected_slots
from defectgen.nn.slots import Slots
from defectgen.nn.stylegan2 import (
    Augment,
    Backbone,
    Discriminator,
    MappingNetwork,
    SynthesisBlock,
    ToImage,
    adapted,
    path_length,
    upsample,
)
from defectgen.nn.tones import brightness, change_of, hidden_by, painted, tone_loss


class DFMGANConfig(MethodConfig):
    """StyleGAN2-ADA's settings for 256 pixels, which the paper adopts."""

    sizes: ClassVar[tuple[int, ...]] = (64, 128, 256)

    image_size: int = Field(256, description="side of the window, in pixels: 64, 128 or 256")
    batch_size: int = Field(32, ge=2)
    first_residual: int = Field(64, ge=8, description="side of the first residual block's features, and of M")
    steps: int = Field(40_000, ge=2, description="steps of both stages together")
    backbone_steps: int = Field(30_000, ge=1, description="steps of stage 1, on normals")
    width: int = Field(64, ge=4, description="channels at the finest resolution; doubled at each coarser one")
    max_width: int = Field(512, ge=4, description="upper limit of the channels")
    match_width: int = Field(
        16, ge=4, description="`width` of D_match; its `max_width` is a quarter of D's, at least 64"
    )
    z_dim: int = Field(512, ge=1, description="length of z_object and z_defect")
    w_dim: int = Field(512, ge=1, description="length of w_object and w_defect")
    mapping_layers: int = Field(2, ge=1, description="layers of each mapping network (ADA; 8 in S2)")
    style_mixing: float = Field(0.9, ge=0, le=1, description="fraction of the images made from two w_object")
    lr: float = Field(2.5e-3, gt=0, description="learning rate")
    anneal: bool = Field(False, description="the learning rate falls to 0 over the second half of each stage")
    r1_gamma: float = Field(1.0, ge=0, description="weight of R1, for both discriminators")
    r1_every: int = Field(16, ge=1, description="steps between R1 penalties")
    pl_weight: float = Field(2.0, ge=0, description="weight of the path length regularization")
    pl_every: int = Field(4, ge=1, description="steps between path length regularizations")
    ada_target: float = Field(0.6, ge=0, le=1, description="target of the mean sign of D's outputs for real images")
    ada_images: int = Field(500_000, ge=1, description="images over which the augmentation's strength may rise by 1")
    ada_defects: int = Field(100_000, ge=1, description="the same in stage 2, which starts without augmentation")
    turns: bool = Field(True, description="augmentation by any angle, which blurs fine texture")
    projected: bool = Field(False, description="D_match looks at frozen features; see the top of the file")
    by_category: bool = Field(False, description="each category has a scale of its own; see the top of the file")
    prior: Literal["latent", "bank"] = Field(
        "latent", description='where masks come from: "latent", ToMask, or "bank", real masks, warped; see the top'
    )
    tones: bool = Field(False, description='masks tell how dark and bright defects are, with the prior "bank"')
    lambda_tone: float = Field(10.0, ge=0, description="weight of the differences from the tones, with `tones`")
    hard_masks: bool = Field(
        False, description="D_match sees masks of -1 and 1, as real ones, with the gradient of tanh"
    )
    defect_noise: bool = Field(True, description="noise in the residual blocks, as in the backbone's")
    lambda_ms: float = Field(0.1, ge=0, description="weight of equation 2")
    lambda_match: float = Field(1.0, ge=0, description="weight of D_match's loss for the generator")
    match_logistic: bool = Field(False, description="train D_match with the logistic loss, not the Wasserstein loss")
    mismatched: float = Field(0.0, ge=0, description="weight of real images with masks of others, as fakes of D_match")
    lambda_area: float = Field(
        0.0, ge=0, description="weight of the difference between the areas of generated and real masks"
    )

    @property
    def has_own_scales(self) -> bool:
        return self.by_category

    @property
    def paints_masks(self) -> bool:
        return self.prior == "bank"

    def extras(self, step: int, progress: float) -> tuple[bool, ...]:
        del progress
        return step < self.backbone_steps, step % self.pl_every == 0, step % self.r1_every == 0

    @model_validator(mode="after")
    def _has_the_first_residual(self) -> "DFMGANConfig":
        if self.first_residual > self.image_size or self.first_residual & (self.first_residual - 1):
            raise ValueError(f"first_residual={self.first_residual} must be a power of 2, up to {self.image_size}")
        return self


_SCALE_CODE = 2  # values that tell the backbone the scale
_ASKED = 0.5  # of the images of stage 2, with the prior "bank"
_MEAN_OF = 256  # codes of which truncation takes the mean
_LR_MATCH = 2e-4  # learning rate of a projected D_match


# --- Generator -------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """The backbone, and what stage 2 adds to it: residual blocks, ToMask, the defect mapping network (Figure 2)."""

    def __init__(
        self, config: DFMGANConfig, channels: int, categories: int, hues: Sequence[Sequence[float]] = ()
    ) -> None:
        super().__init__()
        self.hues = Hues(hues)
        self.backbone = Backbone(
            config.image_size, channels, config.width, config.max_width, config.z_dim, config.w_dim,
            config.mapping_layers, _SCALE_CODE * config.by_category,
        )  # fmt: skip
        widths, self.start = self.backbone.widths, config.first_residual
        self.mapping = MappingNetwork(config.z_dim, config.w_dim, config.mapping_layers, categories)
        self.tones = config.paints_masks and config.tones
        told = 2 * self.tones  # a mask that is asked for, and its tones
        self.residual = nn.ModuleDict(
            {
                str(b): SynthesisBlock(widths[a] + told, widths[b], config.w_dim, noisy=config.defect_noise)
                for a, b in pairwise(self.backbone.sides)
                if b >= self.start
            }
        )
        self.to_mask = ToImage(widths[self.start], 1, config.w_dim)
        if config.lambda_area:  # recovers masks that have become empty
            nn.init.constant_(self.to_mask.bias, -1.0)  # so masks start small

    def forward(
        self,
        ws: Tensor,
        noise: Noise,
        w_defect: Tensor | None = None,
        noise_defect: Noise | None = None,
        *,
        asked: Tensor | None = None,
        tones: Tensor | None = None,
        mask_alone: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Make the image, [B, channels, S, S], and, with w_defect, M at the first residual block's resolution.

        Args:
            ws: [B, styles, w_dim], w_object for each convolution.
            w_defect: [B, w_dim].
            asked: [B, 1, S, S], masks to use in place of M where they are not empty.
            tones: [B, 1, S, S] in [-1, 1], theirs, which `toned` has to paint.
            mask_alone: stop as soon as M is computed; the image is then incomplete.
        """
        g = self.backbone
        x = g.first(g.const.expand(len(ws), -1, -1, -1), ws[:, 0], noise)
        image: Tensor = g.to_rgb["4"](x, ws[:, 1])
        m: Tensor | None = None
        told = self._told(ws, asked, tones)
        for i, side in enumerate(g.sides[1:], start=1):
            f_object = g.blocks[str(side)](x, ws[:, 2 * i - 1], ws[:, 2 * i], noise)
            if w_defect is not None and side >= self.start:
                assert noise_defect is not None
                seen = x if told is None else join(x, F.adaptive_avg_pool2d(told, x.shape[2:]).to(x.dtype))
                f_defect = self.residual[str(side)](seen, w_defect, w_defect, noise_defect)
                if m is None:
                    m = self.to_mask(f_defect, w_defect)
                    if mask_alone:
                        return image, m
                f_object = manipulated(f_object, f_defect, m, asked)
            x = f_object
            image = upsample(image) + g.to_rgb[str(side)](x, ws[:, 2 * i + 1])
        return image, m

    def _told(self, ws: Tensor, asked: Tensor | None, tones: Tensor | None) -> Tensor | None:
        """What R sees beside the features, [B, 2, S, S]: masks that are asked for, and their tones."""
        if not self.tones:
            return None
        if asked is None:
            return ws.new_zeros(len(ws), 2, *2 * self.backbone.sides[-1:])
        return torch.cat([asked, torch.zeros_like(asked) if tones is None else tones], dim=1)


def manipulated(f_object: Tensor, f_defect: Tensor, m: Tensor, asked: Tensor | None = None) -> Tensor:
    """Equation 1: add the defect's features where the mask, resized to their resolution, is 0 or more.

    Inside a mask that is asked for they are added with a soft rim, as real defects have one: by a hard one, D_match
    would recognize generated pairs.
    """
    here = (F.interpolate(m, size=f_object.shape[2:], mode="bilinear", align_corners=False) >= 0).to(f_object.dtype)
    if asked is not None:
        soft = F.avg_pool2d(F.adaptive_avg_pool2d(asked, f_object.shape[2]), 3, stride=1, padding=1)
        here = torch.where(is_asked(asked), soft.to(here.dtype), here)
    return f_object + here * f_defect


def toned(image: Tensor, normal: Tensor, asked: Tensor, tones: Tensor) -> Tensor:
    """An image, [B, channels, S, S], and what the tones of its masks, [B, 1, S, S], change in it without a defect."""
    changed = painted(normal, change_of(tones), torch.zeros_like(tones), hidden_by(tones, asked))
    return image + soft(asked) * (changed - normal)


def tiled(paint: Callable[..., Tensor], side: int, asked: Tensor, tones: Tensor | None) -> Tensor:
    """What `paint` makes of maps of `side` pixels, for larger ones, [B, 1, S, S]: tiles that fade into each other."""
    size = asked.shape[-1]
    if size <= side:
        return paint(asked, tones)
    at = torch.arange(side, device=asked.device)
    ramp = (torch.minimum(at, at.flip(0)) + 1).float()
    weight, total, weights = torch.outer(ramp, ramp), torch.zeros_like(asked), torch.zeros_like(asked)
    starts = [*range(0, size - side, side * 3 // 4), size - side]
    for top, left in ((top, left) for top in starts for left in starts):
        here = (..., slice(top, top + side), slice(left, left + side))
        if asked[here].any():
            made = paint(asked[here], None if tones is None else tones[here]) * is_asked(asked[here])
            total = total + F.pad(weight * made, (left, size - side - left, top, size - side - top))
        weights[here] += weight
    return total / weights


def is_asked(asked: Tensor) -> Tensor:
    """Which of the masks [B, 1, S, S] are not empty, [B, 1, 1, 1]."""
    return asked.flatten(1).any(dim=1).view(-1, 1, 1, 1)


# --- Losses ----------------------------------------------------------------------------------------------------


def mode_seeking_loss(w1: Tensor, w2: Tensor, m1: Tensor, m2: Tensor) -> Tensor:
    """Equation 2: small if different codes make different masks."""
    return (w1 - w2).abs().mean() / ((m1 - m2).abs().mean() + 1e-5)


def mask_statistics(here: Tensor) -> dict[str, Tensor]:
    """Fractions over masks [B, 1, H, W]: defect pixels, empty masks, and those of the defect pixels near the border.

    Near the border means in the outer sixteenth on each side. About a quarter of the pixels are there, so a fraction of
    a quarter is normal.
    """
    rim, pixels = max(here.shape[-1] // 16, 1), here.float()
    inside = pixels[..., rim:-rim, rim:-rim].sum()
    return {
        "masked": pixels.mean(),
        "empty": (~here.flatten(1).any(dim=1)).float().mean(),
        "rim": 1 - inside / pixels.sum().clamp(min=1),
    }


def area_loss(mask: Tensor, real: Tensor, y: Tensor) -> Tensor:
    """Not in the paper: the mean difference between the sorted areas of masks and real masks, over the mean real area.

    Within each category of y, [B]: otherwise areas of one could serve for another. No other loss recovers masks that
    have become empty or cover everything.
    """
    areas, of_real = (((each + 1) / 2).mean(dim=(1, 2, 3)) for each in (mask, real))
    parts = []
    for category in y.unique():
        mine, theirs = (each[y == category].sort().values for each in (areas, of_real))
        parts.append((mine - theirs).abs() / theirs.mean().clamp(min=1e-3))
    return torch.cat(parts).mean()


def scale_code(scales: Tensor) -> Tensor:
    """Scales [B] as points on a circle, [B, 2]: a sixteenth of it for each halving."""
    angle = scales.log2() * (torch.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


# --- Method ----------------------------------------------------------------------------------------------------


class _Defective(NamedTuple):
    """Images with defects, their M and w_defect, and a function that makes another w_defect and M of them.

    `normal` is what the images are without a defect, if tones are told.
    """

    image: Tensor
    m: Tensor
    w: Tensor
    normal: Tensor | None
    remake: Callable[[], tuple[Tensor, Tensor]]


_LEARNS: Mapping[str, Any] = {
    "projected": True, "by_category": True, "hard_masks": True, "anneal": True, "turns": False, "pl_every": 8,
    "mismatched": 0.5, "lambda_area": 2.0, "lambda_match": 0.3, "exposure": True, "prior": "bank", "tones": True,
    "defect_noise": False,
}  # fmt: skip
"""What makes the smaller presets learn in minutes."""


class DFMGAN:
    """The method DFMGAN; see `defectgen.methods.base.Method`. Stage 1 ends at step `backbone_steps`."""

    Config: ClassVar[type[MethodConfig]] = DFMGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"whole": True},
        "compact": {
            "image_size": 128, "batch_size": 16, "width": 32, "max_width": 256, "z_dim": 256, "w_dim": 256,
            "steps": 15_000, "backbone_steps": 10_000, "ada_images": 50_000, "r1_gamma": 0.2, **_LEARNS,
        },
        "tiny": {
            "image_size": 64, "first_residual": 16, "batch_size": 8, "width": 16, "max_width": 64,
            "z_dim": 64, "w_dim": 64, "steps": 3_000, "backbone_steps": 2_000, "ada_images": 10_000, "r1_gamma": 0.1,
            "ema": 0.995, **_LEARNS,
        },
    }  # fmt: skip
    slots: ClassVar[Sequence[Slots]] = (
        Slots(r"G\.mapping\.embed\.weight", "categories", axis=1, equalized=True),
        Slots(r"D(?:_match)?\.embed\.weight", "domains", axis=1, equalized=True),
        Slots(r"D(?:_match)?\.from_rgb\.weight", "inputs", axis=1, where="start", equalized=True),
        *projected_slots("D_match", "domains"),
        Slots(r"G\.backbone\.to_rgb\.\d+\.(?:weight|bias)", "outputs"),
    )

    def __init__(self, config: DFMGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        domains = len(task.domains)
        self.G = Generator(config, task.channels, domains - 1, task.hues)
        size, most = config.image_size, config.max_width
        self.D = Discriminator(size, task.channels, domains, config.width, most)
        # D_match takes pairs: the mask is one more channel of the image.
        self.D_match: nn.Module = (
            ProjectedDiscriminator(domains, device)
            if config.projected
            else Discriminator(size, task.channels + 1, domains, config.match_width, min(max(most // 4, 64), most))
        )
        self.statistics = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(()), requires_grad=False) for name in ("p", "pl_mean", "pl_mean_defect")}
        )
        modules: dict[str, nn.Module] = {
            "G": self.G, "D": self.D, "D_match": self.D_match, "statistics": self.statistics,
        }  # fmt: skip
        trained = {"backbone": self.G.backbone, "defects": self._defect_modules(), "D": self.D, "D_match": self.D_match}
        self._scales = torch.ones(len(task.products), domains, device=device)
        if config.by_category:
            for i, product in enumerate(task.products):
                for k, category in enumerate(task.domains[1:], start=1):
                    self._scales[i, k] = task.scales.get(product, {}).get(category, 1.0)
        optimizers = {
            name: torch.optim.Adam(
                module.learned() if isinstance(module, ProjectedDiscriminator) else module.parameters(),
                lr=_LR_MATCH if isinstance(module, ProjectedDiscriminator) else config.lr,
                betas=(0.0, 0.99),
            )
            for name, module in trained.items()
        }
        self.networks = Networks(modules, optimizers, averaged=("G",), device=device)

    def _defect_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.G.mapping, self.G.residual, self.G.to_mask])

    @property
    def backbone_steps(self) -> int:
        return self.config.backbone_steps

    def backbone(self) -> dict[str, Tensor]:
        return {**flatten("G.backbone", self.G.backbone), **flatten("D", self.D), **flatten("s", self.statistics)}

    def take_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Also takes that of a model with other categories, of which D then knows what all had in common."""
        own, fresh = dict(unflatten("D", tensors)), self.D.state_dict()
        for key, value in own.items():
            if value.shape == fresh[key].shape:
                continue
            count = fresh[key].shape[1] - 1  # of the categories, in `embed.weight`
            own[key] = torch.cat([value[:, :1], value[:, 1:].mean(dim=1, keepdim=True).expand(-1, count)], dim=1)
        self.G.backbone.load_state_dict(unflatten("G.backbone", tensors))
        self.D.load_state_dict(own)
        self.statistics.load_state_dict(unflatten("s", tensors))

    @torch.no_grad()
    def _carry_over(self) -> None:
        """Begin stage 2: D judges defects as it judged normals, and the augmentation starts anew (as the authors')."""
        self.statistics["p"].zero_()
        if not self.config.by_category:
            weight = self.D.embed.weight
            weight[:, 1:] = weight[:, :1]

    def lr(self, progress: float) -> float:
        """The learning rate. With `anneal`, it is constant, then falls to 0 over the second half of its stage."""
        if not self.config.anneal:
            return self.config.lr
        first = self.config.backbone_steps / self.config.steps
        done = progress / first if progress < first else (progress - first) / max(1 - first, 1e-9)
        return self.config.lr * min(1.0, 2 * (1 - done))

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Stage 1 trains on `batch.x`, stage 2 on `batch.x_ref` with the masks `batch.a_ref`."""
        self.networks.begin(self.lr(progress))
        if self.config.projected:
            for group in self.networks.optimizers["D_match"].param_groups:
                group["lr"] = _LR_MATCH * self.lr(progress) / self.config.lr
        if step == self.config.backbone_steps:
            self._carry_over()
        stage = self._stage_1 if step < self.config.backbone_steps else self._stage_2
        return {name: value.detach() for name, value in stage(batch, step, rng).items()}

    def _z(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, self.config.z_dim, generator=rng).to(self.device)

    def _noise(self, rng: torch.Generator) -> Noise:
        return Noise.seeded(draw_seed(rng), self.device)

    def _code(self, p: Tensor, y: Tensor) -> Tensor | None:
        """What the backbone takes: the scale of each row's product and category."""
        return scale_code(self._scales[p, y]) if self.config.by_category else None

    def _ws(self, code: Tensor | None, count: int, rng: torch.Generator) -> Tensor:
        """w_object for each convolution. Style mixing takes another one for later layers (S2, Karras et al. 2019)."""
        g = self.G.backbone
        ws = g.broadcast(g.mapping(self._z(count, rng), code))
        other = g.broadcast(g.mapping(self._z(count, rng), code))
        cut = torch.randint(1, g.styles, (count, 1, 1), generator=rng)
        cut = torch.where(torch.rand(count, 1, 1, generator=rng) < self.config.style_mixing, cut, g.styles)
        return torch.where(torch.arange(g.styles)[None, :, None].to(self.device) < cut.to(self.device), ws, other)

    def _stage_1(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        config, x, count = self.config, batch.x, len(batch.x)
        c = F.one_hot(batch.y_ref if config.by_category else batch.y, len(self.task.domains)).float()
        code = self._code(batch.p_ref, batch.y_ref)
        self.networks.train_only("backbone")
        with mixed_precision(self.device):
            made, _ = self.G(self._ws(code, count, rng), self._noise(rng))
            score = self.D(self._augment(count, rng).image(made.float()), c)
        parts = {"g": adversarial(score.float(), real=True)}
        parts["g"].backward()
        if config.pl_weight and step % config.pl_every == 0:
            half = max(count // 2, 1)
            ws = self._ws(None if code is None else code[:half], half, rng)
            images, _ = self.G(ws, self._noise(rng))
            parts["pl"] = self._path_length(images, ws, "pl_mean", rng)
        self.networks.step("backbone")

        self.networks.train_only("D")
        with torch.no_grad(), mixed_precision(self.device):
            made, _ = self.G(self._ws(code, count, rng), self._noise(rng))
        real, fake = self._augment(count, rng).image(x), self._augment(count, rng).image(made.float())
        return parts | self._update_d(real, fake, c, step, config.ada_images)

    def _path_length(self, images: Tensor, ws: Tensor, name: str, rng: torch.Generator) -> Tensor:
        """Add the gradients of the path length regularization (S2, equation 4), and return it."""
        lengths = path_length(images, ws, torch.randn(images.shape, generator=rng).to(self.device))
        mean = self.statistics[name]
        mean.copy_(torch.lerp(mean, ranks.mean(lengths.detach().mean()), 0.01))
        loss = (lengths - mean).square().mean()
        (loss * self.config.pl_weight * self.config.pl_every).backward()
        return loss

    def _matched(
        self,
        network: ProjectedDiscriminator,
        pairs: Sequence[tuple[Tensor, Tensor]],
        c: Tensor,
        rng: torch.Generator,
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """With `projected`: the generator's loss for pairs, and a function that updates D_match.

        Args:
            pairs: images and masks: real, generated, and real with masks of others.
        """

        def picture(x: Tensor, mask: Tensor) -> Tensor:
            """Brightness twice, and the mask in place of a color; augmented, since D_match sees few."""
            augment = Augmentation.draw(len(x), rng, self.device)
            gray = augment.apply(x.mean(dim=1, keepdim=True))
            return torch.cat([gray, gray, augment.moved(mask)], dim=1)

        real, fake, wrong = (picture(*pair) for pair in pairs)
        with mixed_precision(self.device):
            with torch.no_grad():
                of_real, of_wrong = network.see(real), network.see(wrong)
            of_fake = network.see(fake)
            fooled = network.judge(of_fake, c)

        def update() -> Tensor:
            with mixed_precision(self.device):
                on_real, on_wrong = network.judge(of_real, c).float(), network.judge(of_wrong, c).float()
                on_fake = network.judge([each.detach() for each in of_fake], c).float()
            loss = hinge_d(on_real, on_fake) + self.config.mismatched * F.relu(1 + on_wrong).mean(dim=0).sum()
            loss.backward()
            self.networks.step("D_match")
            return loss

        return hinge_g(fooled.float()), update

    def _stage_2(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        config, x, count = self.config, batch.x_ref, len(batch.x_ref)
        assert batch.a_ref is not None
        real_mask = batch.a_ref.amax(dim=1, keepdim=True) * 2 - 1
        c = F.one_hot(batch.y_ref, len(self.task.domains)).float()
        code = self._code(batch.p_ref, batch.y_ref)
        # Not in the paper: D_match learns what a matching pair is, not how fakes look (Reed et al. 2016).
        wrong = real_mask.roll(1, dims=0)
        self.networks.train_only("defects")
        augment = self._augment(count, rng)
        asked = tones = None
        if batch.a is not None:
            asked = batch.a.amax(dim=1, keepdim=True)
            asked[round(_ASKED * count) :] = 0
            tones = None if batch.tones is None or not config.tones else batch.tones * is_asked(asked)
        with mixed_precision(self.device):
            defective = self._defective(c, code, rng, asked, tones)
            made, m, w_defect, normal = defective[:4]
            w_other, m_other = defective.remake()
        mask = self._binarize(m.float(), asked)
        update_match: Callable[[], Tensor] | None = None
        with mixed_precision(self.device):
            image = augment.image(made.float())
            g = adversarial(self.D(image, c).float(), real=True)
        if isinstance(self.D_match, ProjectedDiscriminator):
            pairs = ((x, real_mask), (made.float(), mask), (x, wrong))
            match_g, update_match = self._matched(self.D_match, pairs, c, rng)
        else:
            with mixed_precision(self.device):
                match = self.D_match(torch.cat([image, augment.geometry(mask)], dim=1), c)
            match_g = self._match(match.float(), real=True)
        parts = {
            "g": g,
            "match_g": match_g,
            "ms": mode_seeking_loss(w_defect.float(), w_other.float(), m.float(), m_other.float()),
            "area": area_loss(self._binarize(m.float()), real_mask, batch.y_ref),
        }
        total = parts["g"] + config.lambda_match * parts["match_g"]
        total = total + config.lambda_ms * parts["ms"] + config.lambda_area * parts["area"]
        if asked is not None and tones is not None and normal is not None:
            parts["tone"] = tone_loss(made.float(), normal, asked, tones)
            total = total + config.lambda_tone * parts["tone"]
        total.backward()
        if config.pl_weight and step % config.pl_every == 0:
            half = max(count // 2, 1)
            defective = self._defective(c[:half], None if code is None else code[:half], rng)
            parts["pl"] = self._path_length(defective.image, defective.w, "pl_mean_defect", rng)
        self.networks.step("defects")
        parts |= mask_statistics(m.detach() >= 0)

        self.networks.train_only("D", "D_match")
        with torch.no_grad(), mixed_precision(self.device):
            made, m, *_ = self._defective(c, code, rng, asked, tones)
        mask, augments = self._binarize(m.float(), asked), (self._augment(count, rng), self._augment(count, rng))
        real, fake = augments[0].image(x), augments[1].image(made.float())
        parts |= self._update_d(real, fake, c, step, config.ada_defects)
        if update_match is not None:
            return parts | {"match_d": update_match()}
        marked, of_real = augments[1].geometry(mask), augments[0].geometry(real_mask)
        wrong = torch.cat([real, augments[0].geometry(wrong)], dim=1)
        on_pairs = [(torch.cat([fake, marked], dim=1), 1.0), (wrong, config.mismatched)]
        _, match_d, _ = self._update("D_match", torch.cat([real, of_real], dim=1), on_pairs, c, step)
        return parts | {"match_d": match_d}

    def _augment(self, count: int, rng: torch.Generator) -> Augment:
        return Augment(count, float(self.statistics["p"]), rng, self.device, turns=self.config.turns)

    def _update_d(self, real: Tensor, fake: Tensor, c: Tensor, step: int, images: int) -> dict[str, Tensor]:
        """Update D on augmented images, then adapt the augmentation's strength."""
        config, p = self.config, self.statistics["p"]
        on_real, d, penalty = self._update("D", real, [(fake, 1.0)], c, step)
        signs = float(ranks.mean(on_real.sign().mean()))
        p.fill_(adapted(float(p), signs, config.ada_target, len(real) * ranks.count(), images))
        return {"d": d, "p": p.clone(), **({} if penalty is None else {"r1": penalty})}

    def _update(
        self, name: Literal["D", "D_match"], real: Tensor, fakes: list[tuple[Tensor, float]], c: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Update D or D_match on real inputs and weighted fakes, with R1 at every `r1_every`-th step.

        Returns the scores of the real inputs, the loss without R1, and R1 (None if not computed).
        """
        network, loss = (self.D, adversarial) if name == "D" else (self.D_match, self._match)
        penalized = step % self.config.r1_every == 0
        real = real.detach().requires_grad_(penalized)
        with nullcontext() if penalized else mixed_precision(self.device):
            on_real = network(real, c).float()
        with mixed_precision(self.device):
            on_fakes = [(network(fake, c).float(), weight) for fake, weight in fakes if weight]
        total = value = loss(on_real, real=True) + sum(
            weight * loss(on_fake, real=False) for on_fake, weight in on_fakes
        )
        penalty = None
        if penalized:
            penalty = r1(on_real, real)
            total = total + self.config.r1_gamma * self.config.r1_every * penalty
        total.backward()
        self.networks.step(name)
        return on_real.detach(), value, penalty

    def _match(self, scores: Tensor, *, real: bool) -> Tensor:
        """The loss of D_match's scores for pairs that count as real, or as fake.

        The paper uses the Wasserstein loss, which is unbounded: on few examples D_match diverged, and the generator
        with it. The authors' code uses the logistic loss.
        """
        if self.config.match_logistic:
            return adversarial(scores, real=real)
        return -scores.mean() if real else scores.mean()

    def _defective(
        self,
        c: Tensor,
        code: Tensor | None,
        rng: torch.Generator,
        asked: Tensor | None = None,
        tones: Tensor | None = None,
    ) -> _Defective:
        """Images with defects of domains c."""
        with torch.no_grad():
            ws = self._ws(code, len(c), rng)
        seeds = torch.randint(2**62, (2,), generator=rng).tolist()
        normal: Tensor | None = None
        if tones is not None:
            with torch.no_grad():
                normal = self.G(ws, Noise.seeded(seeds[0], self.device))[0].float()

        def make(*, mask_alone: bool) -> tuple[Tensor, Tensor, Tensor]:
            w = self.G.mapping(self._z(len(c), rng), c[:, 1:])
            noise, noise_defect = (Noise.seeded(seed, self.device) for seed in seeds)
            image, m = self.G(ws, noise, w, noise_defect, asked=asked, tones=tones, mask_alone=mask_alone)
            assert m is not None
            if normal is not None and asked is not None and tones is not None and not mask_alone:
                image = toned(normal + self.G.hues(image.float() - normal), normal, asked, tones)
            return image, m, w

        def remake() -> tuple[Tensor, Tensor]:
            _, m, w = make(mask_alone=True)
            return w, m

        return _Defective(*make(mask_alone=False), normal, remake)

    def _binarize(self, m: Tensor, asked: Tensor | None = None) -> Tensor:
        """M, or the mask asked for, as D_match's input. With `hard_masks`, -1 or 1, with the gradient of tanh.

        D_match would recognize generated pairs by soft masks alone, and learn nothing else.
        """
        size = (self.config.image_size,) * 2
        m = F.interpolate(m, size=size, mode="bilinear", align_corners=False)
        soft = m.tanh()
        if self.config.hard_masks:
            soft = soft + (torch.where(m >= 0, 1.0, -1.0) - soft).detach()
        return soft if asked is None else torch.where(is_asked(asked), asked * 2 - 1, soft)

    def diagnose(self, losses: Mapping[str, float]) -> str | None:
        """Detect two failures that users of the public code report: masks that stay empty, or lie along the border."""
        if losses.get("empty", 0.0) > 0.5:
            if losses["match_g"] > 3:
                weight = self.config.lambda_match / 5
                return f"most masks are empty: D_match suppresses defects; try --set lambda_match={weight:g}"
            return f"most masks are empty; try --set lambda_area={max(2 * self.config.lambda_area, 2):g}"
        if losses.get("rim", 0.0) > 0.6:
            return "most masked pixels lie along the border; try --set mismatched=1, or train longer"
        return None

    @torch.no_grad()
    def generate(self, request: GenerateBatch) -> Generated:
        """Whole images with a defect, their masks, and the images without it: triplets (section 4.2, Figure 4).

        Not in the paper: if windows x and masks are given, the windows with what the defects change in such images.
        """
        c, count = F.one_hot(request.y, len(self.task.domains)).float(), len(request.y)
        g, code = self.G.backbone, self._code(torch.zeros_like(request.y), request.y)

        def drawn(rngs: Sequence[torch.Generator]) -> tuple[Tensor, list[int]]:
            z = torch.stack([torch.randn(self.config.z_dim, generator=rng) for rng in rngs])
            return z.to(self.device), [draw_seed(rng) for rng in rngs]

        def noise(seeds: list[int]) -> Noise:
            return Noise([torch.Generator().manual_seed(seed) for seed in seeds])

        z_object, of_object = drawn(request.rngs if request.object_rngs is None else request.object_rngs)
        z_defect, of_defect = drawn(request.rngs)
        w_object, w_defect = g.mapping(z_object, code), self.G.mapping(z_defect, c[:, 1:])
        if request.truncation != 1:
            z = torch.randn(_MEAN_OF, self.config.z_dim, generator=torch.Generator().manual_seed(0)).to(self.device)
            for row in range(count):
                of_code = None if code is None else code[row].expand(_MEAN_OF, -1)
                w_object[row].lerp_(g.mapping(z, of_code).mean(dim=0), 1 - request.truncation)
                of_c = c[row, 1:].expand(_MEAN_OF, -1)
                w_defect[row].lerp_(self.G.mapping(z, of_c).mean(dim=0), 1 - request.truncation)
        normal, _ = self.G(g.broadcast(w_object), noise(of_object))
        asked = None if request.a is None else request.a.amax(dim=1, keepdim=True)
        tones = request.tones if self.G.tones else None

        def changed(asked: Tensor | None, tones: Tensor | None) -> tuple[Tensor, Tensor]:
            """What the defects change in the image, and M."""
            ws = g.broadcast(w_object)
            made, m = self.G(ws, noise(of_object), w_defect, noise(of_defect), asked=asked, tones=tones)
            assert m is not None
            return self.G.hues(made - normal), m

        if asked is not None and request.x.ndim == 4:
            mask = asked
            parts = tiled(lambda *maps: changed(*maps)[0] / brightness(normal), g.sides[-1], asked, tones)
            normal, change = request.x, soft(asked) * brightness(request.x) * parts
        else:
            change, m = changed(asked, tones)
            mask = (F.interpolate(m, size=change.shape[2:], mode="bilinear", align_corners=False) >= 0).float()
            if asked is not None:
                mask = torch.where(is_asked(asked), asked, mask)
        made = normal + change if asked is None or tones is None else toned(normal + change, normal, asked, tones)
        return Generated(made.clamp(-1, 1), mask, normal.clamp(-1, 1))
