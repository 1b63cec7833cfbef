"""Pseudo-pairs: the photograph of a defect, and its twin, in which the defect is repaired.

The defect is covered by a piece of the same photograph, blended in. A twin needs no other photograph and fits to the
pixel, so it shows a network what a defect changes, and what it does not.
"""

import cv2
import numpy as np

from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.poisson import blend
from defectgen.imaging.windows import BoolArray, Box, FloatArray, defect_pieces
from defectgen.seeding import numpy_rng

_MARGIN = 4  # pixels by which a mask is widened, since nobody draws one exactly
_CANDIDATES = 60  # random places, of which the one that fits best is taken
_ACROSS = 0.2  # gray levels of 255 that a pixel aside costs, along and across: surfaces have streaks
_RING = 3  # pixels around the defect that are compared


def repaired(image: DecodedImage, mask: BoolArray) -> Pixels:
    """The photograph without its defects, of the same shape and type. Deterministic.

    A defect for which no piece of the photograph is large enough is inpainted from its surroundings; one that covers
    the whole photograph has none, and stays.

    Args:
        mask: [H, W], the defects.
    """
    wide = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _MARGIN + 1,) * 2, np.uint8)) > 0
    pixels = image.pixels.copy()
    for number, (box, piece) in enumerate(defect_pieces(wide)):
        place = _best_place(image, wide, box, piece, numpy_rng(number, box.x, box.y))
        if place is None:
            pixels = _inpainted(pixels, box, piece)
            continue
        here, there = _slice(box), _slice(Box(*place, box.width, box.height))
        source, target = image.pixels[there].astype(np.float32), image.pixels[here].astype(np.float32)
        around = cv2.dilate(piece.astype(np.uint8), np.ones((2 * _RING + 1,) * 2, np.uint8)) > 0
        ring = around & ~piece
        if ring.any():
            source = source + (target[ring].mean(axis=0) - source[ring].mean(axis=0))
        pixels = blend(source, piece, pixels, at=(box.x, box.y))
    return pixels


def _best_place(
    image: DecodedImage, wide: BoolArray, box: Box, piece: BoolArray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """The corner (x, y) of a flawless piece of the photograph that fits best around a defect; None if there is none."""
    gray = _gray(image)
    unit = 255 / max(float(np.iinfo(image.pixels.dtype).max), 1)
    around = cv2.dilate(piece.astype(np.uint8), np.ones((2 * _RING + 1,) * 2, np.uint8)) > 0
    ring = around & ~piece
    best: tuple[float, tuple[int, int]] | None = None
    for _ in range(_CANDIDATES):
        x, y = int(rng.integers(image.width - box.width + 1)), int(rng.integers(image.height - box.height + 1))
        there = _slice(Box(x, y, box.width, box.height))
        if (wide[there] & around).any():
            continue
        # Along a streak, upright or level, the ground is alike; so the smaller of the two distances counts.
        aside = min(abs(x - box.x), abs(y - box.y))
        misfit = float(np.abs(gray[there] - gray[_slice(box)])[ring].mean()) * unit if ring.any() else 0.0
        if best is None or misfit + _ACROSS * aside < best[0]:
            best = misfit + _ACROSS * aside, (x, y)
    return None if best is None else best[1]


def _gray(image: DecodedImage) -> FloatArray:
    pixels = image.pixels if image.pixels.ndim == 2 else image.pixels[..., : image.channels].mean(axis=2)
    return np.asarray(pixels, np.float32)


def _slice(box: Box) -> tuple[slice, slice]:
    return slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)


def _inpainted(pixels: Pixels, box: Box, piece: BoolArray) -> Pixels:
    """A smooth continuation of the surroundings (Telea 2004), a channel at a time, in any depth."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[_slice(box)] = piece
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    filled = [
        cv2.inpaint(np.ascontiguousarray(plane), mask, 5, cv2.INPAINT_TELEA) for plane in planes.transpose(2, 0, 1)
    ]
    result = pixels.copy()
    result[...] = np.stack(filled, axis=2).reshape(pixels.shape)
    return result
