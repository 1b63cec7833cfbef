"""Training data: the samplers of all kinds of rows, and the feeder that prepares batches ahead of the training."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen import ranks
from defectgen.errors import UsageError
from defectgen.folders import NORMAL, Catalog, SourceImage, collapsed, limits_of, require_masks, unite
from defectgen.imaging import level
from defectgen.imaging.control_maps import (
    KnownMask,
    at_edge,
    draw_map,
    ground_of,
    levels_of,
    light_side,
    mask_of,
    pick,
    to_text,
    tones_of,
    warped_change,
)
from defectgen.imaging.images import DecodedImage
from defectgen.imaging.mask_files import Mask, read_masks
from defectgen.imaging.masks import depth
from defectgen.imaging.patches import (
    RIM,
    DefectPatch,
    cut_out,
    on_pure_background,
    relative,
    resize,
    turn,
)
from defectgen.imaging.places import Ground, KnownSpot, Spot
from defectgen.imaging.places import to_text as spot_text
from defectgen.imaging.windows import (
    BoolArray,
    BoundedCache,
    Box,
    FloatArray,
    ImageCache,
    Limits,
    Window,
    common_range,
    crop,
    defect_boxes,
    defect_pieces,
    exposed,
    exposure,
    inside,
    light_of,
    network_side,
    open_sides,
    place,
    place_at,
    place_of,
    scale_of,
    shown,
)
from defectgen.methods import DataKind, info
from defectgen.methods.base import Batch, MethodConfig, Task
from defectgen.seeding import numpy_rng
from defectgen.training.twins import repaired

_ENOUGH = 48  # real masks of so many defects, or of fewer
_MARGIN = 1.15  # a window is this many times as large as the defect that determines its scale
_LONG = 4  # times the side of the others: windows of the masks of long defects, at most
_FIT = 0.9  # fraction of a category's defects that fit into a window
_THINNEST = 4  # pixels of the window: the median thickness of a category's defects is kept from falling below it
_UNTOLD = 0.2  # of the rows do not tell tones: a mask that someone drew does not, either

_IN_HUES = 0.99  # of the squared changes of each category
_COLORED = 8  # images of each category, whose colors are looked at
_TWINS_LIMIT = 1 << 30  # bytes of repaired images that are kept
_MASKS_LIMIT = 2 << 30  # bytes of masks
_FLIPS = ((False, False), (False, True), (True, False), (True, True))  # vertically, horizontally
_SAME_LIGHT = 0.7  # cosine between directions from which defects are lit, before and after a flip


def find_ranges(catalog: Catalog) -> dict[str, Limits]:
    """The common range of each product's 16-bit images."""
    deep = [image for image in catalog.images if image.depth == 16]
    found = {
        product: common_range([image.path for image in deep if image.product == product])
        for product in sorted({image.product for image in deep})
    }
    return {product: limits for product, limits in found.items() if limits is not None}


def find_scale(
    images: Sequence[SourceImage], boxes: Sequence[Sequence[Box]], image_size: int, fit: float = _FIT
) -> float:
    """The scale, at most 1, at which a category's defects fit into a window.

    `fit` is the fraction of the defects that fit; windows show larger ones in part. Images without a mask have no say,
    unless none has one: then a defect may be anywhere, and the window spans the image. No window needs to be larger
    than its image.
    """
    masked = any(image.mask for image in images)
    extents = []
    for image, its_boxes in zip(images, boxes, strict=True):
        if masked and not image.mask:
            continue
        longest = max(image.width, image.height)
        sides = [max(box.width, box.height) * _MARGIN for box in its_boxes] if image.mask else [longest]
        extents += [min(side, longest) for side in sides]
    needed = float(np.quantile(extents, fit))
    return min(1.0, image_size / needed)


def keep_thick(scale: float, pieces: Sequence[NDArray[np.bool_]]) -> float:
    """Raise a scale, up to 1, until half of the defects are at least four pixels thick.

    From a crack that is a line one pixel wide, a network can learn nothing. Windows then show the longest defects in
    part.
    """
    return min(1.0, max(scale, _THINNEST / float(np.median([2 * depth(piece) for piece in pieces]))))


@dataclass(frozen=True)
class TrainingSample:
    """One window of a training row: x, [channels, S, S] in [-1, 1], and the indices of its domain y and product p.

    `a`, [domains - 1, S, S], is 1 where the window shows a category; None for patches. `twin` is x with its defects
    repaired; None for normals and where masks are missing. `place` is where the window lies in its image, as in
    `windows.place_of`, and `zoom` its scale over that of its category; `cut` is whether its defect goes on beyond it.
    """

    x: FloatArray
    y: int
    p: int
    a: FloatArray | None = None
    twin: FloatArray | None = None
    place: tuple[float, float] = (0.5, 0.5)
    zoom: float = 1.0
    cut: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a training batch: a source, and a reference from its target domain, at the same scale.

    With `exposure`, the reference also has the brightness of the source.

    `asked`, [domains - 1, S, S], asks for a new defect on the source; for methods that learn labels or pairs.
    `tones` are those of `asked` and of the reference, as `control_maps.tones_of`, [2, S, S].
    """

    source: TrainingSample
    reference: TrainingSample
    asked: FloatArray | None = None
    tones: FloatArray | None = None


class TrainingWindows:
    """Draws the rows of training batches from a catalog. Each draw is independent of earlier ones.

    The target is each domain equally often. The source is a normal or, half of the time, a defect. Both windows
    of a row have the scale of its defect and, with `exposure`, the same brightness. So no network can recognize a
    domain by the coarseness of the texture or by the brightness, and it learns that light multiplies a defect's
    contrast. A row has two defects only if their scales nearly agree. Small defects of a category have a larger scale
    than the largest, at whose scale they would be a few pixels.
    """

    edges: ClassVar[float] = 0.0
    """How far windows are placed beyond the image, as a fraction of their side, before they are moved back inside.

    The larger it is, the more windows end at the edges of the image.
    """
    fit: ClassVar[float] = _FIT
    """Fraction of the defects that fit into a window."""
    flips: ClassVar[tuple[tuple[bool, bool], ...]] = _FLIPS
    """How windows are flipped, vertically and horizontally, all equally often."""
    covered: ClassVar[float] = -0.5
    """A pixel of a mask's window, in [-1, 1], is defect above this value: by default, if a quarter of it is."""
    zooms: ClassVar[bool] = True
    """Whether smaller defects are shown at a larger scale than that of their category."""
    warps: ClassVar[float] = 0.0
    """Fraction of the defective windows with twins whose defects are warped."""
    twins: ClassVar[bool] = True
    """Whether defective windows whose categories all have masks come with their repaired twins."""

    def __init__(
        self,
        catalog: Catalog,
        image_size: int,
        products: Sequence[str],
        domains: Sequence[str],
        *,
        whole: bool = False,
        exposure: bool = False,
    ) -> None:
        """`whole`: each window shows the whole of a product's largest image, or more. `exposure`: see `Row`."""
        self.image_size = image_size
        self._whole = whole
        self._exposure = exposure
        self.products = tuple(products)
        self.domains = tuple(domains)
        self._flips_of: dict[str, tuple[tuple[bool, bool], ...]] = {}  # of categories that are lit from one side
        self.channels = max(image.channels for image in catalog.images)
        self.ranges = find_ranges(catalog)
        self._cache = ImageCache(limits=limits_of(catalog, self.ranges))
        self._masks = BoundedCache[Mask, DecodedImage](
            lambda mask: DecodedImage(read_masks(mask).astype(np.uint8) * 255),
            lambda image: image.pixels.nbytes,
            _MASKS_LIMIT,
        )
        self._twins = BoundedCache[SourceImage, DecodedImage](
            self._repair, lambda image: image.pixels.nbytes, _TWINS_LIMIT
        )
        self._images: dict[str, dict[str, list[SourceImage]]] = {product: {} for product in products}
        for image in catalog.images:
            self._images[image.product].setdefault(image.category, []).append(image)
        self._boxes = {
            image.mask: defect_boxes(read_masks(image.mask)) for image in catalog.images if image.mask is not None
        }
        self.scales = {
            product: {
                category: self._scale(images) for category, images in sorted(of_product.items()) if category != NORMAL
            }
            for product, of_product in self._images.items()
        }

    @property
    def unread(self) -> int:
        """The bytes of decoded images, masks and twins that are to be kept, and have not been needed so far."""
        images = [image for of in self._images.values() for each in of.values() for image in each]
        pixels = {image.path: image.height * image.width * image.channels * image.depth // 8 for image in images}
        masks = {image.path: image.height * image.width for image in images if image.mask is not None}
        twins = sum(pixels[path] for path in masks) if self.twins else 0
        rooms = self._cache.room(sum(pixels.values())), self._masks.room(sum(masks.values())), self._twins.room(twins)
        return sum(rooms)

    def _scale(self, images: Sequence[SourceImage]) -> float:
        """The scale of a category: its defects fit into windows, and thin ones remain visible."""
        if self._whole:
            return min(1.0, self.image_size / max(max(image.width, image.height) for image in images))
        scale = find_scale(images, [self._boxes_of(s) for s in images], self.image_size, self.fit)
        pieces = [piece for s in images if s.mask is not None for _, piece in defect_pieces(read_masks(s.mask))]
        return keep_thick(scale, pieces) if pieces else scale

    def row(self, rng: np.random.Generator) -> Row:
        target = str(rng.choice(self.domains))
        product = str(rng.choice([p for p in self.products if target in self._images[p]]))
        source_product = str(rng.choice(self.products))
        categories = [c for c in self._images[source_product] if c != NORMAL]
        source = str(rng.choice(categories)) if categories and rng.random() < 0.5 else NORMAL
        if target == NORMAL and source == NORMAL and categories:
            source = str(rng.choice(categories))
        source_scale = scale_of(self.scales, source_product, target if source == NORMAL else source)
        scale = scale_of(self.scales, product, source if target == NORMAL else target)
        drawn = None if source == NORMAL else self._draw(rng, source_product, source, source_scale)
        if drawn is not None and target == NORMAL:
            return self._row(drawn, self._draw(rng, product, NORMAL, min(1.0, drawn.zoom * scale), drawn.place))
        reference = self._draw(rng, product, target, scale)
        if drawn is not None and 0.8 < drawn.zoom * source_scale / (reference.zoom * scale) < 1.25:
            return self._row(drawn, reference)
        source_scale = min(1.0, reference.zoom * scale_of(self.scales, source_product, target))
        return self._row(self._draw(rng, source_product, NORMAL, source_scale, reference.place), reference)

    def examples(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Rows for previews: for each category of each product, `count` normals with a real defect each."""
        return [
            self._pair(rng, product, category)
            for product in self.products
            for category in self.scales[product]
            for _ in range(count)
        ]

    def _pair(self, rng: np.random.Generator, product: str, category: str) -> Row:
        """A normal and a defect of a product; the windows lie at the same place of their images."""
        scale = self.scales[product][category]
        reference = self._draw(rng, product, category, scale)
        return self._row(self._draw(rng, product, NORMAL, reference.zoom * scale, reference.place), reference)

    def _row(
        self,
        source: TrainingSample,
        reference: TrainingSample,
        asked: FloatArray | None = None,
        tones: FloatArray | None = None,
    ) -> Row:
        if self._exposure:
            gain = exposure(source.x, reference.x if reference.twin is None else reference.twin)
            twin = None if reference.twin is None else exposed(reference.twin, gain)
            reference = replace(reference, x=exposed(reference.x, gain), twin=twin)
        return Row(source, reference, asked, tones)

    def _boxes_of(self, image: SourceImage) -> list[Box]:
        return [] if image.mask is None else self._boxes[image.mask]

    def _draw(
        self,
        rng: np.random.Generator,
        product: str,
        category: str,
        scale: float,
        at: tuple[float, float] | None = None,
    ) -> TrainingSample:
        """A window of a random image, around one of its defects, or at a relative place."""
        images = self._images[product][category]
        view = self._view_of(rng, images[int(rng.integers(len(images)))], scale, at)
        sample = self._sample(view, product, category)
        return _warped(rng, sample) if sample.twin is not None and rng.random() < self.warps else sample

    def _sample(self, view: "_View", product: str, category: str) -> TrainingSample:
        x, twin = self._x(view, self.image_size), self._twin(view, self.image_size)
        domain = self.domains.index(category)
        a = self._map(view)
        cut = view.cuts(a.max(axis=0) > 0)
        return TrainingSample(x, domain, self.products.index(product), a, twin, view.place, view.zoom, cut)

    def _x(self, view: "_View", size: int) -> FloatArray:
        return view.crop(self._cache.read(view.image.path), size, self.channels)

    def _twin(self, view: "_View", size: int) -> FloatArray | None:
        """The view with its defects repaired; None for normals and where masks are missing."""
        image = view.image
        if not self.twins or image.category == NORMAL or None in (image.mask, *(mask for _, mask in image.also)):
            return None
        return view.crop(self._twins.read(image), size, self.channels)

    def _map(self, view: "_View", size: int | None = None) -> FloatArray:
        """Where a window shows which category: `TrainingSample.a`. Without a mask, a category covers the window."""
        image, size = view.image, size or self.image_size
        a = np.zeros((len(self.domains) - 1, size, size), np.float32)
        for category, mask in ((image.category, image.mask), *image.also):
            if category != NORMAL:
                here = np.ones((size, size), np.bool_)
                if mask is not None:
                    here = view.crop(self._masks.read(mask), size, 1)[0] > self.covered
                a[self.domains.index(category) - 1] = here
        return a

    def _repair(self, image: SourceImage) -> DecodedImage:
        masks = [mask for mask in (image.mask, *(mask for _, mask in image.also)) if mask is not None]
        whole = np.any([self._masks.read(mask).pixels > 0 for mask in masks], axis=0)
        found = self._cache.read(image.path)
        return replace(found, pixels=repaired(found, whole))

    def hues(self) -> tuple[tuple[float, ...], ...]:
        """`Task.hues`: the fewest axes that hold nearly all of what the defects of each category change in color."""
        if not self.twins or self.channels == 1:
            return ()
        rng, squares = numpy_rng(0), dict[str, FloatArray]()
        shown = (
            (product, category, image)
            for product, of_product in self._images.items()
            for category, images in of_product.items()
            for image in images[:_COLORED]
            if category != NORMAL and image.mask is not None
        )
        for product, category, image in shown:
            found = self._sample(self._view_of(rng, image, self.scales[product][category]), product, category)
            if found.twin is not None and found.a is not None and found.a.any():
                change = (found.x - found.twin)[:, found.a.any(axis=0)]
                squares[category] = squares.get(category, 0) + change @ change.T
        if not squares:
            return ()
        shares = [each / max(float(np.trace(each)), 1e-9) for each in squares.values()]
        axes = np.linalg.eigh(np.sum(shares, axis=0))[1].T[::-1]
        for count in range(1, self.channels):
            if min(float(np.sum((axes[:count] @ share) * axes[:count])) for share in shares) >= _IN_HUES:
                return tuple(tuple(axis) for axis in axes[:count].tolist())
        return ()

    def sheet(self) -> NDArray[np.uint8] | None:
        """Defect images beside their repaired twins, so that a bad repair is seen; None if there are no twins."""
        rows = [row.reference for row in self.examples(numpy_rng(0), count=4)]
        pairs = [np.concatenate([each.x, each.twin], axis=1) for each in rows if each.twin is not None]
        if not pairs:
            return None
        pixels = np.clip(np.rint((np.concatenate(pairs, axis=2) + 1) * 127.5), 0, 255).astype(np.uint8)
        return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def _view_of(
        self, rng: np.random.Generator, image: SourceImage, scale: float, at: tuple[float, float] | None = None
    ) -> "_View":
        boxes, box = self._boxes_of(image), None
        if boxes:  # by length: a speck beside a long crack is of little interest
            lengths = np.array([max(each.width, each.height) for each in boxes])
            box = boxes[int(rng.choice(len(boxes), p=lengths / lengths.sum()))]
        zoom = self._zoom(box, scale)
        side = round(self.image_size / (zoom * scale))
        flips = self._flips_of.get(image.category, self.flips)
        flip_y, flip_x = flips[int(rng.integers(len(flips)))]
        if at is not None:
            window = place_at(image.height, image.width, side, _mirrored(at, flip_y, flip_x))
        else:
            window = place(rng, image.height, image.width, side, box, beyond=round(self.edges * side))
            window = Window(inside(window.x, side, image.width), inside(window.y, side, image.height), side)
        return _View(image, window, flip_y, flip_x, zoom)

    def _zoom(self, box: Box | None, scale: float) -> float:
        """How much larger than `scale` the scale of a window around a defect is, which is at most 1."""
        if box is None or self._whole or not self.zooms:
            return 1.0
        return max(1.0, min(1.0, self.image_size / (_MARGIN * max(box.width, box.height))) / scale)


@dataclass(frozen=True)
class _View:
    """A window of a source image, how it is flipped, and its scale over that of its category."""

    image: SourceImage
    window: Window
    flip_y: bool
    flip_x: bool
    zoom: float = 1.0

    @property
    def place(self) -> tuple[float, float]:
        """Where the window lies in the image, flipped as it is."""
        return _mirrored(place_of(self.window, self.image.height, self.image.width), self.flip_y, self.flip_x)

    def shown(self, size: int) -> tuple[slice, slice]:
        """The rows and columns of the view, [S, S], that show the image, and not what lies beyond it."""
        (height, width), window = (self.image.height, self.image.width), self.window
        x = width - window.side - window.x if self.flip_x else window.x
        y = height - window.side - window.y if self.flip_y else window.y
        return shown(Window(x, y, window.side), height, width, size)

    def cuts(self, mask: BoolArray) -> bool:
        """Whether a mask [S, S] of the view meets an edge of the window beyond which the image goes on."""
        upright = mask[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        edges = (upright[0], upright[-1], upright[:, 0], upright[:, -1])
        goes_on = open_sides(self.window, self.image.height, self.image.width)
        return any(beyond and edge.any() for beyond, edge in zip(goes_on, edges, strict=True))

    def crop(self, image: DecodedImage, image_size: int, channels: int) -> FloatArray:
        """Crop the window from the source image or its mask, and flip it: [channels, S, S] in [-1, 1]."""
        x = crop(image, self.window, image_size, channels)
        return np.ascontiguousarray(x[:, :: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])


def _warped(rng: np.random.Generator, sample: TrainingSample) -> TrainingSample:
    """A sample whose defect is warped, on its twin, as the masks that are asked for are.

    Where it is deep, the defect's own grain moves with it. A change of the twin as it is would leave the twin's grain
    there, too, and teach networks that the grain of the ground runs through defects.
    """
    assert sample.a is not None
    assert sample.twin is not None
    if not sample.a.any():
        return sample
    ground = ground_of(sample.twin, sample.x - sample.twin, sample.a.max(axis=0) > 0)
    change, a = warped_change(rng, sample.x - ground, sample.a, long=sample.cut)
    cut = sample.cut or (at_edge(a) and not at_edge(sample.a))
    x = np.clip(ground_of(sample.twin, change, a.max(axis=0) > 0) + change, -1, 1)
    return replace(sample, x=x, a=a, cut=cut) if a.any() else sample


def _mirrored(place: tuple[float, float], flip_y: bool, flip_x: bool) -> tuple[float, float]:
    """A relative place (x, y) in a flipped image."""
    x, y = place
    return (1 - x if flip_x else x), (1 - y if flip_y else y)


class _NormalsWithDefects(TrainingWindows):
    """Draws a normal and a defective window at the same scale for each row. All categories are equally frequent."""

    _KNOWN = 96  # real masks for each category, at most
    masks: Mapping[str, list[KnownMask]] = MappingProxyType({})
    """Real masks of each category, of which control maps are made."""

    def row(self, rng: np.random.Generator) -> Row:
        product = str(rng.choice(self.products))
        return self._pair(rng, product, str(rng.choice(list(self.scales[product]))))

    kept: Mapping[str, list[KnownMask]] = MappingProxyType({})
    """Those that the model keeps."""

    def _know_masks(self, *, long: bool = False) -> None:
        """Set `masks` and `kept`.

        Args:
            long: of defects of which windows show only parts, masks are kept that are as large as their image, or four
                times as large as the others.
        """
        found = {category: self._known_masks_of(category, long=long) for category in self.domains[1:]}
        self.masks = {category: masks for category, (masks, _) in found.items() if masks}
        self.kept = {category: kept for category, (_, kept) in found.items() if kept}

    def _known_masks_of(self, category: str, *, long: bool) -> tuple[list[KnownMask], list[KnownMask]]:
        """Masks as windows show them, and to keep.

        The window's border cuts them only if it leaves more than twice of what the image's others have, as of a long
        crack with a speck beside it. All images are equally frequent.
        """
        rng = numpy_rng(self.domains.index(category))
        sources = [
            (product, image)
            for product, of_product in self._images.items()
            for images in of_product.values()
            for image in images
            if any(name == category and mask for name, mask in ((image.category, image.mask), *image.also))
        ]
        count = min(self._KNOWN, _ENOUGH) if len(sources) <= _ENOUGH else self._KNOWN
        sources = sources[:: max(1, -(-len(sources) // count))]  # spread over all: they may be of several kinds
        whole, cut = defaultdict[Path, list[KnownMask]](list), defaultdict[Path, list[KnownMask]](list)
        index = self.domains.index(category) - 1
        self._flips_of[category] = self._flips_that_keep_the_light(sources, index)
        for number in range(2 * count if sources else 0):
            product, image = sources[number % len(sources)]
            scale = scale_of(self.scales, product, category)
            view = self._view_of(rng, image, scale)
            known = self._known(view, index)
            if known.levels.any():
                (cut if view.cuts(mask_of(known.levels)) else whole)[image.path].append(known)

        def area(masks: list[KnownMask]) -> int:
            return max((int(mask_of(each.levels).sum()) for each in masks), default=0)

        chosen = {path: cut if area(cut[path]) > 2 * area(whole[path]) else whole for path in {*whole, *cut}}

        def listed() -> list[KnownMask]:
            each = [chosen[image.path][image.path] for _, image in sources if image.path in chosen]
            each = [masks for masks in each if masks]
            rounds = max(map(len, each), default=0)
            return [masks[i % len(masks)] for i in range(rounds) for masks in each][:count]

        seen = listed()
        for product, image in sources if long else ():
            if chosen.get(image.path) is cut:
                views = self._long_views(rng, image, scale_of(self.scales, product, category))
                wide = [self._known(view, index, size) for view, size in views]
                parts = [
                    each._replace(levels=each.levels[view.shown(size)])
                    for each, (view, size) in zip(wide, views, strict=True)
                ]
                cut[image.path] = [each for each in parts if each.levels.any()]
        return seen, listed()

    def _known(self, view: "_View", index: int, size: int | None = None) -> KnownMask:
        """The map of a category's defects, [S, S], with its tones if the image has a twin."""
        size = size or self.image_size
        mask, x, twin = self._map(view, size)[index] > 0, self._x(view, size), self._twin(view, size)
        levels = levels_of(mask) if twin is None else levels_of(mask, x, twin)
        light = light_of(x if twin is None else twin, mask, self._cache.read(view.image.path))
        return KnownMask(levels, view.place, view.zoom, light)

    def _long_views(self, rng: np.random.Generator, image: SourceImage, scale: float) -> list[tuple["_View", int]]:
        """A view of a long defect for each flip, and the side of its window in pixels of the network."""
        longest = max(image.height, image.width)
        size = min(_LONG * self.image_size, network_side(longest * scale))
        side = min(longest, round(size / scale))
        box = max(self._boxes_of(image), key=lambda each: max(each.width, each.height), default=None)
        window = place(rng, image.height, image.width, side, box)
        flips = self._flips_of.get(image.category, self.flips)
        return [(_View(image, window, flip_y, flip_x), size) for flip_y, flip_x in flips]

    def _flips_that_keep_the_light(
        self, sources: Sequence[tuple[str, SourceImage]], index: int
    ) -> tuple[tuple[bool, bool], ...]:
        """All flips, or those that leave the light where it is if the defects of a category are lit from one side."""
        rng, category = numpy_rng(index), self.domains[index + 1]
        views = [self._view_of(rng, image, scale_of(self.scales, product, category)) for product, image in sources]
        side = light_side([self._known(replace(view, flip_y=False, flip_x=False), index).levels for view in views])
        if side is None:
            return self.flips
        x, y = side
        return tuple(
            (flip_y, flip_x)
            for flip_y, flip_x in self.flips
            if y * y * (-1) ** flip_y + x * x * (-1) ** flip_x > _SAME_LIGHT
        )


class TrainingPairs(_NormalsWithDefects):
    """A normal and a defective window, the defect's repaired twin, and a control map.

    Only half of the defects fit into their windows, since a network can repair a defect that it sees in part. The
    control map asks for the categories of the defective window on the normal, by real masks that are warped, or
    everywhere if a category has no masks.
    """

    fit = 0.5
    warps = 0.5
    edges = 0.25  # if only few windows showed the edges, the network would find them unusual
    flips: ClassVar[tuple[tuple[bool, bool], ...]] = _FLIPS[:3]  # as ISU-GAN's paper has it

    def __init__(self, *args: Any, paints: bool = False, **options: Any) -> None:
        """`paints`: for a method that paints inside masks, in windows of any size."""
        self._paints = paints
        super().__init__(*args, **options)
        self._know_masks(long=paints)

    def _scale(self, images: Sequence[SourceImage]) -> float:
        """If most defects are longer than windows anyway, these show them twice as sharp."""
        scale = super()._scale(images)
        lengths = [max(box.width, box.height) for image in images for box in self._boxes_of(image)]
        if self._paints and not self._whole and lengths and np.median(lengths) * scale > self.image_size:
            return min(1.0, 2 * scale)
        return scale

    def _pair(self, rng: np.random.Generator, product: str, category: str) -> Row:
        """The row has a control map for the normal, whose window lies where that of the map's real mask did."""
        scale = self.scales[product][category]
        reference = self._draw(rng, product, category, scale)
        assert reference.a is not None
        a, at, zoom = np.zeros_like(reference.a), None, reference.zoom
        tones = np.zeros((2, *a.shape[1:]), np.float32)
        for index in np.flatnonzero(reference.a.any(axis=(1, 2))):
            a[index] = 1.0
            if known := self.masks.get(self.domains[index + 1]):
                first = pick(rng, known)
                levels = draw_map(rng, first.levels, known)
                a[index] = mask_of(levels)
                tones[0] += tones_of(levels)
                at, zoom = first.place, first.zoom
        if reference.twin is not None:
            tones[1] = tones_of(levels_of(reference.a.max(axis=0) > 0, reference.x, reference.twin))
        if rng.random() < _UNTOLD:
            tones[:] = 0
        return self._row(self._draw(rng, product, NORMAL, min(1.0, zoom * scale), at), reference, a, tones.clip(-1, 1))


class TrainingLabels(TrainingPairs):
    """Pairs whose defects fit into their windows."""

    fit = _FIT
    edges = 0.0
    flips = _FLIPS


class TrainingMasks(_NormalsWithDefects):
    """A normal and a defective window. Unless `by_category`, all categories of a product have the same scale.

    A method that makes whole images learns the normals once for all categories.
    """

    zooms = False
    covered = 0.0
    twins = False

    def __init__(self, *args: Any, by_category: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        for scales in self.scales.values() if not by_category else ():
            scales.update(dict.fromkeys(scales, float(np.median(list(scales.values())))))


class TrainingRequests(TrainingMasks):
    """The same, with a control map for a generated image in each row."""

    twins = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._know_masks(long=True)

    def _pair(self, rng: np.random.Generator, product: str, category: str) -> Row:
        row = super()._pair(rng, product, category)
        if known := self.masks.get(category):
            assert row.reference.a is not None
            a, tones = np.zeros_like(row.reference.a), np.zeros((2, *row.reference.a.shape[1:]), np.float32)
            levels = draw_map(rng, pick(rng, known).levels, known)
            a[self.domains.index(category) - 1], tones[0] = mask_of(levels), tones_of(levels)
            return replace(row, asked=a, tones=tones)
        return row


def stack(windows: Iterable[TrainingSample]) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Stack windows into arrays: x [B, C, S, S], y [B], p [B]."""
    rows = list(windows)
    return np.stack([w.x for w in rows]), np.array([w.y for w in rows]), np.array([w.p for w in rows])


_MIN_RIM = 3  # pixels of the window: least width of a patch's rim
_COLOR = 0.2  # fraction of the difference in brightness; defects with less difference in color are learned in gray
_KEPT_SPOTS = 64
_TURN, _SHIFT = 15.0, 0.1  # degrees, and fraction of the window's side; larger changes are made when pasting


class TrainingPatches:
    """Draws the rows of training batches for methods that learn patches. A row's source and reference are the same.

    All categories are equally frequent. The paper of DCDGANc makes some 1000 images from some 20 once, by flips,
    rotations, crops and shifts. Here, each draw rotates, mirrors, scales and shifts a patch a little, and crops it if
    it is larger than the window. Free rotations and shifts would use up most of the network's capacity.
    """

    twins: ClassVar[bool] = False

    def __init__(self, catalog: Catalog, image_size: int, products: Sequence[str], domains: Sequence[str]) -> None:
        self.image_size = image_size
        self.products = tuple(products)
        self.domains = tuple(domains)
        self.ranges = find_ranges(catalog)
        self._cache = ImageCache(limits=limits_of(catalog, self.ranges))
        images: dict[str, dict[str, list[SourceImage]]] = {product: {} for product in products}
        for image in catalog.images:
            if image.category != NORMAL:
                images[image.product].setdefault(image.category, []).append(image)
        self._pieces = {
            image.path: defect_pieces(read_masks(image.mask))
            for image in catalog.images
            if image.category != NORMAL and image.mask
        }
        self._study()
        self.scales: dict[str, dict[str, float]] = {product: {} for product in products}
        self._patches: dict[tuple[str, str], list[DefectPatch]] = {}
        for product, of_product in images.items():
            for category, its_images in sorted(of_product.items()):
                scale = self.scales[product][category] = self._scale(its_images)
                self._patches[product, category] = [
                    self._patch(image, box, piece, scale)
                    for image in its_images
                    for box, piece in self._pieces[image.path]
                ]
        cut_outs = [patch for each in self._patches.values() for patch in each]
        self.channels = 3 if _differ_in_color(cut_outs) else 1

    def _study(self) -> None:
        """Look at all pieces before the first scale is computed."""

    def _patch(self, image: SourceImage, box: Box, piece: BoolArray, scale: float) -> DefectPatch:
        rim = max(RIM, round(_MIN_RIM / scale))
        return resize(cut_out(self._cache.read(image.path), box, piece, rim), scale)

    def _scale(self, images: Sequence[SourceImage]) -> float:
        pieces = [self._pieces[image.path] for image in images]
        scale = find_scale(images, [[box for box, _ in each] for each in pieces], self.image_size)
        return keep_thick(scale, [piece for each in pieces for _, piece in each])

    def row(self, rng: np.random.Generator) -> Row:
        category = str(rng.choice(self.domains[1:]))
        product = str(rng.choice([p for p in self.products if (p, category) in self._patches]))
        drawn = self._draw(rng, product, category)
        return Row(drawn, drawn)

    def examples(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Rows for previews: for each category of each product, `count` pairs of real patches."""
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
        else:  # crop around a random pixel of the defect
            point = np.argwhere(patch.blend_mask)[rng.integers(patch.blend_mask.sum())][::-1]
        matrix[:, 2] = self.image_size / 2 + rng.uniform(-1, 1, 2) * room - matrix[:, :2] @ point
        x = on_pure_background(patch, matrix, self.image_size, self.channels)
        return TrainingSample(x, self.domains.index(category), self.products.index(product))


class LevelPatches(TrainingPatches):
    """Draws patches level, their longer axis along the window, with their masks as a channel of their own.

    Those that end at an edge of their image end at the left or the bottom of the window. If a category is elongated,
    windows are four times as wide as high, with as many pixels. Every draw of a patch is the same, unless the window
    shows a part: networks need not learn what warps can do to what they generate (`Habits.draw_variation`).
    """

    def _study(self) -> None:
        spots: dict[tuple[Path, Box], tuple[Spot, BoolArray]] = {}
        for path, pieces in self._pieces.items():
            colors = self._cache.read(path).colors
            ground = Ground(colors, pieces)
            spots |= {(path, box): (Spot.of(colors, ground, box, piece), piece) for box, piece in pieces}
        extents = [level.extent(*each) for each in spots.values()]
        self.elongated = level.elongated(extents)
        self.shape = level.window_shape(self.image_size, elongated=self.elongated)
        self._known = {key: level.known(*each, self.shape) for key, each in spots.items()}

    def _patch(self, image: SourceImage, box: Box, piece: BoolArray, scale: float) -> DefectPatch:
        """At a scale of its own: small defects are learned larger than large ones."""
        return level.cut_out_at(
            self._cache.read(image.path), box, piece, self._known[image.path, box].scale, image.path
        )

    def _scale(self, images: Sequence[SourceImage]) -> float:
        scales = [self._known[image.path, box].scale for image in images for box, _ in self._pieces[image.path]]
        return float(np.median(scales))

    @property
    def spots(self) -> dict[str, list[KnownSpot]]:
        """The spots of each category: some, spread evenly over all."""
        found = {}
        for category in self.domains[1:]:
            patches = [patch for (_, name), known in self._patches.items() if name == category for patch in known]
            found[category] = [self._spot(patch) for patch in patches[:: -(-len(patches) // _KEPT_SPOTS)]]
        return found

    def _spot(self, patch: DefectPatch) -> KnownSpot:
        assert patch.source is not None
        assert patch.box is not None
        return self._known[patch.source, patch.box]

    def _draw(self, rng: np.random.Generator, product: str, category: str) -> TrainingSample:
        patches = self._patches[product, category]
        number = int(rng.integers(len(patches)))
        x = level.window(rng, patches[number], self._spot(patches[number]).spot, self.shape, self.channels)
        return TrainingSample(x, self.domains.index(category), self.products.index(product))


def _differ_in_color(patches: Sequence[DefectPatch]) -> bool:
    """Whether defects differ from their background in color, and not, as most do, in brightness only.

    For the latter, a network would make visible false colors; a gray patch takes the colors of the image instead.
    """
    inside = [relative(patch).pixels[patch.defect_mask] for patch in patches]
    brightness = [np.abs(pixels.mean(axis=1)).mean() for pixels in inside]
    color = [np.abs(pixels - pixels.mean(axis=1, keepdims=True)).max(axis=1).mean() for pixels in inside]
    return bool(np.mean(color) > _COLOR * np.mean(brightness))


TrainingData = TrainingWindows | TrainingPatches


def rows_of_rank(batch_size: int) -> int:
    """The rows of a batch that each rank has. Losses compare rows with one another, so that one alone is too few.

    Raises:
        UsageError: the ranks cannot share them equally, or have fewer than two each.
    """
    count = ranks.count()
    if count > 1 and (batch_size % count or batch_size < 2 * count):
        raise UsageError(
            f"--batch-size {batch_size}: {count} processes share a batch equally, two windows each or more; use "
            f"--batch-size {max(2, -(-batch_size // count)) * count}"
        )
    return batch_size // count


class Feeder:
    """Prepares batches in a few threads, ahead of the training. A batch depends only on (seed, rank, step).

    Of several ranks, each has its part of the `size` rows of a step.
    """

    def __init__(self, windows: TrainingData, size: int, seed: int, device: torch.device, workers: int) -> None:
        self._windows, self._size, self._seed, self._device = windows, rows_of_rank(size), seed, device
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="windows")
        self._ahead: dict[int, Future[Batch]] = {}
        self.depth = 2 * max(1, workers)

    def batch(self, step: int) -> Batch:
        for coming in range(step, step + self.depth):
            if coming not in self._ahead:
                self._ahead[coming] = self._pool.submit(self._draw, coming)
        return self._move(self._ahead.pop(step).result())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def examples(self) -> Batch:
        """Rows for previews, the same throughout a run."""
        return self._move(self._stack(self._windows.examples(numpy_rng(self._seed), count=2)))

    def _draw(self, step: int) -> Batch:
        rng = numpy_rng(self._seed, ranks.index(), step)
        return self._stack([self._windows.row(rng) for _ in range(self._size)])

    def _stack(self, rows: list[Row]) -> Batch:
        x, y, p = stack(row.source for row in rows)
        x_ref, y_ref, p_ref = stack(row.reference for row in rows)
        arrays = {"x": x, "y": y, "p": p, "x_ref": x_ref, "y_ref": y_ref, "p_ref": p_ref}
        if shown := [row.reference.a for row in rows if row.reference.a is not None]:
            arrays["a_ref"] = np.stack(shown)
            arrays["place_ref"] = np.array([(*row.reference.place, row.reference.zoom) for row in rows], np.float32)
            arrays["cut_ref"] = np.array([row.reference.cut for row in rows])
        if asked := [row.asked for row in rows if row.asked is not None]:
            arrays["a"] = np.stack(asked)
        if tones := [row.tones for row in rows if row.tones is not None]:
            arrays["tones"], arrays["tones_ref"] = np.stack(tones, axis=1)[:, :, None]
        if self._windows.twins:
            twins = [row.reference.twin for row in rows]
            arrays["x_twin"] = np.stack([x if twin is None else twin for x, twin in zip(x_ref, twins, strict=True)])
            arrays["paired"] = np.array([twin is not None for twin in twins], np.float32)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return Batch(**tensors)

    def _move(self, batch: Batch) -> Batch:
        def move(value: Tensor) -> Tensor:
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            return value.to(self._device, non_blocking=True, memory_format=layout)

        return Batch(**{name: move(value) for name, value in vars(batch).items() if value is not None})


def training_data(name: str, catalog: Catalog, config: MethodConfig) -> TrainingData:
    """The training data of a method: windows of images, or whole images, or patches on a pure background.

    Raises:
        BadInputError: the method needs masks, and a defect image has none.
        UsageError: the method learns patches, which have neither `whole` nor `exposure`.
    """
    method = info(name)
    if method.needs_masks:
        require_masks(catalog)
    if method.learns == "pairs" and len(catalog.categories) > 1:
        catalog = _as_one_category(catalog)
    if method.learns in ("labels", "masks"):
        catalog = unite(catalog)
    products, domains = catalog.products, (NORMAL, *catalog.categories)
    if method.learns == "patches":
        for setting in ("whole", "exposure"):
            if getattr(config, setting):
                raise UsageError(f"--set {setting}=true: {name} learns defect patches, not windows of images")
        patches = LevelPatches if config.draws_masks else TrainingPatches
        return patches(catalog, config.image_size, products, domains)
    common: dict[str, Any] = {"whole": config.whole, "exposure": config.exposure}
    if method.learns == "masks":
        of_masks = TrainingRequests if config.paints_masks else TrainingMasks
        common["by_category"] = config.has_own_scales
        return of_masks(catalog, config.image_size, products, domains, **common)
    if method.learns != "domains":
        common["paints"] = config.paints_masks
    kinds: dict[DataKind, type[TrainingWindows]] = {
        "domains": TrainingWindows,
        "pairs": TrainingPairs,
        "labels": TrainingLabels,
    }
    return kinds[method.learns](catalog, config.image_size, products, domains, **common)


def hold_out(catalog: Catalog) -> tuple[Catalog, list[Path]]:
    """Split every tenth normal of each product off a catalog, for calibrating on images that are not trained on."""
    held: list[Path] = []
    for product in catalog.products:
        normals = [s.path for s in catalog.images if s.product == product and s.category == NORMAL]
        held += normals[4::10]
    images = tuple(image for image in catalog.images if image.path not in held)
    return catalog.model_copy(update={"images": images}), held


def _as_one_category(catalog: Catalog) -> Catalog:
    images = (image.model_copy(update={"category": collapsed(image.category)}) for image in catalog.images)
    return catalog.model_copy(update={"images": tuple(images)})


def make_task(windows: TrainingData) -> Task:
    masks, spots = {}, {}
    hues = windows.hues() if isinstance(windows, TrainingWindows) else ()
    if isinstance(windows, LevelPatches):
        spots = {category: tuple(map(spot_text, known)) for category, known in windows.spots.items()}
    if isinstance(windows, _NormalsWithDefects):
        masks = {category: tuple(map(to_text, known)) for category, known in windows.kept.items()}
    return Task(
        domains=windows.domains, products=windows.products, channels=windows.channels, scales=windows.scales,
        ranges=windows.ranges, masks=masks, spots=spots, hues=hues,
        elongated=isinstance(windows, LevelPatches) and windows.elongated,
    )  # fmt: skip
