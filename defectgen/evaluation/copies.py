"""Finds near-copies of real defects, and measures how well masks cover the pixels that changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.masks import VISIBLE
from defectgen.imaging.windows import BoolArray, FloatArray, defect_pieces

_GRID = 32  # samples per side of a pose
_EXTENT = 2.5  # half the side of a pose, in standard deviations of the mask along its longer axis
_ROUND_RATIO = 0.8  # ratio of the axes above which a mask counts as round
_MIN_AREA = 24  # pixels; smaller pieces are specks
COPY = 0.75
"""The similarity above which a defect is a near-copy.

Of 100 real tile defects that were cut out, rotated, scaled and blended onto other tiles, 62 exceed it. Of 24 defects
that a network generated, none does; the highest reaches 0.73.
"""
_FADE = 5  # pixels around a mask in which a blend fades out


@dataclass(frozen=True)
class Pose:
    """A defect in a normalized frame: rotated to its longer axis and scaled by its length.

    `values` [3, 32, 32] are the gray values, the mask, and the mask with a soft edge.
    """

    values: FloatArray


def poses(x: FloatArray, mask: BoolArray) -> list[Pose]:
    """A defect in its normalized frame, mirrored along both axes; a round one also transposed.

    A copy at any place, scale and angle therefore matches one of the poses of its original.

    Args:
        x: [C, H, W] in [-1, 1].
        mask: [H, W], not empty.
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
    return [Pose(np.ascontiguousarray(each)) for each in found]


def defects_of(x: FloatArray, mask: BoolArray) -> list[list[Pose]]:
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


def similarity(made: Sequence[Pose], real: Sequence[Pose]) -> NDArray[np.float32]:
    """Similarity of each pair of poses, [made, real] in 0..1: IoU of the masks times correlation of the gray values.

    Brightness and contrast do not count, because blending adapts those of a copy to its new background.
    """
    a, b = (np.stack([pose.values for pose in each]).reshape(len(each), 3, -1) for each in (made, real))
    result = np.empty((len(a), len(b)), np.float32)
    for i, (gray, mask, soft) in enumerate(a):
        both, either = np.minimum(mask, b[:, 1]).sum(axis=1), np.maximum(mask, b[:, 1]).sum(axis=1)
        weight = np.maximum(soft, b[:, 2])
        weight = weight / weight.sum(axis=1, keepdims=True)
        mine = gray[None] - (weight * gray).sum(axis=1, keepdims=True)
        theirs = b[:, 0] - (weight * b[:, 0]).sum(axis=1, keepdims=True)
        scale = np.sqrt((weight * mine**2).sum(axis=1) * (weight * theirs**2).sum(axis=1))
        correlation = (weight * mine * theirs).sum(axis=1) / np.maximum(scale, 1e-9)
        result[i] = both / either * np.clip(correlation, 0, 1)
    return result


@dataclass(frozen=True)
class Nearest:
    """For each synthetic image, the index of the real image with the most similar defect, and the similarity."""

    index: NDArray[np.intp]
    similarity: NDArray[np.float32]

    @property
    def copies(self) -> BoolArray:
        return self.similarity > COPY


def nearest(made: Sequence[Sequence[list[Pose]]], real: Sequence[Sequence[list[Pose]]]) -> Nearest:
    """Find for each synthetic image the real image with the most similar defect.

    Args:
        made, real: for each image its defects, as `defects_of` returns them.
    """
    flat = [pose for image in real for defect in image for pose in defect]
    owner = np.repeat(np.arange(len(real)), [sum(map(len, image)) for image in real])
    tables = [similarity([defect[0] for defect in image], flat).max(axis=0) for image in made]
    index = np.array([owner[table.argmax()] for table in tables], np.intp)
    return Nearest(index, np.array([table.max() for table in tables], np.float32))


def share_of_copies(real: Sequence[Sequence[list[Pose]]]) -> float:
    """The share of real images that have a near-copy among the others, 0..1.

    Simple defects resemble each other, and some data sets contain the same part twice.
    """
    others = [nearest([each], [*real[:i], *real[i + 1 :]]).copies[0] for i, each in enumerate(real) if len(real) > 1]
    return float(np.mean(others)) if others else 0.0


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
