"""Control maps: real masks, warped, as a request for a new defect of their category.

A map tells at each pixel whether there is a defect, and, where that is known, how much darker or brighter than its
ground it is there: a mask alone does not say where in it a crack is black, or where a scratch has its lines.
"""

import base64
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.imaging.masks import wanders
from defectgen.imaging.windows import BoolArray, FloatArray

_ELASTIC = 1 / 2, 0.12  # smoothness and size of the displacements, as fractions of the defect's length
_FIRM = 1 / 2, 0.06  # the same for compact ones, which would become horns
_ARC = 0.4, 0.008  # and for straight lines and arcs
_COURSE = (1 / 3, 0.025), (1 / 6, 0.01), (1 / 12, 0.004)  # and for long ones: others make waves
_LENS = 0.6  # pixels, standard deviation of the blur of images
_HILLS = 1.3  # smoothness of the surface whose slopes are displacements, over theirs
_TURN = 8.0  # degrees, standard deviation: real masks bring their own directions along
_SCALE, _LARGEST = 0.25, 0.3  # standard deviation and limit of the scale's logarithm to base 2: enlarged, it is blurred
_MIXED = 0.3  # share of the maps without tones that are between two real masks: mixed tones would be blurred
_RESHAPED, _ANGLES = 0.7, 36  # share of the compact maps with outlines between two, and the number of their radii
_SOLID, _OVAL = 0.85, 0.4  # of its convex hull, and of its length in width, a compact map has more
AROUND = 17
"""Side in pixels of the ground around each pixel, of whose mean brightness a tone is a part."""
WOVEN = 9
"""Side in pixels over which the grain of a ground is averaged, which deep defects hide."""
HIDING = 0.1, 0.25
"""The change over the ground's brightness, around a pixel, at which a defect begins to hide its grain, and hides it."""
DARKEST = 0.2
"""The least brightness of a ground; that of white is 2."""
STEEP = 2.0
"""A tone is the hyperbolic tangent of this times the change over the ground's brightness."""
_FULL = 120  # a tone of 1 in a map
_TONED = "faded"  # marks texts of maps with tones
_FADE = 3  # pixels: a mask is dilated by squares of this side, to hold all that a defect changes
_STRETCHED = 1.5  # what spans an image is stretched by this at most: mirrored, it would be symmetric
_ALIKE = 0.5  # of what one of two masks covers, both cover this part: others lie between them
_JITTER = 0.15  # standard deviation of a relative place
_SHORTEST = 8  # pixels, of which displacements are a fraction
_LIT = 4.6  # Rayleigh's n R² of directions, from which they agree: by chance in one case of a hundred
_IMAGES = 8  # of which the known maps of a category may be, each flipped in several ways
_ROUND = 0.7  # the shorter side over the longer one, from which a defect has no direction
_TRIES = 8
_COVERED = 0.45  # a little below one half, so that thin lines stay whole
_NEAR = 4  # pixels around a mask, in which a defect changes something
_WHOLE = 0.97  # of a warped mask: one of which the border cuts off more is drawn again
_LEAST = 0.4  # of the area of a real mask: a map that lost more, at the border or by mixing, is drawn again


Levels = NDArray[np.int8]
"""A map, [S, S]: 120 times the tone of a defect, rounded to odd numbers inside its mask, and to even ones outside.

Defects fade over a pixel around their masks. Without that, they end in a sharp edge.
"""


class KnownMask(NamedTuple):
    """The map of a real defect in a window, [S, S], or in its whole image, [H, W], if it is longer than windows.

    `place` is the window's relative place (x, y) in its image, `zoom` its scale over that of the category; `light` is
    that of the ground over the image's, as of `windows.light_of`, or 0 if nobody knows.
    """

    levels: Levels
    place: tuple[float, float]
    zoom: float = 1.0
    light: float = 0.0


class Sides(NamedTuple):
    """Pixels along the edges of a window."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


def levels_of(mask: BoolArray, x: FloatArray | None = None, twin: FloatArray | None = None) -> Levels:
    """The map of a mask, [S, S], with the tones of its window x, [C, S, S] in [-1, 1], if its repaired twin is known.

    A tone is a change of brightness over that of the ground around, so that it does not depend on the light, and is
    steepest for faint defects: a third is a tone of 0.58, a half 0.76, all of it 0.96. What is brighter than the ground
    is divided by the root of its brightness: highlights depend less on it.
    """
    if x is None or twin is None:
        return _toned(mask, np.zeros(mask.shape, np.float32))
    hidden, light = _hiding(twin, x - twin, mask), brightness(twin)
    change = np.asarray((x - _ground(twin, hidden)).mean(axis=0), np.float32)
    fine, grain = (each - cv2.blur(each, (3, 3)) for each in (change, twin.mean(axis=0)))
    most = (1 - hidden) * float(grain.std())  # so much is taken for the grain of the old ground
    change -= np.clip(fine, -most, most)
    tones = np.tanh(np.float32(STEEP) * change / np.where(change > 0, np.sqrt(light), light))
    near = cv2.dilate(mask.astype(np.float32), np.ones((_FADE, _FADE)))
    return _toned(mask, np.asarray(tones * near, np.float32))


def brightness(x: FloatArray) -> FloatArray:
    """Of the ground around each pixel of a window, [C, S, S] in [-1, 1]: its mean above black, [S, S]."""
    around = np.asarray(cv2.blur(x.mean(axis=0), (AROUND, AROUND)), np.float32)
    return np.maximum(around + 1, np.float32(DARKEST))


def ground_of(twin: FloatArray, change: FloatArray, mask: BoolArray) -> FloatArray:
    """What a defect, [C, S, S] without it, changes: its twin, of whose grain nothing is left where it changes much."""
    return _ground(twin, _hiding(twin, change, mask))


def _ground(twin: FloatArray, hidden: FloatArray) -> FloatArray:
    smooth = np.stack([cv2.blur(np.ascontiguousarray(channel), (WOVEN, WOVEN)) for channel in twin])
    return np.asarray(twin + hidden * (smooth - twin), np.float32)


def _hiding(twin: FloatArray, change: FloatArray, mask: BoolArray) -> FloatArray:
    """How much of the grain of its ground a defect hides, [S, S] in [0, 1]."""
    parts = np.abs(cv2.blur(change.mean(axis=0), (3, 3))) / brightness(twin)
    inside = cv2.blur(cv2.dilate(mask.astype(np.float32), np.ones((3, 3))), (3, 3))
    return np.asarray(inside * np.interp(cv2.blur(parts, (5, 5)), HIDING, (0, 1)), np.float32)


def mask_of(levels: Levels) -> BoolArray:
    """The mask of a map, [S, S]."""
    return levels & 1 > 0


def tones_of(levels: Levels) -> FloatArray:
    """The tones of a map, [S, S] in [-1, 1]; 0 where there is no defect, or nobody knows."""
    return np.asarray((levels - mask_of(levels)) / np.float32(_FULL), np.float32)


def _layers(levels: Levels) -> tuple[FloatArray, FloatArray]:
    """The mask and the tones of a map, to move or scale: the inverse of `_toned`."""
    return mask_of(levels).astype(np.float32), tones_of(levels)


def _toned(mask: BoolArray, tones: FloatArray) -> Levels:
    return np.rint(np.clip(tones, -1, 1) * (_FULL / 2)).astype(np.int8) * np.int8(2) + mask


def pick(rng: np.random.Generator, known: Sequence[KnownMask]) -> KnownMask:
    """A random one of the known masks, with a place nearby; windows at an edge of their image stay there."""
    levels, place, *more = known[int(rng.integers(len(known)))]
    x, y = (at if at in (0, 1) else float(np.clip(at + rng.normal(0, _JITTER), 0, 1)) for at in place)
    return KnownMask(levels, (x, y), *more)


def draw_map(
    rng: np.random.Generator,
    first: Levels,
    known: Sequence[KnownMask],
    border: Sides = Sides(),  # noqa: B008
) -> Levels:
    """A new map in the manner of a known one, [S, S]: turned, scaled, bent; without tones sometimes between two.

    Args:
        first: [S, S], not empty.
        known: the maps of its category; if most of them are straight, it is.
        border: what stays free.
    """
    area = np.count_nonzero(first)
    found = first
    alike = [each for each in known if each.levels.shape == first.shape and not tones_of(first).any()]
    others = [each.levels for each in known if _compact(each.levels)] if _compact(first) else []
    turns = light_side([each.levels for each in known], most=_IMAGES) is None
    straight = 2 * sum(_straight(each.levels.tobytes(), len(each.levels)) for each in known) > len(known)
    for _ in range(_TRIES):
        levels = first
        if alike and rng.random() < _MIXED:
            levels = between(rng, first, pick(rng, alike).levels)
        elif others and rng.random() < _RESHAPED:
            levels = reshaped(rng, first, others[int(rng.integers(len(others)))])
        wide = warped(rng, _turned(rng, levels) if turns else levels, straight=straight)
        found = _framed(_inside(wide, first, border), border)
        least = max(_LEAST * area, _WHOLE * np.count_nonzero(wide))  # what is cut off ends in a straight line
        if np.count_nonzero(found) >= least:
            return found
    return found if found.any() else _framed(first, border)


def draw_long(
    rng: np.random.Generator, first: Levels, shape: tuple[int, int], known: Sequence[KnownMask] = ()
) -> Levels:
    """A part of a new map in the manner of a known one, for a whole image of `shape`.

    If most of a defect hangs on one edge, it stays there. A crack that crosses its image goes on in another one of its
    category. Where the new image is larger, what spans the known one is stretched, if not too much; whatever else
    reaches an edge goes on beyond it, mirrored.

    Args:
        first: [H, W], not empty: all of an image, and nothing beyond.
        known: the maps of its category.
    """
    whole = _joined(rng, first, [each.levels for each in known])
    for axis, (known_side, side) in enumerate(zip(whole.shape, shape, strict=True)):
        if whole is first and known_side < side <= _STRETCHED * known_side and _spans(first, axis):
            whole = first = _resized(first, axis, side)
    wide = whole
    margin = max(whole.shape) // 2
    pins, spans, mirrored = [], [], False
    for axis, (known_side, side) in enumerate(zip(whole.shape, shape, strict=True)):
        held, reached, missing = _held(whole, axis), whole.take((0, -1), axis).any(), max(0, side - known_side)
        before = {-1: 0, 0: int(rng.integers(missing + 1)), 1: missing}[held]
        wide = _continued(wide, axis, margin + before, margin + missing - before)
        low, high, free = margin, margin + missing + known_side - side, 0 if reached else side // 4
        spans.append({-1: (low, low), 0: (low - free, high + free), 1: (high, high)}[held])  # where the image begins
        ends = [(low, whole.take(0, axis).any()), (high + side - 1, whole.take(-1, axis).any())]
        fixed = {-1: ends[:1], 0: [] if missing or whole is not first else ends, 1: ends[1:]}[held]
        pins.append([(end, end) for end, meets in fixed if meets])
        mirrored |= bool(missing and reached and not held and whole is first)
    reach = tuple(slice(low, high + side) for (low, high), side in zip(spans, shape, strict=True))
    waves = _COURSE if wanders(mask_of(first)) else (_ARC,)
    found, mask = np.zeros(shape, np.int8), mask_of(wide)
    for _ in range(_TRIES):
        at = _bend(rng, mask, 0, *waves, scale=0 if mirrored else _SCALE, largest=0)
        for axis, edges in enumerate(pins):
            _pin(at, axis, edges)
        bent = _remapped(wide, at)
        there = np.argwhere(bent[reach])
        if not len(there):
            continue
        top, left = (
            int(np.clip(low + at - rng.integers(side // 8, side - side // 8 + 1), low, high))
            for (low, high), at, side in zip(spans, there[int(rng.integers(len(there)))], shape, strict=True)
        )
        found = bent[top : top + shape[0], left : left + shape[1]]
        least = _LEAST * np.count_nonzero(first) * min(1, found.size / first.size)
        if np.count_nonzero(found) >= least and all(_spans(found, axis) for axis in (0, 1) if _crosses(first, axis)):
            break
    return found


def _held(levels: Levels, axis: int) -> int:
    """Which end of an axis most of a map hangs on, and not on the other one: -1, 1, or 0 for neither."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask_of(levels).astype(np.uint8), connectivity=8)
    areas = np.append(0, statistics[1:, cv2.CC_STAT_AREA])
    lines = np.moveaxis(labels, axis, 0)
    low, high = (2 * int(areas[np.unique(line)].sum()) > int(areas.sum()) for line in (lines[0], lines[-1]))
    return high - low


def _continued(levels: Levels, axis: int, before: int, after: int) -> Levels:
    """A map with more pixels on both ends of an axis, mirrored at those that it reaches, else empty."""
    for end, count in ((0, before), (-1, after)):
        widths = [(0, 0), (0, 0)]
        widths[axis] = (0, count) if end else (count, 0)
        reached = levels.take(end, axis).any()
        levels = np.pad(levels, widths, mode="symmetric") if reached else np.pad(levels, widths)
    return levels


def _resized(levels: Levels, axis: int, side: int) -> Levels:
    """A map, [H, W], stretched along an axis."""
    shape = (side, levels.shape[1]) if axis == 0 else (levels.shape[0], side)
    mask, tones = (cv2.resize(each, shape[::-1], interpolation=cv2.INTER_LINEAR) for each in _layers(levels))
    return _toned(np.asarray(mask > _COVERED), np.asarray(tones, np.float32))


def _joined(rng: np.random.Generator, first: Levels, known: Sequence[Levels]) -> Levels:
    """A crack that crosses its image, [H, W], joined to a random one that does so, too, where the first one ends."""
    for axis in (0, 1) if wanders(mask_of(first)) else ():
        others = [each for each in known if _crosses(each, axis)]
        if not (others and _crosses(first, axis)):
            continue
        a, b = (np.moveaxis(each, axis, 1) for each in (first, others[int(rng.integers(len(others)))]))
        lower = round(float(np.median(np.flatnonzero(a[:, -1])) - np.median(np.flatnonzero(b[:, 0]))))
        start = max(0, -lower)
        found = np.zeros((max(start + len(a), start + lower + len(b)), a.shape[1] + b.shape[1]), np.int8)
        found[start : start + len(a), : a.shape[1]] = a
        found[start + lower : start + lower + len(b), a.shape[1] :] = b
        return np.moveaxis(found, 1, axis)
    return first


def _crosses(levels: Levels, axis: int) -> bool:
    """Whether a map reaches both ends of an axis, and none of the other one."""
    return _spans(levels, axis) and not levels.take((0, -1), 1 - axis).any()


def _spans(levels: Levels, axis: int) -> bool:
    return bool(levels.take(0, axis).any() and levels.take(-1, axis).any())


@lru_cache(maxsize=1024)
def _straight(levels: bytes, side: int) -> bool:
    return not wanders(mask_of(np.frombuffer(levels, np.int8).reshape(side, -1)))


def warped(rng: np.random.Generator, levels: Levels, *, straight: bool = False) -> Levels:
    """A map, turned and scaled about its middle and bent by a smooth random field; straight lines become arcs.

    Args:
        straight: all lines of the map are straight, also where several touch, so that it cannot be seen.

    Returns:
        [S + 2 M, S + 2 M]: M = S // 4 pixels beyond each edge show what left the window.
    """
    line = straight or not wanders(mask_of(levels))
    wave = _ARC if line else _FIRM if _solid(_largest(levels).tobytes(), len(levels)) else _ELASTIC
    margin, last = len(levels) // 4, len(levels) - 1
    at = _bend(rng, mask_of(levels), margin, wave)
    for axis in (0, 1):
        _pin(at, axis, [(margin + edge, edge) for edge in (0, last) if levels.take(edge, axis).any()])
    return _remapped(levels, at)


def light_side(known: Sequence[Levels], most: int | None = None) -> tuple[float, float] | None:
    """The side (x, y), a unit vector, on which most maps are brighter; None if they do not agree, or are few.

    Light from one side makes one wall of a groove bright, and the other one dark; a mirrored one is lit from elsewhere.

    Args:
        most: so many of the maps are independent, or all.
    """
    mean = np.mean([_bright_side(each.tobytes(), len(each)) for each in known] or [(0, 0)], axis=0)
    length, count = math.hypot(*mean), min(len(known), most or len(known))
    return (float(mean[0]) / length, float(mean[1]) / length) if count * length**2 > _LIT else None


@lru_cache(maxsize=1024)
def _bright_side(levels: bytes, side: int) -> tuple[float, float]:
    """The side (x, y) on which a map is brighter: its tones along the way out, as a unit vector; 0, 0 without tones."""
    found = np.frombuffer(levels, np.int8).reshape(side, -1)
    soft = cv2.GaussianBlur(mask_of(found).astype(np.float32), (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    y, x = (-float((tones_of(found) * slope).sum()) for slope in np.gradient(soft))
    length = math.hypot(x, y)
    return (x / length, y / length) if length else (0.0, 0.0)


def _turned(rng: np.random.Generator, levels: Levels) -> Levels:
    """A map, [S, S], turned by a random multiple of 90 degrees or mirrored, if its defect is round and at no edge."""
    _, size, _ = cv2.minAreaRect(np.argwhere(levels))
    if min(size) < _ROUND * max(size) or at_edge(levels[None]):
        return levels
    turned = np.rot90(levels, int(rng.integers(4)))
    return np.ascontiguousarray(turned.T if rng.random() < 0.5 else turned)


def _pin(at: FloatArray, axis: int, pins: Sequence[tuple[int, int]]) -> None:
    """Bend a warped window, at [H, W, 2], so that one or two lines of an axis show these lines of the known one."""
    own = at[..., 1 - axis]
    shifts = [there - own.take([here], axis) for here, there in pins]
    if len(pins) == 2:
        (first, _), (last, _) = pins
        part = ((np.arange(own.shape[axis], dtype=np.float32) - first) / (last - first)).clip(0, 1)
        part = np.expand_dims(part, 1 - axis)
        own += shifts[0] * (1 - part) + shifts[1] * part
    elif pins:
        own += shifts[0]


def _remapped(levels: Levels, at: FloatArray) -> Levels:
    mask, tones = _layers(levels)
    mask, tones = _moved(mask, at, cv2.INTER_LINEAR), _moved(_softened(tones, at), at, cv2.INTER_CUBIC)
    covered = mask > _COVERED
    return _toned(covered, tones * cv2.dilate(covered.astype(np.float32), np.ones((_FADE + 2, _FADE + 2))))


def _softened(layer: FloatArray, at: FloatArray) -> FloatArray:
    """A layer as soft as a lens would show it when it is shrunk, by `at`: as sharp in pixels as it was, not sharper."""
    steps = [np.linalg.norm(np.diff(at, axis=axis), axis=2).mean() for axis in (0, 1)]
    blur = _LENS * math.sqrt(max(0.0, float(np.mean(steps)) ** 2 - 1))
    return layer if blur < _LENS / 4 else np.asarray(cv2.GaussianBlur(layer, (0, 0), blur), np.float32)


def warped_change(
    rng: np.random.Generator, change: FloatArray, a: FloatArray, *, long: bool = False
) -> tuple[FloatArray, FloatArray]:
    """What a defect changes in its window, [C, S, S], and its masks, [K, S, S] of 0 and 1, warped alike as `warped`.

    A defect that reaches an edge of the window goes on beyond it, mirrored.

    Args:
        long: the window shows a part of a defect, which is bent less and never enlarged.
    """
    mirrored, mask = at_edge(a), a.max(axis=0) > 0
    wave = _ELASTIC if wanders(mask) and not long else _ARC
    at = _bend(rng, mask, 0, wave, largest=0 if long else _LARGEST)
    moved = [_moved(_softened(each, at), at, cv2.INTER_CUBIC, mirrored=mirrored) for each in change]
    masks = [_moved(each, at, cv2.INTER_LINEAR, mirrored=mirrored) > _COVERED for each in a]
    near = cv2.dilate(np.any(masks, axis=0).astype(np.float32), np.ones((2 * _NEAR + 1,) * 2))
    return np.stack(moved) * near, np.stack(masks).astype(np.float32)


def at_edge(a: NDArray[Any]) -> bool:
    """Whether masks [K, S, S] reach an edge of their window."""
    return bool(a[:, [0, -1]].any() or a[:, :, [0, -1]].any())


def _bend(
    rng: np.random.Generator,
    mask: BoolArray,
    margin: int,
    *waves: tuple[float, float],
    scale: float = _SCALE,
    largest: float = _LARGEST,
) -> FloatArray:
    """Where each pixel of a warped window, `margin` pixels wider on each side, comes from: x and y, [H, W, 2].

    Args:
        waves: smoothness and size of random displacements, as fractions of the mask's length, which are added.
        scale, largest: standard deviation and limit of the scale's logarithm to base 2.
    """
    middle = np.argwhere(mask).mean(axis=0)[::-1]
    angle, octaves = math.radians(rng.normal(0, _TURN)), largest - abs(largest - rng.normal(0, scale))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / 2**octaves
    length = max(_SHORTEST, *np.ptp(np.argwhere(mask), axis=0))
    field = np.sum([_field(rng, mask.shape, smooth * length, size * length) for smooth, size in waves], axis=0)
    field = np.pad(field, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    grid = np.indices(field.shape[:2], np.float32)[::-1].transpose(1, 2, 0) - margin - middle
    return np.asarray(grid @ turn.T + middle + field, np.float32)


def _moved(layer: FloatArray, at: FloatArray, how: int, *, mirrored: bool = False) -> FloatArray:
    columns, rows = (np.ascontiguousarray(at[..., axis]) for axis in (0, 1))
    beyond = cv2.BORDER_REFLECT if mirrored else cv2.BORDER_CONSTANT
    return np.asarray(cv2.remap(np.ascontiguousarray(layer), columns, rows, how, borderMode=beyond), np.float32)


def _inside(wide: Levels, first: Levels, border: Sides) -> Levels:
    """The window, [S, S], of a warped map, moved off borders that stay free, and to edges that `first` reaches."""
    side = len(first)
    margin = (len(wide) - side) // 2
    x, y, width, height = cv2.boundingRect((wide != 0).astype(np.uint8))

    def start(at: int, extent: int, free: tuple[int, int], reached: tuple[np.bool_, np.bool_]) -> int:
        """Where the window begins on an axis on which the mask covers `extent` pixels from `at` on."""
        found, end = margin, at + extent - side
        if free[1]:
            found = max(found, end + free[1])
        elif reached[1]:
            found = min(found, end)
        if free[0]:
            found = min(found, at - free[0])
        elif reached[0]:
            found = max(found, at)
        return min(max(found, 0), 2 * margin)

    top = start(y, height, border[:2], (first[0].any(), first[-1].any()))
    left = start(x, width, border[2:], (first[:, 0].any(), first[:, -1].any()))
    return wide[top : top + side, left : left + side]


def between(rng: np.random.Generator, a: Levels, b: Levels) -> Levels:
    """A map between two, at a's place, [S, S]: the zero line of their mixed signed distances, without tones.

    It is a, if they are not alike.
    """
    whole, other = mask_of(a), mask_of(b)
    shift = np.argwhere(whole).mean(axis=0) - np.argwhere(other).mean(axis=0)
    matrix = np.array([[1, 0, shift[1]], [0, 1, shift[0]]])
    size = (b.shape[1], b.shape[0])
    moved = cv2.warpAffine(other.astype(np.float32), matrix, size) > 0.5
    both, either = whole & moved, whole | moved
    if both.sum() < _ALIKE * either.sum():  # between two lines that cross lies little, and no line
        return a
    part = rng.uniform(0.2, 0.8)
    mixed = (1 - part) * _signed_distance(whole) + part * _signed_distance(moved) > 0
    return mixed.astype(np.int8)


def reshaped(rng: np.random.Generator, levels: Levels, other: Levels) -> Levels:
    """A compact map, [S, S], with an outline between its own and another one's; its tones move along the radii."""
    middle, own = _radii(mask_of(levels))
    _, radii = _radii(mask_of(other))
    factor = (radii / radii.mean() * own.mean() / own) ** rng.uniform(0.2, 0.8)
    offsets = np.indices(levels.shape).transpose(1, 2, 0) - middle
    angles = np.arctan2(offsets[..., 0], offsets[..., 1])
    of_each = np.interp(
        angles, np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False), factor.clip(0.6, 1.6), period=2 * np.pi
    )
    return _remapped(levels, np.asarray((middle + offsets / of_each[..., None])[..., ::-1], np.float32))


def _radii(mask: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The middle of a compact mask (y, x), and how far it reaches from there in each of 36 directions, from x on."""
    at = np.argwhere(mask)
    middle = at.mean(axis=0)
    y, x = (at - middle).T
    bins = np.rint(np.arctan2(y, x) / (2 * np.pi) * _ANGLES).astype(int) % _ANGLES
    found = np.zeros(_ANGLES)
    np.maximum.at(found, bins, np.hypot(y, x) + 0.5)
    there = np.flatnonzero(found)
    found = np.interp(np.arange(_ANGLES), there, found[there], period=_ANGLES)
    smooth = 0.5 * found + 0.25 * (np.roll(found, 1) + np.roll(found, -1))
    return np.asarray(middle, np.float32), np.asarray(smooth, np.float32)


def _compact(levels: Levels) -> bool:
    """Whether radii from its middle describe a map: one piece, no line, without deep notches, at no edge."""
    return not at_edge(levels[None]) and _solid(levels.tobytes(), len(levels))


def _largest(levels: Levels) -> Levels:
    """The mask of the largest piece of a map, without its satellites."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask_of(levels).astype(np.uint8), connectivity=8)
    return np.asarray(labels == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA]), np.int8)


@lru_cache(maxsize=1024)
def _solid(levels: bytes, side: int) -> bool:
    mask = mask_of(np.frombuffer(levels, np.int8).reshape(side, -1)).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if len(contours) != 1 or mask.sum() < _SHORTEST:
        return False
    hull, (_, size, _) = cv2.convexHull(contours[0]), cv2.minAreaRect(contours[0])
    outline = np.zeros_like(mask)
    cv2.fillConvexPoly(outline, hull, 1)
    return bool(mask.sum() > _SOLID * outline.sum() and min(size) > _OVAL * max(size))


def centered(levels: Levels, side: int) -> Levels:
    """A map, [H, W], in the middle of an empty one of `side` pixels, at least H and W."""
    return np.pad(levels, [((side - length) // 2, (side - length + 1) // 2) for length in levels.shape])


def fitted(levels: Levels, area: BoolArray, rng: np.random.Generator, scale: float = 1.0) -> Levels:
    """A map, scaled, and moved into an area at a random place, [S, S]. Empty if nothing fits.

    Args:
        scale: at most 1; smaller if the map would be larger than the area.
    """
    left, top, *room = cv2.boundingRect(area.view(np.uint8))
    x, y, *size = cv2.boundingRect((levels != 0).astype(np.uint8))
    found = np.zeros(area.shape, np.int8)
    if not (area.any() and levels.any()):
        return found
    scale = min(scale, *(have / need for have, need in zip(room, size, strict=True)))
    width, height = (max(1, int(length * scale)) for length in size)
    piece = levels[y : y + size[1], x : x + size[0]]
    soft, tones = (
        np.asarray(cv2.resize(each, (width, height), interpolation=cv2.INTER_AREA), np.float32)
        for each in _layers(piece)
    )
    row, column = top + int(rng.integers(room[1] - height + 1)), left + int(rng.integers(room[0] - width + 1))
    found[row : row + height, column : column + width] = _toned(soft > min(0.4, 0.5 * float(soft.max())), tones)
    return found * area


def to_text(known: KnownMask) -> str:
    """A known mask as text, for a model's file."""
    packed = base64.b64encode(zlib.compress(known.levels.tobytes(), 9)).decode()
    (x, y), (height, width) = known.place, known.levels.shape
    return f"{x:.4f},{y:.4f},{known.zoom:.4f},{height}x{width},{_TONED},{known.light:.4f},{packed}"


def from_text(text: str, side: int) -> KnownMask:
    """The inverse of `to_text`. Older models have masks alone, some not compressed, or other tones."""
    x, y, zoom, *more, packed = text.split(",")
    data = base64.b64decode(packed)
    if more:
        side, data = int(more[0].split("x")[0]), zlib.decompress(data)
    if more[1:]:
        levels = np.frombuffer(data, np.int8).reshape(side, -1)
        if more[1] == "tones":  # without those around the mask
            levels = np.where(levels != 0, levels | np.int8(1), levels)
        elif more[1] != _TONED:  # they once meant something else
            levels = (levels != 0).astype(np.int8)
    else:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=side * side)
        levels = bits.reshape(side, side).astype(np.int8)
    return KnownMask(levels, (float(x), float(y)), float(zoom), *map(float, more[2:]))


def _signed_distance(mask: BoolArray) -> FloatArray:
    inside, outside = (
        cv2.distanceTransform(np.asarray(each, np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for each in (mask, ~mask)
    )
    return np.asarray(inside - outside, np.float32)


def _field(rng: np.random.Generator, shape: tuple[int, ...], smooth: float, size: float) -> FloatArray:
    """Smooth random displacements, [H, W, 2], of `size` pixels and 0 in the mean.

    They turn around the hills of a random surface, so areas stay as they are: where displacements gather or part, a
    crack becomes a blot, or breaks.
    """
    step = max(1, int(smooth / 4))  # a coarse one does where it is smooth
    hills = rng.normal(size=[-(-side // step) + 2 for side in shape]).astype(np.float32)
    hills = np.asarray(cv2.GaussianBlur(hills, (0, 0), _HILLS * smooth / step), np.float32)
    down, right = np.gradient(hills)
    field = np.stack([down, -right], axis=2)[1:-1, 1:-1]
    field -= field.mean(axis=(0, 1))
    field *= size / max(float(field.std()), 1e-9)
    return field if step == 1 else np.asarray(cv2.resize(field, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _framed(levels: Levels, border: Sides) -> Levels:
    free = np.zeros_like(levels)
    free[border.top : len(levels) - border.bottom, border.left : len(levels) - border.right] = 1
    return levels * free
