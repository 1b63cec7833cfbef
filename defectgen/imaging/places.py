"""Where real defects of a category lie in their images, how they turn, and how their sizes vary.

A place is described by its position on the part, its distance to the part's border, and the brightness and texture of
the ground. Defects that reach an edge of their image belong to that edge. Surfaces have a grain, such as the marks of a
grinding wheel, and defects keep their angle to it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.images import Pixels
from defectgen.imaging.masks import depth, foreground, wanders
from defectgen.imaging.patches import RIM, Variation
from defectgen.imaging.windows import BoolArray, Box, FloatArray, paste_on_zeros

_SIDE = 96  # pixels of the longer side at which images are looked at
_NEAR = 3.0  # of these pixels: the width of a Gaussian around a place
_GRAIN_SIDE = 64  # pixels around a place whose grain counts
_COHERENT = 0.3  # a structure tensor with a lower coherence has no direction
_ELONGATED = 1.6  # a defect whose axes differ less has no direction
_TOUCHES = 2  # pixels; a defect this close to an edge of its image reaches it
_CANDIDATES = 64
_FEATURES = ("across", "down", "depth", "brightness", "texture")
_LEARNED_FROM = (3, 3, 2, 6, 6)  # real defects from which each of these is learned
_LEAST_WIDTH = 0.06  # of a kernel
_AS_BRIGHT = 0.1  # of the part's pixels: standard deviation of how many more are darker than a defect's ground
_TURN, _SCALE = 6.0, 0.15  # least spread of turns in degrees, and that of scales in octaves
_SCALES = 0.5, 2.0
_BEND = 0.02  # of the longer side
_STRETCH, _STRETCHES = 0.25, (0.6, 1.6)  # octaves, and the limits
_CONTRAST, _FAINT = 0.3, 0.03  # octaves at most; fainter contrasts are not told from the grain
_SPREAD = 1.06  # Silverman's rule: a kernel is this times the spread times n^(-1/5) wide


@dataclass(frozen=True)
class Grain:
    """The direction of the strongest lines, in degrees counter-clockwise from the x axis, and whether there is one."""

    degrees: float
    coherent: bool


class Ground:
    """What an image looks like around each of its pixels: the features of `Habits`."""

    def __init__(self, pixels: Pixels, defects: Sequence[tuple[Box, BoolArray]] = ()) -> None:
        """`pixels`: [H, W, C], without alpha. `defects`, as of `defect_pieces`: the ground is what is around them."""
        self.height, self.width = pixels.shape[:2]
        shrink = min(1.0, _SIDE / max(self.height, self.width))
        size = max(2, round(self.width * shrink)), max(2, round(self.height * shrink))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.float32)
        small = small.reshape(*small.shape[:2], -1).mean(axis=2)
        part = np.pad(foreground(small[..., None]), 1).astype(np.uint8)
        inward = np.asarray(cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_5))[1:-1, 1:-1]
        seen = np.ones_like(small)
        if defects:
            hidden = np.zeros((self.height, self.width), np.float32)
            for box, piece in defects:
                hidden[box.y : box.y + box.height, box.x : box.x + box.width][piece] = 1
            covered = cv2.resize(hidden, size, interpolation=cv2.INTER_AREA) > 0
            seen -= np.asarray(cv2.dilate(covered.astype(np.float32), np.ones((3, 3))))
        smooth = _local_mean(small, seen)
        rough = _local_mean((small - smooth) ** 2, seen)
        self.part = part[1:-1, 1:-1] > 0
        self._box = np.array(cv2.boundingRect(self.part.view(np.uint8))).reshape(2, 2)  # corner and extent
        self._maps = np.stack([inward / inward.max(), _ranks(smooth, self.part), _ranks(rough, self.part)])
        self._scale = np.array([size[0] / self.width, size[1] / self.height])

    def features(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Across and down the part, depth, brightness and texture, all 0..1, at points (x, y): [N, 2] -> [N, 5]."""
        across, down = ((points * self._scale - self._box[0]) / self._box[1]).T
        rows, columns = self._cells(points)
        return np.column_stack([across, down, *self._maps[:, rows, columns]])

    def on_part(self, points: NDArray[np.float64]) -> BoolArray:
        """Whether points (x, y), [N, 2], are on the part and not on a plain backdrop."""
        return np.asarray(self.part[self._cells(points)])

    def _cells(self, points: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The rows and columns of points in the maps."""
        columns, rows = np.clip((points * self._scale).astype(np.intp), 0, np.array(self.part.shape[::-1]) - 1).T
        return rows, columns


def grain(pixels: Pixels, x: float, y: float, hidden: BoolArray | None = None) -> Grain:
    """The grain of an image, [H, W, C], around a place, from the structure tensor; `hidden`, [H, W], does not count."""
    half = _GRAIN_SIDE // 2
    left, top = max(0, int(x) - half), max(0, int(y) - half)
    here = slice(top, top + _GRAIN_SIDE), slice(left, left + _GRAIN_SIDE)
    window = pixels[here].mean(axis=2, dtype=np.float32)
    dx, dy = (np.asarray(cv2.Sobel(window, cv2.CV_32F, i, 1 - i)) for i in (1, 0))
    weight = np.zeros_like(dx)
    weight[1:-1, 1:-1] = 1
    if hidden is not None:
        weight *= 1 - np.asarray(cv2.dilate(hidden[here].astype(np.float32), np.ones((5, 5))))
    xx, yy, xy = (float((weight * each).sum()) for each in (dx * dx, dy * dy, dx * dy))
    strength = np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-9)
    # Lines run across the gradient; the y axis of images points down.
    gradient = 0.5 * np.degrees(np.arctan2(2 * xy, xx - yy))
    return Grain(float((90 - gradient) % 180), bool(strength > _COHERENT))


@dataclass(frozen=True)
class Spot:
    """A real defect where it lies in its image."""

    touches: tuple[bool, bool, bool, bool]
    """Whether it reaches the image's top, bottom, left and right edge."""
    features: tuple[float, ...]
    grain: Grain
    degrees: float
    """Its axis, counter-clockwise from the x axis."""
    elongated: bool
    length: float
    """Of its bounding box, in pixels."""
    box: tuple[float, float, float, float]
    """Left, top, width and height, as fractions of the image."""
    contrast: float
    """Its difference from its surroundings, relative to their brightness above black."""
    wanders: bool = True
    """Whether it bends as it likes (`masks.wanders`)."""
    thickness: float = 0.0
    """Of its thickest part, in pixels; 0 if unknown."""

    @classmethod
    def of(cls, pixels: Pixels, ground: Ground, box: Box, piece: BoolArray) -> "Spot":
        """The defect in an image, [H, W, C], whose mask is `piece`, cropped to `box`."""
        rows, columns = np.nonzero(piece)
        center = np.array([[box.x + columns.mean(), box.y + rows.mean()]])
        degrees, ratio = _axis(columns, rows)
        hidden = np.zeros((ground.height, ground.width), np.bool_)
        hidden[box.y : box.y + box.height, box.x : box.x + box.width] = piece
        right, bottom = ground.width - box.x - box.width, ground.height - box.y - box.height
        return cls(
            touches=(box.y < _TOUCHES, bottom < _TOUCHES, box.x < _TOUCHES, right < _TOUCHES),
            features=tuple(ground.features(center)[0].tolist()),
            grain=grain(pixels, float(center[0, 0]), float(center[0, 1]), hidden),
            degrees=degrees,
            elongated=ratio > _ELONGATED,
            length=float(max(box.width, box.height)),
            box=(box.x / ground.width, box.y / ground.height, box.width / ground.width, box.height / ground.height),
            contrast=_contrast(pixels, box, piece),
            wanders=wanders(piece),
            thickness=2 * depth(piece),
        )


class KnownSpot(NamedTuple):
    """A spot for a model's file: with the scale at which the model learned the defect, and its length at that scale."""

    spot: Spot
    scale: float
    length: float


def to_text(known: KnownSpot) -> str:
    """A known spot as text, for a model's file."""
    return json.dumps({**asdict(known.spot), "scale": round(known.scale, 4), "learned": round(known.length, 1)})


def from_text(text: str) -> KnownSpot:
    """The inverse of `to_text`."""
    record: dict[str, Any] = json.loads(text)
    record = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    scale, length = record.pop("scale"), record.pop("learned")
    return KnownSpot(Spot(**{**record, "grain": Grain(**record["grain"])}), scale, length)


@dataclass(frozen=True)
class Pose:
    """How a defect is turned to be level, its longer axis along x, and, where it reaches an edge of its image, flipped.

    Then it ends at the left or at the bottom edge. A defect inside its image is turned by any angle instead.
    """

    degrees: float = 0.0
    """By which it is turned counter-clockwise."""
    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False
    ends: tuple[bool, bool] = (False, False)
    """Whether it ends at the left, and at the bottom edge, once it is level."""

    @classmethod
    def of(cls, spot: Spot) -> "Pose":
        if not any(spot.touches):
            return cls(degrees=-spot.degrees)
        transposed = 45 < spot.degrees < 135
        top, bottom, left, right = spot.touches
        if transposed:
            top, bottom, left, right = left, right, top, bottom
        return cls(0.0, transposed, right and not left, top and not bottom, (left or right, top or bottom))


class Habits:
    """What the real defects of a category have in common. From few of them, less is learned."""

    def __init__(self, spots: Sequence[Spot]) -> None:
        count = len(spots)
        self.spots = tuple(spots)
        inner = [spot.features for spot in spots if not any(spot.touches)]
        self._inner = np.array(inner).reshape(-1, len(_FEATURES))
        self._uses = np.array([len(inner) >= least for least in _LEARNED_FROM])
        widths = _SPREAD * self._inner.std(axis=0) * max(1, len(inner)) ** -0.2 if inner else np.ones(len(_FEATURES))
        self._widths = np.maximum(widths, _LEAST_WIDTH)
        long = [spot for spot in spots if spot.elongated]
        self.turn: float | None = None
        """The standard deviation of turns in degrees; None: any turn, as real ones have none in common."""
        mostly_long = 2 * len(long) >= count
        if mostly_long:
            self.turn = max(_TURN, _turns(long))
            if self.turn > 40:  # of 52 if all directions are equally frequent
                self.turn = None
        # Lines that are longer are no enlarged ones: these would be thicker, and less sharp.
        measured = mostly_long and all(spot.thickness for spot in spots)
        octaves = np.std(np.log2([spot.thickness if measured else spot.length for spot in spots]))
        self.octaves = max(_SCALE, min(0.6, float(_SPREAD * octaves * count**-0.2)))
        """The standard deviation of the scale's logarithm to base 2."""

        octaves = np.std(np.log2([max(abs(spot.contrast), _FAINT) for spot in spots]))
        self.contrasts = min(_CONTRAST, float(octaves))
        """The standard deviation of the logarithm of contrasts to base 2, limited."""
        self.arcs = 2 * sum(spot.wanders for spot in spots) < count
        """Whether most are straight or smoothly bent, as scratches are."""

    def draw_variation(self, rng: np.random.Generator, spot: Spot, amount: float) -> Variation:
        """A variation of a defect; `amount` 0 leaves it as it is, 1 varies it as the real ones vary."""
        stretch = 2 ** rng.normal(0, amount * _STRETCH) if spot.elongated else 1.0
        contrast = 2 ** rng.normal(0, amount * self.contrasts)
        return Variation(
            key=int(rng.integers(1 << 31)),
            bend=round(amount * _BEND, 4),
            stretch=round(float(np.clip(stretch, *_STRETCHES)), 4),
            contrast=round(float(np.clip(contrast, *_STRETCHES)), 4),
            arc=self.arcs,
        )

    def summary(self) -> dict[str, Any]:
        """What was learned, for `dataset.json`."""
        sides = np.mean([spot.touches for spot in self.spots], axis=0)
        return {
            "real_defects": len(self.spots),
            "inside": len(self._inner),
            "at_edges": {
                side: round(float(part), 2)
                for side, part in zip(("top", "bottom", "left", "right"), sides, strict=True)
                if part
            },
            "learned": [name for name, used in zip(_FEATURES, self._uses, strict=True) if used],
            "turns": "any" if self.turn is None else f"{self.turn:.0f} degrees",
            "scales": f"{self.octaves:.2f} octaves",
            "contrasts": f"{self.contrasts:.2f} octaves",
            "boxes": [[round(value, 3) for value in spot.box] for spot in self.spots],
        }

    def draw_scale(self, rng: np.random.Generator) -> float:
        return float(np.clip(2 ** rng.normal(0, self.octaves), *_SCALES))

    def draw_turn(self, rng: np.random.Generator, spot: Spot, here: Grain) -> float:
        """Degrees by which to turn a defect that comes to a place with a grain. At an edge, it keeps its pose."""
        if any(spot.touches):
            return 0.0
        if self.turn is None:
            return float(rng.uniform(0, 360))
        along = (here.degrees - spot.grain.degrees + 90) % 180 - 90 if here.coherent and spot.grain.coherent else 0.0
        return float(along + rng.normal(0, self.turn))

    def draw_center(
        self, rng: np.random.Generator, ground: Ground, spot: Spot, extent: tuple[int, int], free: BoolArray | None
    ) -> tuple[float, float] | None:
        """The center (x, y) of a defect that reaches no edge, of some width and height; None if none is free.

        The image is as large as the defect at least. Of random places, one is drawn with the density of the real ones
        there, as bright as that of the spot: what shines in the shadow is no brighter in the light.
        """
        if free is None:
            room = np.array([ground.width, ground.height]) - extent
            points = np.array(extent) / 2 + rng.random((_CANDIDATES, 2)) * room
        else:  # all around them is free, too; sides are odd, so that their middle is a pixel
            around = np.ones((extent[1] + 2 * RIM | 1, extent[0] + 2 * RIM | 1), np.uint8)
            fits = np.flatnonzero(cv2.erode(free.view(np.uint8), around, borderType=cv2.BORDER_CONSTANT, borderValue=0))
            chosen = fits[rng.integers(len(fits), size=_CANDIDATES)] if len(fits) else fits
            points = np.column_stack([chosen % ground.width, chosen // ground.width]).astype(float)
        points = points[ground.on_part(points)]
        if len(points) == 0:
            return None
        features = ground.features(points)
        brighter = (features - spot.features)[:, _FEATURES.index("brightness")]
        weights = np.exp(-0.5 * (brighter / _AS_BRIGHT) ** 2)
        if self._uses.any():
            away = (features[:, None] - self._inner) / self._widths
            weights *= np.exp(-0.5 * (away**2)[..., self._uses].sum(axis=2)).sum(axis=1) + 1e-9
        x, y = points[int(rng.choice(len(points), p=weights / weights.sum()))]
        return float(x), float(y)

    def draw_along(self, rng: np.random.Generator, spot: Spot) -> tuple[float, float]:
        """Where along its edge, or edges, a defect lies: a relative center (across, down) near its own, 0..1."""
        own = np.array(spot.features[:2])
        alike = [each.features[:2] for each in self.spots if each.touches == spot.touches]
        others = np.array([own, *alike])  # this one may not have been studied
        width = np.maximum(_SPREAD * others.std(axis=0) * len(others) ** -0.2, 0.15)
        across, down = np.clip(own + rng.normal(0, width), 0, 1)
        return float(across), float(down)


def _contrast(pixels: Pixels, box: Box, piece: BoolArray) -> float:
    """`Spot.contrast`."""
    top, left = max(box.y - RIM, 0), max(box.x - RIM, 0)
    near = pixels[top : box.y + box.height + RIM, left : box.x + box.width + RIM].mean(axis=2, dtype=np.float32)
    own = paste_on_zeros(piece, (box.x - left, box.y - top), near.shape)
    if own.all():
        return 0.0
    around = float(near[~own].mean())
    return (float(near[own].mean()) - around) / max(around, 1.0)


def _local_mean(values: FloatArray, seen: FloatArray) -> FloatArray:
    """The mean of the values, [H, W], around each pixel, of those that are seen; further away, of more of them."""
    total, weight = np.zeros_like(values), np.full_like(values, 1e-12)
    for width, importance in (_NEAR, 1.0), (4 * _NEAR, 1e-3), (16 * _NEAR, 1e-6):
        total += importance * np.asarray(cv2.GaussianBlur(values * seen, (0, 0), width))
        weight += importance * np.asarray(cv2.GaussianBlur(seen, (0, 0), width))
    return np.asarray(total / weight, np.float32)


def _ranks(values: FloatArray, part: BoolArray) -> FloatArray:
    """The share of the part's pixels below each value, so that images of any exposure compare."""
    ordered = np.sort(values[part])
    return np.asarray(np.searchsorted(ordered, values.ravel()).reshape(values.shape) / max(len(ordered), 1), np.float32)


def _axis(columns: NDArray[np.intp], rows: NDArray[np.intp]) -> tuple[float, float]:
    """The direction of a defect's longer axis, in degrees counter-clockwise, 0..180, and the ratio of its axes."""
    if len(columns) < 3:
        return 0.0, 1.0
    covariance = np.cov(np.stack([columns, -rows])) + np.eye(2) / 12  # of a pixel itself
    values, vectors = np.linalg.eigh(covariance)
    return float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180), float(np.sqrt(values[1] / values[0]))


def _turns(spots: Sequence[Spot]) -> float:
    """The circular standard deviation, in degrees, of axes relative to the grain, or to the image if there is none.

    A direction has no sign: angles are doubled. Few of them say little about the spread, so it is widened.
    """
    if len(spots) < 2:
        return _TURN
    coherent = all(spot.grain.coherent for spot in spots)
    angles = np.radians([2 * (spot.degrees - (spot.grain.degrees if coherent else 0)) for spot in spots])
    resultant = min(float(np.abs(np.exp(1j * angles).mean())), 1.0)  # rounding can take it above 1
    spread = 0.5 * np.degrees(np.sqrt(-2 * np.log(max(resultant, 0.04))))
    return float(spread * (1 + 1 / len(spots)) * _SPREAD * len(spots) ** -0.2)
