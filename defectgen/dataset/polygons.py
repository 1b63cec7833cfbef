"""Outlines of masks as polygons that fill to exactly the same mask."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.windows import Box

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A connected component of a mask: its outline and those of its holes are [N, 2] as x, y in pixels."""

    box: Box
    mask: NDArray[np.bool_]
    """Its pixels, cropped to the box."""
    outline: Points
    holes: tuple[Points, ...]


def pieces(mask: NDArray[np.bool_]) -> Iterator[Piece]:
    """The 8-connected components of a mask, [H, W], roughly from the top.

    Coordinates are continuous: pixel (0, 0) covers 0 to 1. OpenCV's contours run through pixel centers, so they lose
    half a pixel on each side, and a line of one pixel completely. At twice the size they lose a quarter, and every
    pixel center stays inside.
    """
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for label in range(1, count):
        box = Box(*statistics[label, :4].tolist())
        piece = labels[box.y : box.y + box.height, box.x : box.x + box.width] == label
        doubled = piece.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        contours, hierarchy = cv2.findContours(
            doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(2 * box.x, 2 * box.y)
        )
        lines = [(contour[:, 0].astype(np.float64) + 0.5) / 2 for contour in contours]
        outer = [line for line, (*_, parent) in zip(lines, hierarchy[0], strict=True) if parent < 0]
        holes = [line for line, (*_, parent) in zip(lines, hierarchy[0], strict=True) if parent >= 0]
        yield Piece(box, piece, outer[0], tuple(holes))


def bridged(piece: Piece) -> Points:
    """One polygon for a component with holes: a cut of zero width leads to each hole, around it, and back."""
    line = piece.outline
    for hole in piece.holes:
        distance = np.square(line[:, None] - hole[None]).sum(axis=2)
        i, j = np.unravel_index(int(distance.argmin()), distance.shape)
        around = np.concatenate([hole[j:], hole[: j + 1]])
        line = np.concatenate([line[: i + 1], around, line[i:]])
    return line
