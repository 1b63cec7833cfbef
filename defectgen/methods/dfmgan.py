"""DFMGAN: few-shot defects, made by changing the features of a StyleGAN2 that was trained on normals.

    Yuxuan Duan, Yan Hong, Li Niu, Liqing Zhang: Few-Shot Defect Image Generation via Defect-Aware Feature
    Manipulation. AAAI 2023. Sections, equations and figures below are the paper's. The backbone and the losses are
    those of StyleGAN2 ("S2") and StyleGAN2-ADA ("ADA"); see `defectgen.nn.stylegan2`.

Symbols: z_object and z_defect are random codes, which two mapping networks map to w_object and w_defect; F the feature
maps of the backbone's synthesis blocks S and of the defect-aware residual blocks R; M the mask, with a defect where it
is 0 or more. Stage 1 trains the backbone on normals. Stage 2 freezes it and trains R, ToMask and the defect mapping
network on defects.

Differences from the paper:
    - One model holds several categories: the defect mapping network and both discriminators take the category. The
      paper trains a model for each. Here, categories with few examples learn from the others, and all share one
      backbone. With a single category, the condition is constant.
    - The settings `match_logistic`, `mismatched` and `lambda_area` are additions that the preset `paper` does not use.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from defectgen.methods.base import Batch, GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.networks import Networks, flatten, unflatten
from defectgen.nn.layers import Noise, draw_seed, mixed_precision
from defectgen.nn.penalties import adversarial, r1
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


class DFMGANConfig(MethodConfig):
    """StyleGAN2-ADA's settings for 256 pixels, which the paper adopts. The paper's supplement was not available."""

    sizes: ClassVar[tuple[int, ...]] = (64, 128, 256)

    image_size: int = Field(256, description="side of the window, in pixels: 64, 128 or 256")
    batch_size: int = Field(32, ge=2)
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
    lr: float = Field(2.5e-3, gt=0, description="learning rate; falls to 0 over the second half of each stage")
    r1_gamma: float = Field(1.0, ge=0, description="weight of R1, for both discriminators")
    r1_every: int = Field(16, ge=1, description="steps between R1 penalties")
    pl_weight: float = Field(2.0, ge=0, description="weight of the path length regularization, in stage 1")
    pl_every: int = Field(4, ge=1, description="steps between path length regularizations")
    ada_target: float = Field(0.6, ge=0, le=1, description="target of the mean sign of D's outputs for real images")
    ada_images: int = Field(500_000, ge=1, description="images over which the augmentation's strength may rise by 1")
    lambda_ms: float = Field(0.1, ge=0, description="weight of equation 2")
    lambda_match: float = Field(1.0, ge=0, description="weight of D_match's loss for the generator")
    match_logistic: bool = Field(False, description="train D_match with the logistic loss, not the Wasserstein loss")
    mismatched: float = Field(0.0, ge=0, description="weight of real images with masks of others, as fakes of D_match")
    lambda_area: float = Field(
        0.0, ge=0, description="weight of the difference between the areas of generated and real masks"
    )


# --- Generator -------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """The backbone, and what stage 2 adds to it: residual blocks, ToMask, the defect mapping network (Figure 2).

    The first residual block is at a quarter of the side: at 64 for the paper's 256.
    """

    def __init__(self, config: DFMGANConfig, channels: int, categories: int) -> None:
        super().__init__()
        self.backbone = Backbone(
            config.image_size, channels, config.width, config.max_width, config.z_dim, config.w_dim,
            config.mapping_layers,
        )  # fmt: skip
        widths, self.start = self.backbone.widths, config.image_size // 4
        self.mapping = MappingNetwork(config.z_dim, config.w_dim, config.mapping_layers, categories)
        self.residual = nn.ModuleDict(
            {
                str(b): SynthesisBlock(widths[a], widths[b], config.w_dim)
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
        mask_alone: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Make the image, [B, channels, S, S], and, with w_defect, M at the first residual block's resolution.

        Args:
            ws: [B, styles, w_dim], w_object for each convolution.
            w_defect: [B, w_dim].
            mask_alone: stop as soon as M is computed; the image is then incomplete.
        """
        g = self.backbone
        x = g.first(g.const.expand(len(ws), -1, -1, -1), ws[:, 0], noise)
        image: Tensor = g.to_rgb["4"](x, ws[:, 1])
        m: Tensor | None = None
        for i, side in enumerate(g.sides[1:], start=1):
            f_object = g.blocks[str(side)](x, ws[:, 2 * i - 1], ws[:, 2 * i], noise)
            if w_defect is not None and side >= self.start:
                assert noise_defect is not None
                f_defect = self.residual[str(side)](x, w_defect, w_defect, noise_defect)
                if m is None:
                    m = self.to_mask(f_defect, w_defect)
                    if mask_alone:
                        break
                f_object = manipulated(f_object, f_defect, m)
            x = f_object
            image = upsample(image) + g.to_rgb[str(side)](x, ws[:, 2 * i + 1])
        return image, m


def manipulated(f_object: Tensor, f_defect: Tensor, m: Tensor) -> Tensor:
    """Equation 1: add the defect's features where the mask, resized to their resolution, is 0 or more."""
    here = F.interpolate(m, size=f_object.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(here >= 0, f_object + f_defect, f_object)


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


def area_loss(mask: Tensor, real: Tensor) -> Tensor:
    """Not in the paper: the mean difference between the sorted areas of masks and real masks, over the mean real area.

    No other loss recovers masks that have become empty or cover everything.
    """
    areas, real_areas = (((each + 1) / 2).mean(dim=(1, 2, 3)).sort().values for each in (mask, real))
    return (areas - real_areas).abs().mean() / real_areas.mean().clamp(min=1e-3)


# --- Method ----------------------------------------------------------------------------------------------------


class DFMGAN:
    """The method DFMGAN; see `defectgen.methods.base.Method`. Stage 1 ends at step `backbone_steps`."""

    Config: ClassVar[type[MethodConfig]] = DFMGANConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "compact": {
            "image_size": 128, "batch_size": 16, "width": 32, "max_width": 256, "match_width": 8, "z_dim": 256,
            "w_dim": 256, "steps": 30_000, "backbone_steps": 20_000, "ada_images": 50_000, "r1_gamma": 0.2,
            "pl_every": 8, "match_logistic": True, "mismatched": 0.5, "lambda_match": 5.0, "lambda_area": 2.0,
            "exposure": True,
        },
        "tiny": {
            "image_size": 64, "batch_size": 8, "width": 16, "max_width": 64, "match_width": 8, "z_dim": 64,
            "w_dim": 64, "steps": 9_000, "backbone_steps": 6_000, "ada_images": 10_000, "r1_gamma": 0.1, "pl_every": 8,
            "match_logistic": True, "mismatched": 0.5, "lambda_match": 5.0, "lambda_area": 2.0, "exposure": True,
        },
    }  # fmt: skip

    def __init__(self, config: DFMGANConfig, task: Task, device: torch.device) -> None:
        self.config = config
        self.task = task
        self.device = device
        domains = len(task.domains)
        self.G = Generator(config, task.channels, domains - 1)
        size, most = config.image_size, config.max_width
        self.D = Discriminator(size, task.channels, domains, config.width, most)
        # D_match takes pairs: the mask is one more channel of the image.
        self.D_match = Discriminator(
            size, task.channels + 1, domains, config.match_width, min(max(most // 4, 64), most)
        )
        self.statistics = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(()), requires_grad=False) for name in ("p", "pl_mean")}
        )
        modules: dict[str, nn.Module] = {
            "G": self.G, "D": self.D, "D_match": self.D_match, "statistics": self.statistics,
        }  # fmt: skip
        trained = {"backbone": self.G.backbone, "defects": self._defect_modules(), "D": self.D, "D_match": self.D_match}
        optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.0, 0.99))
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
        """Also takes that of a model with another number of categories; D then knows only the domain of the normals."""
        own = dict(unflatten("D", tensors))
        fresh = self.D.state_dict()
        if (weight := own["embed.weight"]).shape != fresh["embed.weight"].shape:
            own["embed.weight"] = torch.cat([weight[:, :1], fresh["embed.weight"][:, 1:].to(weight)], dim=1)
        self.G.backbone.load_state_dict(unflatten("G.backbone", tensors))
        self.D.load_state_dict(own)
        self.statistics.load_state_dict(unflatten("s", tensors))

    def lr(self, progress: float) -> float:
        """The learning rate. It is constant, then falls linearly to 0 over the second half of its stage."""
        first = self.config.backbone_steps / self.config.steps
        done = progress / first if progress < first else (progress - first) / max(1 - first, 1e-9)
        return self.config.lr * min(1.0, 2 * (1 - done))

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Stage 1 trains on `batch.x`, stage 2 on `batch.x_ref` with the masks `batch.a_ref`."""
        self.networks.begin(self.lr(progress))
        stage = self._stage_1 if step < self.config.backbone_steps else self._stage_2
        return {name: value.detach() for name, value in stage(batch, step, rng).items()}

    def _z(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, self.config.z_dim, generator=rng).to(self.device)

    def _noise(self, rng: torch.Generator) -> Noise:
        return Noise.seeded(draw_seed(rng), self.device)

    def _ws(self, count: int, rng: torch.Generator) -> Tensor:
        """w_object for each convolution. Style mixing takes another one for later layers (S2, Karras et al. 2019)."""
        g = self.G.backbone
        ws = g.broadcast(g.mapping(self._z(count, rng)))
        other = g.broadcast(g.mapping(self._z(count, rng)))
        cut = torch.randint(1, g.styles, (count, 1, 1), generator=rng)
        cut = torch.where(torch.rand(count, 1, 1, generator=rng) < self.config.style_mixing, cut, g.styles)
        return torch.where(torch.arange(g.styles)[None, :, None].to(self.device) < cut.to(self.device), ws, other)

    def _stage_1(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        config, x, count = self.config, batch.x, len(batch.x)
        c = F.one_hot(batch.y, len(self.task.domains)).float()
        self.networks.train_only("backbone")
        with mixed_precision(self.device):
            made, _ = self.G(self._ws(count, rng), self._noise(rng))
            score = self.D(self._augment(count, rng).image(made.float()), c)
        parts = {"g": adversarial(score.float(), real=True)}
        parts["g"].backward()
        if config.pl_weight and step % config.pl_every == 0:
            ws = self._ws(max(count // 2, 1), rng)
            images, _ = self.G(ws, self._noise(rng))
            lengths = path_length(images, ws, torch.randn(images.shape, generator=rng).to(self.device))
            mean = self.statistics["pl_mean"]
            mean.copy_(torch.lerp(mean, lengths.detach().mean(), 0.01))
            parts["pl"] = (lengths - mean).square().mean()
            (parts["pl"] * config.pl_weight * config.pl_every).backward()
        self.networks.step("backbone")

        self.networks.train_only("D")
        with torch.no_grad(), mixed_precision(self.device):
            made, _ = self.G(self._ws(count, rng), self._noise(rng))
        real, fake = self._augment(count, rng).image(x), self._augment(count, rng).image(made.float())
        return parts | self._update_d(real, fake, c, step)

    def _stage_2(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        config, x, count = self.config, batch.x_ref, len(batch.x_ref)
        assert batch.a_ref is not None
        real_mask = batch.a_ref.amax(dim=1, keepdim=True) * 2 - 1
        c = F.one_hot(batch.y_ref, len(self.task.domains)).float()
        self.networks.train_only("defects")
        augment = self._augment(count, rng)
        with mixed_precision(self.device):
            made, m, w_defect, remake = self._defective(c, rng)
            mask, image = self._binarize(m.float()), augment.image(made.float())
            score = self.D(image, c)
            match = self.D_match(torch.cat([image, augment.geometry(mask)], dim=1), c)
            w_other, m_other = remake()
        parts = {
            "g": adversarial(score.float(), real=True),
            "match_g": self._match(match.float(), real=True),
            "ms": mode_seeking_loss(w_defect.float(), w_other.float(), m.float().tanh(), m_other.float().tanh()),
            "area": area_loss(mask, real_mask),
        }
        total = parts["g"] + config.lambda_match * parts["match_g"]
        total = total + config.lambda_ms * parts["ms"] + config.lambda_area * parts["area"]
        total.backward()
        self.networks.step("defects")
        parts |= mask_statistics(m.detach() >= 0)

        self.networks.train_only("D", "D_match")
        with torch.no_grad(), mixed_precision(self.device):
            made, m, _, _ = self._defective(c, rng)
        mask, augments = self._binarize(m.float()), (self._augment(count, rng), self._augment(count, rng))
        real, fake = augments[0].image(x), augments[1].image(made.float())
        marked, of_real = augments[1].geometry(mask), augments[0].geometry(real_mask)
        # Not in the paper: D_match learns what a matching pair is, not how fakes look (Reed et al. 2016).
        wrong = torch.cat([real, of_real.roll(1, dims=0)], dim=1)
        parts |= self._update_d(real, fake, c, step)
        on_pairs = [(torch.cat([fake, marked], dim=1), 1.0), (wrong, config.mismatched)]
        _, match_d, _ = self._update("D_match", torch.cat([real, of_real], dim=1), on_pairs, c, step)
        return parts | {"match_d": match_d}

    def _augment(self, count: int, rng: torch.Generator) -> Augment:
        return Augment(count, float(self.statistics["p"]), rng, self.device)

    def _update_d(self, real: Tensor, fake: Tensor, c: Tensor, step: int) -> dict[str, Tensor]:
        """Update D on augmented images, then adapt the augmentation's strength."""
        config, p = self.config, self.statistics["p"]
        on_real, d, penalty = self._update("D", real, [(fake, 1.0)], c, step)
        p.fill_(adapted(float(p), float(on_real.sign().mean()), config.ada_target, len(real), config.ada_images))
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
        with it. The authors' code uses the logistic loss, as do the presets `compact` and `tiny`.
        """
        if self.config.match_logistic:
            return adversarial(scores, real=real)
        return -scores.mean() if real else scores.mean()

    def _defective(
        self, c: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[], tuple[Tensor, Tensor]]]:
        """Images with defects of domains c, their M and w_defect, and a function that makes another w_defect and M."""
        with torch.no_grad():
            ws = self._ws(len(c), rng)
        seeds = torch.randint(2**62, (2,), generator=rng).tolist()

        def make(*, mask_alone: bool) -> tuple[Tensor, Tensor, Tensor]:
            w = self.G.mapping(self._z(len(c), rng), c[:, 1:])
            noise, noise_defect = (Noise.seeded(seed, self.device) for seed in seeds)
            image, m = self.G(ws, noise, w, noise_defect, mask_alone=mask_alone)
            assert m is not None
            return image, m, w

        def remake() -> tuple[Tensor, Tensor]:
            _, m, w = make(mask_alone=True)
            return w, m

        return *make(mask_alone=False), remake

    def _binarize(self, m: Tensor) -> Tensor:
        """M as D_match's input: at the image's resolution, -1 or 1 as in real masks, with the gradient of tanh.

        D_match would recognize generated pairs by soft masks alone, and learn nothing else.
        """
        size = (self.config.image_size,) * 2
        m = F.interpolate(m, size=size, mode="bilinear", align_corners=False)
        soft = m.tanh()
        return soft + (torch.where(m >= 0, 1.0, -1.0) - soft).detach()

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
        """Whole images with a defect, their masks, and the images without it: triplets (section 4.2, Figure 4)."""
        c = F.one_hot(request.y, len(self.task.domains)).float()
        z = torch.stack([torch.randn(2, self.config.z_dim, generator=rng) for rng in request.rngs]).to(self.device)
        seeds = [torch.randint(2**62, (2,), generator=rng).tolist() for rng in request.rngs]

        def noise(which: int) -> Noise:
            return Noise([torch.Generator().manual_seed(seed[which]) for seed in seeds])

        ws = self.G.backbone.broadcast(self.G.backbone.mapping(z[:, 0]))
        normal, _ = self.G(ws, noise(0))
        defective, m = self.G(ws, noise(0), self.G.mapping(z[:, 1], c[:, 1:]), noise(1))
        assert m is not None
        m = F.interpolate(m, size=defective.shape[2:], mode="bilinear", align_corners=False)
        return Generated(defective.clamp(-1, 1), (m >= 0).float(), normal.clamp(-1, 1))
