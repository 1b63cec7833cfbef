"""The contact sheet: each sample without and with the outline of its mask."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.dataset.manifest import Row
from defectgen.imaging.images import read_image, read_mask

_TILE = 160  # pixels, the side of an image on the sheet
_LABEL = 18
_COLUMNS = 4  # pairs
_RED = (230, 40, 40)
_BLUE = (40, 90, 230)


def draw(out: Path, rows: Sequence[Row]) -> NDArray[np.uint8]:
    """The sheet of the samples in manifest `rows`, [H, W, 3], with crops around the defects to show small ones."""
    lines = -(-len(rows) // _COLUMNS)
    sheet = np.full((lines * (_TILE + _LABEL), _COLUMNS * (2 * _TILE + 6), 3), 255, np.uint8)
    for number, row in enumerate(rows):
        y, x = number // _COLUMNS * (_TILE + _LABEL), number % _COLUMNS * (2 * _TILE + 6)
        mask = read_mask(out / row.mask)
        plain, marked = _crops(read_image(out / row.image).as_rgb(), mask)
        sheet[y : y + _TILE, x : x + _TILE] = plain
        sheet[y : y + _TILE, x + _TILE : x + 2 * _TILE] = marked
        label = f"{row.index:06} {row.category}".encode("ascii", "replace").decode()
        cv2.putText(sheet, label, (x + 3, y + _TILE + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def draw_places(
    out: Path, rows: Sequence[Row], places: Mapping[str, Mapping[str, Any]], width: int
) -> NDArray[np.uint8]:
    """For each category, where defects lie in their images: boxes of real ones in red, centers of laid ones in blue.

    Args:
        places: by category; `boxes` are left, top, width and height as fractions of the image.
        width: of the strip, in pixels.
    """
    columns = width // (_TILE + 6)
    strip = np.full((-(-len(places) // columns) * (_TILE + _LABEL), width, 3), 255, np.uint8)
    for number, (category, found) in enumerate(sorted(places.items())):
        tile = np.full((_TILE, _TILE, 3), 225, np.uint8)
        for x, y, across, down in np.asarray(found["boxes"]).reshape(-1, 4) * (_TILE - 1):
            cv2.rectangle(tile, (round(x), round(y)), (round(x + across), round(y + down)), _RED, 1)
        for row in (row for row in rows if row.category == category):
            height, length = read_mask(out / row.mask).shape
            for x, y, across, down in row.boxes:
                center = (x + across / 2) / length * _TILE, (y + down / 2) / height * _TILE
                cv2.circle(tile, (round(center[0]), round(center[1])), 2, _BLUE, cv2.FILLED)
        y, x = number // columns * (_TILE + _LABEL), number % columns * (_TILE + 6)
        strip[y : y + _TILE, x : x + _TILE] = tile
        label = f"{category}: real, laid".encode("ascii", "replace").decode()
        cv2.putText(strip, label, (x + 3, y + _TILE + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _crops(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop around the defect, without and with outline, each [_TILE, _TILE, 3]."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = min(max(2 * max(width, height), 96), *mask.shape)
    if max(width, height) > side:  # defects too far apart for one crop: show the largest
        _, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
        left, top, width, height = map(int, statistics[largest, :4])
    y = int(np.clip(top + (height - side) // 2, 0, mask.shape[0] - side))
    x = int(np.clip(left + (width - side) // 2, 0, mask.shape[1] - side))
    crop = pixels[y : y + side, x : x + side]
    shape = (_TILE, _TILE)
    plain = cv2.resize(crop, shape, interpolation=cv2.INTER_AREA if side > _TILE else cv2.INTER_CUBIC)
    inside = cv2.resize(mask[y : y + side, x : x + side].astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    marked = cv2.drawContours(plain.copy(), contours, -1, _RED, 1)
    return np.asarray(plain, np.uint8), np.asarray(marked, np.uint8)
