"""Windows: square crops of an image for the network, and pasting the network's changes back.

Images are not resized to fit the network. It gets a window of `side` native pixels, resized to `image_size`. The two
are equal unless defects are larger than the window: then side = image_size / scale, with a scale below 1.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage, Pixels, read_image

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Limits = tuple[float, float]
"""The pixel values that are mapped to -1 and 1."""
K = TypeVar("K")
V = TypeVar("V")

_GAP = 7  # pixels; pieces of a mask that are closer together are one defect
_RANGES_OF = 40  # images
_EXPOSURE = 3.0  # greatest factor on the brightness of a window; its inverse is the least


@dataclass(frozen=True)
class Window:
    """A square of an image: its upper left corner and side, in native pixels. It may extend beyond the image."""

    x: int
    y: int
    side: int


@dataclass(frozen=True)
class Box:
    """The bounding box of a defect, in native pixels."""

    x: int
    y: int
    width: int
    height: int


def defect_boxes(mask: NDArray[np.bool_]) -> list[Box]:
    """The bounding boxes of the defects in a mask, [H, W]. Pieces that nearly touch are one defect."""
    return [box for box, _ in defect_pieces(mask)]


def defect_pieces(mask: NDArray[np.bool_]) -> list[tuple[Box, NDArray[np.bool_]]]:
    """The defects in a mask, [H, W]: the bounding box of each, and its part of the mask cropped to that box."""
    joined = cv2.dilate(mask.astype(np.uint8), np.ones((_GAP, _GAP), np.uint8))
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(joined)
    pieces = []
    for label in range(1, count):
        left, top, width, height, _ = statistics[label].tolist()
        there = slice(top, top + height), slice(left, left + width)
        own = mask[there] & (labels[there] == label)
        rows, columns = np.nonzero(own)
        x, y = int(columns.min()), int(rows.min())
        box = Box(left + x, top + y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
        pieces.append((box, own[y : y + box.height, x : x + box.width]))
    return pieces


def scale_of(scales: Mapping[str, Mapping[str, float]], product: str, category: str) -> float:
    """The scale of a category on a product, or the product's smallest scale if it has no such category.

    For an unknown product it is the mean scale of the category over the products that have it, or 1.
    """
    if product not in scales:
        return float(np.mean([its[category] for its in scales.values() if category in its] or [1.0]))
    of_product = scales[product]
    return of_product.get(category, min(of_product.values(), default=1.0))


def place(
    rng: np.random.Generator, height: int, width: int, side: int, box: Box | None = None, *, beyond: int = 0
) -> Window:
    """A window at a random position, inside the image where possible, and around `box` where it fits.

    If the box is longer than the window, the window shows a random part of it. If the image is smaller than the
    window, it lies at a random position inside it. The window may extend up to `beyond` pixels over the image's edges.
    """

    def corner(length: int, start: int, extent: int) -> int:
        low, high = min(0, length - side) - beyond, max(0, length - side) + beyond
        if box is not None:
            inside = sorted((start + extent - side, start))
            low, high = max(low, min(inside[0], high)), min(high, max(inside[1], low))
        return int(rng.integers(low, high + 1))

    b = box or Box(0, 0, 0, 0)
    return Window(corner(width, b.x, b.width), corner(height, b.y, b.height), side)


def network_side(length: float) -> int:
    """The least side of at least `length` pixels that every network takes: a multiple of 16."""
    return 16 * math.ceil(length / 16)


def place_at(height: int, width: int, side: int, at: tuple[float, float]) -> Window:
    """The window at a relative place of an image: (0, 0) is its upper left corner, (1, 1) its lower right one."""
    return Window(round(at[0] * (width - side)), round(at[1] * (height - side)), side)


def place_of(window: Window, height: int, width: int) -> tuple[float, float]:
    """The inverse of `place_at`; 0.5 along an axis on which the window fits exactly."""
    room = width - window.side, height - window.side
    x, y = (start / length if length else 0.5 for start, length in zip((window.x, window.y), room, strict=True))
    return x, y


def open_sides(window: Window, height: int, width: int) -> tuple[bool, bool, bool, bool]:
    """Whether the image goes on beyond the window's top, bottom, left and right side."""
    bottom, right = window.y + window.side < height, window.x + window.side < width
    return window.y > 0, bottom, window.x > 0, right


def shown(window: Window, height: int, width: int, size: int) -> tuple[slice, slice]:
    """The rows and columns of a window, scaled to `size`, that show the image, and not what lies beyond it."""
    scale = size / window.side
    rows, columns = (
        slice(round(max(0, -start) * scale), round(min(window.side, length - start) * scale))
        for start, length in ((window.y, height), (window.x, width))
    )
    return rows, columns


def inside(start: int, side: int, length: int) -> int:
    """`start` of a window on an axis of `length`, moved so that it extends beyond the ends as little as possible."""
    return min(max(start, min(0, length - side)), max(0, length - side))


def value_range(image: DecodedImage) -> Limits:
    """The native pixel values that are mapped to -1 and 1.

    0 and 255 for 8 bits. A 16-bit image rarely uses its full range: there they are `image.limits`, or the 0.1 and 99.9
    percentiles, estimated from some 65 000 pixels.
    """
    if image.depth == 8:
        return 0.0, 255.0
    if image.limits is not None:
        return image.limits
    thin = image.pixels[:: 1 + image.height // 256, :: 1 + image.width // 256]
    low, high = np.percentile(thin[..., : image.channels] if thin.ndim == 3 else thin, [0.1, 99.9])
    return float(low), float(max(high, low + 1))


def common_range(paths: Sequence[Path]) -> Limits | None:
    """One range for 16-bit images that are compared: from the lowest to the highest of theirs. None for 8-bit images.

    By its own, an image with a bright defect would be darker than one without. Of many images, 40 are read.
    """
    images = [read_image(path) for path in paths[:: 1 + len(paths) // _RANGES_OF]]
    ranges = [value_range(image) for image in images if image.depth == 16]
    return widened(*ranges) if ranges else None


def widened(*ranges: Limits) -> Limits:
    """The range that holds all of these."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def crop(image: DecodedImage, window: Window, image_size: int, channels: int) -> FloatArray:
    """A window of an image as the network's input: [channels, image_size, image_size] in [-1, 1], without alpha.

    Beyond its edges the image is mirrored. Gray is repeated for three channels; color is averaged for one.
    """
    rows = mirrored(window.y, window.side, image.height)
    columns = mirrored(window.x, window.side, image.width)
    pixels: FloatArray = image.pixels[rows[:, None], columns[None, :]].astype(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., : image.channels]
    if window.side != image_size:
        shape = (image_size, image_size)
        pixels = np.asarray(cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA), np.float32).reshape(*shape, -1)
    return normalize(pixels, value_range(image), channels)


def light_of(x: FloatArray, mask: BoolArray, image: DecodedImage) -> float:
    """How bright the ground of a mask is in a window x, [C, S, S] in [-1, 1], over its image; 0 for an empty mask."""
    low, high = value_range(image)
    thin = image.pixels[:: 1 + image.height // 64, :: 1 + image.width // 64]
    gray = thin[..., : image.channels].mean(axis=2) if thin.ndim == 3 else thin
    level = 2 * (float(np.median(gray)) - low) / (high - low)
    return float(np.median(x.mean(axis=0)[mask]) + 1) / max(level, 1e-3) if mask.any() else 0.0


def normalize(pixels: FloatArray, limits: tuple[float, float], channels: int) -> FloatArray:
    """Map pixels [H, W, 1 or 3] from `limits`, as given by `value_range`, to [channels, H, W] in [-1, 1]."""
    low, high = limits
    pixels = np.clip((pixels - low) * (2 / (high - low)) - 1, -1, 1)
    if channels == 1:
        pixels = pixels.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], channels)).transpose(2, 0, 1))


def exposure(x: FloatArray, other: FloatArray) -> float:
    """The factor that gives `other` the median brightness of `x`; both are windows in [-1, 1], where -1 is black.

    It is 3 at most and a third at least, and makes hardly anything in `other` brighter than white.
    """
    level, others = (float(np.median(each[..., ::2, ::2])) + 1 for each in (x, other))  # a quarter of it will do
    white = float(np.quantile(other[..., ::2, ::2], 0.999)) + 1
    gain = min(level / max(others, 1e-3), max(1.0, 2 / max(white, 1e-3)))
    return min(max(gain, 1 / _EXPOSURE), _EXPOSURE)


def exposed(x: FloatArray, gain: float) -> FloatArray:
    """A window in [-1, 1] with its brightness multiplied."""
    return np.minimum((x + 1) * np.float32(gain) - 1, 1)


def paste_change(
    image: DecodedImage, window: Window, before: FloatArray, after: FloatArray, alpha: FloatArray
) -> Pixels:
    """A copy of the image with the change from `before` to `after` added, weighted by `alpha`.

    Adding the change rather than pasting the window keeps the image's grain at its own resolution and depth, even if
    the network's input was scaled down. Pixels where `alpha` is 0, and an alpha channel, keep their exact values.

    Args:
        window: the position of `before` and `after` in the image.
        before, after: the network's input and output, [C, S, S] in [-1, 1].
        alpha: [side, side] in [0, 1], at native resolution.
    """
    change = (after - before).transpose(1, 2, 0)
    if change.shape[0] != window.side:
        shape = (window.side, window.side)
        change = np.asarray(cv2.resize(change, shape, interpolation=cv2.INTER_CUBIC), np.float32).reshape(*shape, -1)
    if change.shape[2] != image.channels:
        change = change.mean(axis=2, keepdims=True)
    low, high = value_range(image)
    change = change * alpha[..., None] * ((high - low) / 2)

    pixels = image.pixels.copy()
    top, left = max(window.y, 0), max(window.x, 0)
    bottom = min(window.y + window.side, image.height)
    right = min(window.x + window.side, image.width)
    change = change[top - window.y : bottom - window.y, left - window.x : right - window.x]
    inside = pixels[top:bottom, left:right]
    colors = inside[..., None] if inside.ndim == 2 else inside[..., : image.channels]
    limit = np.iinfo(pixels.dtype).max
    colors[...] = np.clip(np.rint(colors + change), 0, limit).astype(pixels.dtype)
    return pixels


def paste_on_zeros(values: NDArray[Any], at: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """An array of zeros of `size` (height, width), with `values` [h, w] pasted at (x, y) and clipped to it."""
    whole = np.zeros(size, values.dtype)
    (x, y), (height, width) = at, values.shape
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + height, size[0]), top), max(min(x + width, size[1]), left)
    whole[top:bottom, left:right] = values[top - y : bottom - y, left - x : right - x]
    return whole


def crop_zero_padded(whole: NDArray[Any], at: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """The inverse of `paste_on_zeros`: a crop of `whole` at (x, y) of `size` (height, width), zeros beyond it."""
    return paste_on_zeros(whole, (-at[0], -at[1]), size)


def mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """`count` indices from `start` into an axis of `length`, mirrored at its ends without repeating the end itself."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, start + count) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(count, np.intp)


class BoundedCache(Generic[K, V]):
    """A thread-safe cache of what `read` returns. It drops the least recently used values above `limit` bytes."""

    def __init__(self, read: Callable[[K], V], size: Callable[[V], int], limit: int) -> None:
        """`size` is the number of bytes of a value."""
        self._read, self._size, self._limit = read, size, limit
        self._values: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def room(self, size: int) -> int:
        """How many bytes of values that are `size` bytes in all it has yet to take, if it is to read all of them."""
        return max(0, min(size, self._limit) - self._bytes)

    def read(self, key: K) -> V:
        """The value of a key, read if it is not in the cache. Raises as the `read` function."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._read(key)
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += self._size(value)
            while self._bytes > self._limit and len(self._values) > 1:
                self._bytes -= self._size(self._values.popitem(last=False)[1])
        return value


class ImageCache(BoundedCache[Path, DecodedImage]):
    """A cache of decoded images by their files, limited in bytes of pixels.

    `limits` are the ranges of 16-bit images; what is outside widens them.
    """

    def __init__(
        self, limit: int = 2 << 30, read: Callable[[Path], DecodedImage] = read_image,
        limits: Mapping[Path, Limits] | None = None,
    ) -> None:  # fmt: skip
        self.limits = dict(limits or {})

        def with_limits(path: Path) -> DecodedImage:
            image = read(path)
            if image.depth == 8 or path not in self.limits:
                return image
            return DecodedImage(image.pixels, widened(self.limits[path], value_range(image)))

        super().__init__(with_limits, lambda image: image.pixels.nbytes, limit)
