"""What training steps are fed with: every sampler, and the batches drawn ahead by step."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen.device import RANK
from defectgen.folders import NORMAL, Catalog, SourceImage, collapsed, require_masks, unite
from defectgen.imaging.images import DecodedImage, read_mask
from defectgen.imaging.patches import RIM, DefectPatch, cut_out, on_pure_background, relative, resize, turn
from defectgen.imaging.windows import (
    BoolArray,
    Box,
    FloatArray,
    ImageCache,
    Window,
    crop,
    defect_boxes,
    defect_pieces,
    inside,
    place,
    scale_of,
)
from defectgen.methods import DataKind, info
from defectgen.methods.base import Batch, Task
from defectgen.seeding import numpy_rng

_MARGIN = 1.15  # a window is this much larger than the defect that decides its scale


_FIT = 0.9  # the part of a category's defects that fit into a window


_THINNEST = 4  # pixels


_GROWN = 0.2  # of the window's side, by which a box may exceed the defects in it, on each side


_BRUSH = 5  # pixels of the window by which masks are widened: nobody paints them exactly


def find_scale(
    samples: Sequence[SourceImage], boxes: Sequence[Sequence[Box]], image_size: int, fit: float = _FIT
) -> float:
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


@dataclass(frozen=True)
class TrainingSample:
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

    source: TrainingSample
    reference: TrainingSample


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
        self.channels = max(sample.channels for sample in catalog.images)
        self._photographs = ImageCache()
        self._samples: dict[str, dict[str, list[SourceImage]]] = {product: {} for product in products}
        for sample in catalog.images:
            self._samples[sample.product].setdefault(sample.category, []).append(sample)
        self._boxes = {
            sample.mask: defect_boxes(read_mask(sample.mask)) for sample in catalog.images if sample.mask is not None
        }
        self.scales = {
            product: {
                category: self._scale(samples) for category, samples in sorted(of_product.items()) if category != NORMAL
            }
            for product, of_product in self._samples.items()
        }

    def _scale(self, samples: Sequence[SourceImage]) -> float:
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

    def _its_boxes(self, sample: SourceImage) -> list[Box]:
        return [] if sample.mask is None else self._boxes[sample.mask]

    def _draw(self, rng: np.random.Generator, product: str, category: str, scale: float) -> TrainingSample:
        look = self._look(rng, product, category, scale)
        x = look.at(self._photographs.read(look.sample.path), self.image_size, self.channels)
        return TrainingSample(x, self.domains.index(category), self.products.index(product), self._map(rng, look))

    def _map(self, _rng: np.random.Generator, _look: "_View") -> FloatArray | None:
        """`TrainingSample.a`."""
        return None

    def _look(self, rng: np.random.Generator, product: str, category: str, scale: float) -> "_View":
        samples = self._samples[product][category]
        sample = samples[int(rng.integers(len(samples)))]
        boxes = self._its_boxes(sample)
        box = boxes[int(rng.integers(len(boxes)))] if boxes else None
        side = round(self.image_size / scale)
        window = place(rng, sample.height, sample.width, side, box, beyond=round(self.edges * side))
        window = Window(inside(window.x, side, sample.width), inside(window.y, side, sample.height), side)
        down, right = (rng.random(2) < 0.5).tolist()
        return _View(sample, window, down, right)


@dataclass(frozen=True)
class _View:
    """A window of a sample, and how it is flipped."""

    sample: SourceImage
    window: Window
    down: bool
    right: bool

    def at(self, photograph: DecodedImage, image_size: int, channels: int) -> FloatArray:
        """What of a photograph lies in the window, as `cut` tells it."""
        x = crop(photograph, self.window, image_size, channels)
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
        self._masks = ImageCache(read=lambda path: DecodedImage(read_mask(path).astype(np.uint8) * 255))

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

    def _map(self, rng: np.random.Generator, look: _View) -> FloatArray | None:
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


def stack(windows: Iterable[TrainingSample]) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Windows as arrays: x [B, C, S, S], y [B], p [B]."""
    rows = list(windows)
    return np.stack([w.x for w in rows]), np.array([w.y for w in rows]), np.array([w.p for w in rows])


_RIM_SEEN = 3  # pixels of it that a network shall see at least


_COLOUR = 0.2  # of the difference in brightness: with less, defects are learnt in gray


_TURN, _SHIFT = 15.0, 0.1  # degrees, and parts of the window: the rest is free when patches are placed


class TrainingPatches:
    """Draws the rows of training batches for methods that learn patches; a row's source and reference are one.

    Each category is as frequent as any other. The paper makes some 1000 images of some 20 once, by flips, rotations,
    crops and shifts; here each draw is turned, mirrored, scaled and shifted anew, a little, and cropped where it is
    larger than the window. Turning and shifting freely would cost the network most of what it can learn.
    """

    def __init__(self, catalog: Catalog, image_size: int, products: Sequence[str], domains: Sequence[str]) -> None:
        self.image_size = image_size
        self.products = tuple(products)
        self.domains = tuple(domains)
        photographs = ImageCache()
        samples: dict[str, dict[str, list[SourceImage]]] = {product: {} for product in products}
        for sample in catalog.images:
            if sample.category != NORMAL:
                samples[sample.product].setdefault(sample.category, []).append(sample)
        self.scales: dict[str, dict[str, float]] = {product: {} for product in products}
        self._patches: dict[tuple[str, str], list[DefectPatch]] = {}
        for product, of_product in samples.items():
            for category, its_samples in sorted(of_product.items()):
                pieces = [defect_pieces(read_mask(sample.mask)) for sample in its_samples if sample.mask]
                scale = find_scale(its_samples, [[box for box, _ in each] for each in pieces], image_size)
                scale = keep_thick(scale, [piece for each in pieces for _, piece in each])
                self.scales[product][category] = scale
                rim = max(RIM, round(_RIM_SEEN / scale))
                self._patches[product, category] = [
                    resize(relative(cut_out(photographs.read(sample.path), box, piece, rim)), scale)
                    for sample, its_pieces in zip(its_samples, pieces, strict=True)
                    for box, piece in its_pieces
                ]

        self.channels = 3 if _coloured([patch for each in self._patches.values() for patch in each]) else 1

    def row(self, rng: np.random.Generator) -> Row:
        category = str(rng.choice(self.domains[1:]))
        product = str(rng.choice([p for p in self.products if (p, category) in self._patches]))
        drawn = self._draw(rng, product, category)
        return Row(drawn, drawn)

    def examples(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Rows to look at: for each product and category `count` times two real patches."""
        return [Row(self._draw(rng, *key), self._draw(rng, *key)) for key in self._patches for _ in range(count)]

    def _draw(self, rng: np.random.Generator, product: str, category: str) -> TrainingSample:
        patches = self._patches[product, category]
        patch = patches[int(rng.integers(len(patches)))]
        height, width = patch.blend_mask.shape
        matrix = turn(width, height, rng.uniform(-_TURN, _TURN), rng.uniform(0.85, 1.1), mirrored=rng.random() < 0.5)
        reach = np.abs(matrix[:, :2]) @ (width, height)
        point = np.array([width / 2, height / 2])
        room = np.full(2, _SHIFT * self.image_size)
        if (reach <= self.image_size).all():
            room = np.minimum(room, (self.image_size - reach) / 2)
        else:  # a crop, with any part of the defect in its middle
            point = np.argwhere(patch.blend_mask)[rng.integers(patch.blend_mask.sum())][::-1]
        matrix[:, 2] = self.image_size / 2 + rng.uniform(-1, 1, 2) * room - matrix[:, :2] @ point
        x = on_pure_background(patch, matrix, self.image_size, self.channels)
        return TrainingSample(x, self.domains.index(category), self.products.index(product))


def _coloured(patches: Sequence[DefectPatch]) -> bool:
    """Whether defects differ from their own background in colour, not in brightness alone, as most do.

    What a network makes of colours that are not there would show; a gray patch takes those of the photograph.
    """
    inside = [patch.pixels[patch.defect_mask] for patch in patches]
    brightness = [np.abs(pixels.mean(axis=1)).mean() for pixels in inside]
    colour = [np.abs(pixels - pixels.mean(axis=1, keepdims=True)).max(axis=1).mean() for pixels in inside]
    return bool(np.mean(colour) > _COLOUR * np.mean(brightness))


TrainingData = TrainingWindows | TrainingPatches


class Feeder:
    """Batches by step, drawn ahead of the network by a few threads; a batch is a function of (seed, rank, step)."""

    def __init__(self, windows: TrainingData, size: int, seed: int, device: torch.device, workers: int) -> None:
        self._windows, self._size, self._seed, self._device = windows, size, seed, device
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="windows")
        self._ahead: dict[int, Future[Batch]] = {}
        self._depth = 2 * max(1, workers)

    def batch(self, step: int) -> Batch:
        for coming in range(step, step + self._depth):
            if coming not in self._ahead:
                self._ahead[coming] = self._pool.submit(self._draw, coming)
        return self._move(self._ahead.pop(step).result())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def examples(self) -> Batch:
        """The same rows throughout a run, to see it make progress on them."""
        return self._move(self._stack(self._windows.examples(numpy_rng(self._seed), count=2)))

    def _draw(self, step: int) -> Batch:
        rng = numpy_rng(self._seed, RANK, step)
        return self._stack([self._windows.row(rng) for _ in range(self._size)])

    def _stack(self, rows: list[Row]) -> Batch:
        x, y, p = stack(row.source for row in rows)
        x_ref, y_ref, p_ref = stack(row.reference for row in rows)
        arrays = {"x": x, "y": y, "p": p, "x_ref": x_ref, "y_ref": y_ref, "p_ref": p_ref}
        maps = [row.reference.a for row in rows if row.reference.a is not None]
        if maps:
            arrays["a_ref"] = np.stack(maps)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return Batch(**tensors)

    def _move(self, batch: Batch) -> Batch:
        def move(value: Tensor) -> Tensor:
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            return value.to(self._device, non_blocking=True, memory_format=layout)

        return Batch(**{name: move(value) for name, value in vars(batch).items() if value is not None})


def training_data(name: str, catalog: Catalog, image_size: int) -> TrainingData:
    """What a method learns: windows of photographs, or patches on a pure background.

    Raises:
        BadInputError: the method needs masks, and a defect has none.
    """
    method = info(name)
    if method.needs_masks:
        require_masks(catalog)
    if method.learns == "pairs" and len(catalog.categories) > 1:
        catalog = _as_one_category(catalog)
    if method.learns in ("labels", "masks"):
        catalog = unite(catalog)
    kinds: dict[DataKind, type[TrainingData]] = {
        "domains": TrainingWindows,
        "pairs": TrainingPairs,
        "labels": TrainingLabels,
        "masks": TrainingMasks,
        "patches": TrainingPatches,
    }
    return kinds[method.learns](catalog, image_size, catalog.products, (NORMAL, *catalog.categories))


def hold_out(catalog: Catalog) -> tuple[Catalog, list[Path]]:
    """A catalog without every tenth normal of each product, and these: to calibrate on what is never trained on."""
    held: list[Path] = []
    for product in catalog.products:
        normals = [s.path for s in catalog.images if s.product == product and s.category == NORMAL]
        held += normals[4::10]
    samples = tuple(sample for sample in catalog.images if sample.path not in held)
    return catalog.model_copy(update={"images": samples}), held


def _as_one_category(catalog: Catalog) -> Catalog:
    images = (image.model_copy(update={"category": collapsed(image.category)}) for image in catalog.images)
    return catalog.model_copy(update={"images": tuple(images)})


def make_task(windows: TrainingData) -> Task:
    shapes = windows.shapes if isinstance(windows, TrainingLabels) else {}
    return Task(
        domains=windows.domains, products=windows.products, channels=windows.channels, scales=windows.scales,
        shapes=shapes,
    )  # fmt: skip
