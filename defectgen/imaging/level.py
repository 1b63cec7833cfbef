"""Defect patches in a level pose, their longer axis along the window, for networks that learn them with their masks.

Those that end at an edge of their image end at the left or the bottom of the window. Where a good part of the defects
is long, windows are four times as wide as high, with as many pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from defectgen.imaging.images import DecodedImage
from defectgen.imaging.masks import depth
from defectgen.imaging.patches import (
    RIM,
    DefectPatch,
    cut_out,
    flipped,
    relative,
    resize,
    turn,
    with_mask,
)
from defectgen.imaging.places import KnownSpot, Pose, Spot
from defectgen.imaging.windows import BoolArray, Box, FloatArray

_LONG, _FEW = 2.5, 0.25  # a defect with such a ratio is long; the share of long ones that makes windows long
_MARGIN = 1.15  # a window is this many times as large as the defect, if it can be
_THIN = 2.5  # pixels: least thickness at which a defect is learned; a window then shows a part of it
_LARGEST = 2.0  # scale
_LEAST_RIM = 3  # pixels of the window


def extent(spot: Spot, piece: BoolArray) -> tuple[float, float]:
    """Width and height of a defect when it is level, in pixels of its image."""
    pose = Pose.of(spot)
    height, width = piece.shape
    points = np.argwhere(piece)[:, ::-1] @ turn(width, height, pose.degrees, 1.0)[:, :2].T
    across, down = (np.ptp(points, axis=0) + 1)[:: -1 if pose.transposed else 1].tolist()
    return across, down


def elongated(extents: Sequence[tuple[float, float]]) -> bool:
    """Whether windows are to be long."""
    return sum(width > _LONG * height for width, height in extents) > _FEW * len(extents)


def window_shape(side: int, *, elongated: bool) -> tuple[int, int]:
    """Height and width of windows of `side` x `side` pixels."""
    return (side // 2, 2 * side) if elongated else (side, side)


def known(spot: Spot, piece: BoolArray, shape: tuple[int, int]) -> KnownSpot:
    """The scale at which a window shows a defect, and its length there. Small defects are enlarged, up to twice."""
    have = extent(spot, piece)
    needed = max(_MARGIN * length / room for length, room in zip(have, shape[::-1], strict=True))
    scale = min(_LARGEST, max(1 / needed, _THIN / (2 * depth(piece))))
    return KnownSpot(spot, scale, scale * have[0])


def cut_out_at(image: DecodedImage, box: Box, piece: BoolArray, scale: float, source: Path) -> DefectPatch:
    """A defect relative to its rim, at a scale."""
    patch = cut_out(image, box, piece, max(RIM, math.ceil(_LEAST_RIM / scale)))
    return replace(relative(resize(patch, scale)), source=source, box=box)


def window(
    rng: np.random.Generator, patch: DefectPatch, spot: Spot, shape: tuple[int, int], channels: int
) -> FloatArray:
    """A patch of `cut_out_at` level and in the middle of a window, or a random part of it: [channels + 1, *shape].

    The last channel is its mask, -1 to 1; the others are 0 away from it.
    """
    pose = Pose.of(spot)
    left, bottom = pose.ends
    patch = flipped(patch, transposed=pose.transposed, x=pose.flip_x, y=pose.flip_y)
    height, width = patch.blend_mask.shape
    matrix = turn(width, height, pose.degrees, 1.0)
    points = np.argwhere(patch.defect_mask)[:, ::-1] @ matrix[:, :2].T + matrix[:, 2]
    first, size = points.min(axis=0), np.ptp(points, axis=0) + 1
    for axis, (length, end) in enumerate(zip(shape[::-1], (left, bottom), strict=True)):
        room = length - size[axis]
        if end:
            start = -1.0 if axis == 0 else room + 1
        elif room >= 0:
            start = room / 2
        else:  # a part of it
            start = room * rng.random()
        matrix[axis, 2] += start - first[axis]
    return with_mask(patch, matrix, shape, channels)
