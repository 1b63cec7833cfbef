"""Measures whether a dataset helps: trains the same network without and with it, and tests on held-out real images.

A network classifies windows of images and segments their defects. All randomness derives from (seed, step), and each
network runs on one CPU thread, so the same seed gives the same scores on any number of cores.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor, nn

from defectgen.device import one_thread, torch_rng
from defectgen.evaluation.data import Example
from defectgen.evaluation.networks import Kind, Network, build
from defectgen.imaging.windows import BoolArray, FloatArray
from defectgen.nn.layers import mixed_precision
from defectgen.ranking import auroc, histogram_auroc
from defectgen.seeding import numpy_rng

Augmentation = Literal["none", "traditional", "mixing"]
"""None; flips, brightness and contrast; these and one of CutMix, MixUp and CutOut per batch (DT-GAN, table 3)."""
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
ALARMS = 8
"""How many false alarms are told: normals that look most like defects."""
_WINDOW = 128  # pixels
_BATCH = 8
_LEARNING_RATE = 2e-3
_MARGIN = 1.2  # a window around a defect larger than 128 pixels is this much larger than the defect
_CONFIDENCE = 0.95  # level of the confidence interval
_RESOLUTION = 0.01  # of a score: a smaller spread over the seeds is not credible
_VAGUE = 0.5  # the width of an interval that both a large gain and a large loss lie in
_LAMBDA_SRC = 0.1  # final weight of the gradient reversal
_BINS, _LOGIT_RANGE = 1 << 14, 16.0  # histogram of the pixel logits, -16 to 16
_BUILD_LOCK = Lock()  # initial weights come from PyTorch's global generator


@dataclass(frozen=True)
class TrainingSet:
    """What a network is trained on. `share` is the share of synthetic defects in the batches, 0..1."""

    real: Sequence[Example]
    synthetic: Sequence[Example] = ()
    share: float = 0.0
    augmentation: Augmentation = "traditional"


@dataclass(frozen=True)
class Plan:
    """How networks are trained. `reversal` adds a gradient reversal that hides which defects are synthetic."""

    steps: int
    device: torch.device
    kind: Kind = "fine-tuned"
    reversal: bool = False


# --- Batches ---------------------------------------------------------------------------------------------------


def augmented(rng: np.random.Generator, x: FloatArray, mask: BoolArray) -> tuple[FloatArray, BoolArray]:
    """Traditional augmentation: flips, brightness, contrast. No rotations, because surfaces have a direction."""
    if rng.random() < 0.5:
        x, mask = x[:, ::-1], mask[::-1]
    if rng.random() < 0.5:
        x, mask = x[:, :, ::-1], mask[:, ::-1]
    changed = (x + rng.normal(0, 0.1)) * 2 ** rng.normal(0, 0.25)
    return np.clip(changed, -1, 1).astype(np.float32), mask


class Drawer:
    """Draws examples from a training set: half of them defects, with equal odds for each category."""

    def __init__(self, training: TrainingSet) -> None:
        self._share = training.share if training.synthetic else 0.0
        self._normals = [each for each in training.real if each.label == 0]
        self._defects: dict[bool, dict[int, list[Example]]] = {False: {}, True: {}}
        for synthetic, examples in ((False, training.real), (True, training.synthetic)):
            for each in examples:
                if each.label:
                    self._defects[synthetic].setdefault(each.label, []).append(each)
        if not self._defects[False]:
            self._share = 1.0

    def draw(self, rng: np.random.Generator) -> Example:
        """Draw an example, real or synthetic according to the share."""
        if self._normals and rng.random() < 0.5:
            return self._normals[int(rng.integers(len(self._normals)))]
        of_kind = self._defects[bool(rng.random() < self._share)]
        of_class = of_kind[sorted(of_kind)[int(rng.integers(len(of_kind)))]]
        return of_class[int(rng.integers(len(of_class)))]


def window(rng: np.random.Generator, example: Example) -> tuple[FloatArray, BoolArray]:
    """A random square of an image at its own resolution, on a part of its defect if it has one.

    A defect larger than the window is scaled down to fit half of the time. Small images are mirrored at their edges.

    Returns:
        The window [C, 128, 128] and its mask [128, 128].
    """
    x, mask = example.x, example.mask
    side, corner = _WINDOW, None
    if mask.any():
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        if max(width, height) > _WINDOW and rng.random() < 0.5:
            side = round(max(width, height) * _MARGIN)
            corner = np.array([top + (height - side) // 2, left + (width - side) // 2])
    pad = [(0, max(0, side - length)) for length in mask.shape]
    if any(after for _, after in pad):
        x, mask = np.pad(x, [(0, 0), *pad], mode="symmetric"), np.pad(mask, pad, mode="symmetric")
    room = np.array(mask.shape) - side
    if corner is None:
        ground = np.argwhere(example.mask)
        # A pixel of a normal is drawn in the same way, so that the edges of images are as frequent around it: if only
        # windows of defects showed them, the network would learn that edges are defects.
        pixel = ground[int(rng.integers(len(ground)))] if len(ground) else rng.integers(example.mask.shape)
        corner = pixel - rng.integers(12, _WINDOW - 12, 2)
    rows, columns = (slice(start, start + side) for start in np.clip(corner, 0, room))
    x, mask = x[:, rows, columns], mask[rows, columns]
    if side > _WINDOW:
        size = (_WINDOW, _WINDOW)
        x = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in np.ascontiguousarray(x)])
        mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.25
    return np.array(x, np.float32), np.array(mask)


def batch(
    rng: np.random.Generator, drawer: Drawer, augmentation: Augmentation, classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows [B, C, S, S], masks [B, classes - 1, S, S], weights [B, classes], source [B].

    Each category has a mask. Source is 1 for synthetic, 0 for real, -1 for no defect.
    """
    rows = []
    for _ in range(_BATCH):
        example = drawer.draw(rng)
        x, mask = window(rng, example)
        if augmentation != "none":
            x, mask = augmented(rng, x, mask)
        # A window of an image with a defect may miss the defect.
        label = example.label if mask.any() else 0
        rows.append((x, mask.astype(np.float32), label, float(example.synthetic) if label else -1.0))
    columns = [np.stack([np.asarray(row[i]) for row in rows]) for i in range(4)]
    windows, masks, labels, source = (torch.from_numpy(each) for each in columns)
    weights = F.one_hot(labels, classes).float()
    masks = masks[:, None] * weights[:, 1:, None, None]
    if augmentation == "mixing":
        windows, masks, weights = mixed(rng, windows, masks, weights)
    return windows, masks, weights, source.float()


def mixed(rng: np.random.Generator, x: Tensor, mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or CutOut (DeVries et al. 2017) to a batch."""
    kind = int(rng.integers(3))
    if kind == 0:
        part = float(rng.beta(0.4, 0.4))
        x, mask, weights = (part * each + (1 - part) * each.roll(1, 0) for each in (x, mask, weights))
        return x, mask, weights
    side = x.shape[3]
    width, height = (int(rng.integers(side // 4, side // 2 + 1)) for _ in range(2))
    left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    box = (slice(top, top + height), slice(left, left + width))
    x, mask = x.clone(), mask.clone()
    if kind == 1:
        x[(..., *box)], mask[(..., *box)] = x.roll(1, 0)[(..., *box)], mask.roll(1, 0)[(..., *box)]
        part = 1 - width * height / side**2
        return x, mask, part * weights + (1 - part) * weights.roll(1, 0)
    x[(..., *box)], mask[(..., *box)] = 0.0, 0.0
    return x, mask, weights


# --- Training and testing --------------------------------------------------------------------------------------


def train(
    training: TrainingSet, classes: int, plan: Plan, seed: int, on_step: Callable[[], None] = lambda: None
) -> Network:
    """Train a network with AdamW and a cosine schedule of the learning rate. Deterministic for a seed and a device.

    The losses are the cross-entropy of the classes, the cross-entropy and the Dice loss of the pixels that are defects,
    and the cross-entropy of the categories of these.
    """
    with one_thread():
        with _BUILD_LOCK, torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=torch_rng(seed))))
            network = build(plan.kind, classes).to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        drawer = Drawer(training)
        optimizer = torch.optim.AdamW(network.groups(_LEARNING_RATE), weight_decay=1e-2, fused=True)
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(plan.steps):
            fall = min(1.0, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.steps)))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fall
            optimizer.zero_grad(set_to_none=True)
            rows = batch(numpy_rng(seed, step), drawer, training.augmentation, classes)
            _loss(network, rows, plan, step / plan.steps).backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            on_step()
    return network.eval().requires_grad_(False)


def _loss(network: Network, rows: tuple[Tensor, Tensor, Tensor, Tensor], plan: Plan, done: float) -> Tensor:
    x, mask, weights, source = (each.to(plan.device) for each in rows)
    # The weight of the gradient reversal grows during training (Ganin and Lempitsky 2015, section 4).
    reversal = _LAMBDA_SRC * (2 / (1 + math.exp(-10 * done)) - 1) if plan.reversal else 0.0
    with mixed_precision(plan.device):
        logits, pixels, origin = network(x.contiguous(memory_format=torch.channels_last), reversal)
    logits, pixels, origin = logits.float(), pixels.float(), origin.float()
    defect, of_category = mask.sum(dim=1), F.log_softmax(pixels[:, 1:], dim=1)
    p = pixels[:, 0].sigmoid()
    dice = 1 - (2 * (p * defect).sum() + 1) / (p.sum() + defect.sum() + 1)
    total = F.cross_entropy(logits, weights) + F.binary_cross_entropy_with_logits(pixels[:, 0], defect) + dice
    # Each window counts as much: a break has a hundred times the pixels of a blowhole.
    total = total - ((mask * of_category).sum(dim=(1, 2, 3)) / (defect.sum(dim=(1, 2)) + 1)).mean()
    # Defects only: all normals are real, so hiding the source would make synthetic defects resemble normals.
    defects = source >= 0
    if plan.reversal and defects.any():
        total = total + F.binary_cross_entropy_with_logits(origin[defects], source[defects])
    return total


@torch.no_grad()
def test(
    network: Network, examples: Sequence[Example], categories: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Scores of a network on real images, overall and for each category against the normals.

    `balanced_accuracy` and `f1` are of the classes of windows; `ap`, `iou` and `f1_pixels` of the pixels of all images
    together, so that large defects count most; `mean_ap` is the mean of the categories' `ap`; `auroc` is of the images,
    each scored by its 50th highest pixel. A category has `recall` instead of the first two; its other scores are of the
    map of this category, so that what is taken for another one does not count against it. `curve` is the precision of
    the pixels at recalls of 0, 0.05, ..., 1. `alarms` are the normals that look most like defects, highest first: their
    index, y, x and logit.
    """
    with one_thread():
        alarms: list[tuple[int, int, int, float]] = []
        maps = 1 + len(categories)  # of all defects together, and of each category
        counts = np.zeros((maps, 2, _BINS), np.int64)
        worst, predicted = np.zeros((maps, len(examples))), np.zeros(len(examples), np.int64)
        for i, example in enumerate(examples):
            levels = _pixel_logits(network, example.x, device)[:maps]
            for own, level in enumerate(levels):
                worst[own, i] = np.partition(level.ravel(), -min(50, level.size))[-min(50, level.size)]
                if example.label not in (0, own) and own:
                    continue  # a category is compared with normals
                bins = np.clip((level + _LOGIT_RANGE) * (_BINS / (2 * _LOGIT_RANGE)), 0, _BINS - 1).astype(np.int64)
                for kind in (0, 1):
                    counts[own, kind] += np.bincount(bins[example.mask == kind], minlength=_BINS)
            if not example.label:
                y, x = np.unravel_index(int(levels[0].argmax()), levels[0].shape)
                alarms.append((i, int(y), int(x), float(levels[0].max())))
            windowed, _ = window(numpy_rng(i), example)
            predicted[i] = int(network(torch.from_numpy(windowed[None]).to(device))[0].argmax())
    labels = np.array([each.label for each in examples])
    found: dict[str, Any] = _class_scores(predicted, labels)
    found |= _pixel_scores(counts[0])
    found["alarms"] = sorted(alarms, key=lambda alarm: -alarm[3])[:ALARMS]
    found["auroc"] = auroc(worst[0, labels > 0], worst[0, labels == 0])
    found["categories"] = {}
    for label, category in enumerate(categories, start=1):
        mine = labels == label
        if mine.any():
            own_scores = _pixel_scores(counts[label])
            own_scores.pop("curve")
            recall = float((predicted[mine] == label).mean())
            of_images = auroc(worst[label, mine], worst[label, labels == 0])
            found["categories"][category] = {"recall": recall, **own_scores, "auroc": of_images}
    found["mean_ap"] = float(np.mean([each["ap"] for each in found["categories"].values()]))
    return found


def _pixel_logits(network: Network, x: FloatArray, device: torch.device) -> FloatArray:
    """The logits of an image's pixels, [classes, H, W]: of a defect, and of one of each category."""
    height, width = x.shape[1:]
    pad = [(0, -height % 32), (0, -width % 32)]
    whole = torch.from_numpy(np.pad(x, [(0, 0), *pad], mode="symmetric"))[None].to(device)
    pixels = network(whole.contiguous(memory_format=torch.channels_last))[1][0, :, :height, :width].double()
    p = pixels[0].sigmoid() * pixels[1:].softmax(dim=0)
    return np.asarray(torch.cat([pixels[:1], p.logit(1e-9)]).float().cpu().numpy(), np.float32)


def _class_scores(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    recalls, f1s = [], []
    for label in np.unique(labels):
        right = float(((predicted == label) & (labels == label)).sum())
        recalls.append(right / (labels == label).sum())
        f1s.append(2 * right / ((predicted == label).sum() + (labels == label).sum()))
    return {"balanced_accuracy": float(np.mean(recalls)), "f1": float(np.mean(f1s))}


def _pixel_scores(counts: NDArray[np.int64]) -> dict[str, Any]:
    scores = scores_of(counts[1], counts[0])
    return {"ap": scores["ap"], "iou": scores["iou"], "f1_pixels": scores["f1"], "curve": scores["curve"]}


def scores_of(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> dict[str, Any]:
    """AUC of the ROC, average precision, F1 and IoU at the threshold of the best F1, and the precision-recall `curve`.

    Args:
        positive, negative: histograms of the scores, from the lowest score to the highest.

    Raises:
        ValueError: one of the histograms is empty.
    """
    hits, passed = (np.cumsum(each[::-1].astype(float)) for each in (positive, positive + negative))
    if hits[-1] in (0, passed[-1]):
        raise ValueError("scores need both positives and negatives")
    total = hits[-1]
    reached = passed > 0
    precision, recall = hits[reached] / passed[reached], hits[reached] / total
    f1 = 2 * hits / (passed + total)
    best = int(np.argmax(f1))
    ap = float((np.diff(recall, prepend=0.0) * precision).sum())
    iou = float(hits[best] / (passed[best] + total - hits[best]))
    # The best precision at each recall or a higher one, as is usual for these curves.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 21) - 1e-9)
    curve = envelope[np.minimum(at, len(envelope) - 1)].round(4).tolist()
    return {"auc": histogram_auroc(positive, negative), "ap": ap, "f1": float(f1[best]), "iou": iou, "curve": curve}


# --- Verdicts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The comparison of two training sets over the seeds: the mean gain and its confidence interval.

    It cannot tell from a single seed, or if the interval is so wide that a large gain and a large loss lie in it.
    """

    verdict: Literal["helps", "no difference", "hurts", "cannot tell"]
    gain: float
    low: float | None
    """None for a single seed, as is `high`."""
    high: float | None
    seeds: int


def judge(with_it: Sequence[float], without: Sequence[float]) -> Verdict:
    """Compare scores with a dataset and without it, paired by seed.

    The interval is Student's t, at 95 percent, of the paired differences of scores in 0..1. The verdict is a difference
    if the interval excludes 0.
    """
    differences = np.asarray(with_it, float) - np.asarray(without, float)
    gain, count = float(differences.mean()), len(differences)
    if count < 2:
        return Verdict("cannot tell", gain, None, None, count)
    # Scores of few images take few values: equal differences are no proof of a spread of zero.
    spread = max(float(differences.std(ddof=1)), _RESOLUTION)
    reach = float(student.ppf(0.5 + _CONFIDENCE / 2, count - 1)) * spread / math.sqrt(count)
    low, high = max(gain - reach, -1.0), min(gain + reach, 1.0)
    if low > 0 or high < 0:
        return Verdict("helps" if low > 0 else "hurts", gain, low, high, count)
    return Verdict("no difference" if high - low <= _VAGUE else "cannot tell", gain, low, high, count)


def summary(scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Mean and spread (standard deviation) of each score over the seeds."""
    return {
        name: {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        for name, values in scores.items()
    }
