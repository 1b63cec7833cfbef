"""Scores by what a network trained on ImageNet sees (`nn.features`), which is not trained any further.

`Memory` remembers flawless images, and needs no defect-free version of an image: PatchCore (Roth et al., "Towards
Total Recall in Industrial Anomaly Detection", CVPR 2022). A small classifier of the same features, which learns to tell
known or simulated defects from flawless surfaces, sees far more than the distance to flawless ones.
`FeatureDifference` compares an image with its defect-free version.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.windows import BoolArray, FloatArray, mirrored, value_range
from defectgen.inspection.scores import Rows
from defectgen.nn.features import CHANNELS, Lite0

CELL: Final = 8
"""Side in pixels of a patch, the stride of the finest map that is used."""
_WIDTHS: Final = CHANNELS[1:]
_TILE, _MARGIN = 1024, 64  # pixels
_DEVIATION = 25 / 127.5  # of every image as the network gets it, in units of [-1, 1]
_LEAST = 1 / 128  # of the value range: the noise of an even image is not to be amplified to that
_DIMENSIONS = 128
_REMEMBERED = 2000
_CANDIDATES = 20_000  # among which the remembered patches are chosen
_PATCHES = 2**18  # kept in memory while learning
_HIDDEN, _DROPOUT, _STEPS, _ROUNDS, _BATCH = 128, 0.5, 4000, 4, 512
_JOINED = 1.5  # weight of the distance beside a classifier of simulated defects
_MARKED = 0.25  # fraction of a patch that a mask covers, for it to count as defective
_HARD = 16  # patches of each image that are most mistaken for defects
_OF_BANK = ("projection", "bank", "unit", "typical", "spread")  # what distances need
_LEAST_DEVIATION = 0.5  # of a feature, as a part of the median of all


def _tiles(image: Pixels, light: tuple[float, float], network: Lite0) -> Iterator[tuple[int, int, Tensor]]:
    """What the network sees in an image [H, W, C], tile by tile: row and column in patches, and features [D, h, w]."""
    device, (mean, deviation) = next(network.parameters()).device, light
    height, width = image.shape[:2]
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            sizes = (min(_TILE, height - top), min(_TILE, width - left))
            cells = [-(-size // CELL) for size in sizes]
            rows, columns = (
                mirrored(start - _MARGIN, -(-size // 32) * 32 + 2 * _MARGIN, length)
                for start, size, length in zip((top, left), sizes, (height, width), strict=True)
            )
            x = (image[rows[:, None], columns].astype(np.float32) - np.float32(mean)) * np.float32(
                _DEVIATION / deviation
            )
            tensor = torch.from_numpy(x.transpose(2, 0, 1)[None]).clamp(-1, 1)
            maps = network(tensor.to(device, memory_format=torch.channels_last))[1:]
            shape = maps[0].shape[2:]
            smooth = [F.avg_pool2d(each, 3, 1, 1, count_include_pad=False) for each in maps]
            joined = [F.interpolate(each, size=shape, mode="bilinear", align_corners=False) for each in smooth]
            margin = _MARGIN // CELL
            features = torch.cat(joined, 1)[0, :, margin : margin + cells[0], margin : margin + cells[1]]
            yield top // CELL, left // CELL, features


def _light(photograph: DecodedImage) -> tuple[float, float]:
    """The mean and standard deviation of an image's colors, by which it is standardized."""
    means, deviations = (each.ravel() for each in cv2.meanStdDev(np.ascontiguousarray(photograph.colors)))
    mean = float(means.mean())
    deviation = float(np.sqrt((deviations**2 + (means - mean) ** 2).mean()))
    low, high = value_range(photograph)
    return mean, max(deviation, _LEAST * (high - low))


def _coarse(
    photograph: DecodedImage, network: Lite0, judge: Callable[[Tensor], Tensor], other: Pixels | None = None
) -> FloatArray:
    """The score of each patch of an image, [H / 8, W / 8].

    Args:
        judge: scores [h, w] of features [D, h, w]; [2, D, h, w] with those of `other`, an image of the same shape.
    """
    light = _light(photograph)
    images = [photograph.colors] + ([] if other is None else [DecodedImage(other).colors])
    scores = np.zeros([-(-side // CELL) for side in images[0].shape[:2]], np.float32)
    with torch.inference_mode():
        for tiles in zip(*(_tiles(each, light, network) for each in images), strict=True):
            row, column, features = tiles[0]
            stacked = features if len(tiles) == 1 else torch.stack([each for _, _, each in tiles])
            part = judge(stacked).float().cpu().numpy()
            scores[row : row + part.shape[0], column : column + part.shape[1]] = part
    return scores


def _rows(coarse: FloatArray, width: int) -> Rows:
    """A score map in detail, interpolated between the middles of patches."""

    def rows(top: int, bottom: int) -> FloatArray:
        first, last = max(top // CELL - 1, 0), min(-(-bottom // CELL) + 1, len(coarse))
        part = coarse[first:last]
        size = part.shape[1] * CELL, len(part) * CELL
        whole = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), np.float32)
        return np.ascontiguousarray(whole[top - first * CELL : bottom - first * CELL, :width])

    return rows


class FeatureDifference:
    """How differently the network sees an image and its defect-free version: 1 - the cosine of their features.

    The mean of the maps at strides 8, 16 and 32.
    """

    name, pixels, uncalibrated = "features", CELL**2, 0.5

    def __init__(self, network: Lite0) -> None:
        self._network = network

    def __call__(self, photograph: DecodedImage, repaired: Pixels | None) -> Rows:
        assert repaired is not None, "a score that compares needs a defect-free version"
        return _rows(_coarse(photograph, self._network, _unlikeness, repaired), photograph.width)


def _unlikeness(features: Tensor) -> Tensor:
    parts = [1 - F.cosine_similarity(x, y, dim=0) for x, y in features.split(_WIDTHS, dim=1)]
    return torch.stack(parts).mean(dim=0)


class Memory:
    """The score of an image by what was learned from flawless images and defects.

    `memory` is by the distances d of its patches to those of flawless images: 2 d / (d + u), where u is how far any two
    remembered patches are apart. `classifier` is by the logit l of a classifier that learned from known defects, and
    `simulated` by that of one which learned from simulated defects, plus 1.5 times the standardized distance, since
    real ones may be unlike both: twice the logistic function of l / 4.
    """

    pixels, uncalibrated = CELL**2, None

    def __init__(self, network: Lite0, tensors: Mapping[str, Tensor], kind: str) -> None:
        """`tensors` as `learn` returns them for the same kind."""
        self._network, self.name = network, kind
        device = next(network.parameters()).device
        names = ("mean", "deviation") if kind == "classifier" else ("mean", "deviation", *_OF_BANK)
        self._given = {name: tensors[name].float().to(device) for name in names}
        self._head = _head(len(tensors["mean"])).to(device)
        if kind != "memory":
            self._head.load_state_dict({name: tensors[f"head.{name}"].float() for name in self._head.state_dict()})
        self._head.eval().requires_grad_(False)

    def __call__(self, photograph: DecodedImage, repaired: Pixels | None = None) -> Rows:
        return _rows(_coarse(photograph, self._network, self._judge), photograph.width)

    def _judge(self, features: Tensor) -> Tensor:
        shape, given = features.shape[1:], self._given
        patches = (features.flatten(1).T - given["mean"]) / given["deviation"]
        if self.name == "classifier":
            logits = self._head(patches)[:, 0]
        else:
            distances = _distances(patches @ given["projection"], given["bank"])
            if self.name == "memory":
                return (2 * distances / (distances + given["unit"])).reshape(shape)
            logits = self._head(patches)[:, 0] + _JOINED * (distances - given["typical"]) / given["spread"]
        return 2 * torch.sigmoid(logits / 4).reshape(shape)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, 1))


def _distances(patches: Tensor, bank: Tensor) -> Tensor:
    """The distance of each patch [N, K] to the nearest in the bank [M, K]."""
    squares = bank.square().sum(dim=1)
    found = [(squares - 2 * part @ bank.T).min(dim=1).values + part.square().sum(dim=1) for part in patches.split(4096)]
    return torch.cat(found).clamp(min=0).sqrt()


class Lesson:
    """Patches of an image to learn from, in float16: `flawless` [N, D], and `defective` [M, D] of its defects."""

    def __init__(self, network: Lite0, photograph: DecodedImage, truth: BoolArray | None, most: int, seed: int) -> None:
        """Take at most `most` patches of each kind at random. Without `truth`, [H, W], all are flawless."""
        light, image = _light(photograph), photograph.colors
        shares = _shares(np.zeros(image.shape[:2], np.bool_) if truth is None else truth)
        least = min(_MARKED, float(shares.max()) / 2)
        near = cv2.dilate((shares > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        flawless, defective = [], []
        with torch.inference_mode():
            for row, column, features in _tiles(image, light, network):
                there = slice(row, row + features.shape[1]), slice(column, column + features.shape[2])
                patches = features.flatten(1).T.half().cpu()
                defective.append(patches[torch.from_numpy((shares[there] > least).ravel())])
                flawless.append(patches[torch.from_numpy(~near[there].ravel())])
        generator = torch.Generator().manual_seed(seed)
        self.flawless, self.defective = (_some(each, most, generator) for each in (flawless, defective))


def _shares(truth: BoolArray) -> FloatArray:
    """The fraction of each patch that a mask marks, [H / 8, W / 8]."""
    height, width = truth.shape
    around = np.pad(truth, ((0, -height % CELL), (0, -width % CELL)))
    return np.asarray(around.reshape(len(around) // CELL, CELL, -1, CELL).mean(axis=(1, 3)), np.float32)


def _some(parts: Sequence[Tensor], most: int, generator: torch.Generator) -> Tensor:
    width = sum(_WIDTHS)
    joined = torch.cat([*parts, torch.zeros(0, width, dtype=torch.float16)])
    return joined if len(joined) <= most else joined[torch.randperm(len(joined), generator=generator)[:most]]


def most_patches(images: int) -> int:
    """The number of patches to take of each of so many images."""
    return max(_PATCHES // max(images, 1), 16)


def learn(lessons: Sequence[Lesson], kind: str, seed: int) -> dict[str, Tensor]:
    """Choose the patches to remember, and train the classifier, as far as `kind` (see `Memory`) needs them.

    The same seed and lessons give the same tensors. The choice is PatchCore's: greedily the farthest from all chosen
    ones, in a random projection.
    """
    generator = torch.Generator().manual_seed(seed)
    flawless = [each.flawless for each in lessons]
    share = max(_CANDIDATES // max(len(flawless), 1), 1)
    sample = torch.cat([_some([of_image], share, generator) for of_image in flawless]).float()
    mean, deviation = sample.mean(dim=0), sample.std(dim=0, unbiased=False)
    # What hardly varies among a few flawless images is not to decide over others.
    deviation = deviation.clamp(min=max(_LEAST_DEVIATION * float(deviation.median()), 1e-3))
    tensors = {"mean": mean, "deviation": deviation}
    if kind != "classifier":
        projection = torch.randn(len(mean), _DIMENSIONS, generator=generator) / _DIMENSIONS**0.5
        projected = ((sample - mean) / deviation) @ projection
        bank = projected[_farthest(projected, _REMEMBERED)]
        others = (_some(flawless, _CANDIDATES // 4, generator).float() - mean) / deviation @ projection
        distances = _distances(others, bank)
        unit = torch.cdist(bank, bank).median().clamp(min=1e-3)
        found = projection, bank, unit, distances.mean(), distances.std().clamp(min=1e-3)
        tensors |= dict(zip(_OF_BANK, found, strict=True))
    if kind != "memory":
        defective = [each.defective for each in lessons if len(each.defective)]
        head = _train(flawless, defective, mean, deviation, seed)
        tensors |= {f"head.{name}": each for name, each in head.state_dict().items()}
    return {name: each.half() for name, each in tensors.items()}


def _farthest(points: Tensor, count: int) -> Tensor:
    """The indices of `count` points [N, K], each the farthest from all before."""
    chosen, far, at = [], torch.full((len(points),), torch.inf), 0
    for _ in range(min(count, len(points))):
        chosen.append(at)
        far = torch.minimum(far, (points - points[at]).square().sum(dim=1))
        at = int(far.argmax())
    return torch.tensor(chosen)


def _train(
    flawless: Sequence[Tensor], defective: Sequence[Tensor], mean: Tensor, deviation: Tensor, seed: int
) -> nn.Sequential:
    """A classifier of patches. Each defect counts as much as any other, however large.

    After each round, the flawless patches that are most mistaken for defects get more weight.
    """
    generator = torch.Generator().manual_seed(seed)
    normals = ((torch.cat(list(flawless)).float() - mean) / deviation).half()
    bounds = np.cumsum([0, *map(len, flawless)])
    defects = (torch.cat(list(defective)).float() - mean) / deviation
    weights = torch.cat([torch.full((len(each),), 1 / len(each)) for each in defective])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _head(len(mean)).train()
        optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=1.0)
        hard = torch.zeros(0, dtype=torch.long)
        for _ in range(_ROUNDS):
            for _ in range(_STEPS // _ROUNDS):
                easy = torch.randint(len(normals), (_BATCH // 2,), generator=generator)
                mistaken = hard[torch.randint(len(hard), (_BATCH // 4,), generator=generator)] if len(hard) else hard
                drawn = torch.multinomial(weights, _BATCH // 4, replacement=True, generator=generator)
                x = torch.cat([normals[easy].float(), normals[mistaken].float(), defects[drawn]])
                y = torch.zeros(len(x))
                y[-len(drawn) :] = 1
                loss = F.binary_cross_entropy_with_logits(head(x)[:, 0], y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            hard = _hardest(head, normals, bounds)
    return head.eval().requires_grad_(False)


@torch.no_grad()
def _hardest(head: nn.Sequential, normals: Tensor, bounds: NDArray[np.int64]) -> Tensor:
    """The indices of the patches of each image that look most like defects."""
    head.eval()
    found = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        logits = head(normals[start:end].float())[:, 0]
        found.append(start + logits.topk(min(_HARD, len(logits))).indices)
    head.train()
    return torch.cat(found)
