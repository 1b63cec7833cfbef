"""Windows: square pieces of a photograph at its own resolution, for the network, and the way back.

A network never sees a photograph squashed. It sees a square of `side` native pixels, at `image_size`; the two
are equal unless the defects are larger than the window, then side = image_size / scale with a scale below 1.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage, Pixels, read_image

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_GAP = 7  # pieces of a mask nearer than this, in pixels, are one defect


@dataclass(frozen=True)
class Window:
    """A square of a photograph: its upper left corner and side, in native pixels. It may reach past the border."""

    x: int
    y: int
    side: int


@dataclass(frozen=True)
class Box:
    """A defect's bounding box, in native pixels."""

    x: int
    y: int
    width: int
    height: int


def defect_boxes(mask: NDArray[np.bool_]) -> list[Box]:
    """The bounding boxes of a mask's defects, [H, W]; pieces that nearly touch are one defect."""
    return [box for box, _ in defect_pieces(mask)]


def defect_pieces(mask: NDArray[np.bool_]) -> list[tuple[Box, NDArray[np.bool_]]]:
    """A mask's defects: the bounding box of each, and its own part of the mask therein."""
    joined = cv2.dilate(mask.astype(np.uint8), np.ones((_GAP, _GAP), np.uint8))
    count, labels = cv2.connectedComponents(joined)
    pieces = []
    for label in range(1, count):
        own = mask & (labels == label)
        rows, columns = np.nonzero(own)
        x, y = int(columns.min()), int(rows.min())
        box = Box(x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
        pieces.append((box, own[y : y + box.height, x : x + box.width]))
    return pieces


def scale_of(scales: Mapping[str, Mapping[str, float]], product: str, category: str) -> float:
    """The scale for a category on a product; where it never occurred there, the product's coarsest one.

    On a product that is not known it is that of the products where the category occurred, in the mean.
    """
    if product not in scales:
        return float(np.mean([its[category] for its in scales.values() if category in its] or [1.0]))
    of_product = scales[product]
    return of_product.get(category, min(of_product.values(), default=1.0))


def place(
    rng: np.random.Generator, height: int, width: int, side: int, box: Box | None = None, *, beyond: int = 0
) -> Window:
    """A window at a random place: inside the photograph as far as it goes, and around `box` if it fits.

    A box longer than the window is seen in a random piece. A photograph smaller than the window lies
    somewhere inside it. `beyond` are pixels by which a window may reach over the photograph's edges.
    """

    def corner(length: int, start: int, extent: int) -> int:
        low, high = min(0, length - side) - beyond, max(0, length - side) + beyond
        if box is not None:
            inside = sorted((start + extent - side, start))
            low, high = max(low, min(inside[0], high)), min(high, max(inside[1], low))
        return int(rng.integers(low, high + 1))

    b = box or Box(0, 0, 0, 0)
    return Window(corner(width, b.x, b.width), corner(height, b.y, b.height), side)


def inside(start: int, side: int, length: int) -> int:
    """The start of a window that reaches no further over the ends of an axis than it must."""
    return min(max(start, min(0, length - side)), max(0, length - side))


def value_range(photograph: DecodedImage) -> tuple[float, float]:
    """The native values that become -1 and 1. A 16-bit photograph seldom uses its range: 0.1 to 99.9 percent.

    Some 65 000 pixels tell them as well as all would.
    """
    if photograph.depth == 8:
        return 0.0, 255.0
    thin = photograph.pixels[:: 1 + photograph.height // 256, :: 1 + photograph.width // 256]
    low, high = np.percentile(thin[..., : photograph.channels] if thin.ndim == 3 else thin, [0.1, 99.9])
    return float(low), float(max(high, low + 1))


def crop(photograph: DecodedImage, window: Window, image_size: int, channels: int) -> FloatArray:
    """A window as the network sees it: [channels, image_size, image_size] in [-1, 1], no alpha.

    Outside the photograph it is mirrored. A gray photograph fills three channels alike; three channels become
    one by their mean.
    """
    rows = mirrored(window.y, window.side, photograph.height)
    columns = mirrored(window.x, window.side, photograph.width)
    pixels: FloatArray = photograph.pixels[rows[:, None], columns[None, :]].astype(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., : photograph.channels]
    if window.side != image_size:
        shape = (image_size, image_size)
        pixels = np.asarray(cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA), np.float32).reshape(*shape, -1)
    return normalize(pixels, value_range(photograph), channels)


def normalize(pixels: FloatArray, tones: tuple[float, float], channels: int) -> FloatArray:
    """Pixels [H, W, 1 or 3] between two tones, as `tone` tells them: [channels, H, W] in [-1, 1]."""
    low, high = tones
    pixels = np.clip((pixels - low) * (2 / (high - low)) - 1, -1, 1)
    if channels == 1:
        pixels = pixels.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], channels)).transpose(2, 0, 1))


def paste_change(
    photograph: DecodedImage, window: Window, before: FloatArray, after: FloatArray, alpha: FloatArray
) -> Pixels:
    """The photograph with what changed from `before` to `after` added where `alpha` says.

    What is added is the change, not the window: the photograph's own grain stays, at its own resolution and
    depth, also where the network saw it scaled down. Where alpha is 0 every pixel keeps its value; so does an
    alpha channel everywhere.

    Args:
        before, after: windows [C, S, S] in [-1, 1].
        alpha: [side, side] in [0, 1], at native resolution.
    """
    change = (after - before).transpose(1, 2, 0)
    if change.shape[0] != window.side:
        shape = (window.side, window.side)
        change = np.asarray(cv2.resize(change, shape, interpolation=cv2.INTER_CUBIC), np.float32).reshape(*shape, -1)
    if change.shape[2] != photograph.channels:
        change = change.mean(axis=2, keepdims=True)
    low, high = value_range(photograph)
    change = change * alpha[..., None] * ((high - low) / 2)

    pixels = photograph.pixels.copy()
    top, left = max(window.y, 0), max(window.x, 0)
    bottom = min(window.y + window.side, photograph.height)
    right = min(window.x + window.side, photograph.width)
    change = change[top - window.y : bottom - window.y, left - window.x : right - window.x]
    inside = pixels[top:bottom, left:right]
    colours = inside[..., None] if inside.ndim == 2 else inside[..., : photograph.channels]
    limit = np.iinfo(pixels.dtype).max
    colours[...] = np.clip(np.rint(colours + change), 0, limit).astype(pixels.dtype)
    return pixels


def paste_on_zeros(values: NDArray[Any], at: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """An array [h, w] laid at (x, y) onto zeros of `size` (height, width); what sticks out is clipped."""
    whole = np.zeros(size, values.dtype)
    (x, y), (height, width) = at, values.shape
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + height, size[0]), top), max(min(x + width, size[1]), left)
    whole[top:bottom, left:right] = values[top - y : bottom - y, left - x : right - x]
    return whole


def crop_zero_padded(whole: NDArray[Any], at: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """The reverse of `laid`: what lies at (x, y) in `whole`, [height, width] of `size`, zeros beyond its edges."""
    return paste_on_zeros(whole, (-at[0], -at[1]), size)


def mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """`count` indices from `start` on into an axis of `length`, mirrored at its ends without repeating them."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, start + count) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(count, np.intp)


class ImageCache:
    """Decoded photographs, kept in memory up to a limit, the last used longest. Safe to share among threads."""

    def __init__(self, limit: int = 2 << 30, read: Callable[[Path], DecodedImage] = read_image) -> None:
        self._limit = limit
        self._decode = read
        self._kept: OrderedDict[Path, DecodedImage] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def read(self, path: Path) -> DecodedImage:
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
        photograph = self._decode(path)
        with self._lock:
            if path not in self._kept:
                self._kept[path] = photograph
                self._bytes += photograph.pixels.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].pixels.nbytes
        return photograph
