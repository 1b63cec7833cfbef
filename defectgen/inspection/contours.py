"""Outlines of defects as polygons."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.components import Components

Polygon = list[list[int]]

_TOLERANCE = 0.5  # pixels
_LIKENESS = 0.98  # least IoU of a defect and its simplified polygons


def contours(mask: NDArray[np.bool_], components: Components) -> list[list[Polygon]]:
    """The polygons of each component of a mask, [H, W], in the order of `components.boxes` without the background.

    The first polygon of a component is its outline, the others are those of its holes. They run through the centers of
    the component's outermost pixels, (0, 0) for the first, and are simplified to within half a pixel, unless that
    changes a small component too much: `cv2.fillPoly` of them all draws the component.
    """
    if len(components) == 1:
        return []
    start, end = components.boxes[1:, :2], components.boxes[1:, :2] + components.boxes[1:, 2:]
    (left, top), (right, bottom) = start.min(axis=0).tolist(), end.max(axis=0).tolist()
    lines, hierarchy = cv2.findContours(
        np.ascontiguousarray(mask[top:bottom, left:right]).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE,
        offset=(left, top),
    )  # fmt: skip
    parents: list[int] = hierarchy[0, :, 3].tolist()
    outer = [i for i, parent in enumerate(parents) if parent < 0]
    numbers = _numbers(np.stack([lines[i][0, 0] for i in outer]), components)
    of_component: list[list[NDArray[Any]]] = [[] for _ in components.boxes]
    for i, number in zip(outer, numbers, strict=True):
        of_component[number].append(np.asarray(lines[i]))
    number_of = dict(zip(outer, numbers, strict=True))
    for line, parent in zip(lines, parents, strict=True):
        if parent >= 0:
            of_component[number_of[parent]].append(np.asarray(line))
    return [[line[:, 0].tolist() for line in _simplified(each)] for each in of_component[1:]]


def _numbers(points: NDArray[np.int32], components: Components) -> list[int]:
    """The number of the component at each point, [N, 2] as x, y."""
    numbers = np.zeros(len(points), np.int64)
    for rows, labels in components:
        here = (points[:, 1] >= rows.start) & (points[:, 1] < rows.start + len(labels))
        numbers[here] = labels[points[here, 1] - rows.start, points[here, 0]]
    found: list[int] = numbers.tolist()
    return found


def _simplified(lines: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """The lines of a component with fewer points, [N, 1, 2], or as they are if that would change it too much."""
    fewer = [np.asarray(cv2.approxPolyDP(line, _TOLERANCE, closed=True)) for line in lines]
    before, after = _filled(lines, lines[0]), _filled(fewer, lines[0])
    return fewer if (before & after).sum() >= _LIKENESS * (before | after).sum() else lines


def _filled(lines: Sequence[NDArray[Any]], outline: NDArray[Any]) -> NDArray[np.uint8]:
    x, y, width, height = cv2.boundingRect(outline)
    return np.asarray(cv2.fillPoly(np.zeros((height, width), np.uint8), [line - (x, y) for line in lines], 1), np.uint8)
