"""Defect patches onto normal photographs, blended in at native resolution. Needs no network, and no PyTorch.

Contents come from real defects, cut out (`compose` here), or from a model (`sampling`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal

import cv2
import numpy as np

from defectgen.dataset import Sample
from defectgen.dataset.manifest import Provenance
from defectgen.errors import BadInputError, UsageError
from defectgen.folders import Catalog, SourceImage
from defectgen.imaging import masks
from defectgen.imaging.images import DecodedImage, Pixels, read_mask
from defectgen.imaging.patches import RIM, DefectPatch, cut_out, resize, turn
from defectgen.imaging.poisson import Mode, blend
from defectgen.imaging.windows import (
    BoolArray,
    Box,
    FloatArray,
    crop_zero_padded,
    defect_pieces,
    paste_on_zeros,
    value_range,
)
from defectgen.seeding import numpy_rng
from defectgen.synthesis.stream import D, Draw, G, SampleSpec, SampleStream, visible

_PLACES = 24  # to try for a patch, until one lies where it may
_BATCH_SIZE = 8
_CONTRAST = 0.5, 2.0  # times the content's own, at most, when it is matched to its new ground
Colour = Literal["keep", "match", "gray"]
"""What becomes of a content's colours, beyond being made as bright as its ground: they stay; they get the ground's
contrast, a channel each; or gray alone is laid on."""
_COARSE = 1.5  # a patch whose pixels are larger than that many of the photograph's lacks its grain


@dataclass(frozen=True)
class Region:
    """Where defects may lie: a box or a mask [H, W], both in pixels of the normals; or on the object alone."""

    box: Box | None = None
    mask: BoolArray | None = None
    name: str = ""
    """As it was given."""

    def within(self, photograph: DecodedImage) -> BoolArray:
        """The region on a photograph, [H, W].

        Raises:
            BadInputError: it does not fit the photograph.
        """
        size = (photograph.height, photograph.width)
        if self.mask is not None:
            if self.mask.shape != size:
                raise BadInputError(
                    f"--region {self.name}: is {self.mask.shape[1]}x{self.mask.shape[0]}, but a normal is "
                    f"{size[1]}x{size[0]}; give normals of one size, or a box"
                )
            return self.mask
        if self.box is not None:
            inside = np.zeros(size, np.bool_)
            inside[self.box.y : self.box.y + self.box.height, self.box.x : self.box.x + self.box.width] = True
            if not inside.any():
                raise BadInputError(f"--region {self.name}: lies outside a normal of {size[1]}x{size[0]} pixels")
            return inside
        return masks.foreground(_colours(photograph.pixels, photograph.channels))


@dataclass(frozen=True)
class Placement:
    """How patches are laid on; a pair is a range that is drawn from evenly."""

    scale: tuple[float, float] = (0.8, 1.25)
    rotation: tuple[float, float] = (0.0, 360.0)
    """Degrees, counter-clockwise."""
    crop: tuple[float, float] = (1.0, 1.0)
    """The part of a content's longer side that is used."""
    per_image: tuple[int, int] = (1, 1)
    region: Region | None = None
    mode: Mode = "improved"
    colour: Colour = "keep"

    def summary(self) -> dict[str, Any]:
        """As it stands in manifest rows."""
        return {
            "scale": list(self.scale), "rotation": list(self.rotation), "crop": list(self.crop),
            "per_image": list(self.per_image), "region": self.region and self.region.name, "blend": self.mode,
            "colour": self.colour,
        }  # fmt: skip


@dataclass(frozen=True)
class ComposeDraw(Draw):
    """A draw with the generator that goes on from it, and the number of defects."""

    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    count: int = 1


class Composition(SampleStream[D, G], Generic[D, G]):
    """Samples whose defects are patches, laid onto a photograph one after another."""

    def __init__(self, wanted: SampleSpec, placement: Placement, batch_size: int) -> None:
        super().__init__(wanted, batch_size)
        self._placement = placement
        self._region = lru_cache(maxsize=64)(self._find_region)

    def _find_region(self, path: Path) -> BoolArray:
        assert self._placement.region is not None
        return self._placement.region.within(self._photographs.read(path))

    def _draw_defects(self, index: int, attempt: int) -> ComposeDraw:
        rng = numpy_rng(self._wanted.seed, index, attempt)
        drawn = self._draw_photograph(rng, index, attempt)
        low, high = self._placement.per_image
        return ComposeDraw(**vars(drawn), rng=rng, count=int(rng.integers(low, high + 1)))

    def _compose(self, draw: ComposeDraw, patches: Sequence[DefectPatch], record: dict[str, Any]) -> Sample | None:
        """The photograph with every patch that finds a place and can be seen; None without any."""
        photograph, placement, rng = draw.photograph, self._placement, draw.rng
        size = (photograph.height, photograph.width)
        image, mask = photograph.pixels, np.zeros(size, np.bool_)
        free = None if placement.region is None else self._region(draw.sample.path)
        defects: list[dict[str, Any]] = []
        for patch in patches:
            scale, degrees = rng.uniform(*placement.scale), rng.uniform(*placement.rotation)
            if placement.crop != (1.0, 1.0):
                patch = crop(rng, patch, rng.uniform(*placement.crop))
            moved = move(patch, scale, degrees)
            at = place(rng, moved, size, free)
            if at is None:
                continue
            if free is not None:
                ground = crop_zero_padded(free, at, moved.blend_mask.shape)
                moved = replace(moved, blend_mask=moved.blend_mask & ground, defect_mask=moved.defect_mask & ground)
            after, seen = lay(photograph, image, moved, at, placement.mode, placement.colour)
            if not visible(photograph, after, seen):
                continue
            image, mask = after, mask | seen
            free = (np.ones(size, np.bool_) if free is None else free) & ~paste_on_zeros(moved.blend_mask, at, size)
            own: dict[str, Any] = {}
            if patch.source is not None and patch.box is not None:
                sha256 = self._sha256(patch.source)
                own = {"content": str(patch.source), "content_sha256": sha256, "box": vars(patch.box)}
            defects.append({**own, "at": at, "scale": round(scale, 4), "degrees": round(degrees, 2)})
        if not defects:
            return None
        parameters = {"index": draw.index, "attempt": draw.attempt, "defects": defects}
        record = {
            **self._record(draw), **record,
            "seed": self._wanted.seed, "placement": placement.summary(), "parameters": parameters,
        }  # fmt: skip
        return Sample(draw.index, draw.category, draw.sample.product, image, mask, Provenance(**record))


@dataclass(frozen=True)
class ComposeRequest:
    """Cut-outs of the photographs in `patches`, each with its mask, onto the normals wanted."""

    wanted: SampleSpec
    patches: Catalog
    name: str
    """Where they come from, for the manifest."""
    placement: Placement = Placement()


class CutoutSamples(Composition[ComposeDraw, None]):
    """Samples of real defects, cut out by their masks."""

    def __init__(self, request: ComposeRequest) -> None:
        super().__init__(request.wanted, request.placement, _BATCH_SIZE)
        self._name = request.name
        self._by_category: dict[str, list[SourceImage]] = {}
        for sample in request.patches.images:
            self._by_category.setdefault(sample.category, []).append(sample)
        unknown = set(request.wanted.categories) - set(self._by_category)
        if unknown:
            raise UsageError(f"--category {sorted(unknown)[0]}: there are {', '.join(sorted(self._by_category))}")
        self._pieces = lru_cache(maxsize=1024)(lambda mask: defect_pieces(read_mask(mask)))

    def _cut_out(self, rng: np.random.Generator, category: str) -> DefectPatch:
        samples = self._by_category[category]
        sample = samples[int(rng.integers(len(samples)))]
        pieces = self._pieces(sample.mask)
        return cut_out(self._photographs.read(sample.path), *pieces[int(rng.integers(len(pieces)))], RIM, sample.path)

    def _draw(self, index: int, attempt: int) -> ComposeDraw:
        return self._draw_defects(index, attempt)

    def _generate(self, draws: Sequence[ComposeDraw]) -> Sequence[None]:
        return [None] * len(draws)

    def _finish(self, draw: ComposeDraw, generated: None) -> Sample | None:
        patches = [self._cut_out(draw.rng, draw.category) for _ in range(draw.count)]
        return self._compose(draw, patches, {"method": "cut-outs", "contents": self._name})


def compose(request: ComposeRequest) -> CutoutSamples:
    """Real defects, cut out by their masks, onto normals.

    Raises:
        UsageError: a category that is not there. BadInputError: while iterating, a region that does not fit.
    """
    return CutoutSamples(request)


def crop(rng: np.random.Generator, patch: DefectPatch, part: float) -> DefectPatch:
    """A patch cut down to `part` of its longer side, somewhere on the defect; its rim stays on the other two."""
    ground = np.argwhere(patch.defect_mask if patch.defect_mask.any() else patch.blend_mask)
    axis = int(np.argmax(np.ptp(ground, axis=0)))
    whole = patch.blend_mask.shape[axis]
    length = max(1, math.ceil(whole * part))
    start = int(np.clip(ground[int(rng.integers(len(ground))), axis] - length // 2, 0, whole - length))
    here = (slice(start, start + length), slice(None))[:: 1 if axis == 0 else -1]
    return replace(
        patch, pixels=patch.pixels[here], blend_mask=patch.blend_mask[here], defect_mask=patch.defect_mask[here]
    )


def move(patch: DefectPatch, scale: float, degrees: float) -> DefectPatch:
    """A patch scaled and turned about its middle, in an array as large as that needs."""
    if scale < 1:  # averaged; a warp alone would skip pixels
        patch, scale = resize(patch, scale), 1.0
    height, width = patch.blend_mask.shape
    matrix = turn(width, height, degrees, scale)
    reach = np.abs(matrix[:, :2]) @ (width, height)
    size = int(np.ceil(reach[0])) + 2, int(np.ceil(reach[1])) + 2
    matrix[:, 2] += np.array(size) / 2 - matrix[:, :2] @ (width / 2, height / 2) - matrix[:, 2]
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    pixels = cv2.warpAffine(patch.pixels, matrix, size, flags=how, borderMode=cv2.BORDER_REPLICATE)
    blend_mask, defect_mask = (
        cv2.warpAffine(each.astype(np.float32), matrix, size) >= 0.5 for each in (patch.blend_mask, patch.defect_mask)
    )
    inside = np.clip(pixels.reshape(*blend_mask.shape, -1), -1, 1).astype(np.float32)
    coarseness = patch.coarseness * scale
    return replace(
        patch, pixels=inside, blend_mask=blend_mask | defect_mask, defect_mask=defect_mask, coarseness=coarseness
    )


def place(
    rng: np.random.Generator, patch: DefectPatch, size: tuple[int, int], free: BoolArray | None
) -> tuple[int, int] | None:
    """A random (x, y) for a content's corner in a photograph of `size`: inside it, and the defect where it is free.

    A patch larger than the photograph reaches over its edges. Of several tries the one with the most of the
    defect on free ground; None if there is none.
    """
    box = np.array(cv2.boundingRect(patch.blend_mask.view(np.uint8)))
    corner, extent = box[:2], box[2:]
    if free is None:
        room = np.array(size[::-1]) - extent
        x, y = rng.integers(np.minimum(room, 0), np.maximum(room, 0) + 1) - corner
        return int(x), int(y)
    grounds = np.flatnonzero(free)
    if len(grounds) == 0:
        return None
    best, most = None, 0.0
    for ground in rng.choice(grounds, _PLACES):
        y, x = divmod(int(ground), size[1])
        at = x - int(corner[0] + extent[0] // 2), y - int(corner[1] + extent[1] // 2)
        share = float(crop_zero_padded(free, at, patch.defect_mask.shape)[patch.defect_mask].mean())
        if share > most:
            best, most = at, share
        if share == 1:
            break
    return best


def lay(
    photograph: DecodedImage,
    image: Pixels,
    patch: DefectPatch,
    at: tuple[int, int],
    mode: Mode,
    colour: Colour = "keep",
) -> tuple[Pixels, BoolArray]:
    """`image`, of `photograph`, with a patch blended in at (x, y); and where the defect can be seen, [H, W].

    The patch is first made as bright as where it comes to lie: its own background, the rim around the defect_mask,
    shall equal the new one in the mean. Of a patch that was made coarser than the photograph, what is finer than
    its pixels is the photograph's own: a smooth patch on grain would give it away.
    """
    (x, y), (height, width), (low, high) = at, patch.blend_mask.shape, value_range(photograph)
    top, left = max(y, 0), max(x, 0)
    here = (
        slice(top, max(min(y + height, photograph.height), top)),
        slice(left, max(min(x + width, photograph.width), left)),
    )
    there = slice(here[0].start - y, here[0].stop - y), slice(here[1].start - x, here[1].stop - x)

    pixels = (patch.pixels + 1) * np.float32((high - low) / 2) + np.float32(low)
    if pixels.shape[2] != photograph.channels:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), photograph.channels, axis=2)
    rim = (patch.blend_mask & ~patch.defect_mask)[there]
    before = _colours(image[here], photograph.channels)
    if rim.sum() >= masks.SMALLEST:
        own, ground = pixels[there][rim], before[rim]
        pixels = pixels - own.mean(axis=0)
        if colour == "match":
            pixels = pixels * np.clip(ground.std(axis=0) / np.maximum(own.std(axis=0), 1e-3), *_CONTRAST)
        if colour == "gray":
            pixels = np.repeat(pixels.mean(axis=2, keepdims=True), photograph.channels, axis=2)
        pixels = (pixels + ground.mean(axis=0)).astype(np.float32)
    if patch.coarseness > _COARSE:
        low_pass = cv2.GaussianBlur(before, (0, 0), patch.coarseness / 2).reshape(before.shape)
        pixels = pixels.copy()
        pixels[there] += before - low_pass
    result = blend(pixels, patch.blend_mask, image, at=at, mode=mode)
    # Who drew a defect_mask may have been generous: only what cannot be seen at all is taken off it.
    seen = masks.visible_part(
        before, _colours(result[here], photograph.channels), patch.defect_mask[there], (high - low) / 255,
        annotated=patch.annotated,
    )  # fmt: skip
    return result, paste_on_zeros(seen, (left, top), (photograph.height, photograph.width))


def _colours(pixels: Pixels, channels: int) -> FloatArray:
    """Pixels without alpha, [H, W, channels]."""
    return pixels.reshape(*pixels.shape[:2], -1)[..., :channels].astype(np.float32)
