"""Masks drawn from shapes: polygons, ellipses, lines, run lengths and bitmaps. Each gives a mask of a size, [H, W].

Coordinates are x and y in pixels and continuous: pixel (0, 0) covers 0 to 1. Two rules decide which pixels a polygon
marks, since the owners of the formats have two: those whose centers are inside (`polygon`: COCO and CVAT), or all that
it touches (`outlined`: LabelMe and YOLO, where the corners are pixels, and a line of one pixel has no area).
"""

import base64
import io
from collections.abc import Callable, Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from defectgen.imaging.windows import BoolArray

Draw = Callable[[int, int], BoolArray]
"""(height, width) -> the mask of a shape."""
Points = NDArray[np.float64]

_SLACK = 0.01  # pixels by which a fraction of 6 digits may miss the pixel that it stands for
_FAR = 2**20  # pixels; corners farther out are moved here
_THINNEST, _LINES = 3, 200  # a line is 1/200 of the longer side wide, at least 3 pixels


def points(values: ArrayLike) -> Points:
    """Pairs of x and y, [N, 2], from any nesting of numbers.

    Raises:
        ValueError: they are no finite numbers, or their number is odd.
    """
    found = np.asarray(values, np.float64).reshape(-1, 2)
    if not np.isfinite(found).all():
        raise ValueError("coordinates are not finite")
    return np.clip(found, -_FAR, _FAR)


def polygon(corners: Points, height: int, width: int) -> BoolArray:
    """The pixels whose centers are inside, by the even-odd rule; those that it touches if none is."""
    mask = np.zeros((height, width), np.bool_)
    _fill(mask, corners)
    return mask if mask.any() else outlined(corners, height, width)


def _fill(mask: BoolArray, corners: Points) -> None:
    """Mark the pixels whose centers are inside a polygon."""
    height, width = mask.shape
    low = np.floor(corners.min(axis=0)).clip(0, [width, height]).astype(int)
    high = np.ceil(corners.max(axis=0)).clip(0, [width, height]).astype(int)
    part = mask[low[1] : high[1], low[0] : high[0]]
    part |= _inside(corners - low, *part.shape)


def _inside(corners: Points, height: int, width: int) -> BoolArray:
    """The pixels of [H, W] whose centers are inside."""
    first, last = corners, np.roll(corners, -1, axis=0)
    top, bottom = (np.ceil(each(first[:, 1], last[:, 1]) - 0.5).clip(0, height) for each in (np.minimum, np.maximum))
    counts = (bottom - top).astype(np.int64)  # of rows whose centers each side crosses
    side = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + top[side].astype(np.int64)
    slope = (last - first)[side]
    x = first[side, 0] + (rows + 0.5 - first[side, 1]) * slope[:, 0] / slope[:, 1]
    crossed = np.zeros((height, width + 1), np.uint8)
    np.add.at(crossed, (rows, np.ceil(x - 0.5).clip(0, width).astype(np.int64)), 1)
    return (np.cumsum(crossed, axis=1, dtype=np.uint8) & 1)[:, :width].astype(np.bool_)


def outlined(corners: Points, height: int, width: int) -> BoolArray:
    """The pixels inside or under the outline, as LabelMe has Pillow draw it."""
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in _pixels(corners).tolist()], outline=1, fill=1)
    return np.array(image)


def relative(corners: Points, height: int, width: int) -> BoolArray:
    """As `outlined`, of corners that are fractions of the width and height, as Ultralytics has OpenCV draw it."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [_pixels(corners * [width, height] + _SLACK)], 1)
    return mask.astype(np.bool_)


def relative_box(center_and_size: Points, height: int, width: int) -> BoolArray:
    """A box, [[x, y], [w, h]] as fractions of the width and height."""
    (x, y), (w, h) = center_and_size * [width, height]
    return polygon(box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), height, width)


def box(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> Points:
    """The corners of a box, turned clockwise about its center."""
    return _turned(points([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), (x0 + x1) / 2, (y0 + y1) / 2, degrees)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> Points:
    """An ellipse about (x, y), with the radii rx and ry, turned clockwise, as a polygon."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    return _turned(points(np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)), x, y, degrees)


def line(corners: Points, height: int, width: int) -> BoolArray:
    """A line through points, `thickness` wide, with round ends."""
    mask = dots(corners, height, width)
    radius = thickness(height, width) / 2
    for one, other in pairwise(corners):
        if length := float(np.hypot(*(other - one))):
            aside = (other - one)[::-1] * [-radius / length, radius / length]
            _fill(mask, np.stack([one + aside, other + aside, other - aside, one - aside]))
    return mask


def dots(corners: Points, height: int, width: int) -> BoolArray:
    """A dot on each point, as wide as a line."""
    mask = np.zeros((height, width), np.bool_)
    radius = thickness(height, width) / 2
    for x, y in corners:
        _fill(mask, ellipse(x, y, radius, radius))
    return mask


def thickness(height: int, width: int) -> int:
    """The width of a line in an image, in pixels."""
    return max(_THINNEST, round(max(height, width) / _LINES))


def runs(
    lengths: Sequence[int], size: tuple[int, int], at: tuple[int, int], by: str, height: int, width: int
) -> BoolArray:
    """Run lengths, zeros first, of a part of the mask.

    Args:
        size: the height and width of the part.
        at: x and y of its corner; what is outside of the mask is lost.
        by: "rows" or "columns", one after another.

    Raises:
        ValueError: the part is far larger than the mask, or the lengths do not fit it.
    """
    area = _checked_area(size, height, width)
    counts = np.asarray(lengths, np.int64)
    if len(counts) and (counts.min() < 0 or counts.max() > area or counts.sum() > area):
        raise ValueError(f"run lengths do not fit {size[1]}x{size[0]} pixels")
    flat = np.zeros(area, np.bool_)
    marked = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    flat[: len(marked)] = marked
    return _placed(flat.reshape(size, order="C" if by == "rows" else "F"), at, height, width)


def uncompressed(text: str) -> list[int]:
    """The run lengths in COCO's compressed form: base 32 with differences, 6 bits a character.

    Raises:
        ValueError: a character is none of it, or the text ends within a number.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("not COCO's compressed run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= 1 << shift if code & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("not COCO's compressed run lengths")
    return counts


def bitmap(png: str, at: tuple[int, int], height: int, width: int) -> BoolArray:
    """A PNG in base64, whose pixels that are not 0 count. `at` is x and y of its corner.

    Raises:
        ValueError: it is no PNG.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(png)), formats=("PNG",)) as image:
            _checked_area((image.height, image.width), height, width)
            pixels = np.asarray(image)
    except Exception as error:  # on damaged data the decoder raises errors of all kinds
        raise ValueError(f"its mask is no PNG for the image ({' '.join(str(error).split())[:80]})") from error
    return _placed(np.asarray(pixels.reshape(*pixels.shape[:2], -1).any(axis=2)), at, height, width)


def _checked_area(size: tuple[int, int], height: int, width: int) -> int:
    """The number of pixels of a part of a mask. Raises ValueError if it is far larger than the mask."""
    if not (0 < size[0] <= 2 * height and 0 < size[1] <= 2 * width):
        raise ValueError(f"a mask of {size[1]}x{size[0]} pixels for an image of {width}x{height}")
    return size[0] * size[1]


def _placed(part: BoolArray, at: tuple[int, int], height: int, width: int) -> BoolArray:
    """A mask with a part of it at (x, y). What lies outside is lost."""
    mask = np.zeros((height, width), np.bool_)
    x, y = at
    inner = part[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    mask[max(0, y) :, max(0, x) :][: inner.shape[0], : inner.shape[1]] = inner
    return mask


def _turned(corners: Points, x: float, y: float, degrees: float) -> Points:
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray((corners - [x, y]) @ np.array([[cos, sin], [-sin, cos]]) + [x, y]) if degrees else corners


def _pixels(corners: Points) -> NDArray[np.int32]:
    """The pixels on which corners lie."""
    return np.floor(corners).astype(np.int32)
