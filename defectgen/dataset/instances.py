"""The defects of a sample, each of one or several pieces."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from defectgen.dataset.manifest import Row
from defectgen.dataset.polygons import Piece, pieces

Instances = Literal["defects", "pieces"]
"""What an annotation is of: a defect with all its pieces, or each piece."""


def read(mask: NDArray[np.bool_], row: Row, by: Instances) -> list[list[Piece]]:
    """The pieces of a mask, [H, W], by defect, or each alone.

    A sample has one defect unless its row says otherwise. Rows of older versions do not say which pieces belong
    together if there are several defects; there each piece is one.
    """
    found = list(pieces(mask))
    several = len(row.parameters.defects) > 1 or len(row.regions or ()) > 1
    if by == "pieces" or (several and row.instances is None):
        return [[piece] for piece in found]
    numbers = dict(zip(row.boxes, row.instances or (), strict=False))
    defects: dict[int, list[Piece]] = {}
    for piece in found:
        box = (piece.box.x, piece.box.y, piece.box.width, piece.box.height)
        defects.setdefault(numbers.get(box, 0), []).append(piece)
    return list(defects.values())


def numbered(labels: NDArray[np.int32], count: int, numbers: NDArray[np.uint16]) -> list[int]:
    """The defect, from 0, of each component.

    Args:
        labels: the component of each pixel, [H, W], from 1 to `count`; 0 elsewhere.
        numbers: the defect of each pixel, [H, W], from 1; 0 where that is not known. Defects that share a component
            count as one, and a component of no known defect is one of its own.
    """
    first: dict[int, int] = {}  # of defects that are one, the first

    def root(number: int) -> int:
        while first.get(number, number) != number:
            number = first[number]
        return number

    inside = labels > 0
    pairs = np.unique(np.stack([labels[inside], numbers[inside]]), axis=1).T.tolist()
    of: dict[int, int] = {}
    for label, number in pairs:
        if number:
            one, other = sorted((root(of.setdefault(label, number)), root(number)))
            first[other] = one
    roots = [root(of[label]) if label in of else -label for label in range(1, count + 1)]
    order = list(dict.fromkeys(roots))
    return [order.index(each) for each in roots]
