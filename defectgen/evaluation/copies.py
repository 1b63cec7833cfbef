"""Finds near-copies of real defects, and measures how well masks cover the pixels that changed.

Defects are compared by pose and features: both are turned and scaled to one frame, where EfficientNet-Lite0 sees them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from defectgen.imaging.masks import VISIBLE
from defectgen.imaging.windows import BoolArray, FloatArray, defect_pieces
from defectgen.nn.features import Lite0

_GRID = 64  # samples per side of a pose
_EXTENT = 2.5  # half the side of a pose, in standard deviations of the mask along its longer axis
_ROUND_RATIO = 0.8  # ratio of the axes above which a mask counts as round
_MIN_AREA = 24  # pixels; smaller pieces are specks
COPY = 0.6
"""The similarity above which a defect is a near-copy.

Of 120 real tile defects that were cut out, rotated, scaled, cropped and blended onto other tiles, 48 exceed it. Of 60
defects that a network trained from scratch generated, none does; the highest reaches 0.5.
"""
_FADE = 5  # pixels around a mask in which a blend fades out
Image = tuple[FloatArray, BoolArray]
"""An image [C, H, W] in [-1, 1], and the mask of its defects [H, W]."""


def poses(x: FloatArray, mask: BoolArray) -> FloatArray:
    """A defect in its normalized frame, mirrored along both axes; a round one also transposed.

    It is turned to its longer axis and scaled by its length. A copy at any place, scale and angle therefore matches
    one of the poses of its original.

    Args:
        x: [C, H, W] in [-1, 1].
        mask: [H, W], not empty.

    Returns:
        [4 or 8, 3, 64, 64]: the gray values, the mask, and the mask with a soft edge.
    """
    points = np.argwhere(mask)[:, ::-1].astype(np.float64)
    middle = points.mean(axis=0)
    variance, axes = np.linalg.eigh(np.cov((points - middle).T, bias=True) + np.eye(2) / 12)
    major, spread = axes[:, 1], np.sqrt(variance)
    step = 2 * _EXTENT * spread[1] / (_GRID - 1)
    across = np.array([-major[1], major[0]])
    grid = np.arange(_GRID) - (_GRID - 1) / 2
    at = middle + step * (grid[None, :, None] * major + grid[:, None, None] * across)
    maps = at[..., 0].astype(np.float32), at[..., 1].astype(np.float32)
    gray, inside = np.ascontiguousarray(x.mean(axis=0), np.float32), mask.astype(np.float32)
    if step > 1:  # blurred before downsampling, against aliasing
        gray, inside = (np.asarray(cv2.GaussianBlur(each, (0, 0), step / 2), np.float32) for each in (gray, inside))
    values = cv2.remap(gray, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.asarray(cv2.remap(inside, *maps, cv2.INTER_LINEAR), np.float32)
    planes = np.stack([values, inside, cv2.GaussianBlur(inside, (0, 0), 1.5)])
    found = [planes, planes[:, ::-1], planes[:, :, ::-1], planes[:, ::-1, ::-1]]
    if spread[0] > _ROUND_RATIO * spread[1]:
        found += [each.transpose(0, 2, 1) for each in found]
    return np.stack(found)


def defects_of(x: FloatArray, mask: BoolArray) -> list[FloatArray]:
    """The poses of each defect of an image. A cut-out is a single one of the defects of its original.

    Specks all look the same, so they count only if the image has no larger defect.
    """
    found = []
    for box, piece in defect_pieces(mask):
        whole = np.zeros(mask.shape, np.bool_)
        whole[box.y : box.y + box.height, box.x : box.x + box.width] = piece
        found.append((int(piece.sum()), whole))
    large = [piece for area, piece in found if area >= _MIN_AREA] or [piece for _, piece in found]
    return [poses(x, piece) for piece in large]


@dataclass(frozen=True)
class _Seen:
    """What the network sees in N poses: at strides 4 and 8, directions [N, L, C] and weights of the positions [N, L].

    The mean around the defect is subtracted, because blending adapts a copy to its new background.
    """

    masks: Tensor
    maps: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, network: Lite0, planes: FloatArray) -> "_Seen":
        device = next(network.parameters()).device
        gray, mask, soft = torch.from_numpy(np.ascontiguousarray(planes)).to(device).split(1, dim=1)
        maps = []
        for each in network(gray)[:2]:
            weight = F.interpolate(soft, size=each.shape[2:], mode="area")
            around = (each * (1 - weight)).sum(dim=(2, 3), keepdim=True) / (1 - weight).sum(dim=(2, 3), keepdim=True)
            directions = F.normalize(each - around, dim=1).flatten(2).transpose(1, 2)
            maps.append((directions, weight.flatten(1)))
        return cls(mask.flatten(1), tuple(maps))

    def similarity(self, others: "_Seen") -> NDArray[np.float32]:
        """Of a single pose to each of the others, [N] in 0..1: IoU of the masks times cosine similarity."""
        total = torch.zeros(len(others.masks), device=others.masks.device)
        for (mine, weight), (theirs, its_weight) in zip(self.maps, others.maps, strict=True):
            both = torch.maximum(weight, its_weight)
            total += ((mine * theirs).sum(dim=2) * both).sum(dim=1) / both.sum(dim=1)
        shared = torch.minimum(self.masks, others.masks).sum(dim=1) / torch.maximum(self.masks, others.masks).sum(dim=1)
        return np.asarray((shared * (total / len(self.maps)).clamp(0, 1)).cpu().numpy(), np.float32)


@dataclass(frozen=True)
class Nearest:
    """For each synthetic image, the index of the real image with the most similar defect, and the similarity."""

    index: NDArray[np.intp]
    similarity: NDArray[np.float32]

    @property
    def copies(self) -> BoolArray:
        return self.similarity > COPY


class Gallery:
    """The defects of real images, which synthetic ones may copy."""

    def __init__(self, network: Lite0, images: Sequence[Image]) -> None:
        self._network, self._count = network, len(images)
        self._defects = [defects_of(*image) for image in images]
        self._owner = np.repeat(np.arange(len(images)), [sum(map(len, each)) for each in self._defects])
        # One defect at a time: all poses of all defects at once would need gigabytes.
        seen = [_Seen.of(network, defect) for each in self._defects for defect in each]
        self._seen = _Seen(
            torch.cat([each.masks for each in seen]),
            tuple(
                (torch.cat([a for a, _ in level]), torch.cat([b for _, b in level]))
                for level in zip(*(each.maps for each in seen), strict=True)
            ),
        )

    def nearest(self, images: Iterable[Image]) -> Nearest:
        """Find for each image the real image with the most similar defect."""
        tables = np.stack([self._similarities(defects_of(*image)) for image in images])
        return Nearest(tables.argmax(axis=1), tables.max(axis=1))

    @property
    def share_of_copies(self) -> float:
        """The share of the real images that have a near-copy among the others, 0..1.

        Simple defects resemble each other, and some data sets contain the same part twice.
        """
        if self._count < 2:
            return 0.0
        tables = np.stack([self._similarities(defects) for defects in self._defects])
        np.fill_diagonal(tables, 0)
        return float((tables.max(axis=1) > COPY).mean())

    def _similarities(self, defects: Sequence[FloatArray]) -> NDArray[np.float32]:
        """The highest similarity of a defect of an image to one of each real image, [real]."""
        found = np.zeros(self._count, np.float32)
        for defect in defects:
            np.maximum.at(found, self._owner, _Seen.of(self._network, defect[:1]).similarity(self._seen))
        return found


def agreement(image: FloatArray, source: FloatArray, mask: BoolArray) -> float:
    """IoU of a mask with the pixels where an image visibly differs from its source; 1 if both are empty.

    Changes within five pixels around the mask are ignored, because a blend fades out there.

    Args:
        image, source: [C, H, W] in [-1, 1].
        mask: [H, W].
    """
    change = np.abs(image - source).max(axis=0) > 2 * VISIBLE
    near = cv2.dilate(mask.view(np.uint8), np.ones((2 * _FADE + 1,) * 2, np.uint8)) > 0
    change &= mask | ~near
    either = (change | mask).sum()
    return float((change & mask).sum() / either) if either else 1.0
