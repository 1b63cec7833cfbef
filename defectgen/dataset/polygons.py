"""Outlines of masks as polygons that fill to exactly the same mask."""

from collections.abc import Iterator, Sequence
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
    """One polygon for a component with holes: a cut of zero width leads to each hole, around it, and back.

    The cut of a hole goes straight to the left from its leftmost point, to the border that it meets there. So it lies
    within the component, and takes time by pixels, also for thousands of holes.
    """
    if not piece.holes:
        return piece.outline
    doubled = piece.mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # The outline comes first: it has no parent.
    rings = [contours[i][:, 0] for i in np.argsort(hierarchy[0][:, 3], kind="stable")]
    at = np.zeros((*doubled.shape, 2), np.int64)  # the ring of each border pixel, and the position on it
    for number, ring in enumerate(rings):
        at[ring[:, 1], ring[:, 0], 0], at[ring[:, 1], ring[:, 0], 1] = number, np.arange(len(ring))
    cuts: dict[int, list[tuple[int, int, int]]] = {}  # by ring: the position, the hole that it leads to, and where
    for number, ring in enumerate(rings[1:], start=1):
        start = int(ring[:, 0].argmin())
        x, y = ring[start].tolist()
        met, position = at[y, np.flatnonzero(doubled[y, :x] == 0)[-1] + 1 if (doubled[y, :x] == 0).any() else 0]
        cuts.setdefault(int(met), []).append((int(position), number, start))
    todo: list[Points | tuple[int, int]] = [(0, 0)]
    done = []
    while todo:
        each = todo.pop()
        if not isinstance(each, tuple):
            done.append(each)
            continue
        number, start = each
        around = np.roll(rings[number], -start, axis=0)
        around = np.concatenate([around, around[:1]])
        parts: list[Points | tuple[int, int]] = []
        last = 0
        for position, hole, where in sorted(
            ((position - start) % len(rings[number]), *rest) for position, *rest in cuts.get(number, ())
        ):
            parts += [around[last : position + 1], (hole, where)]
            last = position
        todo += [*parts, around[last:]][::-1]
    return (_simple(np.concatenate(done)) + 0.5) / 2 + (piece.box.x, piece.box.y)


def together(lines: Sequence[Points]) -> Points:
    """One polygon for several: cuts of zero width join each to those before, nearest first."""
    boxes = np.array([[*line.min(axis=0), *line.max(axis=0)] for line in lines])
    line, left = lines[0], np.arange(1, len(lines))
    gaps = np.full(len(lines), np.inf)
    new = 0
    while len(left):
        between = np.maximum(boxes[left, :2] - boxes[new, 2:], boxes[new, :2] - boxes[left, 2:]).clip(0)
        gaps[left] = np.minimum(gaps[left], np.square(between).sum(axis=1))
        new = int(left[gaps[left].argmin()])
        left = left[left != new]
        other = lines[new]
        i = _nearest(line, (boxes[new, :2] + boxes[new, 2:]) / 2)
        j = _nearest(other, line[i])
        i = _nearest(line, other[j])
        line = np.concatenate([line[: i + 1], other[j:], other[: j + 1], line[i:]])
    return line


def _nearest(line: Points, point: Points) -> int:
    return int(np.square(line - point).sum(axis=1).argmin())


def _simple(line: Points) -> Points:
    """A closed line without the points in the middle of its straight parts."""
    line = line[np.any(line != np.roll(line, 1, axis=0), axis=1)]
    before, after = line - np.roll(line, 1, axis=0), np.roll(line, -1, axis=0) - line
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) < 0
    return np.asarray(line[turns | back], np.float64)
