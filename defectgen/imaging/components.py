"""Connected components of masks of any size."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_STRIP = 2**24  # pixels at a time: the labels of a whole line scan would need a gibibyte


class Components:
    """The connected components of a mask, [H, W], found in strips of whole rows.

    `boxes`, [N, 4], are the left, top, width and height of each component, `areas`, [N], its pixels. Component 0 is the
    background, which has neither. Iterating yields the rows of each strip that has components, with their numbers,
    [rows, W], 0 on the background. The mask must not change in between, apart from strips already yielded.
    """

    def __init__(self, mask: NDArray[np.bool_] | NDArray[np.uint8], connectivity: int = 8) -> None:
        self._mask = np.ascontiguousarray(mask).view(np.uint8)
        self._connectivity = connectivity
        self._rows = max(1, _STRIP // max(1, mask.shape[1]))
        self._only: NDArray[np.int32] | None = None
        self._pieces: dict[int, tuple[int, int]] = {}  # of each strip that has pieces, the numbers of its pieces
        pieces, seams = [np.zeros((1, 5), np.int64)], [np.zeros((0, 2), np.int64)]
        count, above = 1, np.zeros(mask.shape[1], np.int64)
        for top in range(0, len(mask), self._rows):
            strip = self._mask[top : top + self._rows]
            if not strip.any():
                above = np.zeros_like(above)
                continue
            _, labels, statistics, _ = cv2.connectedComponentsWithStats(strip, connectivity=connectivity)
            self._pieces[top] = count, count + len(statistics) - 1
            pieces.append(statistics[1:] + np.array([0, top, 0, 0, 0]))
            if above.any():
                seams.append(_touching(above, _numbered(labels[0], count), connectivity))
            above = _numbered(labels[-1], count)
            count += len(statistics) - 1
            self._only = np.asarray(labels, np.int32) if len(strip) == len(mask) else None
        self._numbers = np.arange(count, dtype=np.int32)
        found = np.concatenate(pieces)
        self.boxes, self.areas = found[:, :4], found[:, 4]
        if any(map(len, seams)):
            self._merge(np.concatenate(seams))

    def __len__(self) -> int:
        """The number of components, with the background."""
        return len(self.areas)

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.int32]]]:
        for top, (first, end) in self._pieces.items():
            rows = slice(top, top + self._rows)
            labels = self._only
            if labels is None:
                again = cv2.connectedComponents(self._mask[rows], connectivity=self._connectivity)[1]
                labels = np.asarray(again, np.int32)
            yield rows, np.concatenate([self._numbers[:1], self._numbers[first:end]])[labels]

    def _merge(self, seams: NDArray[np.int64]) -> None:
        """Make one component of the pieces that touch, which `seams` says in pairs, [P, 2]."""
        count = len(self.areas)
        graph = coo_matrix((np.ones(len(seams), np.bool_), (seams[:, 0], seams[:, 1])), shape=(count, count))
        total, self._numbers = connected_components(graph, directed=False)
        start, areas = np.full((total, 2), np.iinfo(np.int64).max), np.zeros(total, np.int64)
        end = np.zeros_like(start)
        np.minimum.at(start, self._numbers, self.boxes[:, :2])
        np.maximum.at(end, self._numbers, self.boxes[:, :2] + self.boxes[:, 2:])
        np.add.at(areas, self._numbers, self.areas)
        self.boxes, self.areas = np.concatenate([start, end - start], axis=1), areas


def _numbered(labels: NDArray[np.int32], first: int) -> NDArray[np.int64]:
    """A strip's labels from 1 on as numbers from `first` on; 0 stays."""
    return np.where(labels > 0, labels.astype(np.int64) + (first - 1), 0)


def _touching(above: NDArray[np.int64], below: NDArray[np.int64], connectivity: int) -> NDArray[np.int64]:
    """The pairs of numbers that touch between two neighboring rows, [P, 2]."""
    pairs = [np.stack([above, below], axis=1)]
    if connectivity == 8:
        pairs += [np.stack([above[1:], below[:-1]], axis=1), np.stack([above[:-1], below[1:]], axis=1)]
    both = np.concatenate(pairs)
    return np.unique(both[(both > 0).all(axis=1)], axis=0)
