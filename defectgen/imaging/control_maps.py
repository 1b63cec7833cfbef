"""Control maps: real masks, warped, as a request for a new defect of their category."""

import base64
import math
from collections.abc import Sequence

import cv2
import numpy as np

from defectgen.imaging.windows import BoolArray, FloatArray

_ELASTIC = 1 / 8, 0.05  # smoothness and size of the displacements, as fractions of the window's side
_TURN = 8.0  # degrees, standard deviation: real masks bring their own directions along
_SCALE = 0.25  # standard deviation of the scale's logarithm to base 2
_MIXED = 0.3  # share of the maps that are between two real masks
_TRIES = 8
_LEAST = 0.3  # of the area of a real mask: a map that lost more, at the border or by mixing, is drawn again


def draw_map(rng: np.random.Generator, known: Sequence[BoolArray], border: int = 0) -> BoolArray:
    """A new mask in the manner of the known ones, [S, S]: turned, scaled, bent, and sometimes between two of them.

    Args:
        known: masks of one category, [S, S], not empty.
        border: pixels along the window's edges that stay free.
    """
    first = known[int(rng.integers(len(known)))]
    area = first.sum()
    found = first
    for _ in range(_TRIES):
        mask = between(rng, first, known[int(rng.integers(len(known)))]) if rng.random() < _MIXED else first
        found = _framed(warped(rng, mask), border)
        if found.sum() >= _LEAST * area:
            return found
    return found if found.any() else _framed(first, border)


def warped(rng: np.random.Generator, mask: BoolArray) -> BoolArray:
    """A mask, turned and scaled about its middle and bent by a smooth random field, [S, S]."""
    side = len(mask)
    middle = np.argwhere(mask).mean(axis=0)[::-1]
    angle, scale = math.radians(rng.normal(0, _TURN)), 2 ** rng.normal(0, _SCALE)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    grid = np.indices((side, side), np.float32)[::-1].transpose(1, 2, 0) - middle
    at = grid @ turn.T + middle + _field(rng, side)
    columns, rows = (np.ascontiguousarray(at[..., axis], np.float32) for axis in (0, 1))
    soft = np.asarray(cv2.remap(mask.astype(np.float32), columns, rows, cv2.INTER_LINEAR))
    return soft > 0.45  # a little below one half, so that thin lines stay whole


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


def fitted(mask: BoolArray, area: BoolArray, rng: np.random.Generator) -> BoolArray:
    """A mask moved into an area at a random place, and scaled down if it is larger, [S, S]. Empty if nothing fits."""
    left, top, *room = cv2.boundingRect(area.view(np.uint8))
    x, y, *size = cv2.boundingRect(mask.view(np.uint8))
    if not (area.any() and mask.any()):
        return np.zeros_like(area)
    scale = min(1.0, *(have / need for have, need in zip(room, size, strict=True)))
    width, height = (max(1, int(length * scale)) for length in size)
    piece = mask[y : y + size[1], x : x + size[0]].astype(np.float32)
    piece = np.asarray(cv2.resize(piece, (width, height), interpolation=cv2.INTER_AREA))
    found = np.zeros_like(area)
    row, column = top + int(rng.integers(room[1] - height + 1)), left + int(rng.integers(room[0] - width + 1))
    found[row : row + height, column : column + width] = piece > min(0.4, 0.5 * float(piece.max()))
    return found & area


def to_text(mask: BoolArray) -> str:
    """A mask [S, S] as text, for a model's file."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def from_text(text: str, side: int) -> BoolArray:
    """The inverse of `to_text`, for masks of `side` pixels."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=side * side)
    return bits.reshape(side, side).astype(np.bool_)


def _signed_distance(mask: BoolArray) -> FloatArray:
    inside, outside = (
        cv2.distanceTransform(np.asarray(each, np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for each in (mask, ~mask)
    )
    return np.asarray(inside - outside, np.float32)


def _field(rng: np.random.Generator, side: int) -> FloatArray:
    """Smooth random displacements, [side, side, 2], of some pixels."""
    smooth, size = _ELASTIC[0] * side, _ELASTIC[1] * side
    noise = rng.normal(size=(side, side, 2)).astype(np.float32)
    field = np.asarray(cv2.GaussianBlur(noise, (0, 0), smooth), np.float32)
    return np.asarray(field * (size / max(float(field.std()), 1e-9)), np.float32)


def _framed(mask: BoolArray, border: int) -> BoolArray:
    if border:
        mask = mask.copy()
        mask[:border], mask[-border:], mask[:, :border], mask[:, -border:] = False, False, False, False
    return mask
