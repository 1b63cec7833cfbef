"""What a trained model makes, on normal photographs: a request in, samples out, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen.dataset import Sample
from defectgen.dataset.manifest import Provenance
from defectgen.device import resolve, torch_rng
from defectgen.errors import OutOfMemoryError, UsageError
from defectgen.folders import Catalog, SourceImage
from defectgen.imaging import masks
from defectgen.imaging.images import DecodedImage, Pixels, read_mask
from defectgen.imaging.patches import extract, of_mask, resize
from defectgen.imaging.windows import (
    Box,
    FloatArray,
    Window,
    crop,
    crop_zero_padded,
    defect_boxes,
    paste_change,
    paste_on_zeros,
    place,
    scale_of,
)
from defectgen.methods import having, which
from defectgen.methods.base import GenerateBatch, Restorer
from defectgen.models.model import load
from defectgen.models.registry import Entry
from defectgen.seeding import numpy_rng
from defectgen.synthesis.pasted import ComposeDraw, Composition, Placement, Region
from defectgen.synthesis.stream import Attempt, Draw, SampleSpec, SampleStream, mixture, mixture_name, require, visible

_FEATHER = 4.0  # native pixels over which a change fades out, at scale 1
_RIM, _FADE = 8, 4  # pixels of the network's window
_SMALLEST = 6  # pixels of the window, a side of where a defect shall be
_GROWN = 0.2  # parts of the window by which that may be larger than the defect
_PATIENCE = 5  # attempts, after which a defect that the window's border cuts off is better than none
_BATCH_SIZE = {"cpu": 8, "cuda": 64}


Style = Literal["own", "sampled"]


@dataclass(frozen=True)
class SynthesisRequest:
    """What to make with which model. `placement` is for models that make patches; None takes its defaults.

    A category may be a mixture, as `crack:0.3,hole:0.7`, or a union, as `crack+corrosion`, where the method can.
    `regions` are for models that can be told where: each with a category, or all without, for those of the sample.
    """

    entry: Entry
    wanted: SampleSpec
    device: str = "auto"
    batch_size: int | None = None
    placement: Placement | None = None
    regions: tuple[tuple[str | None, Region], ...] = ()
    restored: bool = False
    whole: bool = False
    """Whole images as the network makes them, on no photograph; of methods that can."""
    references: Catalog | None = None
    """Images whose defects are taken, of methods that can be guided; None draws defects."""
    style: Style | Catalog = "own"
    """Whose style these get: their own, a random one, or that of other photographs."""
    guides: str = ""
    """What references and styles are, as they were named; a dataset that is resumed has the same."""


@dataclass(frozen=True)
class _Made:
    """A window made by a network: [C, S, S]; its map [S, S] and itself restored or without, where there are such."""

    x: FloatArray
    m: FloatArray | None = None
    restored: FloatArray | None = None
    normal: FloatArray | None = None


class _Network:
    """A model, and how it is asked: whatever the batch, a row depends on its own keys alone."""

    def __init__(self, request: SynthesisRequest) -> None:
        self.device = resolve(request.device)
        model = load(request.entry.file, self.device)
        self.info, self.method = model.info, model.method
        self.metadata = {"trained_on": list(model.trained_on)}
        self.batch_size = request.batch_size or _BATCH_SIZE[self.device.type]
        self.record = {
            "model": request.entry.name,
            "model_sha256": request.entry.sha256,
            "method": request.entry.method,
        }
        self._restored = request.restored
        self._weights = {}
        for text in request.wanted.categories:
            weights = self.weights(text)
            values = [weights.get(name, 0.0) for name in self.method.task.domains[1:]]
            self._weights[mixture_name(weights)] = torch.tensor(values)
        self.categories = tuple(self._weights)

    def weights(self, text: str) -> dict[str, float]:
        """The categories that a text asks for, with their weights.

        Raises:
            UsageError: the model does not know one, or cannot have several at once.
        """
        known = self.method.task.domains[1:]
        weights = {text: 1.0} if text in known else mixture(text)
        for name in weights:
            if name not in known:
                raise UsageError(f"--category {name}: {self.record['model']} knows {', '.join(known)}")
        if len(weights) > 1:
            require("mixture" if ":" in text else "union", self.info, f"--category {text}: {self.info.name}")
        return weights

    def generate(
        self,
        categories: Sequence[str],
        keys: Sequence[tuple[int, ...]],
        x: FloatArray | None = None,
        **guides: FloatArray,
    ) -> list[_Made]:
        """An image for each category and key of a random generator, on windows x, if any.

        `guides` are what else a `GenerateBatch` takes: control maps `a`, references `x_ref` and `x_style`.

        Raises:
            OutOfMemoryError: naming the batch size to try next.
        """
        # On the CPU one at a time: it is as fast, and a sample's last bits, on which the outline of its mask may
        # hang, do not depend on how many are computed beside it.
        size = self.batch_size if self.device.type == "cuda" else 1
        made: list[_Made] = []
        try:
            for start in range(0, len(keys), size):
                part = slice(start, start + size)
                mix = torch.stack([self._weights[category] for category in categories[part]]).to(self.device)
                rngs = [torch_rng(*key) for key in keys[part]]
                windows = torch.empty(len(rngs), 0) if x is None else torch.from_numpy(x[part])
                layout = torch.contiguous_format if x is None else torch.channels_last
                windows = windows.to(self.device, memory_format=layout)
                given = {name: torch.from_numpy(values[part]).to(self.device) for name, values in guides.items()}
                generated = self.method.generate(GenerateBatch(windows, mix.argmax(dim=1) + 1, rngs, mix, **given))
                columns = [generated.x, generated.mask, self._restore(generated.x, rngs), generated.normal]
                arrays = [None if each is None else each.float().cpu().numpy() for each in columns]
                for i in range(len(rngs)):
                    image, m, restored, normal = (None if each is None else each[i] for each in arrays)
                    assert image is not None
                    made.append(_Made(image, None if m is None else m[0], restored, normal))
        except torch.OutOfMemoryError as error:
            smaller = max(1, self.batch_size // 2)
            raise OutOfMemoryError(
                f"{self.device} ran out of memory with --batch-size {self.batch_size}; try --batch-size {smaller}"
            ) from error
        return made

    def _restore(self, x: Tensor, rngs: Sequence[torch.Generator]) -> Tensor | None:
        if not self._restored:
            return None
        assert isinstance(self.method, Restorer)
        return self.method.restore(x, rngs)


@dataclass(frozen=True)
class _Reference:
    """A window of a photograph that guides: [C, S, S]."""

    sample: SourceImage
    sha256: str
    window: Window
    x: FloatArray

    def summary(self) -> dict[str, Any]:
        """As it stands in manifest rows."""
        return {"file": str(self.sample.path), "sha256": self.sha256, "window": vars(self.window)}


@dataclass(frozen=True)
class _WindowDraw(Draw):
    """A draw with the window of the photograph that is painted.

    And the control map, if it was told where, and the references whose defect and style it gets, if there are any.
    """

    window: Window
    x: FloatArray
    a: FloatArray | None
    x_ref: _Reference | None = None
    x_style: _Reference | None = None


class PaintedSamples(SampleStream[_WindowDraw, _Made]):
    """Samples of a method that paints a window of the photograph."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        super().__init__(replace(request.wanted, categories=network.categories), network.batch_size)
        self._network = network
        self.metadata |= network.metadata
        self._method = network.method
        self._told = "region" in network.info.controls
        self._regions = request.regions
        self._references = request.references
        self._style = request.style
        self._guides = {"guides": request.guides} if request.guides else {}
        self._boxes = lru_cache(maxsize=1024)(lambda mask: defect_boxes(read_mask(mask)))
        self._area = lru_cache(maxsize=64)(lambda i, path: request.regions[i][1].within(self._photographs.read(path)))

    def _draw(self, index: int, attempt: int) -> _WindowDraw:
        rng = numpy_rng(self._wanted.seed, index, attempt)
        drawn = self._draw_photograph(rng, index, attempt)
        task, size, photograph = self._method.task, self._method.config.image_size, drawn.photograph
        names = self._network.weights(drawn.category)
        side = round(size / min(scale_of(task.scales, drawn.sample.product, name) for name in names))
        areas = [(category, self._area(i, drawn.sample.path)) for i, (category, _) in enumerate(self._regions)]
        box, rim = None, 0
        if areas:
            x, y, width, height = cv2.boundingRect(np.any([area for _, area in areas], axis=0).view(np.uint8))
            if len(areas) > 1:  # all of them in one window, at a smaller scale than was learnt if need be
                side = max(side, -(-max(width, height) * size // (size - 2 * (_RIM + _FADE))))
            rim = -(-(_RIM + _FADE) * side // size)
            box = Box(x - rim, y - rim, width + 2 * rim, height + 2 * rim)
        window = place(rng, photograph.height, photograph.width, side, box, beyond=rim)
        a = self._control_map(rng, window, areas, tuple(names)) if self._told else None
        x_ref = x_style = None
        if self._references is not None:
            x_ref = self._refer(rng, self._references, drawn.category)
            x_style = x_ref if self._style == "own" else None
        if isinstance(self._style, Catalog):
            x_style = self._refer(rng, self._style, drawn.category)
        seen = crop(photograph, window, size, task.channels)
        return _WindowDraw(**vars(drawn), window=window, x=seen, a=a, x_ref=x_ref, x_style=x_style)

    def _refer(self, rng: np.random.Generator, catalog: Catalog, category: str) -> _Reference:
        """A window of a photograph that shows a category, around one of its defects if it has a mask."""
        samples = [sample for sample in catalog.images if sample.category == category]
        sample = samples[int(rng.integers(len(samples)))]
        boxes = self._boxes(sample.mask) if sample.mask is not None else []
        box = boxes[int(rng.integers(len(boxes)))] if boxes else None
        size = self._method.config.image_size
        side = round(size / scale_of(self._method.task.scales, sample.product, category))
        window = place(rng, sample.height, sample.width, side, box)
        photograph = self._photographs.read(sample.path)
        x = crop(photograph, window, size, self._method.task.channels)
        return _Reference(sample, self._sha256(sample.path), window, x)

    def _control_map(
        self,
        rng: np.random.Generator,
        window: Window,
        areas: Sequence[tuple[str | None, NDArray[np.bool_]]],
        names: Sequence[str],
    ) -> FloatArray:
        """1 where each category is wanted, [categories, S, S]: in a random part of its area; else anywhere, in a box
        of the shape of a defect that the model was trained on."""
        size, known = self._method.config.image_size, self._method.task.domains[1:]
        a = np.zeros((len(known), size, size), np.float32)
        for name in names if not areas else ():
            a[known.index(name)] = _somewhere(rng, self._method.task.shapes.get(name, ()), size)
        for category, area in areas:
            inside = crop_zero_padded(area, (window.x, window.y), (window.side, window.side)).astype(np.float32)
            here = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA) > 0.5
            part = _part(rng, here, 0.6)
            for name in [category] if category else names:
                a[known.index(name)][part] = 1
        return a

    def _generate(self, draws: Sequence[_WindowDraw]) -> list[_Made]:
        keys = [(self._wanted.seed, draw.index, draw.attempt) for draw in draws]
        columns = {
            "a": [draw.a for draw in draws if draw.a is not None],
            "x_ref": [draw.x_ref.x for draw in draws if draw.x_ref is not None],
            "x_style": [draw.x_style.x for draw in draws if draw.x_style is not None],
        }
        guides = {name: np.stack(values) for name, values in columns.items() if values}
        return self._network.generate(
            [draw.category for draw in draws], keys, np.stack([draw.x for draw in draws]), **guides
        )

    def _finish(self, draw: _WindowDraw, generated: _Made) -> Sample | None:
        photograph, window = draw.photograph, draw.window
        allowed = _interior(len(draw.x[0]))
        if draw.a is not None:
            where = draw.a.max(axis=0)
            allowed = allowed * where * cv2.blur(where, (5, 5))
        after = draw.x + (generated.x - draw.x) * allowed
        if generated.m is None:
            mask = masks.mask_from_difference(draw.x, after)
        else:
            mask = masks.mask_from_map(draw.x, after, generated.m * allowed)
        mask = native_mask(mask, window.side)
        alpha = masks.feather(mask, _FEATHER * window.side / len(draw.x[0]))
        image = paste_change(photograph, window, draw.x, after, alpha)
        mask = paste_on_zeros(mask, (window.x, window.y), (photograph.height, photograph.width))
        if not visible(photograph, image, mask):
            return None
        restored = None
        if generated.restored is not None:
            mended = draw.x + (generated.restored - draw.x) * allowed
            restored = paste_change(photograph, window, draw.x, mended, alpha)
        regions = [f"{category}={region.name}" if category else region.name for category, region in self._regions]
        record = {
            **self._record(draw),
            "window": vars(window),
            **self._network.record,
            **({"regions": regions} if regions else {}),
            **self._guides,
            **({"reference": draw.x_ref.summary()} if draw.x_ref else {}),
            **({"style": draw.x_style.summary()} if draw.x_style else {}),
            "seed": self._wanted.seed,
            "parameters": {"index": draw.index, "attempt": draw.attempt},
        }
        return Sample(draw.index, draw.category, draw.sample.product, image, mask, Provenance(**record), restored)


class PatchSamples(Composition[ComposeDraw, list[_Made]]):
    """Samples of a method that makes patches, which are laid onto the photograph."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        wanted = replace(request.wanted, categories=network.categories)
        super().__init__(wanted, request.placement or Placement(), network.batch_size)
        self._network = network
        self.metadata |= network.metadata
        self._mixtures = {mixture_name(w): w for w in map(network.weights, request.wanted.categories)}

    def _draw(self, index: int, attempt: int) -> ComposeDraw:
        return self._draw_defects(index, attempt)

    def _generate(self, draws: Sequence[ComposeDraw]) -> list[list[_Made]]:
        keys = [
            (draw.category, (self._wanted.seed, draw.index, draw.attempt, i))
            for draw in draws
            for i in range(draw.count)
        ]
        images = iter(self._network.generate([category for category, _ in keys], [key for _, key in keys]))
        return [[next(images) for _ in range(draw.count)] for draw in draws]

    def _finish(self, draw: ComposeDraw, generated: list[_Made]) -> Sample | None:
        weights = self._mixtures[draw.category]
        scale = sum(weight * self._scale(draw.sample.product, name) for name, weight in weights.items())
        cut = draw.attempt >= _PATIENCE
        patches = [extract(made.x) if made.m is None else of_mask(made.x, made.m > 0, cut=cut) for made in generated]
        patches = [resize(patch, 1 / scale) for patch in patches if patch.blend_mask.any()]
        record: dict[str, Any] = dict(self._network.record)
        if len(weights) > 1:
            record["mixture"] = weights
        return self._compose(draw, patches, record)

    def _scale(self, product: str, category: str) -> float:
        """At which a category was learnt: on this product, or on the others in the mean."""
        known = {name: its for name, its in self._network.method.task.scales.items() if category in its}
        return scale_of(known, product, category)


class WholeImageSamples(SampleStream[Attempt, _Made]):
    """Samples that a network makes from nothing: the image, the mask, and the same image without the defect."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        super().__init__(replace(request.wanted, categories=network.categories), network.batch_size)
        self._network = network
        self.metadata |= network.metadata

    def _draw(self, index: int, attempt: int) -> Attempt:
        return Attempt(index, attempt, self._category(index))

    def _generate(self, draws: Sequence[Attempt]) -> list[_Made]:
        keys = [(self._wanted.seed, draw.index, draw.attempt) for draw in draws]
        return self._network.generate([draw.category for draw in draws], keys)

    def _finish(self, draw: Attempt, generated: _Made) -> Sample | None:
        assert generated.m is not None
        assert generated.normal is not None
        defect_mask = of_mask(generated.x, generated.m > 0).defect_mask
        normal, image = _pixels(generated.normal), _pixels(generated.x)
        if not visible(DecodedImage(normal), image, defect_mask):
            return None
        record = {
            **self._network.record,
            "seed": self._wanted.seed,
            "parameters": {"index": draw.index, "attempt": draw.attempt},
        }
        product = self._network.method.task.products[0]
        return Sample(draw.index, draw.category, product, image, defect_mask, Provenance(**record), normal=normal)


def _pixels(x: FloatArray) -> Pixels:
    """A network's image [C, S, S] as a photograph's pixels."""
    values = np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
    return values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))


def synthesize(request: SynthesisRequest) -> PaintedSamples | PatchSamples | WholeImageSamples:
    """Defects from latent codes onto normals, or whole images, in the way of the model's method.

    Raises:
        UsageError: a category that the model does not know, or a placement where the model decides it.
        WeightsError: a model that cannot be read. OutOfMemoryError: while iterating.
    """
    network = _Network(request)
    info, model = network.info, f"{request.entry.name}: {request.entry.method}"
    if request.restored and not info.restores:
        can = " and ".join(which(lambda row: row.restores))
        raise UsageError(f"{model} cannot restore what it painted (--restored); {can} can")
    if request.references is not None:
        require("reference", info, model)
    if request.style != "own":
        require("style", info, model)
    for what, catalog in (("--from", request.references), ("--style", request.style)):
        if isinstance(catalog, Catalog) and (lacking := set(network.categories) - set(catalog.categories)):
            raise UsageError(f"{what}: shows no {min(lacking)}, it has {', '.join(catalog.categories)}; see --category")
    if request.whole:
        if request.regions:
            raise UsageError(f"{model} makes whole images: --region needs images to lay the defects on (--normals)")
        return WholeImageSamples(request, network)
    if request.regions:
        require("region", info, model)
    if info.pastes:
        if request.regions:
            (category, region), *more = request.regions
            if category is not None or more:
                raise UsageError(f"{model} takes one --region, for all its categories; {having('union')} takes more")
            request = replace(request, placement=replace(request.placement or Placement(), region=region))
        return PatchSamples(request, network)
    if request.placement is not None:
        can = " or ".join(which(lambda row: row.pastes))
        raise UsageError(
            f"{model} paints windows of images, it makes no defect patches; use synthesize with it, or compose with "
            f"a {can} model or a folder of defects"
        )
    return PaintedSamples(request, network)


def native_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """A window's mask at native resolution, [side, side], with a smooth outline."""
    if len(mask) == side:
        return mask
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.5


def _part(rng: np.random.Generator, area: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """What of an area [S, S] lies in a random box, from `least` of its sides to all of them: no two are alike."""
    left, top, *extent = cv2.boundingRect(area.view(np.uint8))
    width, height = (length * rng.uniform(least, 1) for length in extent)
    x, y = left + rng.uniform(0, extent[0] - width), top + rng.uniform(0, extent[1] - height)
    part = np.zeros_like(area)
    part[int(y) : int(np.ceil(y + height)), int(x) : int(np.ceil(x + width))] = True
    part &= area
    return part if part.any() else area


def _somewhere(rng: np.random.Generator, shapes: Sequence[tuple[float, float]], size: int) -> NDArray[np.bool_]:
    """A box in a window's interior, of one of these shapes, a little larger; of any shape if there are none. [S, S]."""
    shape = np.array(shapes[int(rng.integers(len(shapes)))] if shapes else rng.uniform(0.2, 1, 2))
    room = size - 2 * _RIM
    width, height = np.clip((shape + rng.uniform(0, _GROWN, 2)) * size, _SMALLEST, room).astype(int)
    x, y = (_RIM + int(rng.integers(room - length + 1)) for length in (width, height))
    box = np.zeros((size, size), np.bool_)
    box[y : y + height, x : x + width] = True
    return box


def _interior(size: int) -> FloatArray:
    """0 over a window's rim, where networks paint frames, then rising to 1. [size, size]."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    ramp: FloatArray = np.clip((distance - _RIM) / _FADE, 0, 1).astype(np.float32)
    return np.outer(ramp, ramp)
