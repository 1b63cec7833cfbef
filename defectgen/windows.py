"""Windows: square pieces of a photograph at its own resolution, for the network, and the way back.

A network never sees a photograph squashed. It sees a square of `side` native pixels, at `image_size`; the two
are equal unless the defects are larger than the window, then side = image_size / scale with a scale below 1.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.folders import NORMAL, Catalog, Sample
from defectgen.images import Photograph, Pixels, read_mask, read_photograph

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_MARGIN = 1.15  # a window is this much larger than the defect that decides its scale
_FIT = 0.9  # the part of a category's defects that fit into a window
_THINNEST = 4  # pixels
_GROWN = 0.2  # of the window's side, by which a box may exceed the defects in it, on each side
_BRUSH = 5  # pixels of the window by which masks are widened: nobody paints them exactly
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


def find_scale(samples: Sequence[Sample], boxes: Sequence[Sequence[Box]], image_size: int, fit: float = _FIT) -> float:
    """How far a category's photographs must be scaled down so that its defects fit into a window; 1 at most.

    `fit` is the part of the defects that shall; the others are seen in pieces. Without masks the defect may be
    anywhere, and the window spans the photograph. No window needs to be larger than the photograph that it is taken
    from.
    """
    extents = []
    for sample, its_boxes in zip(samples, boxes, strict=True):
        longest = max(sample.width, sample.height)
        sides = [max(box.width, box.height) * _MARGIN for box in its_boxes] if sample.mask else [longest]
        extents += [min(side, longest) for side in sides]
    needed = float(np.quantile(extents, fit))
    return min(1.0, image_size / needed)


def keep_thick(scale: float, pieces: Sequence[NDArray[np.bool_]]) -> float:
    """A scale, raised to where half of the defects are four pixels thick, or as thick as they are.

    A crack that fits into the window as a line a pixel wide has nothing left to learn from. The longest are then
    seen in parts.
    """
    return min(1.0, max(scale, _THINNEST / float(np.median([2 * _depth(piece) for piece in pieces]))))


def _depth(mask: NDArray[np.bool_]) -> float:
    """How far the innermost pixel of a mask is from its outside; the border counts as outside."""
    padded = np.pad(mask, 1).astype(np.uint8)
    return float(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5).max())


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


def _inside(start: int, side: int, length: int) -> int:
    """The start of a window that reaches no further over the ends of an axis than it must."""
    return min(max(start, min(0, length - side)), max(0, length - side))


def tone(photograph: Photograph) -> tuple[float, float]:
    """The native values that become -1 and 1. A 16-bit photograph seldom uses its range: 0.1 to 99.9 percent.

    Some 65 000 pixels tell them as well as all would.
    """
    if photograph.depth == 8:
        return 0.0, 255.0
    thin = photograph.pixels[:: 1 + photograph.height // 256, :: 1 + photograph.width // 256]
    low, high = np.percentile(thin[..., : photograph.channels] if thin.ndim == 3 else thin, [0.1, 99.9])
    return float(low), float(max(high, low + 1))


def cut(photograph: Photograph, window: Window, image_size: int, channels: int) -> FloatArray:
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
    return as_seen(pixels, tone(photograph), channels)


def as_seen(pixels: FloatArray, tones: tuple[float, float], channels: int) -> FloatArray:
    """Pixels [H, W, 1 or 3] between two tones, as `tone` tells them: [channels, H, W] in [-1, 1]."""
    low, high = tones
    pixels = np.clip((pixels - low) * (2 / (high - low)) - 1, -1, 1)
    if channels == 1:
        pixels = pixels.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], channels)).transpose(2, 0, 1))


def put_back(
    photograph: Photograph, window: Window, before: FloatArray, after: FloatArray, alpha: FloatArray
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
    low, high = tone(photograph)
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


def laid(values: NDArray[Any], at: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """An array [h, w] laid at (x, y) onto zeros of `size` (height, width); what sticks out is clipped."""
    whole = np.zeros(size, values.dtype)
    (x, y), (height, width) = at, values.shape
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + height, size[0]), top), max(min(x + width, size[1]), left)
    whole[top:bottom, left:right] = values[top - y : bottom - y, left - x : right - x]
    return whole


def window_of(whole: NDArray[Any], at: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """The reverse of `laid`: what lies at (x, y) in `whole`, [height, width] of `size`, zeros beyond its edges."""
    return laid(whole, (-at[0], -at[1]), size)


def mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """`count` indices from `start` on into an axis of `length`, mirrored at its ends without repeating them."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, start + count) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(count, np.intp)


class Photographs:
    """Decoded photographs, kept in memory up to a limit, the last used longest. Safe to share among threads."""

    def __init__(self, limit: int = 2 << 30, read: Callable[[Path], Photograph] = read_photograph) -> None:
        self._limit = limit
        self._decode = read
        self._kept: OrderedDict[Path, Photograph] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def read(self, path: Path) -> Photograph:
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


@dataclass(frozen=True)
class Drawn:
    """One window of a training row: [channels, S, S] in [-1, 1], and the indices of its domain and product.

    `a`, [domains - 1, S, S], is 1 where a category is, or may be; of rows for methods that learn labels.
    """

    x: FloatArray
    y: int
    p: int
    a: FloatArray | None = None


@dataclass(frozen=True)
class Row:
    """A row of a training batch: a source, and a reference of its target domain, at one scale."""

    source: Drawn
    reference: Drawn


class TrainingWindows:
    """Draws the rows of training batches from a catalog. Nothing depends on what was drawn before.

    The target is any domain, each as often as any other. The source is a normal or, half of the time, a defect.
    A row has one scale, so that no network can tell a domain by the coarseness of its texture: that of the
    defect in it, and a defect becomes another only if their scales agree.
    """

    edges: ClassVar[float] = 0.0
    """How often windows lie at the photograph's edges: as if drawn from an area that is so much of a side larger."""
    fit: ClassVar[float] = _FIT

    def __init__(self, catalog: Catalog, image_size: int, products: Sequence[str], domains: Sequence[str]) -> None:
        self.image_size = image_size
        self.products = tuple(products)
        self.domains = tuple(domains)
        self.channels = max(sample.channels for sample in catalog.samples)
        self._photographs = Photographs()
        self._samples: dict[str, dict[str, list[Sample]]] = {product: {} for product in products}
        for sample in catalog.samples:
            self._samples[sample.product].setdefault(sample.category, []).append(sample)
        self._boxes = {
            sample.mask: defect_boxes(read_mask(sample.mask)) for sample in catalog.samples if sample.mask is not None
        }
        self.scales = {
            product: {
                category: self._scale(samples) for category, samples in sorted(of_product.items()) if category != NORMAL
            }
            for product, of_product in self._samples.items()
        }

    def _scale(self, samples: Sequence[Sample]) -> float:
        """At which the samples of a category are seen: their defects fit, and thin ones can be seen."""
        scale = find_scale(samples, [self._its_boxes(s) for s in samples], self.image_size, self.fit)
        pieces = [piece for s in samples if s.mask is not None for _, piece in defect_pieces(read_mask(s.mask))]
        return keep_thick(scale, pieces) if pieces else scale

    def row(self, rng: np.random.Generator) -> Row:
        target = str(rng.choice(self.domains))
        product = str(rng.choice([p for p in self.products if target in self._samples[p]]))
        source_product = str(rng.choice(self.products))
        categories = [c for c in self._samples[source_product] if c != NORMAL]
        source = str(rng.choice(categories)) if categories and rng.random() < 0.5 else NORMAL
        if target == NORMAL and source == NORMAL and categories:
            source = str(rng.choice(categories))
        source_scale = scale_of(self.scales, source_product, target if source == NORMAL else source)
        scale = scale_of(self.scales, product, source if target == NORMAL else target)
        if NORMAL not in (source, target) and not 0.8 < source_scale / scale < 1.25:
            source, source_scale = NORMAL, scale_of(self.scales, source_product, target)
        return Row(
            self._draw(rng, source_product, source, source_scale),
            self._draw(rng, product, target, scale),
        )

    def examples(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Rows to look at: for each product `count` normals to each of its categories, with a real one beside."""
        return [
            Row(self._draw(rng, product, NORMAL, scale), self._draw(rng, product, category, scale))
            for product in self.products
            for category, scale in self.scales[product].items()
            for _ in range(count)
        ]

    def _its_boxes(self, sample: Sample) -> list[Box]:
        return [] if sample.mask is None else self._boxes[sample.mask]

    def _draw(self, rng: np.random.Generator, product: str, category: str, scale: float) -> Drawn:
        look = self._look(rng, product, category, scale)
        x = look.at(self._photographs.read(look.sample.path), self.image_size, self.channels)
        return Drawn(x, self.domains.index(category), self.products.index(product), self._map(rng, look))

    def _map(self, _rng: np.random.Generator, _look: "_Look") -> FloatArray | None:
        """`Drawn.a`."""
        return None

    def _look(self, rng: np.random.Generator, product: str, category: str, scale: float) -> "_Look":
        samples = self._samples[product][category]
        sample = samples[int(rng.integers(len(samples)))]
        boxes = self._its_boxes(sample)
        box = boxes[int(rng.integers(len(boxes)))] if boxes else None
        side = round(self.image_size / scale)
        window = place(rng, sample.height, sample.width, side, box, beyond=round(self.edges * side))
        window = Window(_inside(window.x, side, sample.width), _inside(window.y, side, sample.height), side)
        down, right = (rng.random(2) < 0.5).tolist()
        return _Look(sample, window, down, right)


@dataclass(frozen=True)
class _Look:
    """A window of a sample, and how it is flipped."""

    sample: Sample
    window: Window
    down: bool
    right: bool

    def at(self, photograph: Photograph, image_size: int, channels: int) -> FloatArray:
        """What of a photograph lies in the window, as `cut` tells it."""
        x = cut(photograph, self.window, image_size, channels)
        return np.ascontiguousarray(x[:, :: -1 if self.down else 1, :: -1 if self.right else 1])


class TrainingPairs(TrainingWindows):
    """Draws a normal and a defective window at the same scale for each row; each category is as frequent as any.

    What is repaired need not be seen whole: half of the defects fit into their windows.
    """

    fit = 0.5
    edges = 0.25  # seen only by the windows that end there, they would be strange to the network

    def row(self, rng: np.random.Generator) -> Row:
        product = str(rng.choice(self.products))
        category = str(rng.choice(list(self.scales[product])))
        scale = self.scales[product][category]
        return Row(self._draw(rng, product, NORMAL, scale), self._draw(rng, product, category, scale))


class TrainingLabels(TrainingPairs):
    """Pairs whose defective window comes with the map of all its categories, in one of three forms.

    A category covers the window, or the box around its defects, or these themselves: so that whoever asks for a
    defect later may say anywhere, in a box, or with a brush. Without a mask it is the window.
    """

    fit = _FIT
    edges = 0.0
    covered: ClassVar[float] = -0.5
    """How bright a pixel of a mask's window is that counts: here one of which a quarter is defect."""

    def __init__(self, catalog: Catalog, image_size: int, products: Sequence[str], domains: Sequence[str]) -> None:
        super().__init__(catalog, image_size, products, domains)
        self._masks = Photographs(read=lambda path: Photograph(read_mask(path).astype(np.uint8) * 255))

    @property
    def shapes(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Of each category's defects that have a mask: width and height, in parts of the window's side."""
        found: dict[str, list[tuple[float, float]]] = {}
        for product, of_product in self._samples.items():
            for category, samples in of_product.items():
                part = self.scales[product].get(category, 1.0) / self.image_size
                for box in (box for sample in samples for box in self._its_boxes(sample)):
                    shape = round(min(box.width * part, 1), 3), round(min(box.height * part, 1), 3)
                    found.setdefault(category, []).append(shape)
        return {category: tuple(sorted(shapes)) for category, shapes in found.items()}

    def _map(self, rng: np.random.Generator, look: _Look) -> FloatArray | None:
        sample, size = look.sample, self.image_size
        if sample.category == NORMAL:
            return None
        form = self._form(rng)
        a = np.zeros((len(self.domains) - 1, size, size), np.float32)
        for category, mask in ((sample.category, sample.mask), *sample.also):
            here = np.ones((size, size), np.bool_)
            if mask is not None:
                here = look.at(self._masks.read(mask), size, 1)[0] > self.covered
            a[self.domains.index(category) - 1] = form(here)
        return a

    def _form(self, rng: np.random.Generator) -> Callable[[BoolArray], BoolArray]:
        """What is made of a mask."""
        form, grown = rng.integers(3), rng.uniform(0, _GROWN, 4) * self.image_size
        if form == 0:
            return lambda here: np.full_like(here, here.any())
        if form == 1:
            return partial(_boxed, grown=grown)
        return lambda here: cv2.dilate(here.view(np.uint8), np.ones((_BRUSH, _BRUSH), np.uint8)) > 0


def _boxed(here: BoolArray, grown: NDArray[np.float64]) -> BoolArray:
    """The box around a mask, larger by `grown` at its top, left, bottom and right; nothing around nothing."""
    if not here.any():
        return here
    left, top, width, height = cv2.boundingRect(here.view(np.uint8))
    before, after = np.array([top, left]) - grown[:2], np.array([top + height, left + width]) + grown[2:]
    (top, left), (bottom, right) = np.maximum(before, 0).astype(int), np.ceil(after).astype(int)
    box = np.zeros_like(here)
    box[top:bottom, left:right] = True
    return box


class TrainingMasks(TrainingLabels):
    """Pairs whose defective window comes with its mask itself, all categories of a product at one scale.

    What makes whole images learns the normals once, for all categories.
    """

    fit = 0.5
    covered = 0.0

    def __init__(self, catalog: Catalog, image_size: int, products: Sequence[str], domains: Sequence[str]) -> None:
        super().__init__(catalog, image_size, products, domains)
        for scales in self.scales.values():
            scales.update(dict.fromkeys(scales, float(np.median(list(scales.values())))))

    def _form(self, rng: np.random.Generator) -> Callable[[BoolArray], BoolArray]:
        return lambda here: here


def stack(windows: Iterable[Drawn]) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Windows as arrays: x [B, C, S, S], y [B], p [B]."""
    rows = list(windows)
    return np.stack([w.x for w in rows]), np.array([w.y for w in rows]), np.array([w.p for w in rows])
