"""Thumbnails: one small JPEG of an image that shows what was found, and where."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage, Pixels, encode_jpeg
from defectgen.imaging.windows import BoolArray, Box, FloatArray, Limits, value_range

COLUMNS = ("image", "defects outlined", "defect-free version", "score map")
"""What each row of a strip shows, from the left; without the third if there is no defect-free version."""
SIDE = 256
"""The longer side of a thumbnail, in pixels."""

_PART = (128, 640)  # pixels; the least and greatest side of the part of a large image that is shown by itself
_ROOM = 1.5  # the side of that part, in those of its defects
_GAP = 4  # pixels between thumbnails
_QUALITY = 80
_RED = (230, 40, 40)
_BLUE = (40, 110, 230)

_Picture = NDArray[np.uint8]


class Shrunk:
    """A map, [H, W], that comes in strips of rows, scaled down to at most `SIDE` by its greatest values."""

    def __init__(self, height: int, width: int) -> None:
        scale = min(1.0, SIDE / max(height, width))
        self.values: FloatArray = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.float32)
        self._height, self._width = height, width

    def add(self, rows: slice, values: NDArray[Any]) -> None:
        """Take the values of these rows, [rows, W], which are at least 0."""
        height, width = self.values.shape
        top = rows.start or 0
        into, starts = np.unique(np.arange(top, top + len(values)) * height // self._height, return_index=True)
        lower = np.maximum.reduceat(values, starts, axis=0)
        starts = np.unique(np.arange(self._width) * width // self._width, return_index=True)[1]
        self.values[into] = np.maximum(self.values[into], np.maximum.reduceat(lower, starts, axis=1))


def strip(
    photograph: DecodedImage,
    repaired: Pixels | None,
    whole: Shrunk,
    mask: BoolArray,
    threshold: float,
    scores: Callable[[Box], FloatArray],
) -> bytes:
    """A JPEG with a row of thumbnails, see `COLUMNS`, of an image, and of the part around its defects if it is large.

    All is made from pixels that are scaled down first, so that it takes no memory to speak of.

    Args:
        whole: the image's score map, scaled down.
        scores: the score map of a part of the image.
    """
    limits = value_range(photograph)
    outlined = Shrunk(*mask.shape)
    outlined.add(slice(0, None), mask)
    part = _part(mask, whole.values) if mask.any() else None
    rows = [_row(photograph.pixels, repaired, whole.values, outlined.values > 0, limits, threshold)]
    if part is not None:
        there = slice(part.y, part.y + part.height), slice(part.x, part.x + part.width)
        small, inside = Shrunk(part.height, part.width), Shrunk(part.height, part.width)
        small.add(slice(0, None), scores(part))
        inside.add(slice(0, None), mask[there])
        _mark(rows[0][1], part, mask.shape)
        nearby = None if repaired is None else repaired[there]
        rows.append(_row(photograph.pixels[there], nearby, small.values, inside.values > 0, limits, threshold))
    width = max(tile.shape[1] for row in rows for tile in row)
    return encode_jpeg(np.concatenate([_joined(row, width) for row in rows])[:-_GAP, :-_GAP], _QUALITY)


def _part(mask: BoolArray, peaks: FloatArray) -> Box | None:
    """The part of an image that shows its defects, or the worst place if they are far apart; None if it is nearly all.

    Args:
        peaks: the score map, scaled down.
    """
    height, width = mask.shape
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y, x = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    least, most = _PART
    side = max(least, round(_ROOM * max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)))
    if side > most:
        side = most
        row, column = np.unravel_index(int(peaks.argmax()), peaks.shape)
        y, x = (row + 0.5) * height / peaks.shape[0], (column + 0.5) * width / peaks.shape[1]
    if max(height, width) <= max(SIDE, 1.25 * side):
        return None
    left, top = (int(min(max(at - side / 2, 0), max(0, end - side))) for at, end in ((x, width), (y, height)))
    return Box(left, top, min(side, width), min(side, height))


def _row(
    before: Pixels, after: Pixels | None, scores: FloatArray, mask: BoolArray, limits: Limits, threshold: float
) -> list[_Picture]:
    """The thumbnails of an image or a part of it, [h, w, 3] each; those of few pixels are enlarged.

    Args:
        scores, mask: already scaled down, [h, w].
    """
    times = max(1, SIDE // max(scores.shape))
    image, *repaired = (
        _enlarged(_shown(pixels, scores.shape, limits), times) for pixels in (before, after) if pixels is not None
    )
    marked = _enlarged(mask, times).view(np.uint8)
    outlined = image.copy()
    outlined[cv2.dilate(marked, np.ones((5, 5), np.uint8)) > marked] = _RED
    heat = np.clip(scores * (127.5 / max(threshold, 0.05)), 0, 255).astype(np.uint8)
    colors = np.asarray(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO), np.uint8)[..., ::-1]
    return [image, outlined, *repaired, _enlarged(colors, times)]


def _shown(pixels: Pixels, shape: tuple[int, ...], limits: Limits) -> _Picture:
    """Pixels scaled down to `shape`, [h, w], as 8-bit RGB."""
    small = np.atleast_3d(np.asarray(cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)))
    colors = small[..., : 1 if small.shape[2] <= 2 else 3]
    low, high = limits
    levels = np.clip((colors.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    return np.array(np.broadcast_to(levels, (*shape, 3)), order="C")


def _enlarged(values: Any, times: int) -> Any:
    return values.repeat(times, axis=0).repeat(times, axis=1)


def _mark(tile: _Picture, part: Box, shape: tuple[int, ...]) -> None:
    """Draw the frame of a part of an image of `shape`, [H, W], on its thumbnail."""
    down, across = tile.shape[0] / shape[0], tile.shape[1] / shape[1]
    start = int(part.x * across), int(part.y * down)
    cv2.rectangle(tile, start, (int((part.x + part.width) * across), int((part.y + part.height) * down)), _BLUE)


def _joined(tiles: list[_Picture], width: int) -> _Picture:
    """Thumbnails side by side, each in the middle of `width` pixels, with a gap to the right and below."""
    cells = []
    for tile in tiles:
        left = (width - tile.shape[1]) // 2
        around = ((0, _GAP), (left, width - tile.shape[1] - left + _GAP), (0, 0))
        cells.append(np.pad(tile, around, constant_values=255))
    return np.concatenate(cells, axis=1)
