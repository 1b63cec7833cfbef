"""Control maps: real masks, warped, as a request for a new defect of their category."""

import base64
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from defectgen.imaging.masks import wanders
from defectgen.imaging.windows import BoolArray, FloatArray

_ELASTIC = 1 / 8, 0.05  # smoothness and size of the displacements, as fractions of the window's side
_ARC = 0.4, 0.02  # the same for straight lines and arcs
_GENTLE = 1 / 8, 0.01  # and for long defects, of which a window shows a part: more would make waves of cracks
_TURN = 8.0  # degrees, standard deviation: real masks bring their own directions along
_SCALE = 0.25  # standard deviation of the scale's logarithm to base 2
_MIXED = 0.3  # share of the maps that are between two real masks
_JITTER = 0.15  # standard deviation of a relative place
_TRIES = 8
_WHOLE = 0.97  # of a warped mask: one of which the border cuts off more is drawn again
_LEAST = 0.3  # of the area of a real mask: a map that lost more, at the border or by mixing, is drawn again


class KnownMask(NamedTuple):
    """The mask of a real defect in a window, [S, S].

    `place` is the window's relative place (x, y) in its image, `zoom` its scale over that of the category. Of a defect
    that is longer than a model's windows, S is larger than theirs, so that its whole image may be shown.
    """

    mask: BoolArray
    place: tuple[float, float]
    zoom: float = 1.0


class Sides(NamedTuple):
    """Pixels along the edges of a window."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


def pick(rng: np.random.Generator, known: Sequence[KnownMask]) -> KnownMask:
    """A random one of the known masks, with a place nearby; windows at an edge of their image stay there."""
    mask, place, zoom = known[int(rng.integers(len(known)))]
    x, y = (at if at in (0, 1) else float(np.clip(at + rng.normal(0, _JITTER), 0, 1)) for at in place)
    return KnownMask(mask, (x, y), zoom)


def draw_map(
    rng: np.random.Generator,
    first: BoolArray,
    known: Sequence[KnownMask],
    border: Sides = Sides(),  # noqa: B008
) -> BoolArray:
    """A new mask in the manner of a known one, [S, S]: turned, scaled, bent, and sometimes between it and another.

    Args:
        first: [S, S], not empty.
        known: the masks of its category.
        border: what stays free.
    """
    area = first.sum()
    found = first
    alike = [each for each in known if each.mask.shape == first.shape]
    for _ in range(_TRIES):
        mask = between(rng, first, pick(rng, alike).mask) if alike and rng.random() < _MIXED else first
        wide = warped(rng, mask)
        found = _framed(_inside(wide, first, border), border)
        if found.sum() >= max(_LEAST * area, _WHOLE * wide.sum()):  # what is cut off ends in a straight line
            return found
    return found if found.any() else _framed(first, border)


def draw_long(rng: np.random.Generator, first: BoolArray, side: int) -> BoolArray:
    """A part of a new mask in the manner of a known one, for a window [side, side] that shows a whole image.

    Lines that reach the known mask's edges go on beyond, mirrored: a crack through an image crosses the new one.

    Args:
        first: [S, S], not empty, S >= side.
    """
    room = len(first) - side
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(first.astype(np.uint8), connectivity=8)
    areas = np.append(0, statistics[1:, cv2.CC_STAT_AREA])
    spans = []  # where the window may begin on each axis: if most of a defect hangs on one edge, it stays there
    for lines in (labels, labels.T):
        low, high = (2 * areas[np.unique(line)].sum() > areas.sum() for line in (lines[0], lines[-1]))
        spans.append((0, room) if low == high else (0, 0) if low else (room, room))
    found = first[:side, :side]
    for _ in range(_TRIES):
        wide = warped(rng, first, long=True)
        margin = (len(wide) - len(first)) // 2
        core = wide[margin : margin + len(first), margin : margin + len(first)]
        reached = core[tuple(slice(start, end + side) for start, end in spans)]
        if not reached.any():
            continue
        at = np.argwhere(reached)[int(rng.integers(reached.sum()))]
        top, left = (
            int(np.clip(start + of - rng.integers(side // 4, side - side // 4 + 1), start, end))
            for (start, end), of in zip(spans, at, strict=True)
        )
        found = core[top : top + side, left : left + side]
        if found.sum() >= _LEAST * first.sum() * side / len(first):
            break
    return found


def warped(rng: np.random.Generator, mask: BoolArray, *, long: bool = False) -> BoolArray:
    """A mask, turned and scaled about its middle and bent by a smooth random field; straight lines become arcs.

    Args:
        long: it goes on beyond its edges, mirrored, is bent less, and never enlarged, which would make cracks bands.

    Returns:
        [S + 2 M, S + 2 M]: M = S // 4 pixels beyond each edge show what left the window.
    """
    side, margin = len(mask), len(mask) // 4
    middle = np.argwhere(mask).mean(axis=0)[::-1]
    angle, octaves = math.radians(rng.normal(0, _TURN)), rng.normal(0, _SCALE)
    scale = 2 ** (-abs(octaves) if long else octaves)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    field = np.pad(
        _field(rng, side, *(_ARC if not wanders(mask) else _GENTLE if long else _ELASTIC)),
        [(margin, margin), (margin, margin), (0, 0)],
        mode="edge",
    )
    grid = np.indices(field.shape[:2], np.float32)[::-1].transpose(1, 2, 0) - margin - middle
    at = grid @ turn.T + middle + field
    columns, rows = (np.ascontiguousarray(at[..., axis], np.float32) for axis in (0, 1))
    beyond = cv2.BORDER_REFLECT if long else cv2.BORDER_CONSTANT
    soft = np.asarray(cv2.remap(mask.astype(np.float32), columns, rows, cv2.INTER_LINEAR, borderMode=beyond))
    return soft > 0.45  # a little below one half, so that thin lines stay whole


def _inside(wide: BoolArray, first: BoolArray, border: Sides) -> BoolArray:
    """The window, [S, S], of a warped mask, moved off borders that stay free, and to edges that `first` reaches."""
    side = len(first)
    margin = (len(wide) - side) // 2
    x, y, width, height = cv2.boundingRect(wide.view(np.uint8))

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


def between(rng: np.random.Generator, a: BoolArray, b: BoolArray) -> BoolArray:
    """A mask between two, at a's place: the zero line of their mixed signed distances, [S, S]."""
    shift = np.argwhere(a).mean(axis=0) - np.argwhere(b).mean(axis=0)
    matrix = np.array([[1, 0, shift[1]], [0, 1, shift[0]]])
    moved = np.asarray(cv2.warpAffine(b.astype(np.uint8), matrix, (b.shape[1], b.shape[0])))
    if not moved.any():
        return a
    part = rng.uniform(0.2, 0.8)
    mixed = (1 - part) * _signed_distance(a) + part * _signed_distance(moved > 0) > 0
    return mixed if mixed.any() else a  # nothing lies between two lines that cross


def centered(mask: BoolArray, side: int) -> BoolArray:
    """A mask, [S, S], in the middle of an empty one of `side` >= S pixels."""
    before = (side - len(mask)) // 2
    return np.pad(mask, (before, side - len(mask) - before))


def fitted(mask: BoolArray, area: BoolArray, rng: np.random.Generator, scale: float = 1.0) -> BoolArray:
    """A mask, scaled, and moved into an area at a random place, [S, S]. Empty if nothing fits.

    Args:
        scale: at most 1; smaller if the mask would be larger than the area.
    """
    left, top, *room = cv2.boundingRect(area.view(np.uint8))
    x, y, *size = cv2.boundingRect(mask.view(np.uint8))
    if not (area.any() and mask.any()):
        return np.zeros_like(area)
    scale = min(scale, *(have / need for have, need in zip(room, size, strict=True)))
    width, height = (max(1, int(length * scale)) for length in size)
    piece = mask[y : y + size[1], x : x + size[0]].astype(np.float32)
    piece = np.asarray(cv2.resize(piece, (width, height), interpolation=cv2.INTER_AREA))
    found = np.zeros_like(area)
    row, column = top + int(rng.integers(room[1] - height + 1)), left + int(rng.integers(room[0] - width + 1))
    found[row : row + height, column : column + width] = piece > min(0.4, 0.5 * float(piece.max()))
    return found & area


def to_text(known: KnownMask) -> str:
    """A known mask as text, for a model's file."""
    packed = base64.b64encode(zlib.compress(np.packbits(known.mask).tobytes(), 9)).decode()
    return f"{known.place[0]:.4f},{known.place[1]:.4f},{known.zoom:.4f},{len(known.mask)},{packed}"


def from_text(text: str, side: int) -> KnownMask:
    """The inverse of `to_text`. Older models have masks of `side` pixels, which are not compressed."""
    x, y, zoom, *more, packed = text.split(",")
    data = base64.b64decode(packed)
    if more:
        side, data = int(more[0]), zlib.decompress(data)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=side * side)
    return KnownMask(bits.reshape(side, side).astype(np.bool_), (float(x), float(y)), float(zoom))


def _signed_distance(mask: BoolArray) -> FloatArray:
    inside, outside = (
        cv2.distanceTransform(np.asarray(each, np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for each in (mask, ~mask)
    )
    return np.asarray(inside - outside, np.float32)


def _field(rng: np.random.Generator, side: int, smooth: float, size: float) -> FloatArray:
    """Smooth random displacements, [side, side, 2], of some pixels and 0 in the mean."""
    noise = rng.normal(size=(side, side, 2)).astype(np.float32)
    field = np.asarray(cv2.GaussianBlur(noise, (0, 0), smooth * side), np.float32)
    field -= field.mean(axis=(0, 1))
    return np.asarray(field * (size * side / max(float(field.std()), 1e-9)), np.float32)


def _framed(mask: BoolArray, border: Sides) -> BoolArray:
    free = np.zeros_like(mask)
    free[border.top : len(mask) - border.bottom, border.left : len(mask) - border.right] = True
    return mask & free
