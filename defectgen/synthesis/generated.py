"""Samples of a trained model: a request in, a lazy stream of samples out."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen.dataset import Normal, Sample
from defectgen.dataset.manifest import Parameters, Provenance
from defectgen.device import one_thread, resolve, torch_rng
from defectgen.errors import OutOfMemoryError, UsageError
from defectgen.folders import Catalog, SourceImage, limits_of
from defectgen.imaging import control_maps, level, masks
from defectgen.imaging.control_maps import (
    KnownMask,
    Sides,
    at_edge,
    centered,
    draw_long,
    draw_map,
    fitted,
    mask_of,
    pick,
    tones_of,
)
from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.mask_files import read_masks
from defectgen.imaging.patches import DefectPatch, extract, flipped, of_mask, resize
from defectgen.imaging.places import Habits, KnownSpot, Pose, Spot, from_text
from defectgen.imaging.windows import (
    Box,
    FloatArray,
    Limits,
    Window,
    crop,
    crop_zero_padded,
    defect_boxes,
    light_of,
    network_side,
    normalize,
    open_sides,
    paste_change,
    paste_on_zeros,
    place,
    place_at,
    place_of,
    scale_of,
    shown,
    value_range,
)
from defectgen.inspection.reconstruction import Tiled
from defectgen.methods import having, which
from defectgen.methods.base import BORDER, Extent, GenerateBatch, Placing, Restorer
from defectgen.models.model import load
from defectgen.models.registry import Entry
from defectgen.seeding import numpy_rng
from defectgen.synthesis.pasted import ComposeDraw, Composition, Placement, Region
from defectgen.synthesis.stream import (
    Attempt,
    Draw,
    SampleSpec,
    SampleStream,
    mixture,
    mixture_name,
    require,
    visible,
    visible_pieces,
)

_FEATHER = 4.0  # native pixels over which a change fades out, at scale 1
_RIM, _FADE = 8, 4  # pixels of the network's window: an unpainted border, then a ramp to full strength
_PATIENCE = 5  # attempts, after which defects that the window's border cuts off are accepted
_OBJECT = 1 << 31  # in the key of an object that all samples share: no index is as high
_CUT = 3  # pixels of a window's border that a whole defect may cover; of a thinner one, most of its thickness
_ALIKE = 0.25  # of the logarithm of lengths: how alike in size real and generated defects are
_AS_DARK = 0.1  # of the ground's brightness: how alike in contrast they are
_DIM = 0.6  # times the light of the grounds of real defects: on a darker ground lie none
_PICKS, _AS_BRIGHT = 6, 0.2  # real masks that are tried, and logarithm of the light by which one may be off
_STRETCH = 1.5  # times as large as the image of a long defect: one that it still crosses, at a smaller scale
_ON_CPU, _ON_GPU = 8, 64  # windows that are drawn and painted together


Style = Literal["own", "sampled"]


@dataclass(frozen=True)
class SynthesisRequest:
    """What to generate with which model.

    A category may be a mixture, such as `crack:0.3,hole:0.7`, or a union, such as `crack+corrosion`, if the method
    supports it. `placement` is for models that generate defect patches; None means its defaults. `regions` are for
    models with region control: either each has a category, or none has and they apply to the sample's categories.
    """

    entry: Entry
    wanted: SampleSpec
    device: str = "auto"
    batch_size: int | None = None
    placement: Placement | None = None
    regions: tuple[tuple[str | None, Region], ...] = ()
    strength: tuple[float, float] = (1.0, 1.0)
    """The range of a factor of the change, for methods that paint."""
    move: tuple[tuple[float, float], tuple[float, float]] = (0.0, 0.0), (0.0, 0.0)
    """Ranges of pixels by which painted defects are moved right and down from where their real one was."""
    restored: bool = False
    restore: bool = False
    """Remove the defects of the catalog's images instead of generating new ones."""
    whole: bool = False
    """Generate whole images instead of defects on normals, if the method supports it."""
    references: Catalog | None = None
    """Images whose defects are transferred, if the method supports it; None generates random defects."""
    style: Style | Catalog = "own"
    """The style of transferred defects: their own, a random one, or that of other images."""
    patches: bool = False
    """Generate the defect patches alone, if the method generates such, instead of blending them into normals."""
    same_object: bool = False
    """Generate one object with several defects, if the method generates whole images."""
    truncation: float = 1.0
    """How far codes are from their mean, 0..1, for such methods."""
    guides: str = ""
    """A text that names the references and the style. It must not change when a dataset is resumed."""


@dataclass(frozen=True)
class _Output:
    """The output of a network for one window.

    `x` is the generated window, [C, S, S], and `m` its defect map, [S, S]. `restored` and `normal`, [C, S, S], are the
    window with its defect removed, and the version without a defect; None if the method makes none.
    """

    x: FloatArray
    m: FloatArray | None = None
    restored: FloatArray | None = None
    normal: FloatArray | None = None


class _Network:
    """A model and its batched calls. Each output depends on its own key alone, not on the batch."""

    def __init__(self, request: SynthesisRequest) -> None:
        self.device = resolve(request.device)
        model = load(request.entry.file, self.device)
        self.info, self.method = model.info, model.method
        self.metadata = {"trained_on": list(model.trained_on)}
        workers = max(1, request.wanted.workers)
        self.batch_size = request.batch_size or (_ON_GPU if self.device.type == "cuda" else max(_ON_CPU, 2 * workers))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="network")
        self.provenance = {
            "model": request.entry.name,
            "model_sha256": request.entry.sha256,
            "method": request.entry.method,
        }
        self.limits: dict[Path, Limits] = {}
        """The ranges of 16-bit images, as the model learned their products."""
        style = request.style if isinstance(request.style, Catalog) else None
        for catalog in (request.wanted.normals, request.references, style):
            if catalog is not None:
                self.limits |= limits_of(catalog, self.method.task.ranges)
        prior = getattr(self.method.config, "prior", None)
        if prior is not None and request.references is None:
            self.provenance["prior"] = prior
        side, known = self.method.config.image_size, self.method.task.masks
        self.masks: dict[str, list[KnownMask]] = {}
        """Real masks of each category, of which control maps are made, if the method paints inside masks."""
        if self.method.config.paints_masks:
            self.masks = {name: [control_maps.from_text(text, side) for text in texts] for name, texts in known.items()}
        self._restored = request.restored
        self._truncation = request.truncation
        self._object = (request.wanted.seed, _OBJECT) if request.same_object else None
        self._weights = {}
        for text in request.wanted.categories:
            weights = self.weights(text)
            values = [weights.get(name, 0.0) for name in self.method.task.domains[1:]]
            self._weights[mixture_name(weights)] = torch.tensor(values)
        self.categories = tuple(self._weights)

    def weights(self, text: str) -> dict[str, float]:
        """The categories in a text with their weights, as `mixture`.

        Raises:
            UsageError: the model does not know one, or does not support several at once.
        """
        known = self.method.task.domains[1:]
        weights = mixture(text, known)
        for name in weights:
            if name not in known:
                raise UsageError(f"--category {name}: {self.provenance['model']} knows {', '.join(known)}")
        if len(weights) > 1:
            require(
                "mixture" if min(weights.values()) < 1 else "union", self.info, f"--category {text}: {self.info.name}"
            )
        return weights

    def generate(
        self,
        categories: Sequence[str],
        keys: Sequence[tuple[int, ...]],
        x: FloatArray | None = None,
        **guides: FloatArray,
    ) -> list[_Output]:
        """Generate an image for each category and random key.

        Args:
            keys: seeds of the random generators, one per image.
            x: the windows to paint, [N, C, S, S]; None for methods that need none.
            guides: the other fields of a `GenerateBatch`: control maps `a`, references `x_ref` and `x_style`.

        Raises:
            OutOfMemoryError: naming the batch size to try next.
        """
        if x is None and self.masks:
            guides["a"], guides["tones"] = self._asked(categories, keys)

        def make(start: int) -> list[_Output]:
            part = slice(start, start + size)
            of_part = {name: values[part] for name, values in guides.items()}
            return self._make(categories[part], keys[part], None if x is None else x[part], of_part)

        # On the CPU one at a time on each thread: as fast as a batch, faster than one on several threads, and the
        # rounding, which decides about outlines of masks, depends neither on the batch nor on the threads.
        # Of larger windows, of long defects, as many at a time as fit into the same memory.
        larger = 1 if x is None else (x.shape[-1] / self.method.config.image_size) ** 2
        size = max(1, int(self.batch_size / larger)) if self.device.type == "cuda" else 1
        starts = range(0, len(keys), size)
        try:
            if self.device.type == "cuda":
                parts = list(map(make, starts))
            else:
                with one_thread():
                    parts = list(self._pool.map(make, starts))
        except torch.OutOfMemoryError as error:
            smaller = max(1, self.batch_size // 2)
            raise OutOfMemoryError(
                f"{self.device} ran out of memory with --batch-size {self.batch_size}; try --batch-size {smaller}"
            ) from error
        return [each for part in parts for each in part]

    def _make(
        self,
        categories: Sequence[str],
        keys: Sequence[tuple[int, ...]],
        x: FloatArray | None,
        guides: Mapping[str, FloatArray],
    ) -> list[_Output]:
        mix = torch.stack([self._weights[category] for category in categories]).to(self.device)
        rngs = [torch_rng(*key) for key in keys]
        windows = torch.empty(len(rngs), 0) if x is None else torch.from_numpy(x)
        layout = torch.contiguous_format if x is None else torch.channels_last
        windows = windows.to(self.device, memory_format=layout)
        inputs: dict[str, Any] = {name: torch.from_numpy(values).to(self.device) for name, values in guides.items()}
        y = mix.argmax(dim=1) + 1
        if self._object is not None:
            inputs["object_rngs"] = [torch_rng(*self._object) for _ in rngs]
        generated = self.method.generate(GenerateBatch(windows, y, rngs, mix, truncation=self._truncation, **inputs))
        columns = [generated.x, generated.mask, self._restore(generated.x, y, rngs), generated.normal]
        arrays = [None if each is None else each.float().cpu().numpy() for each in columns]
        made = []
        for i in range(len(rngs)):
            image, m, restored, normal = (None if each is None else each[i] for each in arrays)
            assert image is not None
            made.append(_Output(image, None if m is None else m[0], restored, normal))
        return made

    def _asked(self, categories: Sequence[str], keys: Sequence[tuple[int, ...]]) -> tuple[FloatArray, FloatArray]:
        """A real mask of the category, warped, for each image that is made as a whole, and its tones.

        They are `a` and `tones` of `GenerateBatch`.
        """
        task, size = self.method.task, self.method.config.image_size
        a = np.zeros((len(keys), len(task.domains) - 1, size, size), np.float32)
        tones = np.zeros((len(keys), 1, size, size), np.float32)
        for row, (category, key) in enumerate(zip(categories, keys, strict=True)):
            if known := self.masks.get(category):
                rng = numpy_rng(*key)
                first = pick(rng, known).levels
                if max(first.shape) > size:
                    levels = draw_long(rng, first, (size, size), known)
                else:
                    levels = draw_map(rng, first, known)
                a[row, task.domains.index(category) - 1], tones[row] = mask_of(levels), tones_of(levels)
        return a, tones

    def _restore(self, x: Tensor, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor | None:
        if not self._restored:
            return None
        assert isinstance(self.method, Restorer)
        return self.method.restore(x, y, rngs)


@dataclass(frozen=True)
class _Reference:
    """A window of a reference image, [C, S, S]."""

    sample: SourceImage
    sha256: str
    window: Window
    x: FloatArray

    def summary(self) -> dict[str, Any]:
        """Its entry in manifest rows."""
        return {"file": str(self.sample.path), "sha256": self.sha256, "window": vars(self.window)}


@dataclass(frozen=True)
class _WindowDraw(Draw):
    """A draw with the window to paint: its position and its pixels `x`, [C, S, S].

    `a` is the control map, [categories, S, S], for models with region control, and `tones`, [1, S, S], are its, as in
    `Batch`; `light` is that of the grounds of the real defects that it comes from, or 0. `x_ref` and `x_style` are the
    references for defect and style; None if there are none.
    """

    window: Window
    x: FloatArray
    a: FloatArray | None
    tones: FloatArray | None = None
    light: float = 0.0
    x_ref: _Reference | None = None
    x_style: _Reference | None = None
    moved: tuple[int, int] = (0, 0)


class PaintedSamples(SampleStream[_WindowDraw, _Output]):
    """Samples of a method that paints defects into a window of a normal image."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        super().__init__(replace(request.wanted, categories=network.categories), network.batch_size)
        self._network = network
        self._images.limits |= network.limits
        self.metadata |= network.metadata
        self._method = network.method
        self._masks = network.masks
        self._regions = request.regions
        self._strength = request.strength
        self._move = request.move if any(map(any, request.move)) else None
        self._references = None if request.references is None else self._defects(request.references)
        self._style = self._defects(request.style) if isinstance(request.style, Catalog) else None
        self._own_style = request.style == "own"
        self._guides = {"guides": request.guides} if request.guides else {}
        self._boxes = lru_cache(maxsize=1024)(lambda mask: defect_boxes(read_masks(mask)))
        self._area = lru_cache(maxsize=64)(lambda i, path: request.regions[i][1].within(self._images.read(path)))

    def _draw(self, index: int, attempt: int) -> _WindowDraw:
        rng = numpy_rng(self._wanted.seed, index, attempt)
        drawn = self._draw_source(rng, index, attempt)
        task, size, photograph = self._method.task, self._method.config.image_size, drawn.photograph
        names = self._network.weights(drawn.category)
        areas = [(i, category, self._area(i, drawn.sample.path)) for i, (category, _) in enumerate(self._regions)]
        x_ref = x_style = None
        if self._references is not None:
            x_ref = self._pick_reference(rng, self._references(index, drawn.category), drawn.category)
            x_style = x_ref if self._own_style else None
        if self._style is not None:
            x_style = self._pick_reference(rng, self._style(index, drawn.category), drawn.category)
        firsts, at, zoom, moved = {}, None, 1.0, (0, 0)
        if not areas and all(self._masks.get(name) for name in names):
            firsts = self._as_bright(rng, drawn, tuple(names))
            _, at, zoom, _ = _widest(firsts)
        elif spot := self._spot(drawn.category, index, attempt, x_ref):
            at, zoom = spot[:2], spot[2]
        size, side = self._sides(firsts, self._scale(drawn, tuple(names), zoom), photograph)
        if areas:
            box = Box(*cv2.boundingRect(np.any([area for *_, area in areas], axis=0).view(np.uint8)))
            extent = self._extent(drawn.category, index, attempt, x_ref)
            if extent is not None:
                window = laid(rng, box, extent, side, size)
            else:
                if len(areas) > 1:  # one window holds all, at a smaller scale than the model learned if necessary
                    side = max(side, -(-max(box.width, box.height) * size // (size - 2 * (_RIM + _FADE))))
                rim = -(-(_RIM + _FADE) * side // size)
                around = Box(box.x - rim, box.y - rim, box.width + 2 * rim, box.height + 2 * rim)
                window = place(rng, photograph.height, photograph.width, side, around, beyond=rim)
        elif at is not None:
            window = place_at(photograph.height, photograph.width, side, at)
            if self._move is not None:
                moved = round(rng.uniform(*self._move[0])), round(rng.uniform(*self._move[1]))
                window = Window(window.x + moved[0], window.y + moved[1], side)
        elif self._move is not None:
            name = self._network.provenance["model"]
            raise UsageError(f"--move: {name} learned without masks where defects are; use --region, or leave it out")
        else:
            window = place(rng, photograph.height, photograph.width, side)
        a, tones = None, None
        if firsts:
            a, tones = self._asked(rng, window, size, firsts, photograph)
        elif areas:
            a, tones = self._asked_in(rng, window, areas, tuple(names))
        x = crop(photograph, window, size, task.channels)
        return _WindowDraw(
            **vars(drawn),
            window=window,
            x=x,
            a=a,
            tones=tones,
            light=min((first.light for first in firsts.values()), default=0.0),
            x_ref=x_ref,
            x_style=x_style,
            moved=moved,
        )

    def _scale(self, draw: Draw, names: Sequence[str], zoom: float) -> float:
        """Pixels of the network per pixel of the image, at which all these categories can be painted."""
        scales = self._method.task.scales
        return min(1.0, zoom * min(scale_of(scales, draw.sample.product, name) for name in names))

    def _as_bright(self, rng: np.random.Generator, draw: Draw, names: Sequence[str]) -> dict[str, KnownMask]:
        """A real mask of each category; others are tried if their ground was not as bright as where they come to lie.

        What shines in the shadow is no brighter in the light.
        """
        best: dict[str, KnownMask] = {}
        least, photograph = math.inf, draw.photograph
        for _ in range(_PICKS):
            firsts = {name: pick(rng, self._masks[name]) for name in names}
            first = _widest(firsts)
            size, side = self._sides(firsts, self._scale(draw, names, first.zoom), photograph)
            mask = mask_of(first.levels)
            if not first.light or at_edge(mask[None]) or max(mask.shape) > size:
                return firsts
            x = crop(photograph, place_at(photograph.height, photograph.width, side, first.place), size, 1)
            light = light_of(x, mask_of(centered(first.levels, size)), photograph)
            unlike = abs(math.log(max(light, 1e-3) / first.light))
            if unlike < least:
                best, least = firsts, unlike
            if unlike < _AS_BRIGHT:
                break
        return best

    def _sides(self, firsts: dict[str, KnownMask], scale: float, photograph: DecodedImage) -> tuple[int, int]:
        """The window's side in pixels of the network and of the image. That of a long defect shows up to all of it."""
        size = self._method.config.image_size
        side, longest = round(size / scale), max(photograph.height, photograph.width)
        known = max((max(first.levels.shape) for first in firsts.values()), default=size)
        if known <= size:
            return size, side
        size = min(known, max(size, network_side(longest * scale)))
        return size, max(longest, side) if longest * scale <= _STRETCH * known else round(size / scale)

    def _spot(
        self, category: str, index: int, attempt: int, reference: _Reference | None
    ) -> tuple[float, float, float] | None:
        """The place and the zoom that suit the defect to come: the reference's, or those that the method knows."""
        if reference is not None:
            return (*place_of(reference.window, reference.sample.height, reference.sample.width), 1.0)
        if not isinstance(self._method, Placing) or category not in self._method.task.domains:
            return None
        return self._method.place(
            self._method.task.domains.index(category), torch_rng(self._wanted.seed, index, attempt)
        )

    def _extent(self, category: str, index: int, attempt: int, reference: _Reference | None) -> Extent | None:
        """The part of the window that the defect to come will cover, if the method can tell."""
        if not isinstance(self._method, Placing) or category not in self._method.task.domains:
            return None
        x_ref = None if reference is None else torch.from_numpy(reference.x[None]).to(self._network.device)
        rng = torch_rng(self._wanted.seed, index, attempt)
        return self._method.extent(self._method.task.domains.index(category), rng, x_ref)

    def _pick_reference(self, rng: np.random.Generator, samples: Sequence[SourceImage], category: str) -> _Reference:
        """A window of a random one of these images, around one of its defects if the image has a mask."""
        sample = samples[int(rng.integers(len(samples)))]
        boxes = self._boxes(sample.mask) if sample.mask is not None else []
        box = boxes[int(rng.integers(len(boxes)))] if boxes else None
        size = self._method.config.image_size
        side = round(size / scale_of(self._method.task.scales, sample.product, category))
        window = place(rng, sample.height, sample.width, side, box)
        photograph = self._images.read(sample.path)
        x = crop(photograph, window, size, self._method.task.channels)
        return _Reference(sample, self._sha256(sample.path), window, x)

    def _asked(
        self,
        rng: np.random.Generator,
        window: Window,
        size: int,
        firsts: dict[str, KnownMask],
        photograph: DecodedImage,
    ) -> tuple[FloatArray, FloatArray]:
        """A control map, [categories, S, S], of real masks that are warped, and its tones, [1, S, S].

        It is 1 where a defect is requested, else 0. It leaves the window's border free, except where the image ends.
        """
        (a, tones), border = self._nothing(size), _inner(window, photograph)
        rows, columns = shown(window, photograph.height, photograph.width, size)
        for name, (levels, *_) in firsts.items():
            if max(levels.shape) <= size and (size == self._method.config.image_size or any(border)):
                here = draw_map(rng, centered(levels, size), self._masks[name], border)
            else:
                here = np.zeros((size, size), np.int8)
                here[rows, columns] = draw_long(rng, levels, here[rows, columns].shape, self._masks[name])
            a[self._method.task.domains.index(name) - 1] = mask_of(here)
            tones[0] += tones_of(here)
        return a, tones.clip(-1, 1)

    def _asked_in(
        self,
        rng: np.random.Generator,
        window: Window,
        areas: Sequence[tuple[int, str | None, NDArray[np.bool_]]],
        names: Sequence[str],
    ) -> tuple[FloatArray, FloatArray]:
        """A control map of regions and its tones, as `_asked`.

        It is a mask image exactly; in a box a real mask, warped, or the box without masks.
        """
        size = self._method.config.image_size
        a, tones = self._nothing(size)
        for number, category, area in areas:
            inside = crop_zero_padded(area, (window.x, window.y), (window.side, window.side)).astype(np.float32)
            here = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA) > 0.5
            exact = self._regions[number][1].mask is not None
            for name in [category] if category else names:
                part, known = here, self._masks.get(name)
                if known and not exact:
                    first = pick(rng, known)
                    whole = centered(first.levels, max(first.levels.shape))
                    levels = fitted(draw_map(rng, whole, known), here, rng, 1 / first.zoom)
                    part, tones = mask_of(levels), tones + tones_of(levels)
                a[self._method.task.domains.index(name) - 1][part] = 1
        return a, tones.clip(-1, 1)

    def _nothing(self, size: int) -> tuple[FloatArray, FloatArray]:
        return np.zeros((len(self._method.task.domains) - 1, size, size), np.float32), np.zeros(
            (1, size, size), np.float32
        )

    def _generate(self, draws: Sequence[_WindowDraw]) -> list[_Output]:
        made: dict[int, _Output] = {}
        for size in {len(draw.x[0]) for draw in draws}:
            alike = [draw for draw in draws if len(draw.x[0]) == size]
            made |= dict(zip(map(id, alike), self._generate_alike(alike), strict=True))
        return [made[id(draw)] for draw in draws]

    def _generate_alike(self, draws: Sequence[_WindowDraw]) -> list[_Output]:
        """As `_generate`, of windows of one size."""
        keys = [(self._wanted.seed, draw.index, draw.attempt) for draw in draws]
        columns = {
            "a": [draw.a for draw in draws if draw.a is not None],
            "tones": [draw.tones for draw in draws if draw.tones is not None],
            "x_ref": [draw.x_ref.x for draw in draws if draw.x_ref is not None],
            "x_style": [draw.x_style.x for draw in draws if draw.x_style is not None],
        }
        guides = {name: np.stack(values) for name, values in columns.items() if values}
        return self._network.generate(
            [draw.category for draw in draws], keys, np.stack([draw.x for draw in draws]), **guides
        )

    def _finish(self, draw: _WindowDraw, generated: _Output) -> Sample | None:
        photograph, window = draw.photograph, draw.window
        if draw.a is not None and light_of(draw.x, draw.a.max(axis=0) > 0, photograph) < _DIM * draw.light:
            return None  # it lies on the backdrop
        allowed = np.ones_like(draw.x[0])
        if draw.a is None:  # with a map of its own, a network paints no frames
            rim = Sides(_RIM, _RIM, _RIM, _RIM) if generated.m is None else _inner(window, photograph)
            allowed = _interior(len(draw.x[0]), rim)
        if draw.a is not None and not self._masks:
            where = draw.a.max(axis=0)
            allowed = where * cv2.blur(where, (5, 5)) * _interior(len(where), _inner(window, photograph))
        strength = round(float(numpy_rng(self._wanted.seed, draw.index, draw.attempt, 1).uniform(*self._strength)), 3)
        after = np.clip(draw.x + strength * (generated.x - draw.x) * allowed, -1, 1)
        if draw.a is not None and self._masks:  # the model paints what it is asked for: the request is the label
            mask = draw.a.max(axis=0) > 0.5
        elif generated.m is None:
            mask = masks.mask_from_difference(draw.x, after)
        else:
            mask = masks.mask_from_map(draw.x, after, generated.m * allowed)
        mask = native_mask(mask, window.side)
        alpha = masks.feather(mask, _FEATHER * window.side / len(draw.x[0]))
        image = paste_change(photograph, window, draw.x, after, alpha)
        mask = paste_on_zeros(mask, (window.x, window.y), (photograph.height, photograph.width))
        # Of a union, each defect lies in the image, which may be smaller than the window, and is visible.
        asked = [each > 0.5 for each in draw.a if each.any()] if draw.a is not None else []
        parts = [paste_on_zeros(native_mask(each, window.side), (window.x, window.y), mask.shape) for each in asked]
        if parts and not self._regions:
            parts = [visible_pieces(photograph, image, part) for part in parts]
            mask &= np.any(parts, axis=0)
        if not visible(photograph, image, mask) or not all(part.any() for part in parts):
            return None
        restored = None
        if generated.restored is not None:
            without = draw.x + (generated.restored - draw.x) * allowed
            restored = paste_change(photograph, window, draw.x, without, alpha)
        regions = [f"{category}={region.name}" if category else region.name for category, region in self._regions]
        provenance = {
            **self._source_provenance(draw),
            "window": vars(window),
            **self._network.provenance,
            **({"regions": regions} if regions else {}),
            **self._guides,
            **({"reference": draw.x_ref.summary()} if draw.x_ref else {}),
            **({"style": draw.x_style.summary()} if draw.x_style else {}),
            "seed": self._wanted.seed,
            "parameters": {
                "index": draw.index,
                "attempt": draw.attempt,
                **({} if self._move is None else {"moved": list(draw.moved)}),
                **({} if self._strength == (1.0, 1.0) else {"strength": strength}),
            },
        }
        made = Sample(draw.index, draw.category, draw.sample.product, image, mask, Provenance(**provenance), restored)
        return replace(made, numbers=_numbers(draw, mask))


class RestoredSamples(SampleStream[Draw, Pixels]):
    """Real images with defects, and the same images with the defects removed. The mask marks what was removed.

    Sample k is of image k; the catalog of the request holds the images with defects.
    """

    attempts = 1  # nothing is random

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        super().__init__(replace(request.wanted, categories=network.categories), 1)
        self._network = network
        self._images.limits |= network.limits
        self.metadata |= network.metadata

    def normals(self) -> list[Normal]:
        """None: the images that it restores have defects."""
        return []

    def _validates(self, index: int) -> bool:
        categories, split = [image.category for image in self._wanted.normals.images[: index + 1]], self._wanted.split
        return split is not None and split.holds_out(categories.count(categories[index]) - 1)

    def _draw(self, index: int, attempt: int) -> Draw:
        sample = self._wanted.normals.images[index]
        return Draw(index, attempt, sample.category, sample, self._images.read(sample.path))

    def _generate(self, draws: Sequence[Draw]) -> list[Pixels]:
        return [self._restore(draw) for draw in draws]

    def _restore(self, draw: Draw) -> Pixels:
        method, device = self._network.method, self._network.device
        assert isinstance(method, Restorer)
        restorer, y = method, method.task.domains.index(draw.category)

        def restore(x: Tensor) -> Tensor:
            rngs = [torch_rng(self._wanted.seed, draw.index, row) for row in range(len(x))]
            return restorer.restore(x, torch.full((len(x),), y, device=device), rngs)

        return Tiled(restore, method, device)(
            draw.photograph, scale_of(method.task.scales, draw.sample.product, draw.category)
        )

    def _finish(self, draw: Draw, generated: Pixels) -> Sample | None:
        low, high = value_range(draw.photograph)
        before, after = (
            normalize(np.atleast_3d(each)[..., : draw.photograph.channels].astype(np.float32), (low, high), 3)
            for each in (draw.photograph.pixels, generated)
        )
        mask = masks.mask_from_difference(before, after)
        if not visible(draw.photograph, generated, mask):
            return None
        provenance = Provenance(
            **self._source_provenance(draw), **self._network.provenance, seed=self._wanted.seed,
            parameters=Parameters(index=draw.index),
        )  # fmt: skip
        product = draw.sample.product
        return Sample(draw.index, draw.category, product, draw.photograph.pixels, mask, provenance, generated)


@dataclass(frozen=True)
class _LevelReference:
    """A real defect in a level window, [C + 1, H, W], and its spot."""

    sample: SourceImage
    sha256: str
    box: Box
    known: KnownSpot
    x: FloatArray


@dataclass(frozen=True)
class _PatchDraw(ComposeDraw):
    """A draw with the real defects to vary, one for each patch; none if new ones are to be made."""

    varied: tuple[_LevelReference, ...] = ()


class PatchSamples(Composition[_PatchDraw, list[_Output]]):
    """Samples of a method that generates defect patches, which are blended into normal images."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        wanted = replace(request.wanted, categories=network.categories)
        super().__init__(wanted, request.placement or Placement(), network.batch_size)
        self._network = network
        self._images.limits |= network.limits
        self.metadata |= network.metadata
        self._mixtures = {mixture_name(w): w for w in map(network.weights, request.wanted.categories)}
        known = network.method.task.spots if network.method.config.draws_masks else {}
        self._spots = {category: [from_text(text) for text in texts] for category, texts in known.items()}
        self._habits = {category: Habits([each.spot for each in spots]) for category, spots in self._spots.items()}
        if self._habits:
            self.metadata["places"] = {category: habits.summary() for category, habits in self._habits.items()}
        self._references = None if request.references is None else self._defects(request.references)
        self._guides = {"guides": request.guides} if request.guides else {}
        if self._references is not None and not self._spots:
            raise UsageError(f"{network.provenance['model']} learned without level=true, and knows no codes of defects")

    def _draw(self, index: int, attempt: int) -> _PatchDraw:
        drawn = self._draw_defects(index, attempt)
        chosen = () if self._references is None else tuple(self._reference(drawn) for _ in range(drawn.count))
        return _PatchDraw(**vars(drawn), varied=chosen)

    def _reference(self, draw: ComposeDraw) -> _LevelReference:
        """A defect of a random reference of the draw's category."""
        assert self._references is not None
        image, number = self._pick_piece(draw.rng, self._references(draw.index, draw.category))
        task, spot, (box, piece) = (
            self._network.method.task,
            self._spot(image, number),
            self._pieces(image.mask)[number],
        )
        shape = level.window_shape(self._network.method.config.image_size, elongated=task.elongated)
        known = level.known(spot, piece, shape)
        patch = level.cut_out_at(self._images.read(image.path), box, piece, known.scale, image.path)
        x = level.window(draw.rng, patch, spot, shape, task.channels)
        return _LevelReference(image, self._sha256(image.path), box, known, x)

    def _generate(self, draws: Sequence[_PatchDraw]) -> list[list[_Output]]:
        keys = [
            (draw.category, (self._wanted.seed, draw.index, draw.attempt, i))
            for draw in draws
            for i in range(draw.count)
        ]
        of = [each.x for draw in draws for each in draw.varied]
        guides = {"x_ref": np.stack(of)} if of else {}
        images = iter(self._network.generate([category for category, _ in keys], [key for _, key in keys], **guides))
        return [[next(images) for _ in range(draw.count)] for draw in draws]

    def _finish(self, draw: _PatchDraw, generated: list[_Output]) -> Sample | None:
        weights = self._mixtures[draw.category]
        cut = draw.attempt >= _PATIENCE
        provenance: dict[str, Any] = {**self._network.provenance, **self._guides}
        if len(weights) > 1:
            provenance["mixture"] = weights
        if self._spots:
            (name,) = draw.rng.choice(list(weights), 1, p=np.array(list(weights.values())) / sum(weights.values()))
            made_of = zip_longest(generated, draw.varied)
            posed = [each for pair in made_of if (each := self._posed(draw.rng, *pair, name, cut=cut)) is not None]
            patches, poses, spots = zip(*posed, strict=True) if posed else ((), (), ())
            if draw.varied:
                first = draw.varied[0]
                provenance["reference"] = {
                    "file": str(first.sample.path), "sha256": first.sha256, "window": vars(first.box)
                }  # fmt: skip
            return self._compose(draw, patches, provenance, spots, self._habits[name], poses)
        scale = sum(weight * self._scale(draw.sample.product, name) for name, weight in weights.items())
        single = [resize(patch, 1 / scale) for made in generated if (patch := _patch(made, cut=cut)).blend_mask.any()]
        return self._compose(draw, single, provenance)

    def _posed(
        self, rng: np.random.Generator, made: _Output, of: _LevelReference | None, category: str, *, cut: bool
    ) -> tuple[DefectPatch, float, Spot] | None:
        """`posed_as_real`; a variation of a real defect lies like that one, and names it."""
        known = self._spots[category] if of is None else [of.known]
        found = posed_as_real(rng, made.x, made.m, known, cut=cut)
        if found is None or of is None:
            return found
        patch, pose, spot = found
        return replace(patch, source=of.sample.path, box=of.box), pose, spot

    def _scale(self, product: str, category: str) -> float:
        """The scale at which the model learned a category: on this product, or the mean of the others."""
        known = {name: scales for name, scales in self._network.method.task.scales.items() if category in scales}
        return scale_of(known, product, category)


def posed_as_real(
    rng: np.random.Generator, x: FloatArray, m: FloatArray | None, known: Sequence[KnownSpot], *, cut: bool
) -> tuple[DefectPatch, float, Spot] | None:
    """A level patch, of the size and in the pose of a real defect, degrees by which to turn it, and that one's spot.

    Of the real defects that end at the same edges, one of a similar size and contrast is drawn. None if there is none,
    or, unless `cut`, if the window's border cuts the defect off elsewhere.

    Args:
        x: [C, H, W] in [-1, 1], relative to the background.
        m: its soft mask, [H, W] in [0, 1].
    """
    assert m is not None
    patch = of_mask(x, m > 0.5)
    if not patch.defect_mask.any():
        return None
    length = cv2.boundingRect(patch.defect_mask.view(np.uint8))[2]
    mask, thickness = patch.defect_mask, patch.defect_mask.sum() / length
    near = _CUT if thickness < _CUT else 1  # thin lines fade on the last pixels
    bands = (*(each[:, :near] for each in (mask, mask[:, ::-1])), *(each[:near].T for each in (mask, mask[::-1])))
    left, right, top, bottom = (int(band.any(axis=1).sum()) > min(_CUT, 0.7 * thickness) for band in bands)
    alike = [each for each in known if Pose.of(each.spot).ends == (left, bottom)]
    if right and not cut:  # as of one that crosses its image
        alike = [each for each in alike if _crosses(each.spot)]
    if not alike or (top and not cut):
        return None
    contrast = float(patch.pixels[patch.defect_mask].mean())
    unlike = [
        abs(math.log(length / each.length)) / _ALIKE + abs(contrast - each.spot.contrast) / _AS_DARK for each in alike
    ]
    weights = np.exp(-np.array(unlike))
    spot, scale, _ = alike[int(rng.choice(len(alike), p=weights / weights.sum()))]
    pose = Pose.of(spot)
    patch = flipped(patch, transposed=pose.transposed, x=pose.flip_x, y=pose.flip_y, back=True)
    return resize(patch, 1 / scale, back=True), -pose.degrees, spot


def _crosses(spot: Spot) -> bool:
    """Whether a defect goes from an edge of its image to the opposite one."""
    top, bottom, left, right = spot.touches
    return (top and bottom) or (left and right)


def _patch(made: _Output, *, cut: bool = True) -> DefectPatch:
    """The defect patch of an output, by its mask if the method makes one."""
    return extract(made.x) if made.m is None else of_mask(made.x, made.m > 0.5, cut=cut)


class _WithoutNormals(SampleStream[Attempt, _Output]):
    """Samples of outputs that need no normal image."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        super().__init__(replace(request.wanted, categories=network.categories), network.batch_size)
        self._network = network
        self._images.limits |= network.limits
        self.metadata |= network.metadata

    def _draw(self, index: int, attempt: int) -> Attempt:
        return Attempt(index, attempt, self._category(index))

    def _generate(self, draws: Sequence[Attempt]) -> list[_Output]:
        keys = [(self._wanted.seed, draw.index, draw.attempt) for draw in draws]
        return self._network.generate([draw.category for draw in draws], keys)

    def _provenance(self, draw: Attempt) -> Provenance:
        parameters = Parameters(index=draw.index, attempt=draw.attempt)
        return Provenance(**self._network.provenance, seed=self._wanted.seed, parameters=parameters)


class SinglePatches(_WithoutNormals):
    """Defect patches alone, with their masks: on a gray background those that are relative to theirs."""

    def _finish(self, draw: Attempt, generated: _Output) -> Sample | None:
        patch = _patch(generated)
        x, y, width, height = cv2.boundingRect(patch.blend_mask.view(np.uint8))
        if not patch.defect_mask.any():
            return None
        here = slice(y, y + height), slice(x, x + width)
        pixels = _pixels(generated.x[:, here[0], here[1]])
        product = self._network.method.task.products[0]
        return Sample(draw.index, draw.category, product, pixels, patch.defect_mask[here], self._provenance(draw))


class WholeImageSamples(_WithoutNormals):
    """Samples that a network generates as a whole: the image, its mask, and the same image without the defect."""

    def _finish(self, draw: Attempt, generated: _Output) -> Sample | None:
        assert generated.m is not None
        assert generated.normal is not None
        defect_mask = of_mask(generated.x, generated.m > 0).defect_mask
        normal, image = _pixels(generated.normal), _pixels(generated.x)
        if not visible(DecodedImage(normal), image, defect_mask):
            return None
        product = self._network.method.task.products[0]
        return Sample(draw.index, draw.category, product, image, defect_mask, self._provenance(draw), normal=normal)


def _pixels(x: FloatArray) -> Pixels:
    """A network's image, [C, S, S] in [-1, 1], as uint8 pixels, [S, S] or [S, S, C]."""
    values = np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
    return values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))


def synthesize(
    request: SynthesisRequest,
) -> PaintedSamples | PatchSamples | SinglePatches | WholeImageSamples | RestoredSamples:
    """Generate samples with a model: painted windows, blended patches or whole images, as its method does.

    Raises:
        UsageError: an unknown category, or an option that the method does not support.
        WeightsError: the model cannot be read.
        OutOfMemoryError: while iterating.
    """
    network = _Network(request)
    info, model = network.info, f"{request.entry.name}: {request.entry.method}"
    if (request.restored or request.restore) and not info.restores:
        can = " and ".join(which(lambda row: row.restores))
        raise UsageError(f"{model} cannot restore images (--restored, --restore); {can} can")
    if request.restore:
        return RestoredSamples(request, network)
    if request.references is not None:
        require("reference", info, model)
    if request.style != "own":
        require("style", info, model)
    for what, catalog in (("--from", request.references), ("--style", request.style)):
        if isinstance(catalog, Catalog) and (lacking := set(network.categories) - set(catalog.categories)):
            raise UsageError(f"{what}: has no {min(lacking)}, only {', '.join(catalog.categories)}; see --category")
    # A method that makes whole images can paint on normals, too, if it knows masks to ask for.
    can_paint = info.makes == "image" and bool(network.masks) and request.placement is None and not request.whole
    paints, moves = not info.pastes or can_paint, any(map(any, request.move))
    painters = " or ".join(which(lambda row: row.makes == "window"))
    if request.strength != (1.0, 1.0) and not paints:
        raise UsageError(f"{model} does not paint changes, which --strength scales; use a model of {painters}")
    if moves and not paints:
        raise UsageError(f"{model} paints no windows, which --move moves; use a model of {painters}")
    if request.same_object or request.truncation != 1:
        require("object", info, model)
    if request.patches:
        if info.makes != "patch" or request.regions or request.references is not None:
            can = " or ".join(which(lambda row: row.makes == "patch"))
            raise UsageError(f"--format patches: for models of {can}, without --region, --from and --like")
        return SinglePatches(request, network)
    if request.whole:
        if request.regions:
            raise UsageError(f"{model} generates whole images; --region needs normal images (--normals)")
        return WholeImageSamples(request, network)
    if moves and request.regions:
        raise UsageError("--move: moves defects from where real ones are; --region says where they are to be")
    for _, region in request.regions:
        require("region" if region.mask is None else "mask", info, model)
    if not paints:
        if request.regions:
            (category, region), *more = request.regions
            if category is not None or more:
                raise UsageError(f"{model} takes one --region for all categories; for more, use {having('union')}")
            request = replace(request, placement=replace(request.placement or Placement(), region=region))
        return PatchSamples(request, network)
    if request.placement is not None:
        can = " or ".join(which(lambda row: row.pastes))
        raise UsageError(
            f"{model} paints defects into windows and generates no defect patches; use it with synthesize, or use "
            f"compose with a {can} model or a folder of defects"
        )
    return PaintedSamples(request, network)


def native_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """A window's mask resized to native resolution, [side, side], with a smooth outline."""
    if len(mask) == side:
        return mask
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.5


def _numbers(draw: _WindowDraw, mask: NDArray[np.bool_]) -> NDArray[np.uint16] | None:
    """The defect at each pixel of a mask, [H, W], if several categories are painted: each is one of its own."""
    if draw.a is None or np.any(draw.a > 0.5, axis=(1, 2)).sum() < 2:
        return None
    asked = np.where(draw.a.max(axis=0) > 0.5, draw.a.argmax(axis=0) + 1, 0).astype(np.uint16)
    native = cv2.resize(asked, (draw.window.side, draw.window.side), interpolation=cv2.INTER_NEAREST)
    return np.asarray(paste_on_zeros(native, (draw.window.x, draw.window.y), mask.shape) * mask, np.uint16)


def _widest(firsts: Mapping[str, KnownMask]) -> KnownMask:
    """The mask that needs the widest window."""
    return min(firsts.values(), key=lambda first: first.zoom)


def laid(rng: np.random.Generator, box: Box, extent: Extent, side: int, size: int) -> Window:
    """A window whose defect, which covers `extent` of it, lies in a box: smaller if need be, but not below `size`."""
    across, down, width, height = extent
    side = max(min(side, int(box.width / width), int(box.height / height)), min(side, size))
    free = box.width - width * side, box.height - height * side
    x, y = (room * (rng.random() if room > 0 else 0.5) for room in free)
    return Window(round(box.x + x - across * side), round(box.y + y - down * side), side)


def _inner(window: Window, photograph: DecodedImage) -> Sides:
    """The border that changes leave free: none where the image ends."""
    return Sides(*(BORDER * goes_on for goes_on in open_sides(window, photograph.height, photograph.width)))


def _interior(size: int, rim: Sides) -> FloatArray:
    """Weights of a change, [size, size]: 0 along a window's rim, then a ramp to 1; 1 at sides without a rim."""
    at = np.arange(size)

    def ramp(before: int, after: int) -> FloatArray:
        ramps = [np.clip((d - width) / _FADE, 0, 1) for d, width in ((at, before), (at[::-1], after)) if width]
        return np.asarray(np.prod(ramps, axis=0) * np.ones(size), np.float32)

    return np.outer(ramp(rim.top, rim.bottom), ramp(rim.left, rim.right))
