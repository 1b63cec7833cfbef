"""Whether synthetic defects are copies of real ones, and whether masks mark what changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.masks import VISIBLE
from defectgen.imaging.windows import BoolArray, FloatArray, defect_pieces

_GRID = 32  # samples a side of a defect in its own frame
_REACH = 2.5  # standard deviations of the mask, along its longer axis, to each side
_ROUND = 0.8  # ratio of its axes from where on a mask has no direction
_SPECK = 24  # pixels
COPY = 0.75
"""The similarity from which on a defect is a near-copy. Of 100 real defects of tiles that were cut out, turned, scaled
and blended onto other tiles, 62 are above it; of 24 that a network had made none was, the highest being 0.73."""
_FADES = 5  # pixels


@dataclass(frozen=True)
class Pose:
    """A defect in a frame of its own, turned to its longer axis and scaled by it, [3, 32, 32].

    Gray values, the mask, and the mask with a soft edge around it.
    """

    values: FloatArray


def poses(x: FloatArray, mask: BoolArray) -> list[Pose]:
    """A defect as it is, mirrored and turned half round; a round one also in quarter turns.

    So wherever a copy was laid, at whatever scale and angle, one of its original's poses is its own.

    Args:
        x: [C, H, W] in [-1, 1]. mask: [H, W], not empty.
    """
    points = np.argwhere(mask)[:, ::-1].astype(np.float64)
    middle = points.mean(axis=0)
    variance, axes = np.linalg.eigh(np.cov((points - middle).T, bias=True) + np.eye(2) / 12)
    major, spread = axes[:, 1], np.sqrt(variance)
    step = 2 * _REACH * spread[1] / (_GRID - 1)
    across = np.array([-major[1], major[0]])
    grid = np.arange(_GRID) - (_GRID - 1) / 2
    at = middle + step * (grid[None, :, None] * major + grid[:, None, None] * across)
    maps = at[..., 0].astype(np.float32), at[..., 1].astype(np.float32)
    gray, inside = np.ascontiguousarray(x.mean(axis=0), np.float32), mask.astype(np.float32)
    if step > 1:  # averaged before they are sampled coarser
        gray, inside = (np.asarray(cv2.GaussianBlur(each, (0, 0), step / 2), np.float32) for each in (gray, inside))
    values = cv2.remap(gray, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.asarray(cv2.remap(inside, *maps, cv2.INTER_LINEAR), np.float32)
    planes = np.stack([values, inside, cv2.GaussianBlur(inside, (0, 0), 1.5)])
    found = [planes, planes[:, ::-1], planes[:, :, ::-1], planes[:, ::-1, ::-1]]
    if spread[0] > _ROUND * spread[1]:
        found += [each.transpose(0, 2, 1) for each in found]
    return [Pose(np.ascontiguousarray(each)) for each in found]


def defects_of(x: FloatArray, mask: BoolArray) -> list[list[Pose]]:
    """The poses of each defect of a photograph: a cut-out is one of those of its original.

    Specks are alike whatever they are: they count only where there is nothing else.
    """
    found = []
    for box, piece in defect_pieces(mask):
        whole = np.zeros(mask.shape, np.bool_)
        whole[box.y : box.y + box.height, box.x : box.x + box.width] = piece
        found.append((int(piece.sum()), whole))
    large = [piece for area, piece in found if area >= _SPECK] or [piece for _, piece in found]
    return [poses(x, piece) for piece in large]


def similarity(made: Sequence[Pose], real: Sequence[Pose]) -> NDArray[np.float32]:
    """How alike each two poses are, [made, real], in 0..1: overlap of the masks times correlation of what is in them.

    Brightness and contrast do not count: a copy takes those of its new ground.
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
    """The nearest real photograph of each synthetic one, by its most similar defect."""

    index: NDArray[np.intp]
    similarity: NDArray[np.float32]

    @property
    def copies(self) -> BoolArray:
        return self.similarity > COPY


def nearest(made: Sequence[Sequence[list[Pose]]], real: Sequence[Sequence[list[Pose]]]) -> Nearest:
    """For each synthetic photograph the real one with the most similar defect.

    Args:
        made, real: for each photograph its defects, as `defects_of` gives them.
    """
    flat = [pose for photograph in real for defect in photograph for pose in defect]
    owner = np.repeat(np.arange(len(real)), [sum(map(len, photograph)) for photograph in real])
    tables = [similarity([defect[0] for defect in photograph], flat).max(axis=0) for photograph in made]
    index = np.array([owner[table.argmax()] for table in tables], np.intp)
    return Nearest(index, np.array([table.max() for table in tables], np.float32))


def share_of_copies(real: Sequence[Sequence[list[Pose]]]) -> float:
    """The part of real photographs that have a near-copy among the others.

    Simple defects are alike by nature, and some data sets hold the same part twice.
    """
    others = [nearest([each], [*real[:i], *real[i + 1 :]]).copies[0] for i, each in enumerate(real) if len(real) > 1]
    return float(np.mean(others)) if others else 0.0


def agreement(image: FloatArray, source: FloatArray, mask: BoolArray) -> float:
    """IoU of a mask with where an image visibly differs from its source, [C, H, W] each; 1 if both are empty.

    What changed within five pixels of the mask does not count against it: there a blend fades out.
    """
    change = np.abs(image - source).max(axis=0) > 2 * VISIBLE
    near = cv2.dilate(mask.view(np.uint8), np.ones((2 * _FADES + 1,) * 2, np.uint8)) > 0
    change &= mask | ~near
    either = (change | mask).sum()
    return float((change & mask).sum() / either) if either else 1.0
