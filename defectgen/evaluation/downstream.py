"""Whether data help: the same compact network trained with and without them, tested on real photographs kept apart.

A classifier of windows of photographs, a ResNet with a source classifier behind a gradient reversal layer (Defect-GAN,
section 3.2; DT-GAN, section 4.2), and a U-Net that finds the defects' pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import ttest_rel
from torch import Tensor, nn

from defectgen.device import torch_rng
from defectgen.evaluation.data import Example
from defectgen.imaging.windows import BoolArray, FloatArray
from defectgen.nn.layers import mixed_precision, standardized
from defectgen.seeding import numpy_rng

TrainingSet = Literal["real", "traditional", "synthetic"]
TRAINING_SETS: tuple[TrainingSet, ...] = ("real", "traditional", "synthetic")
"""Real photographs as they are; with traditional augmentation; with that and the synthetic ones."""
_WINDOW = 96  # pixels
_BATCH = 8
CLASSIFIER_STEPS = 2
"""A classifier takes so many steps for each of a U-Net, and is still the faster."""
_LAMBDA_SRC = 0.1
_LEVEL = 0.05  # of the test
_BINS, _REACH = 1 << 14, 16.0  # of a U-Net's logits


# --- Networks --------------------------------------------------------------------------------------------------


class _Reverse(torch.autograd.Function):
    """The gradient reversal layer: the identity, whose gradient is turned round (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(8, c_out), nn.GroupNorm(8, c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.skip(x))


class Classifier(nn.Module):
    """A compact ResNet: f_theta, the classes' head, and f_src, which tells synthetic from real behind a reversal."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Conv2d(channels, width, 5, 2, 2)
        self.blocks = nn.Sequential(*(_Residual(a, b, 1 + (a != b)) for a, b in pairwise(widths)))
        self.head = nn.Linear(2 * widths[-1], classes)
        self.source = nn.Sequential(nn.Linear(2 * widths[-1], 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor, reversal: float = 0.0) -> tuple[Tensor, Tensor]:
        """[B, channels, H, W] -> logits of the classes [B, classes], and of being synthetic [B]."""
        h = self.blocks(F.relu(self.stem(standardized(x))))
        v = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)  # a small defect is in the maximum
        return self.head(v), self.source(_Reverse.apply(v, reversal))[:, 0]  # type: ignore[no-untyped-call]


class UNet(nn.Module):
    """A compact U-Net: [B, channels, H, W] -> logits [B, 1, H, W]; sides are multiples of 16."""

    def __init__(self, channels: int, width: int = 12) -> None:
        super().__init__()
        widths = [min(width * 2**i, 8 * width) for i in range(5)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_double_conv(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = [], standardized(x)
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        y: Tensor = self.out(x)
        return y


def _double_conv(c_in: int, c_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (c_in, c_out):
        layers += [nn.Conv2d(channels, c_out, 3, padding=1, bias=False), nn.GroupNorm(4, c_out), nn.ReLU()]
    return nn.Sequential(*layers)


# --- Batches ---------------------------------------------------------------------------------------------------


def augmented(rng: np.random.Generator, x: FloatArray, mask: BoolArray) -> tuple[FloatArray, BoolArray]:
    """Traditional augmentation: flips, brightness, contrast.

    No turns, as surfaces have a direction, and no noise: with those a network of some hundred steps got worse (on
    magnetic tiles, from 0.96 to 0.86 of windows classified right).
    """
    if rng.random() < 0.5:
        x, mask = x[:, ::-1], mask[::-1]
    if rng.random() < 0.5:
        x, mask = x[:, :, ::-1], mask[:, ::-1]
    changed = (x + rng.normal(0, 0.1)) * 2 ** rng.normal(0, 0.25)
    return np.clip(changed, -1, 1).astype(np.float32), mask


class _Drawer:
    """Draws the training examples of an arm: half of them defects, of these half synthetic where there are any."""

    def __init__(self, examples: Sequence[Example], *, augment: bool) -> None:
        self.augment = augment
        self._normals = [each for each in examples if each.label == 0]
        # By class, so that a frequent category does not drown a rare one.
        self._defects: dict[bool, dict[int, list[Example]]] = {False: {}, True: {}}
        for each in examples:
            if each.label:
                self._defects[each.synthetic].setdefault(each.label, []).append(each)

    def draw(self, rng: np.random.Generator) -> Example:
        if self._normals and rng.random() < 0.5:
            return self._normals[int(rng.integers(len(self._normals)))]
        there = [kind for kind in (False, True) if self._defects[kind]]
        of_kind = self._defects[there[int(rng.integers(len(there)))]]
        of_class = of_kind[list(of_kind)[int(rng.integers(len(of_kind)))]]
        return of_class[int(rng.integers(len(of_class)))]


def _window(rng: np.random.Generator, example: Example) -> tuple[FloatArray, BoolArray]:
    """A square of a photograph, with some of its defect inside if it has one; mirrored beyond the edges."""
    x, mask = example.x, example.mask
    pad = [(0, max(0, _WINDOW - side)) for side in mask.shape]
    if any(after for _, after in pad):
        x, mask = np.pad(x, [(0, 0), *pad], mode="symmetric"), np.pad(mask, pad, mode="symmetric")
    room = np.array(mask.shape) - _WINDOW
    corner = rng.integers(0, room + 1)
    if mask.any():
        ground = np.argwhere(mask)
        corner = np.clip(ground[int(rng.integers(len(ground)))] - rng.integers(8, _WINDOW - 8, 2), 0, room)
    rows, columns = (slice(start, start + _WINDOW) for start in corner)
    return x[:, rows, columns], mask[rows, columns]


# --- Training and testing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    steps: int
    seeds: int
    device: torch.device


def train_segmenter(
    examples: Sequence[Example], plan: Plan, seed: int, *, augment: bool, on_step: Callable[[], None] = lambda: None
) -> UNet:
    """A U-Net of windows of `examples`, by cross-entropy and the Dice loss."""
    drawer = _Drawer(examples, augment=augment)

    def loss(network: UNet, rng: np.random.Generator, _done: float) -> Tensor:
        rows = []
        for _ in range(_BATCH):
            window = _window(rng, drawer.draw(rng))
            rows.append(augmented(rng, *window) if augment else window)
        x, target = (torch.from_numpy(np.stack(column)).to(plan.device).float() for column in zip(*rows, strict=True))
        with mixed_precision(plan.device):
            logits = network(x)[:, 0]
        logits = logits.float()
        p = logits.sigmoid()
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, target) + dice

    return _fit(lambda: UNet(examples[0].x.shape[0]), loss, plan, seed, on_step)


def train_classifier(
    examples: Sequence[Example],
    classes: int,
    plan: Plan,
    seed: int,
    *,
    augment: bool,
    on_step: Callable[[], None] = lambda: None,
) -> Classifier:
    """A classifier of windows; with synthetic ones among them its features are kept from telling which those are."""
    drawer, mixed = _Drawer(examples, augment=augment), any(each.synthetic for each in examples)

    def loss(network: Classifier, rng: np.random.Generator, done: float) -> Tensor:
        drawn = [drawer.draw(rng) for _ in range(2 * _BATCH)]
        windows = [_window(rng, each) for each in drawn]
        if augment:
            windows = [augmented(rng, *window) for window in windows]
        x = torch.from_numpy(np.stack([window for window, _ in windows])).to(plan.device)
        label = torch.tensor([each.label for each in drawn], device=plan.device)
        reversal = 2 / (1 + math.exp(-10 * done)) - 1  # rises from 0 to 1 (Ganin and Lempitsky, section 5.1)
        with mixed_precision(plan.device):
            logits, source = network(x, reversal * _LAMBDA_SRC)
        total = F.cross_entropy(logits.float(), label)
        if mixed:
            made = torch.tensor([float(each.synthetic) for each in drawn], device=plan.device)
            total = total + F.binary_cross_entropy_with_logits(source.float(), made)
        return total

    longer = replace(plan, steps=CLASSIFIER_STEPS * plan.steps)
    return _fit(lambda: Classifier(examples[0].x.shape[0], classes), loss, longer, seed, on_step)


def _fit(
    build: Callable[[], Any],
    loss: Callable[[Any, np.random.Generator, float], Tensor],
    plan: Plan,
    seed: int,
    on_step: Callable[[], None],
) -> Any:
    """A network after AdamW with a rate that falls along a cosine; the seed alone decides it, on one device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=torch_rng(seed))))
        network = build().to(plan.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.steps)))
        optimizer.zero_grad(set_to_none=True)
        loss(network, numpy_rng(seed, step), step / plan.steps).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        on_step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def test_segmenter(network: UNet, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """AUC, average precision, and the best F1 with its IoU, of all pixels of the photographs together.

    And `curve`, the precision at recalls of 0, 0.05, ..., 1.
    """
    # Counted, not kept: a hundred million pixels would take gigabytes.
    counts = np.zeros((2, _BINS), np.int64)
    for example in examples:
        height, width = example.mask.shape
        pad = [(0, -height % 16), (0, -width % 16)]
        x = torch.from_numpy(np.pad(example.x, [(0, 0), *pad], mode="symmetric"))[None].to(device)
        logits = network(x)[0, 0, :height, :width].float().cpu().numpy()
        bins = np.clip((logits + _REACH) * (_BINS / (2 * _REACH)), 0, _BINS - 1).astype(np.int64)
        for kind in (0, 1):
            counts[kind] += np.bincount(bins[example.mask == kind], minlength=_BINS)
    return scores_of(counts[1], counts[0])


@torch.no_grad()
def test_classifier(network: Classifier, examples: Sequence[Example], device: torch.device) -> dict[str, float]:
    """The mean over the classes of the part of each that is told right, and F1 likewise; of a window of each."""
    windows = [_window(numpy_rng(i), example)[0] for i, example in enumerate(examples)]
    predicted = np.concatenate(
        [
            network(torch.from_numpy(np.stack(windows[i : i + 32])).to(device))[0].argmax(dim=1).cpu().numpy()
            for i in range(0, len(windows), 32)
        ]
    )
    labels = np.array([each.label for each in examples])
    recalls, f1s = [], []
    for label in np.unique(labels):
        right = float(((predicted == label) & (labels == label)).sum())
        recalls.append(right / (labels == label).sum())
        f1s.append(2 * right / ((predicted == label).sum() + (labels == label).sum()))
    return {"accuracy": float(np.mean(recalls)), "f1": float(np.mean(f1s))}


def scores_of(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> dict[str, Any]:
    """AUC of the ROC, average precision, F1 and IoU at the threshold of the best F1, and `curve`.

    Args:
        positive, negative: how many of either kind have each score, from the lowest on.

    Raises:
        ValueError: all are of one kind.
    """
    hits, passed = (np.cumsum(each[::-1].astype(float)) for each in (positive, positive + negative))
    if hits[-1] in (0, passed[-1]):
        raise ValueError("scores need both kinds")
    total, others = hits[-1], passed[-1] - hits[-1]
    # A pair of equal scores counts a half.
    below = np.cumsum(negative.astype(float)) - negative / 2
    auc = float((positive * below).sum() / (total * others))
    reached = passed > 0
    precision, recall = hits[reached] / passed[reached], hits[reached] / total
    f1 = 2 * hits / (passed + total)
    best = int(np.argmax(f1))
    ap = float((np.diff(recall, prepend=0.0) * precision).sum())
    iou = float(hits[best] / (passed[best] + total - hits[best]))
    # The best precision that is had at a recall or beyond it, as is usual for curves.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 21) - 1e-9)
    curve = envelope[np.minimum(at, len(envelope) - 1)].round(4).tolist()
    return {"auc": auc, "ap": ap, "f1": float(f1[best]), "iou": iou, "curve": curve}


# --- The verdict -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a paired t-test over the seeds says of one arm against another."""

    verdict: Literal["helps", "no difference", "hurts"]
    difference: float
    p: float | None
    seeds: int


def judge(with_it: Sequence[float], without: Sequence[float]) -> Verdict:
    """Whether scores, one a seed, are better with than without: two-sided, at the level of 0.05."""
    differences = np.asarray(with_it, float) - np.asarray(without, float)
    difference, count = float(differences.mean()), len(differences)
    if count < 2:
        return Verdict("no difference", difference, None, count)
    if np.ptp(differences) < 1e-12:  # no spread to judge by: the sign test
        p = 1.0 if abs(difference) < 1e-12 else 2 * 0.5**count
    else:
        p = float(ttest_rel(with_it, without).pvalue)
    if p >= _LEVEL:
        return Verdict("no difference", difference, p, count)
    return Verdict("helps" if difference > 0 else "hurts", difference, p, count)


def summary(scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Mean and spread (standard deviation) of each score over the seeds."""
    return {
        name: {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        for name, values in scores.items()
    }
